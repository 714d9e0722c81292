"""The CNI executable with a live agent behind it, as a container runtime sees it: results, errors, and what is left."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import mesh_lab
import pytest

from weavenet.cni.codes import SpecVersion
from weavenet.lab import agents, process
from weavenet.lab.hosts import CNI_CONFIGURATION, Lab
from weavenet.lab.process import Outcome
from weavenet.lab.record import HostRecord, PodRecord
from weavenet.lab.runtime import Sandbox

pytestmark = pytest.mark.kernel

OPTIONS = ("--ipalloc-range=10.40.0.0/28",)  # fourteen addresses, one of them the bridge's
VERSIONS = [version.value for version in SpecVersion]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with mesh_lab.running_lab(tmp_path_factory.mktemp("l"), "cni", 1, OPTIONS) as lab:
        yield lab


@pytest.fixture
def host(lab: Lab) -> HostRecord:
    return lab.record.hosts[0]


@pytest.fixture
def pod(lab: Lab, host: HostRecord) -> Iterator[PodRecord]:
    """Make a sandbox that is not attached; detach it afterwards."""
    pod = lab.make_pod(f"pod{len(lab.record.pods)}", host)
    yield pod
    pod.result = "{}"  # DEL whatever became of it
    lab.remove_pod(pod)


def call(
    lab: Lab,
    verb: str,
    sandbox: Sandbox | None = None,
    *,
    text: str | None = None,
    variables: Mapping[str, str] | None = None,
    plugin: str = "weave-net",
    **keys: object,
) -> tuple[int, dict[str, object]]:
    """Execute the plugin with a configuration, or whatever `text` is; return its exit status and what it answered."""
    host = lab.record.hosts[0]
    environment = {**lab.environment(host), "CNI_COMMAND": verb, "CNI_PATH": str(lab.paths.executables)}
    if sandbox is not None:
        environment |= {"CNI_CONTAINERID": sandbox.container, "CNI_NETNS": str(sandbox.namespace.path)}
        environment |= {"CNI_IFNAME": sandbox.interface}
    environment |= variables or {}
    program = str(lab.paths.executables / plugin)
    configuration = json.dumps({**CNI_CONFIGURATION, **keys}) if text is None else text
    inside = lab.namespace(host.name)
    done: Outcome = process.execute([program], namespace=inside, text=configuration, env=environment)
    assert done.errors == ""
    return done.status, json.loads(done.output) if done.output else {}


def traces(lab: Lab) -> tuple[set[str], set[str]]:
    """Return what a failed call could leave: devices of the host, and who but the bridge itself holds addresses."""
    host = lab.record.hosts[0]
    links = json.loads(process.run(["ip", "-json", "link"], namespace=lab.namespace(host.name)))
    owned = json.loads(agents.query(lab.paths, host, "/ip"))["owned"] or []
    return {link["ifname"] for link in links}, {one["containerid"] for one in owned} - {"weave:expose"}


def inside(lab: Lab, pod: PodRecord, *command: str) -> str:
    return process.run(command, namespace=lab.namespace(pod.name))


# --- every version ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pod_is_added_checked_and_deleted_in_every_version_of_the_specification(
    lab: Lab, pod: PodRecord, version: str
) -> None:
    sandbox = lab.sandbox(pod)
    before = traces(lab)
    status, result = call(lab, "ADD", sandbox, cniVersion=version)
    assert status == 0, result
    address = json.loads(inside(lab, pod, "ip", "-json", "-4", "addr", "show", "eth0"))[0]["addr_info"][0]
    shown = f"{address['local']}/{address['prefixlen']}"
    assert result["cniVersion"] == version
    if version in {"0.1.0", "0.2.0"}:
        assert result["ip4"]["ip"] == shown
        assert "interfaces" not in result
    else:
        (ip,) = result["ips"]
        assert ip["address"] == shown
        assert ("version" in ip) == version.startswith("0.")
        assert result["interfaces"][ip["interface"]]["sandbox"] == str(sandbox.namespace.path)
        assert result["interfaces"][ip["interface"]]["name"] == "eth0"
        assert ("mtu" in result["interfaces"][0]) == (version == "1.1.0")
    status, answer = call(lab, "CHECK", sandbox, cniVersion=version, prevResult=result)
    if version in {"0.1.0", "0.2.0", "0.3.0", "0.3.1"}:
        assert (status, answer["code"]) == (1, 1)
    else:
        assert (status, answer) == (0, {})
    for _ in range(2):
        assert call(lab, "DEL", sandbox, cniVersion=version, prevResult=result) == (0, {})
    assert traces(lab) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (["ip", "addr", "flush", "dev", "eth0"], "lacks address"),
        (["ip", "route", "del", "default"], "lacks the route"),
        (["ip", "link", "del", "eth0"], "is not in the container"),
        (["ip", "link", "set", "eth0", "down"], "is down"),
    ],
    ids=["address", "route", "interface", "link"],
)
def test_check_sees_what_was_taken_away(lab: Lab, pod: PodRecord, spoil: list[str], words: str) -> None:
    sandbox = lab.sandbox(pod)
    _, result = call(lab, "ADD", sandbox)
    assert call(lab, "CHECK", sandbox, prevResult=result) == (0, {})
    inside(lab, pod, *spoil)
    status, answer = call(lab, "CHECK", sandbox, prevResult=result)
    assert (status, answer["code"]) == (1, 104)
    assert words in f"{answer['msg']} {answer.get('details', '')}"


def test_pods_can_be_added_all_at_once_and_garbage_is_collected(lab: Lab, host: HostRecord) -> None:
    pods = [lab.make_pod(f"many{number}", host) for number in range(8)]
    before = traces(lab)
    with ThreadPoolExecutor(8) as pool:  # a namespace belongs to a thread
        answers = list(pool.map(lambda pod: call(lab, "ADD", lab.sandbox(pod)), pods))
    assert [status for status, _ in answers] == [0] * 8, answers
    addresses = {answer["ips"][0]["address"] for _, answer in answers}
    assert len(addresses) == 8
    valid = [{"containerID": pods[0].container, "ifname": "eth0"}]
    assert call(lab, "GC", **{"cni.dev/valid-attachments": valid}) == (0, {})
    assert call(lab, "CHECK", lab.sandbox(pods[0]), prevResult=answers[0][1]) == (0, {})
    kept = {f"{pods[0].container}/eth0"}
    assert traces(lab) == (before[0] | {answers[0][1]["interfaces"][0]["name"]}, before[1] | kept)
    assert call(lab, "GC", **{"cni.dev/valid-attachments": []}) == (0, {})
    assert traces(lab) == before
    for pod in pods:
        lab.remove_pod(pod)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{", 6, "decoding network config"),
        ("", 6, "decoding network config"),
        ('{"cniVersion":"1.1.0","type":"weave-net"}', 7, "missing network name"),
        ('{"cniVersion":"1.1.0","name":"a b","type":"weave-net"}', 7, "invalid network name"),
        ('{"cniVersion":"9.0.0","name":"weave","type":"weave-net"}', 1, "incompatible CNI versions"),
        ('{"cniVersion":"1.1.0","name":"weave","ipam":{"subnet":"10.40.0.0/33"}}', 7, "10.40.0.0/33"),
        ('{"cniVersion":"1.1.0","name":"weave","ipam":{"subnet":"192.0.2.0/24"}}', 101, "192.0.2.0/24"),
        ('{"cniVersion":"1.1.0","name":"weave","ipam":{"type":"host-local"}}', 7, "host-local"),
        ('{"cniVersion":"1.1.0","name":"weave","bridge":"br0"}', 7, "br0"),
        ('{"cniVersion":"1.1.0","name":"weave","mtu":3}', 7, "mtu"),
        ('{"cniVersion":"1.1.0","name":"weave","ipam":{"routes":[{"dst":"x"}]}}', 7, "routes"),
        ('{"cniVersion":"1.1.0","name":"weave","ipMasq":true}', 2, "Masquerading"),
        ('{"cniVersion":"1.1.0","name":7}', 7, "name"),
    ],
)
def test_an_impossible_configuration_is_refused_with_code_and_text_and_leaves_nothing(
    lab: Lab, pod: PodRecord, text: str, code: int, words: str
) -> None:
    before = traces(lab)
    status, answer = call(lab, "ADD", lab.sandbox(pod), text=text)
    assert (status, answer["code"]) == (1, code), answer
    assert words in f"{answer['msg']} {answer.get('details', '')}"
    assert answer["cniVersion"] in VERSIONS
    assert traces(lab) == before
    assert "eth0" not in inside(lab, pod, "ip", "-br", "link")


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"CNI_NETNS": "/run/netns/nowhere"}, 8, "no such file or directory"),
        ({"CNI_NETNS": "/dev/null"}, 8, "not a network namespace"),
        ({"CNI_NETNS": "/proc/self/ns/net"}, 8, "host network namespace"),
        ({"CNI_NETNS": ""}, 4, "CNI_NETNS"),
        ({"CNI_IFNAME": "a/b"}, 4, "CNI_IFNAME"),
        ({"CNI_CONTAINERID": "../x"}, 4, "CNI_CONTAINERID"),
        ({"CNI_COMMAND": "MAKE"}, 4, "MAKE"),
        ({"CNI_ARGS": "nonsense"}, 4, "CNI_ARGS"),
    ],
)
def test_an_impossible_environment_is_refused_with_code_and_text_and_leaves_nothing(
    lab: Lab, pod: PodRecord, variables: dict[str, str], code: int, words: str
) -> None:
    before = traces(lab)
    status, answer = call(lab, "ADD", lab.sandbox(pod), variables=variables)
    assert (status, answer["code"]) == (1, code), answer
    assert words in f"{answer['msg']} {answer.get('details', '')}"
    assert traces(lab) == before


def test_an_exhausted_range_refuses_add_and_status_says_so_until_an_address_is_free(lab: Lab, host: HostRecord) -> None:
    assert call(lab, "STATUS") == (0, {})
    pods: list[PodRecord] = []
    while True:
        pods.append(lab.make_pod(f"full{len(pods)}", host))
        before = traces(lab)
        status, answer = call(lab, "ADD", lab.sandbox(pods[-1]))
        if status:
            break
        assert len(pods) < 16
    assert answer["code"] == 101, answer
    assert "10.40.0.0/28" in answer["msg"]
    assert traces(lab) == before
    assert "eth0" not in inside(lab, pods[-1], "ip", "-br", "link")
    status, answer = call(lab, "STATUS")
    assert (status, answer["code"]) == (1, 50)
    assert "10.40.0.0/28" in answer["msg"]
    assert call(lab, "DEL", lab.sandbox(pods[0])) == (0, {})
    assert call(lab, "STATUS") == (0, {})
    assert call(lab, "ADD", lab.sandbox(pods[-1]))[0] == 0
    for pod in pods:
        pod.result = "{}"
        lab.remove_pod(pod)


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_with_the_agent_away_every_verb_says_so_and_version_is_answered(
    lab: Lab, pod: PodRecord, host: HostRecord, verb: str, code: int
) -> None:
    socket = lab.paths.host(host) / "nobody.sock"
    status, answer = call(lab, verb, lab.sandbox(pod), variables={"WEAVENET_CNI_SOCKET": str(socket)})
    assert (status, answer["code"]) == (1, code)
    assert str(socket) in answer["msg"]
    assert "Is it running" in answer["details"]
    status, answer = call(lab, "VERSION", variables={"WEAVENET_CNI_SOCKET": str(socket)})
    assert (status, answer["supportedVersions"]) == (0, VERSIONS)


def test_an_agent_killed_amid_add_leaves_nothing_that_del_does_not_remove(
    lab: Lab, pod: PodRecord, host: HostRecord
) -> None:
    before = traces(lab)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(call, lab, "ADD", lab.sandbox(pod))
        lab.kill_agent(host)
        status, answer = adding.result()
    assert status == 0 or answer["code"] == 11
    mesh_lab.start(lab, host, OPTIONS)
    assert call(lab, "DEL", lab.sandbox(pod)) == (0, {})
    assert traces(lab) == before
