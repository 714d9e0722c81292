"""Special frames, fastdp's heartbeats: frames without MAC addresses that prove that a path carries full-size frames.

They must travel exactly as pod traffic does, so they leave by the same VXLAN device. The sender writes the frame to a
packet socket on the device, marked with a slot of the `special` map, where it has just put VNI and remote address; the
egress program sees the zero addresses and the mark, and sets the tunnel key from there.

They do not come in the same way: a kernel with "vxlan: drop frames with a zero source address" (6.9 and the stable
series of that time; drivers/net/vxlan/vxlan_core.c, vxlan_set_mac) lets none of them through to the device. So the
receiver listens a layer below, on a packet socket for IPv4, where a classic BPF filter lets pass only UDP to the VXLAN
port with twelve zero bytes where the inner MAC addresses are:

    0              20 (ihl*4)  28          36                        50
    ├─ IPv4 ───────┼─ UDP ─────┼─ VXLAN ───┼─ MACs (12), type (2) ───┼─ connection UID, length, zeros …
                                │08 flags    └ all zero
                                └ 24 bits of VNI at 32

Fragments are no candidates (special frames are sent with DF), nor packets to other hosts. The UDP checksum is not
looked at: a heartbeat has to match the UID of its connection and its own length anyway.

With ESP the outer packet does not pass by a packet socket again after decryption (net/ipv4/xfrm4_input.c), so an
encrypted overlay will need another way to hear heartbeats.
"""

import ctypes
import errno
import socket
import struct
from typing import Protocol

import msgspec

from weavenet.address import Address
from weavenet.errors import KernelError

HEAD_BYTES = 32  # of a frame are handed on: the longest field that matters ends at 24

_SO_ATTACH_FILTER = 26
_ETH_P_IP = 0x0800
_UDP = 17
_MAC_PAIR_BYTES = 12
_IPV4_BYTES_MIN, _UDP_BYTES, _VXLAN_BYTES = 20, 8, 8
_VNI_VALID = 0x08
_FRAGMENT_MASK = 0x3FFF  # more fragments, and the offset
_READ_BYTES = 60 + _UDP_BYTES + _VXLAN_BYTES + HEAD_BYTES
_FRAMES_MAX = 64  # taken in one go, so that a storm of them cannot hold the loop
_SEND_SLOT = 1


class SpecialSlots(Protocol):
    """What the sender needs of the maps."""

    def set_special(self, slot: int, remote: Address, vni: int) -> None:
        """Say where the next frame sent with this mark goes."""
        ...


class SpecialFrame(msgspec.Struct, frozen=True):
    """A special frame as it came."""

    vni: int
    remote: Address  # outer source
    length: int  # of the inner frame, in bytes
    head: bytes  # its first HEAD_BYTES


class SpecialSender:
    """Sends special frames through a VXLAN device."""

    def __init__(self, slots: SpecialSlots, device: str, slot: int = _SEND_SLOT) -> None:
        """Open the socket in the network namespace of the calling thread. One sender per slot."""
        self._slots = slots
        self._device = device
        self._slot = slot
        try:
            # Protocol 0: this socket never receives. Not bound: the device may be made anew under the same name.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.settimeout(0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, slot)
        except OSError as error:
            raise KernelError(f"cannot open a packet socket: {error.strerror}") from error

    def send(self, remote: Address, vni: int, frame: bytes) -> None:
        """Send one frame. Raises KernelError; the caller may carry on, as a heartbeat may be lost anyway."""
        assert not any(frame[:_MAC_PAIR_BYTES]), "only special frames go this way"
        # The device has no queue: the egress program has run, and read the slot, when sendto returns.
        self._slots.set_special(self._slot, remote, vni)
        try:
            self._socket.sendto(frame, (self._device, 0))
        except OSError as error:
            reason = "the frame is longer than the device allows" if error.errno == errno.EMSGSIZE else error.strerror
            raise KernelError(f"cannot send {len(frame)} bytes through {self._device}: {reason}") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SpecialReceiver:
    """Receives special frames that arrive for one UDP port, on whatever device."""

    def __init__(self, port: int) -> None:
        """Open the socket in the network namespace of the calling thread."""
        self._port = port
        try:
            # Until the filter is on, anything may arrive; `receive` sorts that out, too.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
            self._socket.settimeout(0)
            program = filter_program(port)
            memory = ctypes.create_string_buffer(program, len(program))
            pointer = struct.pack("HP", len(program) // _INSTRUCTION.size, ctypes.addressof(memory))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
        except OSError as error:
            raise KernelError(f"cannot listen for special frames on port {port}: {error.strerror}") from error

    def fileno(self) -> int:
        """Return a descriptor that is readable when frames wait."""
        return self._socket.fileno()

    def receive(self) -> list[SpecialFrame]:
        """Take the frames that wait, up to a limit; call again while the descriptor is readable."""
        frames: list[SpecialFrame] = []
        for _ in range(_FRAMES_MAX):
            try:
                # MSG_TRUNC: the real length is returned, however little was asked for.
                buffer = bytearray(_READ_BYTES)
                length, address = self._socket.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                break
            except OSError as error:
                raise KernelError(f"cannot receive special frames: {error.strerror}") from error
            if address[2] != socket.PACKET_HOST:
                continue
            frame = decode_special(bytes(buffer[:length]), length, self._port)
            if frame is not None:
                frames.append(frame)
        return frames

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def decode_special(packet: bytes, length: int, port: int) -> SpecialFrame | None:
    """Take an IPv4 packet of `length` bytes apart, of which `packet` is at least the start; None if it is no candidate.

    All that the filter checks is checked again, and also that no length contradicts another.
    """
    if len(packet) < _IPV4_BYTES_MIN or packet[0] >> 4 != 4 or packet[9] != _UDP:
        return None
    header = (packet[0] & 0xF) * 4
    inner = header + _UDP_BYTES + _VXLAN_BYTES
    if header < _IPV4_BYTES_MIN or len(packet) < inner + _MAC_PAIR_BYTES:
        return None
    total, _identification, fragment = struct.unpack_from("!HHH", packet, 2)
    _source_port, destination_port, udp_length, _checksum = struct.unpack_from("!HHHH", packet, header)
    flags = packet[header + _UDP_BYTES]
    if fragment & _FRAGMENT_MASK or destination_port != port or not flags & _VNI_VALID:
        return None
    if header + udp_length > min(total, length) or udp_length < inner - header + _MAC_PAIR_BYTES:
        return None
    if any(packet[inner : inner + _MAC_PAIR_BYTES]):
        return None
    end = header + udp_length
    return SpecialFrame(
        vni=int.from_bytes(packet[inner - 4 : inner - 1], "big"),
        remote=Address(int.from_bytes(packet[12:16], "big")),
        length=end - inner,
        head=packet[inner : min(inner + HEAD_BYTES, end)],
    )


# --- the filter -------------------------------------------------------------------------------------------------------

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # at an absolute offset
_LOAD_WORD_X, _LOAD_HALF_X, _LOAD_BYTE_X = 0x40, 0x48, 0x50  # at X plus an offset
_HEADER_LENGTH_TO_X = 0xB1  # X = 4 * (byte & 0xf)
_IF_EQUAL, _IF_BITS = 0x15, 0x45
_RETURN = 0x06
_PACKET_TYPE = 0xFFFF_F000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_WHOLE = 0xFFFF_FFFF


def filter_program(port: int) -> bytes:
    """Assemble the filter. It runs for every IPv4 packet the host receives, so the most telling tests come first."""
    # Each test: how to load, from where, the comparison, its operand, and whether the packet goes on if it is true.
    tests = (
        (_LOAD_BYTE, 9, _IF_EQUAL, _UDP, True),
        (_LOAD_HALF, 6, _IF_BITS, _FRAGMENT_MASK, False),
        (_HEADER_LENGTH_TO_X, 0, None, 0, True),
        (_LOAD_HALF_X, 2, _IF_EQUAL, port, True),
        (_LOAD_WORD_X, 16, _IF_EQUAL, 0, True),
        (_LOAD_WORD_X, 20, _IF_EQUAL, 0, True),
        (_LOAD_WORD_X, 24, _IF_EQUAL, 0, True),
        (_LOAD_BYTE_X, 8, _IF_BITS, _VNI_VALID, True),
        (_LOAD_WORD, _PACKET_TYPE, _IF_EQUAL, socket.PACKET_HOST, True),
    )
    size = sum(1 if comparison is None else 2 for _, _, comparison, _, _ in tests)
    program = b""
    for load, offset, comparison, operand, wanted in tests:
        program += _INSTRUCTION.pack(load, 0, 0, offset)
        if comparison is not None:
            # Jumps count from the next instruction. Acceptance follows the tests, and refusal follows that.
            refuse = size - len(program) // _INSTRUCTION.size
            onward = (0, refuse) if wanted else (refuse, 0)
            program += _INSTRUCTION.pack(comparison, *onward, operand)
    return program + _INSTRUCTION.pack(_RETURN, 0, 0, _WHOLE) + _INSTRUCTION.pack(_RETURN, 0, 0, 0)
