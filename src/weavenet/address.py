"""IPv4 addresses as integers, ranges as half-open intervals, and the CIDR blocks between the two.

All address arithmetic of the project is here. An address is an `int`; a range is `[start, end)`, so that a range can
end beyond the last address and two neighbours share one number. Nothing here depends on the width except `BITS`, which
is what an IPv6 version would change.
"""

import ipaddress
import itertools
from collections.abc import Collection
from typing import NewType, Self

import msgspec

from weavenet.errors import AddressError, SubnetError

Address = NewType("Address", int)

BITS = 32
SUBNET_SIZE_MIN = 4  # network, broadcast, and two hosts
_OCTETS = 4
_OCTET_MAX = 255
_OCTET_DIGITS_MAX = 3


def parse_address(text: str) -> Address:
    """Read a dotted quad. Raises AddressError; an IPv6 address is named as such."""
    parts = text.split(".")
    if len(parts) != _OCTETS:
        reason = "IPv6 is not supported yet" if ":" in text else "expected four numbers separated by dots"
        raise AddressError(text, reason)
    value = 0
    for part in parts:
        if not (part.isascii() and part.isdigit()) or len(part) > _OCTET_DIGITS_MAX or int(part) > _OCTET_MAX:
            raise AddressError(text, f"{part!r} is not a number from 0 to 255")
        if len(part) > 1 and part[0] == "0":
            raise AddressError(text, f"{part!r} has a leading zero, which some programs read as octal")
        value = value << 8 | int(part)
    return Address(value)


def format_address(address: Address) -> str:
    """Write a dotted quad. One past the last address, a legal range end, reads 256.0.0.0."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def address_to_bytes(address: Address) -> bytes:
    """Return the address in network byte order."""
    return address.to_bytes(BITS // 8, "big")


def address_from_bytes(raw: bytes) -> Address:
    """Read an address from network byte order."""
    return Address(int.from_bytes(raw, "big"))


class Range(msgspec.Struct, frozen=True, order=True):
    """The addresses from `start` up to, and without, `end`."""

    start: Address
    end: Address

    @property
    def size(self) -> int:
        """How many addresses the range holds; 0 where end is not beyond start."""
        return max(0, self.end - self.start)

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __str__(self) -> str:
        return f"{format_address(self.start)}-{format_address(Address(self.end - 1))}"

    def overlaps(self, other: "Range") -> bool:
        """Say whether at least one address is in both."""
        return self.start < other.end and other.start < self.end

    def intersect(self, other: "Range") -> "Range":
        """Return the common part; an empty range, start == end, if there is none."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.end, other.end)))

    def between(self, first: Address | None, last: Address | None) -> "Range":
        """Return the part from `first` up to and with `last`; None is no bound. Empty where first is behind last."""
        start = self.start if first is None else max(self.start, first)
        return Range(start, max(start, self.end if last is None else Address(min(self.end, last + 1))))

    def next_free(self, after: Address | None, taken: Collection[Address]) -> Address | None:
        """Return the first address behind `after`, and from the start again, that is not taken; None if all are."""
        first = self.start if after is None or after not in self else Address(after + 1)
        for address in itertools.chain(range(first, self.end), range(self.start, min(first, self.end))):
            if address not in taken:
                return Address(address)
        return None

    def cidrs(self) -> list["Cidr"]:
        """Cut the range into the fewest CIDR blocks, in address order."""
        blocks: list[Cidr] = []
        at = int(self.start)
        while at < self.end:
            alignment = at & -at if at else 1 << BITS
            size = min(alignment, 1 << ((self.end - at).bit_length() - 1))
            blocks.append(Cidr(Address(at), BITS - (size.bit_length() - 1)))
            at += size
        return blocks

    def as_cidr_text(self) -> str:
        """Write the range the way Weave's messages do: as one CIDR if its size is a power of two, else as two ends.

        Weave looks at the size only, so an unaligned range reads as a CIDR, too.
        """
        if self.size and not self.size & (self.size - 1):
            return str(Cidr(self.start, BITS - (self.size.bit_length() - 1)))
        return str(self)

    def biggest_cidr_block(self) -> "Range":
        """Return the largest aligned power-of-two block in the range, the lowest of equals; empty for an empty one."""
        best = Range(self.start, self.start)
        for block in self.cidrs():
            if block.range.size > best.size:
                best = block.range
        return best


class Cidr(msgspec.Struct, frozen=True, order=True):
    """An address with a prefix length. As a subnet its host bits are zero; as an interface address they need not be."""

    address: Address
    prefix_length: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `a.b.c.d/len`, host bits allowed. Raises AddressError."""
        address_text, slash, length_text = text.partition("/")
        if not slash or not (length_text.isascii() and length_text.isdigit()) or int(length_text) > BITS:
            raise AddressError(text, "expected an address, a slash, and a length from 0 to 32, as in 10.32.0.0/12")
        return cls(parse_address(address_text), int(length_text))

    @property
    def size(self) -> int:
        """How many addresses the subnet holds."""
        return 1 << (BITS - self.prefix_length)

    @property
    def network(self) -> "Cidr":
        """The subnet this address lies in: itself with the host bits cleared."""
        return Cidr(Address(self.address & ~(self.size - 1)), self.prefix_length)

    @property
    def is_subnet(self) -> bool:
        """Whether the host bits are all zero."""
        return self.network == self

    @property
    def range(self) -> Range:
        """All addresses of the subnet."""
        start = self.network.address
        return Range(start, Address(start + self.size))

    @property
    def host_range(self) -> Range:
        """The subnet without its first (network) and last (broadcast) address."""
        whole = self.range
        return Range(Address(whole.start + 1), Address(max(whole.start + 1, whole.end - 1)))

    @property
    def broadcast(self) -> Address:
        """The last address of the subnet."""
        return Address(self.range.end - 1)

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.prefix_length}"


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """Where a socket is: an IPv4 address and a port."""

    address: Address
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `a.b.c.d:port`. Raises AddressError."""
        address_text, colon, port_text = text.rpartition(":")
        if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 0xFFFF:
            raise AddressError(text, "expected an address, a colon, and a port, as in 192.0.2.1:6783")
        return cls(parse_address(address_text), int(port_text))

    def __str__(self) -> str:
        return f"{format_address(self.address)}:{self.port}"


def parse_subnet(text: str) -> Cidr:
    """Read a subnet that addresses can be given from. Raises SubnetError, with Weave's words.

    Of two faults Weave names the size (docs/protocol.md, "Subnets and CIDRs").
    """
    try:
        cidr = Cidr.parse(text)
    except AddressError as error:
        reason = "Non-IPv4 address not supported" if _is_ipv6_network(text) else "invalid CIDR address"
        raise SubnetError(text, reason) from error
    if cidr.size < SUBNET_SIZE_MIN:
        raise SubnetError(text, f"invalid subnet - smaller than minimum size {SUBNET_SIZE_MIN}")
    if not cidr.is_subnet:
        raise SubnetError(text, "invalid subnet - bits after network prefix are not all zero")
    return cidr


def _is_ipv6_network(text: str) -> bool:
    _, _, length_text = text.partition("/")
    if not (length_text.isascii() and length_text.isdigit()):
        return False
    try:
        ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        return False
    return True
