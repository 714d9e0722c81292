"""The fast data path's programs and maps, as the agent sees them. The other half is dataplane/bpf/fastdp.c.

    Forwarding (the mesh decides) ──apply──▶ config, peers, floods ─┐
                                                                    ├─ the programs read and learn
    status ◀──macs, counters── macs, stats ◀────────────────────────┘
    "which row is missing?" ◀──misses── events

`observe` reads the kernel and nothing else, and `apply` changes what differs from it, so both work just as well on maps
that another process filled. Rows are added before rows are removed: while changes are under way there may be a way too
many, never one too few.

With the agent gone, the device keeps the programs and these keep their maps; the next agent finds them by the device.
"""

import struct
import time
from collections.abc import Collection, Mapping
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

import weavenet.dataplane
from weavenet.address import Address
from weavenet.dataplane.model import MacAddress, Programs, mac_from_bytes, mac_to_bytes
from weavenet.errors import KernelError
from weavenet.identity import SHORT_ID_COUNT, ShortID
from weavenet.linux import tc
from weavenet.linux.bpf import Map, Object, RingBuffer, close_all, maps_of_programs, program_by_number, program_of
from weavenet.overlay.forwarding import Forwarding

HOPS_MAX = 512  # next hops of one origin
SLOTS_MAX = 16  # of special frames; slot 0 is never used
MAC_AGE_NS = 600 * 1_000_000_000

_LOCAL = SHORT_ID_COUNT
_INGRESS, _EGRESS = "weave_ingress", "weave_egress"
_SLEEVE_INGRESS, _SLEEVE_EGRESS = "weave_sleeve_ingress", "weave_sleeve_egress"
_NAMES = frozenset({"config", "peers", "floods", "macs", "special", "stats", "traffic", "events", "misses"})
_FLOOD_MISS = 1

# The structs of fastdp.c, in the byte order of this machine.
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_CONFIG = struct.Struct("=IIII")  # our short ID, indexes of the sleeve port, the VXLAN device and the fast sleeve port
_HOP = struct.Struct("=II")  # short ID, remote
_PLACE = struct.Struct("=QII")  # seen (ns), where, reserved
_SPECIAL = struct.Struct("=II")  # remote, VNI
_TRAFFIC = struct.Struct("=QQQQ")  # packets and bytes sent, received
_EVENT = struct.Struct("=II")  # kind, origin
_FLOOD_BYTES = _U32.size + HOPS_MAX * _HOP.size
_MAC_BYTES = 6


class Counter(IntEnum):
    """What the programs count. The meaning of each is beside `enum counter` in fastdp.c; the order is the same."""

    LEARNT = 0
    UNICAST = 1
    FLOODED = 2
    FLOODED_ON = 3
    FLOOD_COPIES = 4
    RELAYED = 5
    RECEIVED = 6
    DROP_SHORT = 7
    DROP_LINK_LOCAL = 8
    DROP_SPECIAL = 9
    DROP_NO_HOPS = 10
    DROP_NO_TUNNEL_KEY = 11
    DROP_UNKNOWN_SOURCE = 12
    DROP_UNKNOWN_PEER = 13
    DROP_HAIRPIN = 14
    DROP_TTL = 15
    DROP_COPY = 16
    DROP_NO_SLEEVE = 17


class MacEntry(msgspec.Struct, frozen=True, order=True):
    """Where a MAC address was last seen."""

    mac: MacAddress
    place: ShortID | None  # None: behind our own bridge
    age_s: float


class Traffic(msgspec.Struct, frozen=True):
    """What went between a peer's pods and ours. A packet of many segments counts as one, with all its bytes."""

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0


def default_object() -> Path:
    """Return the compiled programs: beside their source in an installed package, else in the checkout's build/."""
    package = Path(weavenet.dataplane.__file__).parent
    installed = package / "bpf" / "fastdp.o"
    return installed if installed.exists() else package.parents[2] / "build" / "fastdp.o"


class _Config(NamedTuple):
    ours: int
    port: int
    vxlan: int
    fast_port: int


class FastdpMaps:
    """The loaded programs and their maps."""

    def __init__(self, loaded: Object) -> None:
        """Take over an object; `open` makes one."""
        missing = _NAMES - loaded.maps.keys()
        if missing:
            raise KernelError(
                f"the eBPF object has no map {min(missing)}; it was not made from fastdp.c of this version"
            )
        self._object = loaded
        self._events = RingBuffer(loaded.maps["events"])
        # Programs of the same instructions on other maps would not be ours, so the maps are a part of the name.
        self.programs = Programs(
            ingress=program_of(loaded.programs[_INGRESS]).fingerprint,
            egress=program_of(loaded.programs[_EGRESS]).fingerprint,
        )

    @classmethod
    def open(cls, ifindex: int | None = None, path: Path | None = None) -> Self:
        """Load the programs; with the maps, and all they hold, of those that are on a device already.

        The device is looked for in the network namespace of the calling thread. Takes some 25 ms, most of which the
        verifier needs. Raises KernelError.
        """
        in_place = [] if ifindex is None else [tc.attached(ifindex, way) for way in tc.Direction]
        existing = maps_of_programs(number for number in in_place if number is not None)
        try:
            loaded = Object(path or default_object(), existing)
        finally:
            close_all(existing)
        try:
            return cls(loaded)
        except BaseException:
            loaded.close()
            raise

    def close(self) -> None:
        """Let go of everything; attached programs stay and work on, with their maps. May be called twice."""
        self._events.close()
        self._object.close()

    # --- programs on a device -----------------------------------------------------------------------------------------

    def attach(self, ifindex: int) -> None:
        """Put both programs on the VXLAN device, replacing former ones without losing a packet; twice is once.

        The device is looked for in the network namespace of the calling thread.
        """
        names = {tc.Direction.INGRESS: _INGRESS, tc.Direction.EGRESS: _EGRESS}
        tc.attach(ifindex, {way: (name, self._object.programs[name]) for way, name in names.items()})

    def attach_sleeve(self, port: int, fast_port: int, vxlan: int) -> None:
        """Have peers that are reached by sleeve reached by one of two devices, after its format.

        What comes by these is received as by the VXLAN device. All are interface indexes in the network namespace of
        the calling thread. Twice is once.
        """
        names = {tc.Direction.INGRESS: _SLEEVE_INGRESS, tc.Direction.EGRESS: _SLEEVE_EGRESS}
        for one in (port, fast_port):
            tc.attach(one, {way: (name, self._object.programs[name]) for way, name in names.items()})
        self._write_config(self._config()._replace(port=port, fast_port=fast_port, vxlan=vxlan))

    # --- what the mesh decides ----------------------------------------------------------------------------------------

    def observe(self) -> Forwarding:
        """Read what the maps hold. In maps just made that is short ID 0 and nothing else, not even a row for it."""
        return Forwarding(
            ours=ShortID(self._config().ours),
            peers={ShortID(short_id): Address(remote) for short_id, remote in self._peers() if remote},
            floods=dict(sorted(_read_flood(key, value) for key, value in self._map("floods").items())),
        )

    def apply(self, desired: Forwarding, current: Forwarding | None = None) -> int:
        """Make the maps hold this; return how many entries had to be changed.

        `current` is what `observe` said just now, for who has asked: 4096 look-ups are the dearest part of all this.
        Raises KernelError; for a row with more next hops than fit, before anything is changed.
        """
        rows = {_U32.pack(origin): _write_flood(origin, hops) for origin, hops in desired.floods.items()}
        current = current or self.observe()
        peers = {
            _U32.pack(short_id): _U32.pack(remote)
            for short_id, remote in sorted(desired.peers.items())
            if current.peers.get(short_id) != remote
        }
        floods = {
            _U32.pack(origin): rows[_U32.pack(origin)]
            for origin, hops in sorted(desired.floods.items())
            if current.floods.get(origin) != hops
        }
        stale_peers = sorted(current.peers.keys() - desired.peers.keys())
        stale_floods = sorted(current.floods.keys() - desired.floods.keys())
        self._map("peers").update_all(peers)
        self._map("floods").update_all(floods)
        if current.ours != desired.ours:
            self._write_config(self._config()._replace(ours=desired.ours))
        self._map("floods").delete_all(_U32.pack(origin) for origin in stale_floods)
        self._map("peers").update_all({_U32.pack(short_id): _U32.pack(0) for short_id in stale_peers})
        changed = len(peers) + len(floods) + len(stale_floods) + len(stale_peers)
        return changed + (current.ours != desired.ours)

    def set_special(self, slot: int, remote: Address, vni: int) -> None:
        """Say where the next frame sent with this mark goes. Slots go from 1 to SLOTS_MAX - 1."""
        assert 1 <= slot < SLOTS_MAX
        self._map("special").update(_U32.pack(slot), _SPECIAL.pack(remote, vni))

    # --- what the traffic taught --------------------------------------------------------------------------------------

    def macs(self) -> list[MacEntry]:
        """Return the MAC table, ascending; what is too old to be used is left out."""
        now_ns = time.monotonic_ns()  # the clock of bpf_ktime_get_ns
        entries = []
        for key, value in self._map("macs").items():
            seen_ns, where, _reserved = _PLACE.unpack(value)
            age_ns = max(0, now_ns - seen_ns)
            if age_ns <= MAC_AGE_NS:
                place = None if where == _LOCAL else ShortID(where)
                entries.append(MacEntry(mac_from_bytes(key[:_MAC_BYTES]), place, age_ns / 1e9))
        return sorted(entries, key=lambda entry: entry.mac)

    def forget_peers(self, short_ids: Collection[ShortID]) -> int:
        """Remove the MAC addresses at these peers; return how many. For short IDs that now stand for somebody else.

        Without this their frames would go to the new owner of the short ID until they are seen elsewhere.
        """
        wanted = frozenset(short_ids)
        stale = [key for key, value in self._map("macs").items() if _PLACE.unpack(value)[1] in wanted]
        return self._map("macs").delete_all(stale)

    def forget_mac(self, mac: MacAddress) -> bool:
        """Remove one MAC address, that of a pod just deleted; False if it was not known."""
        return self._map("macs").delete(mac_to_bytes(mac) + bytes(2))

    def expire_macs(self) -> int:
        """Remove what is too old; return how many. The programs do not use it anyway: this is for memory only."""
        now_ns = time.monotonic_ns()
        stale = [key for key, value in self._map("macs").items() if now_ns - _PLACE.unpack(value)[0] > MAC_AGE_NS]
        return self._map("macs").delete_all(stale)

    def counters(self) -> Mapping[Counter, int]:
        """Return the counters, summed over all CPUs, since the maps were made."""
        cells = {int(_U32.unpack(key)[0]): value for key, value in self._per_cpu("stats")}
        return {
            which: sum(_U64.unpack_from(cells[which], at)[0] for at in range(0, len(cells[which]), _U64.size))
            for which in Counter
        }

    def traffic(self, short_ids: Collection[ShortID]) -> Mapping[ShortID, Traffic]:
        """Return what went to and came from these peers, summed over all CPUs."""
        found: dict[ShortID, Traffic] = {}
        for short_id in short_ids:
            cell = self._map("traffic").lookup(_U32.pack(short_id)) or b""
            rows = _TRAFFIC.iter_unpack(cell)
            found[short_id] = Traffic(*map(sum, zip(*rows, strict=True)))
        return found

    def forget_traffic(self, short_ids: Collection[ShortID]) -> None:
        """Count from zero for these short IDs, which may stand for others from now on."""
        source = self._map("traffic")
        for short_id in short_ids:
            source.update(_U32.pack(short_id), bytes(source.value_bytes))

    # --- events -------------------------------------------------------------------------------------------------------

    def events_fileno(self) -> int:
        """Return a descriptor that is readable when there is an event."""
        return self._events.fileno()

    def misses(self) -> list[ShortID]:
        """Take the origins whose broadcasts came while their flood row was missing; each is named once, ascending."""
        origins = set()
        for record in self._events.read():
            kind, origin = _EVENT.unpack_from(record)
            if kind == _FLOOD_MISS and origin < SHORT_ID_COUNT:
                origins.add(ShortID(origin))
        return sorted(origins)

    def _config(self) -> _Config:
        value = self._map("config").lookup(_U32.pack(0))
        assert value is not None, "an array has all its elements"
        return _Config(*_CONFIG.unpack(value))

    def _write_config(self, config: _Config) -> None:
        self._map("config").update(_U32.pack(0), _CONFIG.pack(*config))

    def _map(self, name: str) -> Map:
        return self._object.maps[name]

    def _peers(self) -> list[tuple[int, int]]:
        return [(_U32.unpack(key)[0], _U32.unpack(value)[0]) for key, value in self._map("peers").items()]

    def _per_cpu(self, name: str) -> list[tuple[bytes, bytes]]:
        source = self._map(name)
        found = ((_U32.pack(index), source.lookup(_U32.pack(index))) for index in range(source.shape.max_entries))
        return [(key, value) for key, value in found if value is not None]


def attached(ifindex: int) -> Programs:
    """Say which programs are on a device, in the same terms as `FastdpMaps.programs`; blank for none.

    The device is looked for in the network namespace of the calling thread.
    """
    return Programs(
        ingress=_fingerprint(ifindex, tc.Direction.INGRESS),
        egress=_fingerprint(ifindex, tc.Direction.EGRESS),
    )


def _fingerprint(ifindex: int, direction: tc.Direction) -> str:
    number = tc.attached(ifindex, direction)
    program = program_by_number(number) if number is not None else None
    return program.fingerprint if program is not None else ""


def _write_flood(origin: ShortID, hops: tuple[tuple[ShortID, Address], ...]) -> bytes:
    if len(hops) > HOPS_MAX:
        raise KernelError(
            f"cannot flood frames of short ID {origin} to {len(hops)} next hops: there is room for {HOPS_MAX}; "
            "allow fewer connections per peer (--conn-limit)"
        )
    row = _U32.pack(len(hops)) + b"".join(_HOP.pack(short_id, remote) for short_id, remote in hops)
    return row.ljust(_FLOOD_BYTES, b"\0")


def _read_flood(key: bytes, value: bytes) -> tuple[ShortID, tuple[tuple[ShortID, Address], ...]]:
    count = min(_U32.unpack_from(value)[0], HOPS_MAX)
    raw = value[_U32.size : _U32.size + count * _HOP.size]
    return ShortID(_U32.unpack(key)[0]), tuple(
        (ShortID(short), Address(remote)) for short, remote in _HOP.iter_unpack(raw)
    )
