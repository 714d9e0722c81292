"""What the environment says of the node itself."""

from pathlib import Path

import pytest

from weavenet.agent.kube_place import init_container_ran, install_place, wants_policy
from weavenet.errors import ConfigError


def test_where_cni_files_go_comes_from_the_environment_too() -> None:
    place = install_place({}, Path("/lib/weave-cni"))
    assert (place.host_root, place.plugin_directory, place.hairpin) == (Path("/host"), None, True)
    place = install_place({"WEAVE_CNI_PLUGIN_DIR": "/host/usr/bin", "HAIRPIN_MODE": "false"}, Path("/lib/weave-cni"))
    assert (place.plugin_directory, place.hairpin) == (Path("/host/usr/bin"), False)


@pytest.mark.parametrize(("name", "value"), [("HAIRPIN_MODE", "on"), ("WEAVE_CNI_PLUGIN_DIR", "opt/cni/bin")])
def test_a_bad_place_is_refused_with_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        install_place({name: value}, Path("/lib/weave-cni"))


def test_policy_is_wanted_unless_the_user_says_otherwise() -> None:
    assert wants_policy({})
    assert not wants_policy({"EXPECT_NPC": "0"})


def test_an_old_manifest_has_no_init_container() -> None:
    assert not init_container_ran({})
    assert init_container_ran({"INIT_CONTAINER": "true"})
