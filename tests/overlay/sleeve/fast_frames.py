"""Packets as a pod's TCP hands them over: one header, much payload, a checksum that is open."""

import struct
from dataclasses import dataclass

from weavenet.codec.ip import checksum

MACS = bytes.fromhex("020000000022020000000011")
SOURCE, TARGET = bytes((10, 32, 0, 1)), bytes((10, 44, 0, 2))
SOURCE6, TARGET6 = bytes(range(16)), bytes(range(16, 32))


@dataclass(frozen=True)
class Packet:
    frame: bytes
    network_at: int
    transport_at: int
    header_bytes: int


def ipv4_tcp(
    payload: bytes,
    *,
    flags: int = 0x10,
    options: int = 12,
    sequence: int = 1,
    identification: int = 1,
    vlan: int | None = None,
    dont_fragment: bool = True,
) -> Packet:
    length = 20 + options + len(payload)
    header = bytearray(
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, identification, 0x4000 * dont_fragment, 64, 6, 0)
        + SOURCE
        + TARGET
    )
    struct.pack_into("!H", header, 10, checksum(header))
    ethernet = MACS + (b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)) + b"\x08\x00"
    pseudo = SOURCE + TARGET + struct.pack("!HH", 6, length)
    return _packet(ethernet, bytes(header), pseudo, payload, flags=flags, options=options, sequence=sequence)


def ipv6_tcp(
    payload: bytes, *, flags: int = 0x10, options: int = 12, sequence: int = 1, identification: int = 0
) -> Packet:
    del identification  # IPv6 has none
    length = 20 + options + len(payload)
    header = struct.pack("!IHBB", 6 << 28, length, 6, 64) + SOURCE6 + TARGET6
    pseudo = SOURCE6 + TARGET6 + struct.pack("!IHH", length, 0, 6)
    return _packet(MACS + b"\x86\xdd", header, pseudo, payload, flags=flags, options=options, sequence=sequence)


def _packet(
    ethernet: bytes, header: bytes, pseudo: bytes, payload: bytes, *, flags: int, options: int, sequence: int
) -> Packet:
    open_checksum = 0xFFFF - checksum(pseudo)  # what the kernel leaves there: the sum, not its complement
    offset = (20 + options) // 4 << 4
    tcp = struct.pack("!HHIIBBHHH", 1234, 5201, sequence, 7, offset, flags, 512, open_checksum, 0) + b"\x01" * options
    at = len(ethernet)
    transport_at = at + len(header)
    return Packet(ethernet + header + tcp + payload, at, transport_at, transport_at + len(tcp))


def tcp_checksum_is_right(frame: bytes, packet: Packet) -> bool:
    segment = frame[packet.transport_at :]
    if frame[packet.network_at] >> 4 == 4:
        pseudo = SOURCE + TARGET + struct.pack("!HH", 6, len(segment))
    else:
        pseudo = SOURCE6 + TARGET6 + struct.pack("!IHH", len(segment), 0, 6)
    return checksum(pseudo + segment) in {0, 0xFFFF}
