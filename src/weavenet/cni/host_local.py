"""`ipam.type: host-local`: addresses that this node gives out by itself, for a bridge that no other node is on.

The keys are those of the plugin of that name (containernetworking/plugins, ipam/host-local), so that its
configurations work as they are: `subnet`, `rangeStart`, `rangeEnd`, `gateway`, or the same in `ranges: [[{…}]]`, of
which one set of one range is served; `routes` as everywhere. `dataDir` means nothing: the agent's database has what is
reserved.
"""

import msgspec

from weavenet.address import Address, Cidr, Range, format_address, parse_address
from weavenet.cni.codes import Code
from weavenet.errors import AddressError, CniError

HOST_LOCAL = "host-local"
_ALL_BUT_ENDS_MAX = 30  # a /31 has no network and no broadcast address (RFC 3021)


class LocalRange(msgspec.Struct, frozen=True):
    """What may be given out: these addresses of a subnet, but not the gateway's."""

    subnet: Cidr
    usable: Range
    gateway: Address | None = None

    def choose(self, taken: frozenset[Address], after: Address | None, wanted: Address | None = None) -> Cidr | None:
        """Return the next free address behind the last one, so that one just freed rests, or the one that is wanted.

        None if that is taken, or all are.
        """
        taken = taken if self.gateway is None else taken | {self.gateway}
        if wanted is not None:
            free = wanted if wanted in self.usable and wanted not in taken else None
        else:
            free = self.usable.next_free(after, taken)
        return None if free is None else Cidr(free, self.subnet.prefix_length)


class WrittenRange(msgspec.Struct):
    """A range as it is written."""

    subnet: str | None = None
    rangeStart: str | None = None  # noqa: N815 - the key's spelling
    rangeEnd: str | None = None  # noqa: N815
    gateway: str | None = None


def parse_local_range(written: WrittenRange, ranges: list[list[WrittenRange]] | None) -> LocalRange:
    """Check what is written, in either of the two ways. Raises CniError."""
    if ranges:
        if written.subnet or len(ranges) > 1 or len(ranges[0]) != 1:
            raise _refused("ipam.ranges", "One set of one range is served, and no ipam.subnet beside it.")
        written = ranges[0][0]
    if not written.subnet:
        raise _refused("no ipam.subnet", 'host-local needs a subnet, such as "172.17.0.0/16".')
    try:
        subnet = Cidr.parse(written.subnet).network
        first = parse_address(written.rangeStart) if written.rangeStart else None
        last = parse_address(written.rangeEnd) if written.rangeEnd else None
        gateway = parse_address(written.gateway) if written.gateway else None
    except AddressError as error:
        raise _refused(
            f"ipam of host-local: {error}", "Correct ipam.subnet, rangeStart, rangeEnd or gateway."
        ) from error
    hosts = subnet.host_range if subnet.prefix_length <= _ALL_BUT_ENDS_MAX else subnet.range
    usable = hosts.between(first, last)
    for name, address in (("rangeStart", first), ("rangeEnd", last), ("gateway", gateway)):
        if address is not None and address not in hosts:
            raise _refused(f"ipam.{name} {format_address(address)}", f"It is no host's address in {subnet}.")
    if not usable.size:
        raise _refused("ipam.rangeStart is behind ipam.rangeEnd", "Exchange the two.")
    return LocalRange(subnet, usable, gateway)


def _refused(what: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"invalid network config: {what}", details)
