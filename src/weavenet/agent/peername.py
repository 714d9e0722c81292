"""Which name this peer has when nobody said: the same after every restart, and another on every host.

In order: what the user says; the MAC of a bridge that is there already (so that an agent adopts the bridge of its
former self, or of a real Weave Net); a name derived from the machine's ids; a random one, where a machine has no ids.
"""

import hashlib
from pathlib import Path

from weavenet.effects import Entropy
from weavenet.identity import UNKNOWN_PEER, PeerName, peer_name_from_bytes

_SALT = b"9oBJ0Jmip-"  # Weave's, so that a host that ran it keeps its name
_MACHINE_ID_FILES = ("etc/machine-id", "var/lib/dbus/machine-id")
# Not the host's files but the kernel's, which are the same in every container; Weave reads them there, too.
_UUID_FILES = ("sys/class/dmi/id/product_uuid", "sys/hypervisor/uuid")


def derive_peer_name(machine_id: bytes, bios_uuid: bytes) -> PeerName:
    """Hash the ids, verbatim with their newlines, to a locally administered unicast MAC. Source: Weave's net/hwaddr."""
    return _as_mac(hashlib.sha256(_SALT + machine_id + bios_uuid).digest())


def machine_peer_name(host_root: Path, entropy: Entropy, *, system_root: Path = Path("/")) -> PeerName:
    """Derive the name from the machine's id, below the host's root, and the BIOS's; random if there is neither."""
    machine_id = _read_first(host_root, _MACHINE_ID_FILES)
    bios_uuid = _read_first(system_root, _UUID_FILES)
    if machine_id or bios_uuid:
        return derive_peer_name(machine_id, bios_uuid)
    return _as_mac(entropy.octets(6))


def bridge_peer_name(mac: str | None) -> PeerName | None:
    """Read the name off an existing bridge's MAC; None if there is no bridge."""
    if mac is None:
        return None
    name = peer_name_from_bytes(bytes.fromhex(mac.replace(":", "")))
    return None if name == UNKNOWN_PEER else name


def _as_mac(raw: bytes) -> PeerName:
    first = raw[0] & 0xFE | 0x02
    return peer_name_from_bytes(bytes([first]) + raw[1:6])


def _read_first(root: Path, names: tuple[str, ...]) -> bytes:
    for name in names:
        try:
            content = (root / name).read_bytes()
        except OSError:  # no such id on this machine, or not ours to read: try the next
            continue
        if content:
            return content
    return b""
