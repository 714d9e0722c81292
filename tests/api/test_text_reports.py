"""The texts against what real routers printed: same report in, same lines out, but for three documented differences.

The order of lines is ours, blanks at line ends are gone, and attributes are separated; names (DNS) are not there yet.
"""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from weavenet.api.schema import decode_report, encode_report
from weavenet.api.text import (
    STATUS_TEXTS,
    connections_text,
    ipam_state,
    ipam_text,
    peers_text,
    ps_text,
    status_text,
    targets_text,
)
from weavenet.errors import ApiError
from weavenet.node.report import (
    Attachment,
    Connection,
    Ipam,
    Kubernetes,
    OverlayLink,
    OverlayState,
    Paxos,
    Peer,
    PeerConnection,
    Report,
    RingEntry,
    Router,
    VersionCheck,
    Weavenet,
    listed,
)

RECORDED = Path(__file__).parents[1] / "recorded"
VECTORS = msgspec.json.decode((Path(__file__).parents[1] / "vectors" / "http_cli_outputs.json").read_bytes())["vectors"]
REPORTS = sorted(RECORDED.glob("*report.*"))
PARTS_NOT_HERE = ("DNS", "Proxy", "Plugin")

RECORDED_TEXTS = [
    *((f"host{n}-report.json", f"host{n}-status.txt", status_text) for n in (1, 2, 3)),
    *((f"host{n}-report.json", f"host{n}-status-connections.txt", connections_text) for n in (1, 2, 3)),
    *((f"host{n}-report.json", f"host{n}-status-peers.txt", peers_text) for n in (1, 2, 3)),
    *((f"host{n}-report.json", f"host{n}-status-ipam.txt", ipam_text) for n in (1, 2, 3)),
    *((f"host{n}-report.json", f"host{n}-status-targets.txt", targets_text) for n in (1, 2, 3)),
    ("host1-awaiting-consensus-report.json", "host1-awaiting-consensus-status.txt", status_text),
    ("host1-awaiting-consensus-report.json", "host1-alone-connections.txt", connections_text),
    *((f"encrypted-2node-host{n}-report.txt", f"encrypted-2node-host{n}-status.txt", status_text) for n in (1, 2)),
    *(
        (f"encrypted-2node-host{n}-report.txt", f"encrypted-2node-host{n}-{part}.txt", STATUS_TEXTS[part])
        for n in (1, 2)
        for part in ("connections", "peers", "ipam", "targets")
    ),
]


def without_quirks(text: str) -> str:
    text = re.sub(r"encrypted=true(?=mtu)", "encrypted=true ", text)
    text = text.partition("\n        Service: dns\n")[0]
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def blocks(text: str) -> list[list[str]]:
    """Cut where a line is not indented like a connection under its peer, and sort on both levels."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("   ") and found:
            found[-1].append(line)
        else:
            found.append([line])
    return sorted([block[0], *sorted(block[1:])] for block in found)


@pytest.mark.parametrize(
    ("report", "printed", "text_of"), RECORDED_TEXTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_recorded_report_reads_as_its_router_showed_it(
    report: str,
    printed: str,
    text_of: Callable[[Report], str],
) -> None:
    text = text_of(decode_report((RECORDED / report).read_bytes()))

    assert blocks(text) == blocks(without_quirks((RECORDED / printed).read_text()))
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_status_is_the_recorded_text_to_the_byte_as_far_as_its_parts_are_here() -> None:
    recorded = (RECORDED / "host1-status.txt").read_text()

    text = status_text(decode_report((RECORDED / "host1-report.json").read_bytes()))

    assert recorded.startswith(text + "\n        Service: dns\n")


# Texts of the vectors whose state a report of the same node and scenario shows: scenario, step, and the report's step.
SAME_STATE = [
    (1, 0, 1),
    (1, 52, 1),
    (1, 54, 1),
    (1, 56, 1),
    (1, 69, 78),
    (2, 4, 20),
    (2, 7, 20),
    (2, 8, 20),
    (2, 9, 20),
    (2, 16, 20),
    (3, 0, 9),
]


@pytest.mark.parametrize(("scenario", "step", "report_step"), SAME_STATE)
def test_a_text_of_the_vectors_follows_from_the_report_of_the_same_state(
    scenario: int,
    step: int,
    report_step: int,
) -> None:
    steps = [step for step in VECTORS[scenario - 1]["steps"] if "path" in step]
    shown, report = steps[step], steps[report_step]
    assert shown["node"] == report["node"]
    part = shown["path"].removeprefix("/status").removeprefix("/")

    text = STATUS_TEXTS[part](decode_report(report["body"].encode()))

    assert blocks(text) == blocks(without_quirks(shown["body"]))


def recorded_lines(path: str, files: str) -> list[str]:
    found = [line for file in sorted(RECORDED.glob(files)) for line in file.read_text().splitlines()]
    for scenario in VECTORS:
        found += [line for step in scenario["steps"] if step.get("path") == path for line in step["body"].splitlines()]
    return sorted(set(found))


@pytest.mark.parametrize("line", recorded_lines("/status/connections", "*connections.txt"))
def test_every_recorded_connection_is_written_as_it_was(line: str) -> None:
    line = without_quirks(line)
    match = re.fullmatch(r"(<-|->) (\S+) +(\S+) +(.*?)((?: \w+=\w+)*)\n", line)
    assert match is not None
    arrow, address, state, info, attributes = match.groups()
    attrs: dict[str, str | int | bool] = {"name": "sleeve"}
    for key, _, value in (one.partition("=") for one in attributes.split()):
        attrs[key] = value == "true" if key == "encrypted" else int(value)
    one = Connection(address, outbound=arrow == "->", state=state, info=info, attrs=attrs)

    assert connections_text(make_report(connections=[one])) == line


@pytest.mark.parametrize("line", recorded_lines("/status/ipam", "*ipam.txt"))
def test_every_recorded_owner_is_written_as_it_was(line: str) -> None:
    match = re.fullmatch(
        r"([0-9a-f:]+)\((\w+)\) +(\d+) IPs \(.*? of total\) ?(\((\d+) active\)|- unreachable!)?\s*", line
    )
    assert match is not None
    name, nickname, size, remark, active = match.groups()
    entry = RingEntry("10.32.0.0", int(size), name, nickname, is_known_peer=remark != "- unreachable!", version=0)
    ipam = msgspec.structs.replace(make_ipam(), entries=(entry,), active_ips=int(active or 0))
    report = make_report(ipam=ipam)
    ours = msgspec.structs.replace(report.router, name=name if active else "7a:00:00:00:00:99")

    assert ipam_text(msgspec.structs.replace(report, router=ours)) == without_quirks(line)


def all_reports() -> list[tuple[str, bytes]]:
    found = [(path.name, path.read_bytes()) for path in REPORTS]
    for scenario in VECTORS:
        for number, step in enumerate(scenario["steps"]):
            if step.get("content_type") == "application/json" and step["path"] == "/report":
                found.append((f"scenario-{scenario['scenario']}-step-{number}", step["body"].encode()))
    return found


@pytest.mark.parametrize(("name", "raw"), all_reports(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_recorded_report_is_read_and_written_again_with_every_key(name: str, raw: bytes) -> None:
    expected = msgspec.json.decode(raw)
    for part in PARTS_NOT_HERE:
        expected.pop(part, None)

    written = encode_report(decode_report(raw))

    assert msgspec.json.decode(written) == expected, name
    assert list(msgspec.json.decode(written)["Router"]) == list(expected["Router"]), "the order of keys is Go's, too"


def test_a_report_is_indented_by_four_without_a_newline_at_the_end() -> None:
    raw = encode_report(make_report())

    assert raw.startswith(b'{\n    "Ready": true,\n    "Version"')
    assert not raw.endswith(b"\n")


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"Ready": 1}'])
def test_what_is_not_a_report_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError, match="not a report"):
        decode_report(raw)


# --- made reports -----------------------------------------------------------------------------------------------------


def make_report(
    *,
    connections: list[Connection] | None = None,
    peers: list[Peer] | None = None,
    ipam: Ipam | None = None,
    weavenet: Weavenet | None = None,
    versions: tuple[int, int] = (1, 2),
    check: VersionCheck | None = None,
) -> Report:
    return Report(
        ready=True,
        version="0.1.0",
        version_check=check or VersionCheck(),
        router=Router(
            protocol="weave",
            protocol_min_version=versions[0],
            protocol_max_version=versions[1],
            encryption=False,
            peer_discovery=False,
            name="7a:00:00:00:00:02",
            nick_name="host2",
            port=6783,
            peers=listed(peers or []),
            unicast_routes=None,
            broadcast_routes=None,
            connections=listed(connections or []),
            termination_count=0,
            targets=None,
            overlay_diagnostics={"fastdp": None},
            trusted_subnets=("192.0.2.0/24", "198.51.100.0/24"),
            interface="vxlan-6784",
            capture_stats=None,
            macs=None,
        ),
        ipam=ipam,
        weavenet=weavenet,
    )


def make_ipam(
    *entries: tuple[str, int, bool], paxos: Paxos | None = None, waiting: tuple[str, ...] | None = None
) -> Ipam:
    return Ipam(
        paxos=paxos,
        range="10.32.0.0/12",
        range_num_ips=1 << 20,
        active_ips=3,
        default_subnet="10.32.0.0/12",
        entries=listed(
            RingEntry("10.32.0.0", size, f"7a:00:00:00:00:0{host[-1]}", host, known, 0) for host, size, known in entries
        ),
        pending_claims=None,
        pending_allocates=waiting,
    )


def connection(address: str, state: str, **attributes: str | int | bool) -> Connection:
    return Connection(address, outbound=True, state=state, info="fastdp x(y)", attrs=attributes or None)


def test_connections_are_shown_working_ones_first_and_then_by_address_as_a_number() -> None:
    report = make_report(
        connections=[
            connection("192.0.2.10:6783", "failed"),
            connection("192.0.2.9:6783", "failed"),
            connection("192.0.2.30:6783", "established", name="fastdp", mtu=1376, encrypted=True),
            connection("somewhere", "retrying"),
        ]
    )

    assert connections_text(report).splitlines() == [
        "-> 192.0.2.30:6783       established fastdp x(y) encrypted=true mtu=1376",
        "-> somewhere             retrying    fastdp x(y)",
        "-> 192.0.2.9:6783        failed      fastdp x(y)",
        "-> 192.0.2.10:6783       failed      fastdp x(y)",
    ]


def test_peers_are_shown_ourselves_first_with_what_is_pending() -> None:
    ends = (PeerConnection("7a:00:00:00:00:02", "host2", "192.0.2.2:6783", outbound=True, established=False),)
    report = make_report(
        peers=[
            Peer("7a:00:00:00:00:01", "host1", 1, 1, 1, ends),
            Peer("7a:00:00:00:00:02", "host2", 2, 2, 1, None),
        ]
    )

    assert peers_text(report).splitlines() == [
        "7a:00:00:00:00:02(host2)",
        "7a:00:00:00:00:01(host1)",
        "   -> 192.0.2.2:6783        7a:00:00:00:00:02(host2)              pending",
    ]
    assert "Peers: 2 (with 1 pending connections)\n" in status_text(report)


def test_owners_of_addresses_are_shown_ourselves_first_each_with_all_its_ranges() -> None:
    report = make_report(
        ipam=make_ipam(
            ("host3", 1 << 18, False), ("host1", 1 << 18, True), ("host2", 1 << 18, True), ("host1", 1, True)
        )
    )

    assert ipam_text(report).splitlines() == [
        "7a:00:00:00:00:02(host2)                262144 IPs (25.0% of total) (3 active)",
        "7a:00:00:00:00:01(host1)                262145 IPs (25.0% of total)",
        "7a:00:00:00:00:03(host3)                262144 IPs (25.0% of total) - unreachable!",
    ]


def test_small_and_whole_shares_keep_their_width() -> None:
    report = make_report(ipam=make_ipam(("host1", 9, True), ("host3", 1 << 20, True)))

    assert "(00.0% of total)" in ipam_text(report)
    assert "(100.0% of total)" in ipam_text(report)


@pytest.mark.parametrize(
    ("ipam", "state"),
    [
        pytest.param(make_ipam(), "idle", id="nobody has asked for anything"),
        pytest.param(make_ipam(paxos=Paxos(elector=False, known_nodes=0, quorum=0)), "priming", id="an observer"),
        pytest.param(
            make_ipam(paxos=Paxos(elector=True, known_nodes=1, quorum=2)),
            "awaiting consensus (quorum: 2, known: 1)",
            id="an election",
        ),
        pytest.param(make_ipam(("host1", 4, True)), "ready", id="a ring"),
        pytest.param(
            make_ipam(("host1", 4, True), waiting=("c1 10.32.0.0/12",)),
            "waiting for IP(s) to become available",
            id="a ring and somebody waiting",
        ),
        pytest.param(
            make_ipam(("host1", 4, False), waiting=("c1 10.32.0.0/12",)),
            "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead",
            id="only the dead own anything",
        ),
    ],
)
def test_the_state_of_address_allocation_in_words(ipam: Ipam, state: str) -> None:
    assert ipam_state(ipam) == state


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (VersionCheck(), "version check update disabled"),
        (
            VersionCheck(enabled=True, success=True, next_check_at="2026-11-23T20:42:55.45Z"),
            "up to date; next check at 2026/11/23 20:42:55",
        ),
        (
            VersionCheck(enabled=True, next_check_at="2026-11-23T20:42:55Z"),
            "failed to check latest version - see logs; next check at 2026/11/23 20:42:55",
        ),
        (VersionCheck(enabled=True, success=True, new_version="3.0"), "version 3.0 available - please upgrade!"),
    ],
    ids=["off", "up to date", "failed", "newer"],
)
def test_the_version_check_in_words(check: VersionCheck, words: str) -> None:
    assert status_text(make_report(check=check)).startswith(f"        Version: 0.1.0 ({words})\n")


def test_one_protocol_version_is_shown_as_one_and_subnets_as_a_list() -> None:
    text = status_text(make_report(versions=(2, 2)))

    assert "\n       Protocol: weave 2\n" in text
    assert "\n TrustedSubnets: 192.0.2.0/24, 198.51.100.0/24\n" in text
    assert "\n    Connections: 0\n" in text
    assert "Service: ipam" not in text


def test_what_is_wrong_with_the_data_plane_has_a_section_of_its_own() -> None:
    text = status_text(make_report(weavenet=Weavenet(problems=("no device vxlan-6784",))))

    assert text.endswith("\n\n        Service: dataplane\n        Problem: no device vxlan-6784\n")


ATTACHMENTS = Weavenet(
    attachments=(
        Attachment("c0ffee0123456789", "vethwepl1", "3e:5c:41:ff:a0:12", ("10.32.0.2/12",)),
        Attachment("badcafe123456789", "vethwepl2", "3e:5c:41:ff:a0:13", ("10.32.0.3/12", "10.33.0.1/16")),
        Attachment("weave:expose", "weave", "7a:00:00:00:00:01", ("10.32.0.1/12",)),
    )
)


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        pytest.param(
            (),
            [
                "weave:expose 7a:00:00:00:00:01 10.32.0.1/12",
                "badcafe12345 3e:5c:41:ff:a0:13 10.32.0.3/12 10.33.0.1/16",
                "c0ffee012345 3e:5c:41:ff:a0:12 10.32.0.2/12",
            ],
            id="all",
        ),
        pytest.param(("c0ff",), ["c0ffee012345 3e:5c:41:ff:a0:12 10.32.0.2/12"], id="by the beginning of an ID"),
        pytest.param(("nobody",), [], id="nobody"),
    ],
)
def test_attachments_are_listed_the_hosts_own_first(wanted: tuple[str, ...], lines: list[str]) -> None:
    assert ps_text(make_report(weavenet=ATTACHMENTS), wanted).splitlines() == lines


def test_an_interface_whose_mac_is_not_known_leaves_no_hole_where_scripts_look_for_it() -> None:
    going = Weavenet(attachments=(Attachment("c0ffee0123456789", "vethwepl1", "", ("10.32.0.2/12",)),))

    assert ps_text(make_report(weavenet=going)) == "c0ffee012345 - 10.32.0.2/12\n"


def test_an_interface_without_addresses_is_listed_all_the_same() -> None:
    bare = Weavenet(attachments=(Attachment("c1", "vethwepl1", "3e:5c:41:ff:a0:12"),))

    assert ps_text(make_report(weavenet=bare)) == "c1 3e:5c:41:ff:a0:12\n"


def test_the_longest_address_and_the_longest_words_are_still_followed_by_a_blank() -> None:
    longest = Connection(
        "255.255.255.255:65535",
        outbound=False,
        state="established",
        info="unencrypted fastdp x(y)",
        attrs={"mtu": 1376},
    )

    assert connections_text(make_report(connections=[longest])) == (
        "<- 255.255.255.255:65535 established unencrypted fastdp x(y) mtu=1376\n"
    )


def test_a_container_id_does_nothing_to_a_terminal() -> None:
    nasty = Weavenet(attachments=(Attachment("c\x1b[2J\n0123", "vethwepl1", "3e:5c:41:ff:a0:12", ("10.32.0.2/12",)),))

    assert ps_text(make_report(weavenet=nasty)) == "c\\u001b[2J\\u000a0123 3e:5c:41:ff:a0:12 10.32.0.2/12\n"


def test_weaves_keys_stay_weaves_and_ours_are_under_one_key() -> None:
    keys = list(msgspec.json.decode(encode_report(make_report(weavenet=ATTACHMENTS))))

    assert keys == ["Ready", "Version", "VersionCheck", "Router", "Weavenet"]


def kubernetes(**changes: object) -> Weavenet:
    said: dict[str, object] = {
        "server": "https://10.96.0.1:443",
        "reachable": True,
        "since": "2026-01-01T00:00:00Z",
        "last_error": "",
        "nodes": 3,
        "peers": ("10.0.0.2",),
        "awaiting_count": False,
        "registered": True,
        "reclaimed": 0,
        "reclaim": None,
        "network_condition": "told",
        "uninstall_wanted": False,
    }
    return Weavenet(kubernetes=Kubernetes(**{**said, **changes}))  # type: ignore[arg-type]


def last_section(weavenet: Weavenet) -> list[str]:
    return [line.strip() for line in status_text(make_report(weavenet=weavenet)).split("\n\n")[-1].splitlines()]


def test_the_status_says_how_the_kubernetes_api_is() -> None:
    answers = "API: https://10.96.0.1:443 (answers since 2026-01-01T00:00:00Z)"
    assert last_section(kubernetes()) == ["Service: kubernetes", answers, "Nodes: 3"]


def test_the_status_says_what_is_waited_for_without_an_api() -> None:
    section = last_section(kubernetes(reachable=False, last_error="Connection refused", awaiting_count=True))
    assert section == [
        "Service: kubernetes",
        "API: https://10.96.0.1:443 (does not answer since 2026-01-01T00:00:00Z)",
        "Waiting: for the API to tell how many peers there are, before a first ring is elected",
        "LastError: Connection refused",
    ]
    assert "(not asked yet)" in last_section(kubernetes(reachable=None))[1]


def test_the_status_names_departed_peers_that_wait_and_the_wish_to_be_uninstalled() -> None:
    section = last_section(kubernetes(reclaim=("7a:00:00:00:00:03: node c is gone, but the peer is alive",)))
    assert section[-1] == "Reclaim: 7a:00:00:00:00:03: node c is gone, but the peer is alive"
    assert last_section(kubernetes(uninstall_wanted=True))[-1].startswith("Uninstall: when the agent is stopped")


def linked(*overlays: tuple[str, str, str], rtt_us: int | None = None) -> str:
    one = connection("192.0.2.2:6783", "established", name="sleeve", mtu=1438)
    states = tuple(OverlayState(*each) for each in overlays)
    link = OverlayLink("p", "n", one.address, "sleeve", one.address, True, 1438, states, rtt_us)
    report = msgspec.structs.replace(make_report(connections=[one]), weavenet=Weavenet(links=(link,)))
    return connections_text(report).partition("mtu=1438")[2].strip()


def test_a_connection_says_behind_all_else_why_a_better_overlay_is_not_in_use() -> None:
    silent = ("fastdp", "silent", "no heartbeat for 60 s")
    assert linked(silent, ("sleeve", "in use", "")) == "(fastdp silent: no heartbeat for 60 s)"
    assert linked(("sleeve", "in use", ""), ("fastdp", "not offered", "why")) == "(fastdp not offered: why)"
    assert linked(("fastdp", "in use", ""), ("sleeve", "failed", "why")) == "", "a worse one is nobody's concern here"
    both = linked(("fastdp", "trying", "a"), ("sleeve", "trying", "b"))
    assert both == "(fastdp trying: a) (sleeve trying: b)"


@pytest.mark.parametrize(("rtt_us", "shown"), [(84, "rtt=0.084ms"), (1234, "rtt=1.23ms"), (250_000, "rtt=250ms")])
def test_a_connection_says_how_long_a_round_trip_takes(rtt_us: int, shown: str) -> None:
    assert linked(("sleeve", "in use", ""), rtt_us=rtt_us) == shown
