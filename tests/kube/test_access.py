"""Where the API server is, from flags or the pod's environment, and what is wrong with them said in words that help."""

from pathlib import Path

import pytest

from weavenet.errors import ConfigError, KubeUnreachableError
from weavenet.kube.access import AccessFlags, TokenFile, find_access, pod_namespace

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_pod_finds_the_server_in_its_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "namespace").write_text("networking")
    access = find_access(AccessFlags(), IN_POD, tmp_path)
    assert access.url == "https://10.96.0.1:443"
    assert access.token is not None
    assert access.token.read() == "t"
    assert pod_namespace("kube-system", tmp_path) == "networking"
    assert pod_namespace("kube-system", tmp_path / "nothing") == "kube-system"


def test_an_ipv6_server_is_written_in_brackets() -> None:
    assert find_access(AccessFlags(), {"KUBERNETES_SERVICE_HOST": "fd00::1"}).url == "https://[fd00::1]:443"


def test_a_named_server_is_never_shown_the_tokens_of_the_pod(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    access = find_access(AccessFlags(url="http://127.0.0.1:8001"), IN_POD, tmp_path)
    assert (access.url, access.token, access.authority) == ("http://127.0.0.1:8001", None, None)


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (AccessFlags(), {}, "name the server with --kube-api"),
        (AccessFlags(), {**IN_POD, "KUBERNETES_SERVICE_PORT": "tcp://x"}, "no port"),
        (AccessFlags(url="10.0.0.1:6443"), {}, "not of the form https://HOST:PORT"),
        (AccessFlags(url="https://10.0.0.1:99999"), {}, "--kube-api"),
        (AccessFlags(url="https://user@10.0.0.1"), {}, "not of the form"),
    ],
)
def test_a_server_that_cannot_be_meant_is_refused(flags: AccessFlags, environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_access(flags, environment)


@pytest.mark.parametrize("content", ["", "  \n", "two words", "line\nbreak", "\x00secret"])
def test_what_is_no_token_is_refused_without_being_shown(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(KubeUnreachableError) as refused:
        TokenFile(tmp_path / "token").read()
    assert "secret" not in str(refused.value)
    with pytest.raises(KubeUnreachableError, match="No such file"):
        TokenFile(tmp_path / "missing").read()
