"""What the agent is told is checked once, with words that help."""

import os
from pathlib import Path

import pytest

from weavenet.address import Cidr
from weavenet.agent.config import parse_ipam_options, parse_trusted_subnets, read_password
from weavenet.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("universe", "subnet", "init", "said"),
    [
        ("", "", "seed=::1", "--ipalloc-init specified without --ipalloc-range."),
        ("", "10.32.0.0/24", "", "--ipalloc-default-subnet specified without --ipalloc-range."),
        ("10.32.0.1/12", "", "", "invalid subnet - bits after network prefix are not all zero: 10.32.0.1/12"),
        ("10.32.0.0/31", "", "", "invalid subnet - smaller than minimum size 4: 10.32.0.0/31"),
        ("10.32.0.1/31", "", "", "invalid subnet - smaller than minimum size 4: 10.32.0.1/31"),
        ("10.32.0.0", "", "", "invalid CIDR address: 10.32.0.0"),
        ("fd00::/8", "", "", "Non-IPv4 address not supported: fd00::/8"),
        ("10.32.0.0/12", "10.64.0.0/12", "", "does not overlap with allocation range"),
        ("10.32.0.0/12", "", "nonsense", "Unable to parse --ipalloc-init: unknown mode: nonsense"),
    ],
)
def test_an_impossible_range_is_refused_in_weaves_words(universe: str, subnet: str, init: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_ipam_options(universe, subnet, init)
    assert said in str(refused.value)


def test_the_default_subnet_is_the_range() -> None:
    options = parse_ipam_options("10.32.0.0/12", "", "")
    assert options is not None
    assert options.default_subnet == Cidr.parse("10.32.0.0/12")


def test_no_range_means_no_ipam() -> None:
    assert parse_ipam_options("", "", "") is None


def test_trusted_subnets_are_a_comma_separated_list() -> None:
    assert parse_trusted_subnets("10.0.0.0/8, 192.0.2.7/24") == (Cidr.parse("10.0.0.0/8"), Cidr.parse("192.0.2.0/24"))
    with pytest.raises(ConfigError, match="--trusted-subnets"):
        parse_trusted_subnets("10.0.0.0/99")


def test_a_password_comes_from_a_file_without_its_newline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVE_PASSWORD", "from the environment")
    (tmp_path / "password").write_text("from the file\n")
    from_file = read_password(None, tmp_path / "password")
    from_environment = read_password(None, None)
    assert from_file is not None
    assert from_environment is not None
    assert from_file.reveal() == b"from the file"
    assert from_environment.reveal() == b"from the environment"
    assert read_password("", None) is None
    with pytest.raises(ConfigError, match="--password-file"):
        read_password(None, tmp_path / "missing")


def test_a_password_comes_from_a_descriptor_which_is_then_closed() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    password = read_password(None, None, reading)
    assert password is not None
    assert password.reveal() == b"from a pipe"
    assert repr(password) == "<redacted>"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


@pytest.mark.parametrize("content", [b"\xff secret", b"secret" * 200])
def test_what_is_no_password_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_password(None, tmp_path / "password")
    assert "secret" not in str(caught.value)


def test_two_places_for_a_password_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        read_password(None, tmp_path / "password", 0)
