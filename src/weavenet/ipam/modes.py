"""How the first ring comes about: `--ipalloc-init`.

    consensus      the peers elect it; how many make a majority is guessed from the list of peers
    consensus=N    the same, for a cluster of N peers
                   (Uncounted, which no flag asks for: the same, but somebody is still counting the peers)
    seed=a,b,...   no election: every peer is told the same names and makes the same ring
    observer       never votes; asks the others

Source: docs/protocol.md, "Modes"; the texts are Weave's.
"""

import msgspec

from weavenet.errors import ConfigError, PeerNameError
from weavenet.identity import PeerName, parse_peer_name
from weavenet.ipam.ring import normalise_peers

_PEER_COUNT_DIGITS_MAX = 9


class Consensus(msgspec.Struct, frozen=True):
    """Elect the ring, in a cluster of that many peers; None is to be guessed."""

    peer_count: int | None = None


class Uncounted(msgspec.Struct, frozen=True):
    """Elect the ring, but propose none before it is known how many make a majority; take part in others' elections."""


class Seed(msgspec.Struct, frozen=True):
    """Share the range out among these peers, without asking anybody."""

    names: tuple[PeerName, ...]


class Observer(msgspec.Struct, frozen=True):
    """Wait for the others' ring."""


InitMode = Consensus | Uncounted | Seed | Observer


def parse_init_mode(text: str) -> InitMode:
    """Read the flag. Raises ConfigError."""
    mode, equals, parameter = text.partition("=")
    match mode:
        case "consensus":
            return Consensus(_parse_peer_count(parameter) if equals else None)
        case "seed":
            if not equals:
                raise _unable("seed mode requires peer name list")
            # Weave takes `seed=` for "no seed", which leaves an election among guessed peers.
            return Seed(_parse_names(parameter)) if parameter else Consensus()
        case "observer":
            if equals:
                raise _unable("observer mode takes no parameter")
            return Observer()
        case _:
            raise _unable(f"unknown mode: {mode}")


def _parse_peer_count(text: str) -> int | None:
    # Zero is Weave's "not known".
    if not (text.isascii() and text.isdigit()) or len(text) > _PEER_COUNT_DIGITS_MAX:
        raise _unable(f'bad consensus parameter: "{text}" is not a number of peers')
    return int(text) or None


def _parse_names(text: str) -> tuple[PeerName, ...]:
    try:
        return normalise_peers([parse_peer_name(name) for name in text.split(",")])
    except PeerNameError as error:
        raise _unable(f"bad seed parameter: error parsing peer names: {error}") from error


def _unable(reason: str) -> ConfigError:
    return ConfigError(f"Unable to parse --ipalloc-init: {reason}")
