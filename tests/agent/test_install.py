"""Files on the node: whole or not there, ours or the user's, and gone in the end."""

import json
import logging
import os
from pathlib import Path

import pytest

from weavenet.agent.install import (
    Place,
    conflist_text,
    install_conflist,
    install_executables,
    install_network,
    is_ours,
    keep_current,
    uninstall,
)
from weavenet.errors import ConfigError

LOG = logging.getLogger("test.install")
PLUGINS = "opt/cni/bin"
WEAVE_NETS_OWN = {
    "cniVersion": "0.3.0",
    "name": "weave",
    "plugins": [
        {"name": "weave", "type": "weave-net", "hairpinMode": True},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    executable = tmp_path / "weave-cni"
    executable.write_bytes(b"\x7fELF, as far as this test goes")
    (tmp_path / "host").mkdir()
    return Place(tmp_path / "host", executable)


def everything(place: Place) -> dict[str, bytes]:
    return {
        str(path.relative_to(place.host_root)): path.read_bytes()
        for path in sorted(place.host_root.rglob("*"))
        if path.is_file()
    }


def edit(place: Place) -> bytes:
    content = place.conflist.read_bytes().replace(b'"hairpinMode": true', b'"hairpinMode": false')
    place.conflist.write_bytes(content)
    return content


# --- executables ------------------------------------------------------------------------------------------------------


def test_the_executable_is_installed_under_both_names_and_can_be_run(place: Place) -> None:
    done = install_executables(place)
    assert len(done) == 2
    for name in ("weave-net", "weave-ipam"):
        path = place.host_root / PLUGINS / name
        assert path.read_bytes() == place.executable.read_bytes()
        assert path.stat().st_mode & 0o7777 == 0o755


def test_installing_twice_changes_nothing(place: Place) -> None:
    install_executables(place)
    before = (place.host_root / PLUGINS / "weave-net").stat()
    assert install_executables(place) == []
    after = (place.host_root / PLUGINS / "weave-net").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_weave_nets_links_are_replaced_without_touching_what_they_lead_to(place: Place) -> None:
    plugins = place.host_root / PLUGINS
    plugins.mkdir(parents=True)
    (plugins / "weave-plugin-2.8.1").write_bytes(b"Weave's")
    (plugins / "weave-net").symlink_to("weave-plugin-2.8.1")
    install_executables(place)
    assert not (plugins / "weave-net").is_symlink()
    assert (plugins / "weave-plugin-2.8.1").read_bytes() == b"Weave's"


def test_a_runtime_that_runs_the_old_executable_keeps_it(place: Place) -> None:
    install_executables(place)
    with (place.host_root / PLUGINS / "weave-net").open("rb") as running:
        place.executable.write_bytes(b"another release")
        install_executables(place)
        assert running.read() == b"\x7fELF, as far as this test goes"


def test_where_opt_cannot_be_written_the_other_directory_is_used(place: Place) -> None:
    (place.host_root / "opt").write_text("not a directory")
    install_executables(place)
    assert (place.host_root / "home/kubernetes/bin/weave-net").exists()


def test_where_no_directory_can_be_made_both_are_named(place: Place) -> None:
    for name in ("opt", "home"):
        (place.host_root / name).write_text("not a directory")
    with pytest.raises(ConfigError, match=r"Failed to install the Weave CNI plugin: .*opt/cni/bin.*home/kube"):
        install_executables(place)


def test_the_users_directory_is_the_only_one(place: Place) -> None:
    elsewhere = place.host_root / "usr/libexec/cni"
    install_executables(Place(place.host_root, place.executable, plugin_directory=elsewhere))
    assert set(everything(place)) == {"usr/libexec/cni/weave-ipam", "usr/libexec/cni/weave-net"}


def test_a_missing_executable_of_ours_is_named(place: Place) -> None:
    place.executable.unlink()
    with pytest.raises(ConfigError, match="weave-cni"):
        install_executables(place)


# --- the configuration ------------------------------------------------------------------------------------------------


def test_the_configuration_has_our_plugin_alone_with_its_capabilities(place: Place) -> None:
    install_network(place, LOG)
    body = json.loads(place.conflist.read_bytes())
    assert (body["cniVersion"], body["name"]) == ("1.0.0", "weave")
    assert body["plugins"] == [
        {"type": "weave-net", "hairpinMode": True, "capabilities": {"portMappings": True, "bandwidth": True}}
    ]
    assert "disableCheck" not in body
    assert place.conflist.stat().st_mode & 0o7777 == 0o600


def test_hairpin_mode_is_the_users_choice() -> None:
    assert json.loads(conflist_text(hairpin=False))["plugins"][0]["hairpinMode"] is False


def test_the_old_single_configuration_is_removed(place: Place) -> None:
    place.conflist.parent.mkdir(parents=True)
    (place.conflist.parent / "10-weave.conf").write_text("{}")
    install_network(place, LOG)
    assert set(everything(place)) == {"etc/cni/net.d/10-weave.conflist"}


def test_a_configuration_that_a_former_release_wrote_is_renewed(place: Place) -> None:
    install_network(Place(place.host_root, place.executable, hairpin=False), LOG)
    assert install_network(place, LOG) == [f"renewed {place.conflist}"]
    assert place.conflist.read_bytes() == conflist_text(hairpin=True)


@pytest.mark.parametrize("hairpin", [True, False])
def test_weave_nets_own_is_replaced(place: Place, hairpin: bool) -> None:
    place.conflist.parent.mkdir(parents=True)
    plugins = [WEAVE_NETS_OWN["plugins"][0] | {"hairpinMode": hairpin}, WEAVE_NETS_OWN["plugins"][1]]
    place.conflist.write_text(json.dumps(WEAVE_NETS_OWN | {"plugins": plugins}, indent=2))
    assert install_network(place, LOG) == [f"renewed {place.conflist}"]


def test_one_that_the_user_changed_stays_and_the_log_says_so(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    install_network(place, LOG)
    theirs = edit(place)
    with caplog.at_level(logging.INFO, LOG.name):
        assert install_network(place, LOG) == []
    assert place.conflist.read_bytes() == theirs
    assert "was changed by hand, and stays as it is" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"weavenet": 1}', b'{"weavenet": {"sha256": 2}}', b"{}"],
)
def test_what_cannot_be_read_is_not_ours_to_change(place: Place, content: bytes) -> None:
    assert not is_ours(content)
    place.conflist.parent.mkdir(parents=True)
    place.conflist.write_bytes(content)
    install_conflist(place, LOG)
    assert place.conflist.read_bytes() == content


def test_a_configuration_that_comes_before_ours_is_named(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.conflist.parent.mkdir(parents=True)
    for name in ("05-cilium.conflist", "00-notes.txt", "99-loopback.conf"):
        (place.conflist.parent / name).write_text("{}")
    with caplog.at_level(logging.WARNING, LOG.name):
        install_network(place, LOG)
    assert "05-cilium.conflist comes before" in caplog.text
    assert "99-loopback" not in caplog.text
    assert "00-notes" not in caplog.text


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fchmod", "fsync", "rename"])
def test_an_interrupted_write_leaves_what_was_there(place: Place, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    install_executables(place)
    install_network(place, LOG)
    before = everything(place)
    place.executable.write_bytes(b"another release")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(*((Path, "rename", fail) if step == "rename" else (os, step, fail)))
        with pytest.raises(ConfigError, match="No space left on device"):
            install_executables(place)
    assert everything(place) == before
    install_executables(place)
    assert (place.host_root / PLUGINS / "weave-net").read_bytes() == b"another release"


def test_what_a_power_cut_left_is_no_obstacle_and_no_configuration(place: Place) -> None:
    place.conflist.parent.mkdir(parents=True)
    unfinished = place.conflist.parent / ".10-weave.conflist.tmp"
    unfinished.write_bytes(b'{"cniVer')
    assert unfinished.suffix not in {".conf", ".conflist", ".json"}, "what libcni reads"
    install_network(place, LOG)
    assert everything(place) == {"etc/cni/net.d/10-weave.conflist": conflist_text(hairpin=True)}


def test_a_link_in_the_unfinished_files_place_leads_nowhere(place: Place, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place.conflist.parent.mkdir(parents=True)
    (place.conflist.parent / ".10-weave.conflist.tmp").symlink_to(victim)
    install_network(place, LOG)
    assert victim.read_text() == "precious"
    assert not place.conflist.is_symlink()


# --- keeping and removing ---------------------------------------------------------------------------------------------


def test_nothing_is_repaired_where_nothing_is_wrong(place: Place) -> None:
    install_executables(place)
    install_network(place, LOG)
    assert keep_current(place, LOG) == []


def test_what_a_package_removed_comes_back(place: Place) -> None:
    install_executables(place)
    install_network(place, LOG)
    before = everything(place)
    (place.host_root / PLUGINS / "weave-net").unlink()
    place.conflist.unlink()
    assert keep_current(place, LOG) == [
        f"installed {place.host_root / PLUGINS / 'weave-net'}",
        f"installed {place.conflist}",
    ]
    assert everything(place) == before


def test_a_changed_configuration_is_left_alone_without_a_word(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    install_executables(place)
    install_network(place, LOG)
    edit(place)
    with caplog.at_level(logging.DEBUG, LOG.name):
        assert keep_current(place, LOG) == []
    assert caplog.text == ""


def test_after_removal_nothing_of_ours_is_left(place: Place) -> None:
    (place.host_root / PLUGINS).mkdir(parents=True)
    (place.host_root / PLUGINS / "bridge").write_text("somebody else's")
    install_executables(place)
    install_network(place, LOG)
    assert len(uninstall(place)) == 3
    assert set(everything(place)) == {f"{PLUGINS}/bridge"}
    assert uninstall(place) == []


def test_a_changed_configuration_is_set_aside_since_its_plugin_goes(place: Place) -> None:
    install_executables(place)
    install_network(place, LOG)
    theirs = edit(place)
    uninstall(place)
    assert everything(place) == {"etc/cni/net.d/10-weave.conflist.kept": theirs}


def test_removal_where_nothing_was_installed_is_fine(place: Place) -> None:
    assert uninstall(place) == []
