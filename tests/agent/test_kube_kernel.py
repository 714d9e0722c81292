"""What a node's kernel must have."""

import logging
from pathlib import Path

import pytest

from weavenet.agent.kube_kernel import check_release, load_module, prepare_bridge_calls
from weavenet.errors import ConfigError
from weavenet.linux import sysctl

LOG = logging.getLogger("test.kernel")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The setting as a file below a root of its own; the module's directory is not there yet."""
    monkeypatch.setattr(sysctl, "_root", lambda: tmp_path)
    return tmp_path / "net/bridge/bridge-nf-call-iptables"


def loading(setting: Path, *, works: bool) -> "Loader":
    return Loader(setting, works=works)


class Loader:
    """A kernel that has the module, or has not."""

    def __init__(self, setting: Path, *, works: bool) -> None:
        self.asked: list[str] = []
        self._setting = setting
        self._works = works

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        if not self._works:
            return "Module br_netfilter not found in directory /lib/modules/6.1"
        self._setting.parent.mkdir(parents=True)
        self._setting.write_text("0\n")
        return ""


def test_the_module_is_loaded_and_switched_on(setting: Path) -> None:
    load = loading(setting, works=True)
    prepare_bridge_calls(LOG, load, policy=True)
    assert load.asked == ["br_netfilter"]
    assert setting.read_text().startswith("1")


def test_a_module_that_is_there_is_not_loaded_again(setting: Path) -> None:
    setting.parent.mkdir(parents=True)
    setting.write_text("0\n")
    load = loading(setting, works=False)
    prepare_bridge_calls(LOG, load, policy=True)
    assert load.asked == []
    assert setting.read_text().startswith("1")


def test_without_the_module_policy_is_refused_rather_than_not_enforced(setting: Path) -> None:
    with pytest.raises(ConfigError, match=r"br_netfilter is missing .Module br_netfilter not found.*EXPECT_NPC=0"):
        prepare_bridge_calls(LOG, loading(setting, works=False), policy=True)


def test_without_the_module_and_without_policy_it_is_a_warning(setting: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, LOG.name):
        prepare_bridge_calls(LOG, loading(setting, works=False), policy=False)
    assert "Cannot detect bridge-nf support" in caplog.text


@pytest.mark.parametrize("release", ["4.18.0-553.el8.x86_64", "5.7.19", "5.4.0-200-generic"])
def test_a_kernel_that_is_too_old_is_refused(release: str) -> None:
    with pytest.raises(ConfigError, match=r"too old: the data path needs 5\.8"):
        check_release(release, LOG)


@pytest.mark.parametrize(
    ("release", "warned"), [("5.10.0-33-amd64", True), ("5.15.0", False), ("6.1.0-40-amd64", False)]
)
def test_a_kernel_that_counts_ebpf_memory_as_locked_is_a_warning(
    release: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOG.name):
        check_release(release, LOG)
    assert bool(caplog.text) == warned


def test_a_release_without_a_number_is_not_judged() -> None:
    check_release("custom", LOG)


def test_a_module_that_is_none_says_why() -> None:
    assert load_module("weavenet_has_no_such_module")


def test_settings_are_written_where_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "writable/net").mkdir(parents=True)
    roots = (tmp_path / "missing", tmp_path / "writable")
    assert sysctl.writable_root(roots) == tmp_path / "writable"
    assert sysctl.writable_root((tmp_path / "missing",)) == tmp_path / "missing"
