"""`--ipalloc-init` in all its forms, right and wrong."""

import pytest

from weavenet.errors import ConfigError
from weavenet.identity import PeerName
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed, parse_init_mode


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("consensus", Consensus()),
        ("consensus=5", Consensus(5)),
        ("consensus=0", Consensus()),
        ("observer", Observer()),
        ("seed=::2,::1,::2", Seed((PeerName(1), PeerName(2)))),
        ("seed=7a:00:00:00:00:01", Seed((PeerName(0x7A0000000001),))),
        ("seed=", Consensus()),
    ],
)
def test_a_mode_is_read(text: str, mode: InitMode) -> None:
    assert parse_init_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unknown mode: "),
        ("x", "unknown mode: x"),
        ("consensus=", 'bad consensus parameter: "" is not a number of peers'),
        ("consensus=-1", 'bad consensus parameter: "-1" is not a number of peers'),
        ("consensus=many", 'bad consensus parameter: "many" is not a number of peers'),
        ("consensus=٣", 'bad consensus parameter: "٣" is not a number of peers'),
        ("seed", "seed mode requires peer name list"),
        (
            "seed=::1,host2",
            'bad seed parameter: error parsing peer names: invalid peer name format: "host2"',
        ),
        ("observer=1", "observer mode takes no parameter"),
    ],
)
def test_a_mode_that_is_none_is_refused_with_weaves_words(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_init_mode(text)
    assert str(raised.value) == f"Unable to parse --ipalloc-init: {reason}"
