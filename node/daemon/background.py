"""Work beside the rounds, and what a group of errors comes down to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

from peer.errors import PeerpoiseError


@contextlib.asynccontextmanager
async def background(*work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs the work beside the block; its failure is the block's failure, its end comes with the
    block's.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a group of errors comes down to: ours if there is one, with its sentence and exit code;
    else the first.
    """
    leaves = [
        root_cause(it) if isinstance(it, BaseExceptionGroup) else it for it in group.exceptions
    ]
    return next((error for error in leaves if isinstance(error, PeerpoiseError)), leaves[0])
