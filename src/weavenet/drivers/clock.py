"""The two things no core may fetch for itself: the time, and chance."""

import secrets
import time

from weavenet.effects import Now


def read_clock() -> Now:
    """Read both clocks."""
    return Now(monotonic_s=time.monotonic(), wall_s=time.time())


class SystemEntropy:
    """Entropy from the operating system. Keys come from here, so nothing weaker will do."""

    def bits(self, count: int) -> int:
        """Return a uniform integer of that many bits."""
        return secrets.randbits(count)

    def octets(self, count: int) -> bytes:
        """Return that many uniform bytes."""
        return secrets.token_bytes(count)

    def fraction(self) -> float:
        """Return a uniform number in [0, 1) with the 53 bits a float holds."""
        return secrets.randbits(53) / (1 << 53)
