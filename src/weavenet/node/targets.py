"""The wanted peers as stored: the texts a user gave, so that a restarted agent looks for the same ones.

They are stored as texts, not as what they resolved to, since a name may resolve to another address by then.
"""

from collections.abc import Sequence

import msgspec

from weavenet.errors import StoreError


def encode_targets(texts: Sequence[str]) -> bytes:
    """Write the texts as a JSON list."""
    return msgspec.json.encode(list(texts))


def decode_targets(raw: bytes) -> list[str]:
    """Read what encode_targets wrote. Raises StoreError."""
    try:
        return msgspec.json.decode(raw, type=list[str])
    except msgspec.DecodeError as error:
        raise StoreError(f"the stored list of peers does not decode: {error}") from error
