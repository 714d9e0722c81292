"""The wanted peers as stored: the texts a user gave, so that a restarted agent looks for the same ones.

They are stored as texts, not as what they resolved to, since a name may resolve to another address by then.

A restarted agent is told of the same peers as the last one, by the same unit file or manifest, and what `weave connect`
and `weave forget` have changed since counts for more; so the peers of each launch are stored, too. Weave tells a
restart by a file in its container (docs/protocol.md, "Start-up order").
"""

from collections.abc import Mapping, Sequence

import msgspec

from weavenet.effects import PutValue
from weavenet.errors import StoreError

KEY_TARGETS = "targets"
_KEY_LAUNCHED = "launched"


class FirstTargets(msgspec.Struct, frozen=True):
    """Whom a started agent looks for."""

    texts: tuple[str, ...]
    resumed: bool  # the stored ones, of which some may not resolve any more


def first_targets(stored: Mapping[str, bytes], named: Sequence[str], *, resume: bool) -> FirstTargets:
    """Choose the stored peers at a plain restart or when asked to resume, else those named. Raises StoreError."""
    restarted = KEY_TARGETS in stored and stored.get(_KEY_LAUNCHED) == encode_targets(named)
    if resume or restarted:
        return FirstTargets(tuple(decode_targets(stored.get(KEY_TARGETS, b"[]"))), resumed=True)
    return FirstTargets(tuple(named), resumed=False)


def remember_launch(named: Sequence[str], first: FirstTargets) -> tuple[PutValue, ...]:
    """Return what to store of a launch: the peers that it named, and all whom it looks for.

    Those that do not resolve today are among them, so that a host whose DNS is late does not forget them for good.
    """
    return PutValue(_KEY_LAUNCHED, encode_targets(named)), PutValue(KEY_TARGETS, encode_targets(first.texts))


def encode_targets(texts: Sequence[str]) -> bytes:
    """Write the texts as a JSON list."""
    return msgspec.json.encode(list(texts))


def decode_targets(raw: bytes) -> list[str]:
    """Read what encode_targets wrote. Raises StoreError."""
    try:
        return msgspec.json.decode(raw, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"the stored list of peers does not decode: {error}") from error
