"""How long to wait before asking again.

The wait doubles from one failure to the next up to a cap, and a random half of it is left out: a thousand agents that
lost the same server do not come back in the same instant. A server that says when to come again is believed, within
reason, and the random part comes on top. Source: the reflector of Kubernetes' client-go, whose cap is the same.
"""

from weavenet.effects import Entropy

FIRST_S = 0.8
GROWTH = 2.0
CAP_S = 30.0
RETRY_AFTER_MAX_S = 120.0


class Backoff:
    """The waits of one thing that is tried again and again."""

    def __init__(self, entropy: Entropy) -> None:
        """Begin as after a success."""
        self._entropy = entropy
        self._wait_s = FIRST_S

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Return how long to wait now; the next wait will be longer."""
        wait_s = self._wait_s * (0.5 + self._entropy.fraction() / 2)
        self._wait_s = min(self._wait_s * GROWTH, CAP_S)
        return wait_s if retry_after_s is None else min(max(retry_after_s, 0.0), RETRY_AFTER_MAX_S) + wait_s

    def reset(self) -> None:
        """Note a success."""
        self._wait_s = FIRST_S
