"""How fast a pod may send and receive, as values, and the one device that a limit on sending takes.

    towards the pod     bridge ─▶ [tbf] host's end ─▶ pod
    from the pod        pod ─▶ host's end ─▶ ifb device [tbf] ─▶ back to the host's end ─▶ bridge

What goes out by a device can be queued there; what comes in cannot, so it takes a detour over an ifb device of the
pod's own. Both are what CNI's `bandwidth` plugin does, with its numbers: tbf, with room for 25 ms more than the burst.
The pod cannot undo either, whatever it may do in its own namespace.

An ifb device is known to be ours, and whose it is, by its alias; one whose pod is gone is removed (plan.py).
"""

import hashlib

import msgspec

LATENCY_MS = 25
_NAME_PREFIX = "wlimit"
_NAME_DIGITS = 9  # 15 characters are all that a device's name can have
_ALIAS_PREFIX = "weavenet-limit:"


class RateLimit(msgspec.Struct, frozen=True):
    """What tbf is told. A burst must hold the largest packet, or that packet would never pass."""

    bytes_per_s: int
    burst_bytes: int

    @property
    def queue_bytes(self) -> int:
        """How much may wait."""
        return self.bytes_per_s * LATENCY_MS // 1000 + self.burst_bytes

    def __str__(self) -> str:
        return f"{self.bytes_per_s * 8} bit/s, burst {self.burst_bytes} bytes"


class Limiter(msgspec.Struct, frozen=True, order=True):
    """A pod's ifb device."""

    name: str
    container_id: str
    ifname: str


def limiter_of(container_id: str, ifname: str) -> Limiter:
    """Return the device for a pod."""
    digest = hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()
    return Limiter(_NAME_PREFIX + digest[:_NAME_DIGITS], container_id, ifname)


def limiter_alias(limiter: Limiter) -> str:
    """Return the alias by which it is known to be ours."""
    return f"{_ALIAS_PREFIX}{limiter.container_id}/{limiter.ifname}"


def parse_limiter(name: str, alias: str) -> Limiter | None:
    """Read whose a device is; None if it is not one of ours."""
    if not alias.startswith(_ALIAS_PREFIX):
        return None
    container_id, slash, ifname = alias.removeprefix(_ALIAS_PREFIX).rpartition("/")
    return Limiter(name, container_id, ifname) if slash and container_id and ifname else None
