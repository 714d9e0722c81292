"""A peer that understands the fast format: its keys, and the datagrams that are on their way to it.

Datagrams to one peer that are of one length, but for a shorter last one, leave in one call of the kernel, whose buffers
are gathered here: the payload of a large packet is not copied before the kernel does it.
"""

from typing import TYPE_CHECKING

import msgspec

from weavenet.address import Endpoint
from weavenet.codec.ip import ETHERNET_HEADER_BYTES
from weavenet.effects import ConnectionNumber
from weavenet.overlay.sleeve.fast_wire import COUNTER_BYTES, LABEL_BYTES, RECORD, TAG_BYTES
from weavenet.overlay.sleeve.table import SleeveConnection
from weavenet.overlay.sleeve.wire import DATAGRAM_BYTES_MAX

if TYPE_CHECKING:
    from weavenet.overlay.sleeve.fast_crypto import FastOpener, FastSealer

DATAGRAMS_PER_CALL_MAX = 64  # UDP_MAX_SEGMENTS of <linux/udp.h> until 6.9

Buffer = bytes | memoryview


class FastSend(msgspec.Struct):
    """Datagrams for one call of the kernel: all of `segment_bytes`, but the last, which may be shorter."""

    connection: ConnectionNumber
    remote: Endpoint
    segment_bytes: int
    buffers: list[Buffer]
    total_bytes: int
    count: int
    is_closed: bool = False


class FastPeer:
    """A connection with a peer that understands the fast format, and what belongs to its life."""

    __slots__ = ("_openers", "_sealers", "known", "label", "openers", "parts", "parts_bytes", "room", "sealer", "send")

    def __init__(self, known: SleeveConnection, label: bytes) -> None:
        """Count from the start; `label` is what its datagrams begin with."""
        self.label = label
        self.parts: list[Buffer] = []  # records that wait for the end of a datagram
        self.parts_bytes = 0
        self.send: FastSend | None = None
        self.sealer: FastSealer | None = None
        self.openers: list[FastOpener] = []  # the one that opened the last datagram is the first
        # All that there were, as a key that comes back must count on.
        self._sealers: dict[bytes, FastSealer] = {}
        self._openers: dict[bytes, FastOpener] = {}
        self.apply(known)

    def apply(self, known: SleeveConnection) -> None:
        """Go by what is known now."""
        self.known = known
        overhead = LABEL_BYTES if known.key is None else LABEL_BYTES + COUNTER_BYTES + TAG_BYTES
        # While the path is being searched, what is known of it is the candidate.
        largest = overhead + RECORD.size + ETHERNET_HEADER_BYTES + known.mtu_bytes
        self.room = min(known.payload_bytes_max, largest, DATAGRAM_BYTES_MAX) - overhead
        self.sealer = None
        self.openers = []
        if known.key is not None:
            self._apply_keys(known.key, known.opening, is_dialled=known.dialled)

    def _apply_keys(self, sealing: bytes, opening: tuple[bytes, ...], *, is_dialled: bool) -> None:
        # 7 MB and 15 ms that only an encrypted mesh needs.
        from weavenet.overlay.sleeve.fast_crypto import FastOpener, FastSealer  # noqa: PLC0415

        if sealing not in self._sealers:
            self._sealers[sealing] = FastSealer(sealing, dialled=is_dialled)
        for key in opening:
            if key not in self._openers:
                self._openers[key] = FastOpener(key, dialled=is_dialled)
        self.sealer = self._sealers[sealing]
        self.openers = [self._openers[key] for key in opening]

    def open(self, sealed: memoryview) -> bytes | None:
        """Do as FastOpener.open, with whichever key it is."""
        for index, opener in enumerate(self.openers):
            records = opener.open(sealed)
            if records is not None:
                if index:
                    self.openers.insert(0, self.openers.pop(index))
                return records
        return None

    def flush(self, sends: list[FastSend]) -> None:
        """End the datagram of small frames that is being filled."""
        if not self.parts:
            return
        if self.sealer is None:
            payload = b"".join((self.label, *self.parts))
        else:
            payload = self.label + self.sealer.seal(b"".join(self.parts))
        self.parts.clear()
        self.parts_bytes = 0
        self.emit((payload,), len(payload), sends)

    def emit(self, buffers: tuple[Buffer, ...], size: int, sends: list[FastSend]) -> None:
        """Let a datagram leave, with those before it if it can."""
        send = self.send
        if (
            send is None
            or send.is_closed
            or size > send.segment_bytes
            or send.total_bytes + size > DATAGRAM_BYTES_MAX
            or send.count >= DATAGRAMS_PER_CALL_MAX
        ):
            assert self.known.remote is not None
            self.send = send = FastSend(self.known.number, self.known.remote, size, [], 0, 0)
            sends.append(send)
        send.buffers += buffers
        send.total_bytes += size
        send.count += 1
        send.is_closed = size < send.segment_bytes
