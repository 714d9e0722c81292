"""The name a peer has when nobody said."""

import json
from pathlib import Path

import pytest

from weavenet.agent.peername import bridge_peer_name, derive_peer_name, machine_peer_name
from weavenet.drivers.clock import SystemEntropy
from weavenet.identity import format_peer_name, parse_peer_name

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "peer_name_derivation.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_a_name_is_derived_as_weave_derives_it(vector: dict[str, str]) -> None:
    name = derive_peer_name(vector["machine_id_file"].encode(), vector["bios_uuid_file"].encode())
    assert format_peer_name(name) == vector["peer_name"]


def test_the_ids_are_read_below_the_host_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    name = machine_peer_name(tmp_path, SystemEntropy(), system_root=tmp_path / "kernel")
    assert format_peer_name(name) == "0a:39:ab:6e:42:c6"


def test_in_a_container_the_name_is_the_one_that_weave_net_had_there(tmp_path: Path) -> None:
    # The host's root is mounted at /host without its /sys; the container's own /sys tells of the same machine.
    (tmp_path / "host/etc").mkdir(parents=True)
    (tmp_path / "host/etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").write_text("4c4c4544-0000-2010-8020-80c04f202020\n")
    name = machine_peer_name(tmp_path / "host", SystemEntropy(), system_root=tmp_path)
    assert name == derive_peer_name(b"0123456789abcdef0123456789abcdef\n", b"4c4c4544-0000-2010-8020-80c04f202020\n")


def test_a_machine_without_ids_gets_a_random_local_unicast_name(tmp_path: Path) -> None:
    name = format_peer_name(machine_peer_name(tmp_path, SystemEntropy(), system_root=tmp_path))
    assert int(name[:2], 16) & 0x03 == 0x02


def test_an_existing_bridge_gives_its_mac_as_the_name() -> None:
    assert bridge_peer_name("7a:00:00:00:00:01") == parse_peer_name("7a:00:00:00:00:01")
    assert bridge_peer_name(None) is None
    assert bridge_peer_name("00:00:00:00:00:00") is None
