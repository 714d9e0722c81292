"""What may be asked of a manifest, and in which words the rest is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import ManifestError
from weavenet.manifest.options import (
    ITEMS_MAX,
    VALUE_LENGTH_MAX,
    ImageSource,
    parse_image,
    parse_listener,
    parse_options,
)

IMAGE = ImageSource("registry.example/weavenet", "0.1.0")

REFUSED = {
    "an unknown parameter": (
        [("k8sversion", "1.29")],
        "unknown parameter 'k8sversion'; there are k8s-version, version",
    ),
    "a family that is none": ([("environment.A", "b")], "unknown parameter 'environment.A'"),
    "a choice of image": ([("image", "evil.example/weavenet")], "unknown parameter 'image'"),
    "a parameter twice": ([("k8s-version", "1.29"), ("k8s-version", "1.30")], "k8s-version is given twice"),
    "a parameter under both of its names": ([("v", "1"), ("version", "1")], "version is given twice"),
    "a variable twice": ([("env.A", "b"), ("env.A", "b")], "env.A is given twice"),
    "a variable without a name": ([("env.", "b")], "env.: not the name of a variable"),
    "a variable with a blank": ([("env.A B", "c")], "env.A B: not the name of a variable"),
    "a variable with a digit in front": ([("env.1A", "c")], "env.1A: not the name of a variable"),
    "a value with a line end": ([("env.EXTRA_ARGS", "a\nb")], "env.EXTRA_ARGS has characters that cannot be printed"),
    "a value that is too long": (
        [("env.A", "b" * (VALUE_LENGTH_MAX + 1))],
        "env.A has 4097 characters; 4096 are allowed",
    ),
    "a password for all to read": ([("env.WEAVE_PASSWORD", "secret")], "use password-secret=NAME"),
    "a node's name for all nodes": ([("env.HOSTNAME", "node1")], "env.HOSTNAME cannot be set: it is the node's name"),
    "peers by another name": ([("env.KUBE_PEERS", "10.0.0.1")], "env.KUBE_PEERS cannot be set: use known-peers=A,B"),
    "a range that is none": (
        [("env.IPALLOC_RANGE", "10.32.0.0")],
        "env.IPALLOC_RANGE: invalid CIDR address: 10.32.0.0",
    ),
    "a range with host bits": ([("env.IPALLOC_RANGE", "10.32.0.1/12")], "bits after network prefix are not all zero"),
    "an MTU in words": ([("env.WEAVE_MTU", "jumbo")], "env.WEAVE_MTU=jumbo: not a number from 0 to 65485"),
    "an MTU beyond all": ([("env.WEAVE_MTU", "65486")], "not a number from 0 to 65485"),
    "an MTU with a million digits": ([("env.WEAVE_MTU", "9" * 4000)], "not a number"),
    "a switch in words": ([("env.EXPECT_NPC", "yes")], "env.EXPECT_NPC=yes: must be one of 0, 1"),
    "a listener without a port": ([("env.WEAVE_STATUS_ADDR", "0.0.0.0")], "is not HOST:PORT"),
    "a listener by name": (
        [("env.WEAVE_HTTP_ADDR", "localhost:6784")],
        "env.WEAVE_HTTP_ADDR: invalid address 'localhost'",
    ),
    "a boolean that is none": ([("disable-npc", "yes")], "disable-npc=yes: must be true or false"),
    "a tag that is none": ([("version", "2.8.1;rm -rf")], "version '2.8.1;rm -rf' is no image tag"),
    "a tag that is a repository": ([("version", "evil/weave:1")], "is no image tag"),
    "a secret in capitals": ([("password-secret", "Weave")], "password-secret=Weave: not the name of a secret"),
    "a secret that ends in a dash": ([("password-secret", "weave-")], "not the name of a secret"),
    "a subnet without length": ([("trusted-subnets", "10.0.0.0")], "trusted-subnets: invalid address '10.0.0.0'"),
    "a subnet that is empty": ([("trusted-subnets", "10.0.0.0/8,")], "trusted-subnets: invalid address ''"),
    "a subnet of IPv6": ([("trusted-subnets", "fd00::/8")], "trusted-subnets: invalid address"),
    "a peer with a number too many": ([("known-peers", "10.0.0.256")], "known-peers: invalid address '10.0.0.256'"),
    "a peer that is an option": (
        [("known-peers", "--reset")],
        "known-peers: '--reset' is neither an address nor a host",
    ),
    "a peer with two words": ([("known-peers", "a b")], "is neither an address nor a host name"),
    "a peer with half a port": ([("known-peers", "10.0.0.1:")], "known-peers: '10.0.0.1:' has no port"),
    "too many peers": ([("known-peers", ",".join(["a"] * (ITEMS_MAX + 1)))], "known-peers has 257 members; 256"),
    "an SELinux option that is none": ([("seLinuxOptions.domain", "a")], "there are only level, role, type, user"),
    "an SELinux label with a blank": ([("seLinuxOptions.type", "a b")], "not part of an SELinux label"),
    "too many variables": ([(f"env.A{number}", "") for number in range(ITEMS_MAX + 1)], "more than 256 parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(name: str) -> None:
    parameters, words = REFUSED[name]
    with pytest.raises(ManifestError) as refused:
        parse_options(parameters, IMAGE)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


def test_everything_can_be_asked_for_at_once() -> None:
    options = parse_options(
        [
            ("k8s-version", "v1.29.3"),
            ("version", "0.2.0"),
            ("password-secret", "weave-passwd"),
            ("disable-npc", "true"),
            ("known-peers", "10.0.0.1, node-2.example:6783"),
            ("trusted-subnets", "10.0.0.0/8,192.168.7.9/24"),
            ("env.WEAVE_MTU", "8916"),
            ("env.IPALLOC_RANGE", "10.40.0.0/16"),
            ("seLinuxOptions.type", "spc_t"),
            ("keep-state", "true"),
        ],
        IMAGE,
    )
    assert str(options.kubernetes.version) == "1.29"
    assert options.image == "registry.example/weavenet:0.2.0"
    assert options.password_secret == "weave-passwd"
    assert not options.network_policy
    assert options.known_peers == ("10.0.0.1", "node-2.example:6783")
    assert [str(subnet) for subnet in options.trusted_subnets] == ["10.0.0.0/8", "192.168.7.0/24"]
    assert options.environment == (("IPALLOC_RANGE", "10.40.0.0/16"), ("WEAVE_MTU", "8916"))
    assert options.selinux == (("type", "spc_t"),)
    assert options.keep_state


def test_the_order_of_parameters_does_not_matter() -> None:
    pairs = [("env.B", "1"), ("k8s-version", "1.29"), ("env.A", "2")]
    assert parse_options(pairs, IMAGE) == parse_options(pairs[::-1], IMAGE)


@pytest.mark.parametrize("tag", ["", "latest"])
def test_without_a_version_the_image_is_that_of_this_release(tag: str) -> None:
    assert parse_options([("version", tag)], IMAGE).image == "registry.example/weavenet:0.1.0"


def test_policy_is_off_too_when_the_variable_says_so() -> None:
    assert not parse_options([("env.EXPECT_NPC", "0")], IMAGE).network_policy


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("weavenet", "weavenet:0.1.0"),
        ("registry.example/weavenet", "registry.example/weavenet:0.1.0"),
        ("registry.example:5000/a/weavenet", "registry.example:5000/a/weavenet:0.1.0"),
        ("registry.example:5000/a/weavenet:7", "registry.example:5000/a/weavenet:7"),
        ("weavenet:7", "weavenet:7"),
        ("registry.example/weavenet@sha256:" + "0" * 64, "registry.example/weavenet@sha256:" + "0" * 64),
    ],
)
def test_an_image_is_a_repository_and_a_tag_or_digest(text: str, written: str) -> None:
    assert str(parse_image(text, "0.1.0")) == written


@pytest.mark.parametrize("text", ["", ":", "a b", "a/B", "a:b:c", "a@sha256:12", "-/..", "a/$(id)", "a:\n"])
def test_an_image_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        parse_image(text, "0.1.0")


@pytest.mark.parametrize(("text", "wanted"), [(":80", ("", 80)), ("127.0.0.1:6784", ("127.0.0.1", 6784))])
def test_a_listener_is_host_and_port(text: str, wanted: tuple[str, int]) -> None:
    assert parse_listener("--listen", text) == wanted


@given(
    st.lists(st.tuples(st.sampled_from(["env.A", "v", "known-peers", "trusted-subnets", "x"]) | st.text(), st.text()))
)
def test_any_parameters_are_options_or_refused(parameters: list[tuple[str, str]]) -> None:
    try:
        parse_options(parameters, IMAGE)
    except ManifestError:
        return
