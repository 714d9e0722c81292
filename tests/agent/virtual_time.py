"""An event loop whose clock jumps to the next timer instead of waiting, and executors that run when they are told to.

Nothing here takes time: a test of a minute's back-off takes as long as its callbacks do. Once nothing is left to run
and nothing to wait for, a run ends with an error rather than hanging.
"""

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import TypeVar

from weavenet.effects import Now

T = TypeVar("T")

WALL_S = 1_795_000_000.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time passes only while everybody waits for it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now_s

    async def getaddrinfo(self, host, port, **hints):
        # A name would be asked for over the network; an address is only read.
        return socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, **hints)


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if ready:
            return ready
        assert timeout is not None, "everybody waits for something that will not come"
        self._loop.now_s += max(0.0, timeout)
        return []


def run(work: Coroutine[None, None, T]) -> T:
    """Run a test in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


def read_clock() -> Now:
    """Read the running loop's clock, as drivers/clock.py would."""
    now_s = asyncio.get_running_loop().time()
    return Now(now_s, WALL_S + now_s)


async def settle() -> None:
    """Let everything run that can without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)


class HeldExecutor(Executor):
    """A thread that is slow to begin: work lies here until `run_next`; `is_open` makes it prompt instead."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self._waiting: deque[tuple[Future, Callable[[], object]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        if self.is_open:
            self.run_next()
        return future

    def run_next(self) -> None:
        """Do what was handed in first."""
        future, work = self._waiting.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - as a thread pool does
            future.set_exception(error)
        else:
            future.set_result(result)
