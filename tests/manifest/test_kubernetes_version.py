"""Everything that `kubectl version | base64 | tr -d '\\n'` has brought over the years."""

import base64
import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import ManifestError
from weavenet.manifest.kubernetes_version import (
    ENCODED_LENGTH_MAX,
    NEWEST,
    OLDEST,
    KubernetesVersion,
    parse_kubernetes_version,
)


def _info(role: str, git: str, minor: str) -> str:
    return (
        f'{role} Version: version.Info{{Major:"1", Minor:"{minor}", GitVersion:"{git}", '
        'GitCommit:"434bfd82814af038ad94d62ebe59b133fcb50506", GitTreeState:"clean", '
        'BuildDate:"2022-10-12T10:57:26Z", GoVersion:"go1.19.2", Compiler:"gc", Platform:"linux/amd64"}\n'
    )


def _block(git: str, minor: str) -> dict[str, str]:
    return {
        "major": "1",
        "minor": minor,
        "gitVersion": git,
        "gitCommit": "3f7a50f38688eb332e2a1b013678c6435d539ae6",
        "gitTreeState": "clean",
        "buildDate": "2023-11-15T16:48:54Z",
        "goVersion": "go1.20.11",
        "compiler": "gc",
        "platform": "linux/amd64",
    }


def _as_yaml(blocks: dict[str, dict[str, str]]) -> str:
    lines = []
    for name, block in blocks.items():
        lines.append(f"{name}:")
        lines += [f'  {key}: "{value}"' if value.isdigit() else f"  {key}: {value}" for key, value in block.items()]
        if name == "clientVersion":
            lines.append("kustomizeVersion: v5.0.4-0.20230601165947-6ce0bf390ce3")
    return "\n".join(lines) + "\n"


BOTH = {"clientVersion": _block("v1.31.2", "31"), "serverVersion": _block("v1.28.4", "28")}
GKE = {"clientVersion": _block("v1.31.2", "31"), "serverVersion": _block("v1.27.3-gke.100", "27+")}

OUTPUTS = {
    "default until 1.27": (_info("Client", "v1.30.0", "30") + _info("Server", "v1.25.3", "25"), "1.25"),
    "default until 1.27, with Kustomize": (
        _info("Client", "v1.27.1", "27") + "Kustomize Version: v5.0.1\n" + _info("Server", "v1.26.4", "26"),
        "1.26",
    ),
    "default until 1.27, EKS": (
        _info("Client", "v1.27.1", "27") + _info("Server", "v1.27.4-eks-2d98532", "27+"),
        "1.27",
    ),
    "with the warnings of 1.25 to 1.27": (
        "WARNING: This version information is deprecated and will be replaced with the output from kubectl version "
        "--short.  Use --output=yaml|json to get the full version.\n"
        + _info("Client", "v1.27.1", "27")
        + _info("Server", "v1.25.3", "25")
        + "WARNING: version difference between client (1.27) and server (1.25) exceeds the supported skew\n",
        "1.25",
    ),
    "--short": ("Client Version: v1.27.1\nKustomize Version: v5.0.1\nServer Version: v1.27.3\n", "1.27"),
    "--short of old": ("Client Version: v1.26.0\nServer Version: v1.25.9+k3s1\n", "1.25"),
    "default since 1.28": ("Client Version: v1.31.0\nKustomize Version: v5.4.2\nServer Version: v1.30.5\n", "1.30"),
    "a server of another vendor": ("Client Version: v1.33.0\nServer Version: v1.32.1-rc.0+rke2r1\n", "1.32"),
    "Windows line ends": ("Client Version: v1.31.0\r\nServer Version: v1.30.5\r\n", "1.30"),
    "no line end": ("Client Version: v1.31.0\nServer Version: v1.36.0", "1.36"),
    "yaml": (_as_yaml(BOTH), "1.28"),
    "yaml of GKE": (_as_yaml(GKE), "1.27"),
    "json": (json.dumps(BOTH, indent=2), "1.28"),
    "json on one line": (json.dumps(BOTH), "1.28"),
    "json, server first": (json.dumps({key: BOTH[key] for key in sorted(BOTH, reverse=True)}), "1.28"),
    "json without gitVersion": (
        json.dumps({"clientVersion": _block("v1.31.2", "31"), "serverVersion": {"major": "1", "minor": "29+"}}),
        "1.29",
    ),
}

CLIENT_ONLY = {
    "of old": _info("Client", "v1.27.1", "27"),
    "--short": "Client Version: v1.27.1\nKustomize Version: v5.0.1\n",
    "yaml": _as_yaml({"clientVersion": BOTH["clientVersion"]}),
    "json": json.dumps({"clientVersion": BOTH["clientVersion"], "kustomizeVersion": "v5.0.1"}),
    "with the refusal": "Client Version: v1.31.0\n"
    "The connection to the server localhost:8080 was refused - did you specify the right host or port?\n",
}

NONSENSE = {
    "words": "the newest, please",
    "an IP address": "10.0.0.1.5.6",
    "base64 of something else": base64.b64encode(b"hello, world").decode(),
    "base64 of bytes": base64.b64encode(bytes(range(200, 256))).decode(),
    "a server without a version": base64.b64encode(b"Server Version: unknown\n").decode(),
    "three letters": "abc",
    "a number": "29",
    "too old": "v1.24.17",
    "ancient": "1.5",
    "of another major": "v2.0.0",
    "too long": "A" * (ENCODED_LENGTH_MAX + 1),
}


def encode(output: str) -> str:
    return base64.b64encode(output.encode()).decode()


def through_a_query(text: str) -> str:
    """What a server sees of a parameter that a shell has pasted into a URL without escaping it."""
    return parse_qs(f"k8s-version={text}", keep_blank_values=True)["k8s-version"][0]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("cut", [False, True], ids=["padded", "padding cut off"])
def test_the_servers_version_is_found_in_what_kubectl_prints(name: str, cut: bool) -> None:
    output, wanted = OUTPUTS[name]
    encoded = encode(output).rstrip("=") if cut else encode(output)
    found = parse_kubernetes_version(through_a_query(encoded))
    assert str(found.version) == wanted
    assert found.remark == ""


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_need_not_be_encoded(name: str) -> None:
    output, wanted = OUTPUTS[name]
    assert str(parse_kubernetes_version(output).version) == wanted


def test_lines_of_base64_that_were_not_joined_are_read_as_one() -> None:
    wrapped = base64.encodebytes(OUTPUTS["json"][0].encode()).decode()
    assert "\n" in wrapped.strip()
    assert str(parse_kubernetes_version(wrapped).version) == "1.28"
    assert str(parse_kubernetes_version(wrapped.replace("\n", " ")).version) == "1.28"


def test_the_url_alphabet_of_base64_is_read_too() -> None:
    output = "Client Version: v1.31.0 ~~~???>>>\nServer Version: v1.30.5\n"
    encoded = base64.urlsafe_b64encode(output.encode()).decode()
    assert "_" in encoded or "-" in encoded
    assert str(parse_kubernetes_version(encoded).version) == "1.30"


def test_a_plus_that_became_a_blank_is_a_plus() -> None:
    output = "Client Version: v1.31.0 >>>~~~>>>\nServer Version: v1.30.5\n"
    assert "+" in encode(output)
    assert " " in through_a_query(encode(output))
    assert str(parse_kubernetes_version(through_a_query(encode(output))).version) == "1.30"


@pytest.mark.parametrize("name", CLIENT_ONLY)
def test_without_the_server_it_is_the_newest_with_a_remark(name: str) -> None:
    found = parse_kubernetes_version(through_a_query(encode(CLIENT_ONLY[name])))
    assert found.version == NEWEST
    assert "newest" in found.remark


@pytest.mark.parametrize("text", ["v1.29.3", "1.29", "v1.29", "1.29.3", "v1.29.3-gke.1", "v1.29.3+k3s1", " v1.29.3\n"])
def test_a_plain_version_will_do(text: str) -> None:
    assert parse_kubernetes_version(text).version == KubernetesVersion(1, 29)


def test_a_plain_version_may_be_encoded() -> None:
    assert parse_kubernetes_version(encode("v1.29.3\n")).version == KubernetesVersion(1, 29)


def test_no_version_is_the_newest_with_a_remark() -> None:
    found = parse_kubernetes_version("")
    assert found.version == NEWEST
    assert found.remark


def test_what_is_newer_than_we_know_is_served_with_a_remark() -> None:
    found = parse_kubernetes_version("v1.99.0")
    assert str(found.version) == "1.99"
    assert str(NEWEST) in found.remark


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_kubernetes_version(NONSENSE[name])
    assert len(str(refused.value)) < 300


def test_a_version_that_is_too_old_is_told_what_is_supported() -> None:
    with pytest.raises(ManifestError, match=rf"1\.24 is not supported: {OLDEST} to {NEWEST}"):
        parse_kubernetes_version(encode("Client Version: v1.31.0\nServer Version: v1.24.17\n"))


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: base64.b64encode(raw).decode()))
def test_any_text_is_a_version_or_refused(text: str) -> None:
    try:
        found = parse_kubernetes_version(text)
    except ManifestError:
        return
    assert found.version >= OLDEST
