"""What a node learns and how, on top of `peer`.

What torch reads from the environment when it is first used is set here, before anything imports it.

Bits of a product may depend on where in memory its operands are: MKL picks another kernel for them
on some processors (AMD's). The same run would then end differently each time, and a record's
gradient would depend on the records beside it. MKL_CBWR=AUTO forbids that. It costs nothing
that was measured.

A model's vector is hundreds of megabytes, and new memory comes in pages of 4 KiB. With
THP_MEM_ALLOC_ENABLE torch asks for pages of 2 MiB where Linux has them: a copy of 135 million
parameters then took a third of the time (0.07 s for 0.21, with 1 and 0 before this):

    python -m timeit -s "import torch; x = torch.ones(135_000_000)" "x.clone()"

Tensors of some megabytes, of many sizes, may take more memory for it.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
