"""The shell around the node: inputs in, one outbox out, one timer, and the requests that wait for an answer.

An input is handled at once, in the event loop; its effects go to the end of the outbox. The outbox is performed in
order and stops at a `Persist` until the store's thread says it is on disk. What came after it waits: that order *is*
the durability rule. Changes of several inputs that wait together are written in one transaction, which only makes later
ones durable early; so twenty pods starting at once cost a few commits, not twenty.

A failed write ends the process. The data plane goes on without it, and the next start reads what really is on disk.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol, assert_never

from weavenet.address import Endpoint
from weavenet.effects import (
    Cancelled,
    CloseTcp,
    ConnectionNumber,
    Dial,
    Done,
    Effect,
    Level,
    Note,
    Now,
    Outcome,
    Persist,
    PutValue,
    Reconcile,
    Reply,
    RequestNumber,
    SendSleeveFrame,
    SendSpecialFrame,
    SendTcp,
    StoreChange,
)
from weavenet.errors import StoreError
from weavenet.ipam.restore import KEY_RING
from weavenet.node import inputs as i
from weavenet.node.node import Node

STORE_TIMEOUT_S = 30.0
OUTBOX_MAX = 200_000

_LEVELS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}


class TcpActions(Protocol):
    """What the outbox asks of the TCP driver."""

    def dial(self, connection: ConnectionNumber, remote: Endpoint) -> None:
        """Start dialling."""
        ...

    def send(self, connection: ConnectionNumber, data: bytes) -> None:
        """Write."""
        ...

    def close(self, connection: ConnectionNumber) -> None:
        """Reset."""
        ...


class StoreActions(Protocol):
    """What the outbox asks of the store, in its thread."""

    def apply(self, changes: tuple[StoreChange, ...]) -> None:
        """Make changes durable as one transaction."""
        ...


class NodeLoop:
    """Drives one node in the running event loop."""

    def __init__(
        self,
        node: Node,
        read_clock: Callable[[], Now],
        store: StoreActions,
        store_thread: Executor,
        log: logging.Logger,
    ) -> None:
        """Wire everything but the drivers, which need `feed` and so come second."""
        self.node = node
        self.reconcile_wanted = asyncio.Event()
        self.sleeve_wanted = asyncio.Event()
        self.send_special_frame: Callable[[SendSpecialFrame], None] = lambda _: None
        self.send_sleeve_frame: Callable[[SendSleeveFrame], None] = lambda _: None
        self.ring_changed: Callable[[], None] = lambda: None  # called when a new ring is on disk
        self.tcp: TcpActions | None = None
        self._read_clock = read_clock
        self._store = store
        self._store_thread = store_thread
        self._log = log
        self._outbox: deque[Effect] = deque()
        self._outbox_filled = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None
        self._next_request = 1
        self._waiting: dict[RequestNumber, asyncio.Future[Outcome]] = {}

    def feed(self, happened: i.Input) -> None:
        """Handle one input now."""
        self.take(self.node.handle(happened, self._read_clock()))

    def take(self, effects: list[Effect]) -> None:
        """Append effects to the outbox and re-arm the timer."""
        if effects:
            self._outbox.extend(effects)
            assert len(self._outbox) < OUTBOX_MAX, "the store is far behind; better to restart than to swell"
            self._outbox_filled.set()
        self._rearm()

    async def request(self, make: Callable[[RequestNumber], i.Request], timeout_s: float) -> Outcome:
        """Feed a request and wait for its Reply. Giving up, by timeout or cancellation, cancels it in the core, too."""
        number = self._number()
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self.feed(make(number))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return Cancelled()
        finally:
            if self._waiting.pop(number, None) is not None:
                self.feed(i.Cancel(number))

    async def catch_up(self, timeout_s: float) -> Outcome:
        """Wait until all that was decided up to now is on disk and said: Done, or Cancelled if it takes too long."""
        number = self._number()
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self.take([Reply(number, Done())])
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return Cancelled()
        finally:
            self._waiting.pop(number, None)

    def tell(self, make: Callable[[RequestNumber], i.IpamInput]) -> None:
        """Feed a request whose answer nobody waits for."""
        self.feed(make(self._number()))

    async def run(self) -> None:
        """Perform the outbox until cancelled. Raises StoreError when the disk fails us."""
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                if isinstance(self._outbox[0], Persist):
                    await self._persist_waiting()
                else:
                    self._perform(self._outbox.popleft())

    async def _persist_waiting(self) -> None:
        # Everything that waits to be written goes in one commit; their places in the outbox stay, as nothing.
        changes: list[StoreChange] = []
        kept: deque[Effect] = deque()
        for effect in self._outbox:
            if isinstance(effect, Persist):
                changes.extend(effect.changes)
            else:
                kept.append(effect)
        # Inputs handled while we wait append behind `kept`; what they persist is written in the next round.
        self._outbox.clear()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await loop.run_in_executor(self._store_thread, self._store.apply, tuple(changes))
        except TimeoutError as error:
            text = f"the disk did not take {len(changes)} changes within {STORE_TIMEOUT_S:.0f} s; see what holds it up"
            raise StoreError(text) from error
        if any(isinstance(change, PutValue) and change.key == KEY_RING for change in changes):
            self.ring_changed()
        for effect in kept:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendTcp(connection, data):
                self._tcp.send(connection, data)
            case Dial(connection, remote):
                self._tcp.dial(connection, remote)
            case CloseTcp(connection):
                self._tcp.close(connection)
            case SendSpecialFrame():
                self.send_special_frame(effect)
            case SendSleeveFrame():
                self.send_sleeve_frame(effect)
            case Reconcile():
                self.reconcile_wanted.set()
                self.sleeve_wanted.set()
            case Note(level, text):
                self._log.log(_LEVELS[level], "%s", text)
            case Reply(request, outcome):
                answer = self._waiting.pop(request, None)
                if answer is not None and not answer.done():
                    answer.set_result(outcome)
            case Persist():
                raise AssertionError("Persist is performed by _persist_waiting")
            case _:
                assert_never(effect)

    def _number(self) -> RequestNumber:
        number = RequestNumber(self._next_request)
        self._next_request += 1
        return number

    @property
    def _tcp(self) -> TcpActions:
        assert self.tcp is not None, "the TCP driver is wired before the first input"
        return self.tcp

    def _rearm(self) -> None:
        due = self.node.next_deadline()
        if due == self._timer_due and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due = due
        if due is not None:
            delay_s = max(0.0, due - self._read_clock().monotonic_s)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.feed(i.TimerFired())
