"""A world that counts: what its nodes send, how long they compute, and what they hold in memory.

It keeps no trace, which would take longer than many a node's own work. Processor time is the process's, the simulator's
own included: asking for it around each input would take longer than the input does.
"""

import gc
import sys
from collections.abc import Iterable
from time import process_time
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import msgspec

from weavenet.effects import Effect, SendTcp
from weavenet.node import inputs as i
from weavenet.node.node import Node
from weavenet.sim.host import Host
from weavenet.sim.world import World

# What is the program's and not a node's.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType)


class Count(msgspec.Struct, frozen=True):
    """What all nodes have done so far, together. Messages and bytes are TCP's, as written by the nodes."""

    messages: int = 0
    sent_bytes: int = 0
    cpu_s: float = 0.0

    def since(self, before: "Count") -> "Count":
        """Return what was done between then and this."""
        return Count(self.messages - before.messages, self.sent_bytes - before.sent_bytes, self.cpu_s - before.cpu_s)


class MeteredWorld(World):
    """The world, with meters."""

    _messages = 0
    _sent_bytes = 0

    def count(self) -> Count:
        """Return what all nodes have done so far."""
        return Count(self._messages, self._sent_bytes, process_time())

    def _handle(self, host: Host, node: Node, happened: i.Input) -> list[Effect]:
        return node.handle(happened, self.now(host))

    def _send(self, host: Host, send: SendTcp) -> None:
        self._messages += 1
        self._sent_bytes += len(send.data)
        super()._send(host, send)

    def _trace_effect(self, host: Host, effect: Effect) -> None:
        pass

    def _note(self, text: str) -> None:
        pass


def held_bytes(roots: Iterable[Node]) -> int:
    """Return how much memory objects take with all that they refer to, each counted once, and code not at all."""
    waiting: list[object] = list(roots)
    seen: set[int] = set()
    total_bytes = 0
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total_bytes += sys.getsizeof(each)
        waiting += gc.get_referents(each)
    return total_bytes
