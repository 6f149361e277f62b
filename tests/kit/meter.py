"""Counts the bytes of the tensors that live, as they are made: storages, not tensors, so that a
view costs nothing.
"""

import threading

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter:
    """`peak`: most bytes that lived at once, of what was made in the threads where one of its
    `counting()` is on.
    """

    def __init__(self):
        self.peak, self._live, self._lock = 0, {}, threading.Lock()

    def counting(self):
        return _Counting(self)

    def _see(self, arguments, made):
        with self._lock:
            known = {_key(it) for it in tree_leaves(arguments) if isinstance(it, Tensor)}
            self._live = {key: it for key, it in self._live.items() if not it[0].expired()}
            for it in tree_leaves(made):
                if isinstance(it, Tensor) and not it.is_meta and _key(it) not in known:
                    storage = it.untyped_storage()
                    self._live[_key(it)] = (StorageWeakRef(storage), storage.nbytes())
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))


class _Counting(TorchDispatchMode):
    def __init__(self, meter):
        super().__init__()
        self._meter = meter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self._meter._see((args, kwargs), made)
        return made


def _key(it):
    return it.untyped_storage()._cdata
