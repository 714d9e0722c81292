"""The first two packets of SCTP by raw sockets, as a kernel may lack SCTP: INIT, and the INIT ACK that it gets back.

    sctp.py serve PORT            answer every INIT for that port, for ever
    sctp.py ask ADDRESS PORT      send an INIT, and say from which address and port its answer came

Connection tracking translates them as it does with those of a whole SCTP. Source: RFC 9260, sections 3 and 6.8.
"""

import socket
import struct
import sys

INIT, INIT_ACK = 1, 2
HEADER = struct.Struct("!HHI")  # source port, destination port, verification tag; then the checksum
CHUNK = struct.Struct("!BBHIIHHI")  # kind, flags, length, initiate tag, window, streams out and in, first number
OWN_PORT, TIMEOUT_S = 40_000, 1.0
ANSWERS_TAG, ASKERS_TAG = 0x22222222, 0x11111111


def crc32c(data: bytes) -> int:
    """Return the checksum that SCTP has (Castagnoli), bit by bit."""
    value = 0xFFFFFFFF
    for octet in data:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def packet(source: int, destination: int, tag: int, kind: int, initiate_tag: int) -> bytes:
    """Make a packet of one chunk."""
    header = HEADER.pack(source, destination, tag)
    chunk = CHUNK.pack(kind, 0, CHUNK.size, initiate_tag, 65_536, 1, 1, 1)
    return header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk


def receive(raw: socket.socket, port: int, kind: int) -> tuple[str, int, int]:
    """Wait for a chunk of that kind to a port, and return from where it came, and its initiate tag."""
    while True:
        received, (address, _) = raw.recvfrom(2048)
        payload = received[(received[0] & 0x0F) * 4 :]
        if len(payload) < HEADER.size + 4 + CHUNK.size:
            continue
        source, destination, _ = HEADER.unpack_from(payload)
        found, _, _, initiate_tag, *_ = CHUNK.unpack_from(payload, HEADER.size + 4)
        without = payload[: HEADER.size] + bytes(4) + payload[HEADER.size + 4 :]
        intact = struct.pack("<I", crc32c(without)) == payload[HEADER.size : HEADER.size + 4]
        if (destination, found, intact) == (port, kind, True):
            return address, source, initiate_tag


def main() -> None:
    """Do one of the two."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    if sys.argv[1] == "serve":
        port = int(sys.argv[2])
        while True:
            address, source, tag = receive(raw, port, INIT)
            raw.sendto(packet(port, source, tag, INIT_ACK, ANSWERS_TAG), (address, 0))
    raw.settimeout(TIMEOUT_S)
    raw.sendto(packet(OWN_PORT, int(sys.argv[3]), 0, INIT, ASKERS_TAG), (sys.argv[2], 0))
    try:
        address, source, _ = receive(raw, OWN_PORT, INIT_ACK)
    except TimeoutError:
        sys.exit("no answer")
    print(address, source)  # noqa: T201 - this is what it is run for


if __name__ == "__main__":
    main()
