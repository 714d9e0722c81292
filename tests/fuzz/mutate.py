"""Inputs made of others by chance, as simple fuzzers do: for the short run that needs nothing but Python."""

from collections.abc import Sequence
from random import Random

LENGTH_MAX = 4096
_TELLING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def mutate(random: Random, corpus: Sequence[bytes]) -> bytes:
    """Return one of the inputs with a few things changed in it."""
    data = bytearray(random.choice(corpus)) if corpus else bytearray()
    for _ in range(1 << random.randrange(4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0:
                data[at:at] = random.randbytes(1 << random.randrange(5))
            case 1:
                del data[at : at + random.randrange(1, 9)]
            case 2 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 3 if at < len(data):
                data[at] = random.choice(_TELLING)
            case 4 if corpus:
                other = random.choice(corpus)
                start = random.randrange(len(other) + 1)
                data[at : at + random.randrange(64)] = other[start : start + random.randrange(64)]
            case 5:
                data[at : at + 4] = random.choice((0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF)).to_bytes(4, "big")
            case _:
                del data[at:]
    return bytes(data[:LENGTH_MAX])
