"""Which overlays a connection can use, and which of them carries its traffic now.

Negotiation: both sides list their overlays, and each keeps what is common *in its own order*. A position in that list
is the index byte of control messages, so it must mean the same on both sides; it does, because everyone lists fastdp
before sleeve (docs/protocol.md, "Overlays in the handshake"). A name that fails to prepare keeps its position.

The switch: one row of state per common overlay, and one rule, `Switch.best`.

    event        established   on hold   failed
    ESTABLISHED  yes
    UNHEALTHY                  yes
    HEALTHY                    no
    FAILED                               yes, for good

Nothing here knows what an overlay is. Source: mesh overlay.go, Weave router/overlay_switch.go.
"""

from collections.abc import Sequence
from enum import Enum, auto

import msgspec

NO_COMMON_OVERLAY = "no overlays in common with peer"


class OverlayEvent(Enum):
    """What an overlay tells the switch."""

    ESTABLISHED = auto()
    UNHEALTHY = auto()
    HEALTHY = auto()
    FAILED = auto()


class _Row(msgspec.Struct):
    established: bool = False
    on_hold: bool = False
    failed: bool = False


def negotiate(ours: Sequence[str], theirs: Sequence[str] | None) -> tuple[str, ...]:
    """Return the common overlays in our order. A peer that sent no list speaks bare sleeve, which nobody lists."""
    if theirs is None:
        return ()
    return tuple(name for name in ours if name in theirs)


class Switch:
    """The overlays of one connection, by their index."""

    def __init__(self, names: Sequence[str]) -> None:
        """Start with none established, none on hold, none failed."""
        self.names = tuple(names)
        self._rows = [_Row() for _ in names]

    @property
    def established(self) -> bool:
        """Whether any overlay was ever established; true once, the connection stays established."""
        return any(row.established for row in self._rows)

    def apply(self, index: int, event: OverlayEvent) -> None:
        """Take an overlay's event."""
        row = self._rows[index]
        match event:
            case OverlayEvent.ESTABLISHED:
                row.established = True
            case OverlayEvent.UNHEALTHY:
                row.on_hold = True
            case OverlayEvent.HEALTHY:
                row.on_hold = False
            case OverlayEvent.FAILED:
                row.failed = True

    def best(self) -> int | None:
        """Return the index of the overlay to use, None if nothing works.

        The first that is established and healthy; if there is none yet, the first that may still become so.
        """
        working = [index for index, row in enumerate(self._rows) if not row.failed and not row.on_hold]
        established = [index for index in working if self._rows[index].established]
        return next(iter(established or working), None)

    def is_established(self, index: int) -> bool:
        """Say whether this overlay is established."""
        return self._rows[index].established

    def is_on_hold(self, index: int) -> bool:
        """Say whether this overlay has fallen silent."""
        return self._rows[index].on_hold

    def has_failed(self, index: int) -> bool:
        """Say whether this overlay has failed for good."""
        return self._rows[index].failed
