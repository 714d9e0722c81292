"""The CNI verbs, one after the other, over the fakes of cni_node.py."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cni_node import NETNS, PATH, Node, run
from msgspec.structs import replace

from weavenet.address import Cidr, parse_address
from weavenet.agent.pod_services import KernelPods, to_the_end
from weavenet.cni.codes import Code
from weavenet.cni.request import Sandbox, Version, parse_call
from weavenet.cni.result import encode_versions
from weavenet.dataplane.model import MacAddress, PodInterface, PodLink, PodPort, PodRoute
from weavenet.errors import IpamWaitError, KernelError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cni.json").read_text())["vectors"]
RECORDED = [vector for vector in VECTORS if "env" in vector]


# --- ADD --------------------------------------------------------------------------------------------------------------


def test_add_reserves_connects_and_answers() -> None:
    async def scenario(node: Node) -> None:
        assert await node.add() == {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "vethweplc0ffee0", "mac": "00:00:00:00:00:01", "mtu": 1376},
                {"name": "eth0", "mac": "00:00:00:00:00:02", "mtu": 1376, "sandbox": PATH},
            ],
            "ips": [{"address": "10.32.0.1/12", "gateway": "10.32.0.2", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.32.0.2"}],
            "dns": {},
        }

    node = run(scenario)
    assert node.happened == ["allocate c0ffee0123/eth0", "attach c0ffee0123/eth0"]
    assert node.pods.links == [
        PodLink(
            "c0ffee0123",
            "eth0",
            NETNS,
            Cidr.parse("10.32.0.1/12"),
            parse_address("10.32.0.2"),
            (),
            mtu=1376,
            hairpin=True,
        )
    ]


def test_the_configuration_decides_on_mtu_hairpin_routes_and_resolver() -> None:
    async def scenario(node: Node) -> None:
        result = await node.add(
            mtu=1300,
            hairpinMode=False,
            dns={"nameservers": ["10.32.0.2"]},
            ipam={"subnet": "10.32.8.0/24", "routes": [{"dst": "10.0.0.0/8"}, {"dst": "0.0.0.0/0", "gw": "10.32.8.9"}]},
        )
        assert result["ips"] == [{"address": "10.32.8.1/24", "interface": 1}]
        assert result["routes"] == [{"dst": "10.0.0.0/8"}, {"dst": "0.0.0.0/0", "gw": "10.32.8.9"}]
        assert result["dns"] == {"nameservers": ["10.32.0.2"]}

    [link] = run(scenario).pods.links
    assert (link.mtu, link.hairpin, link.gateway) == (1300, False, None)
    assert link.routes == (
        PodRoute(Cidr.parse("10.0.0.0/8")),
        PodRoute(Cidr.parse("0.0.0.0/0"), parse_address("10.32.8.9")),
    )


ADDED = [v for v in RECORDED if v["env"]["CNI_COMMAND"] == "ADD" and v["exit"] == 0]


@pytest.mark.parametrize("vector", ADDED, ids=lambda vector: f"{vector['plugin']} {vector['note']}")
def test_results_have_all_that_weaves_recorded_ones_have(vector: dict[str, object]) -> None:
    stdin, environment = vector["stdin"], vector["env"]
    assert isinstance(stdin, dict)
    assert isinstance(environment, dict)
    recorded = json.loads(str(vector["stdout"]))

    async def scenario(node: Node) -> None:
        ip = recorded["ips"][0]["address"] if "ips" in recorded else recorded["ip4"]["ip"]
        # The address is the allocator's choice; here it gives what was recorded.
        node.addresses.held[f"{environment['CNI_CONTAINERID']}/eth0"] = Cidr.parse(ip)
        sandbox = Sandbox(environment["CNI_NETNS"], NETNS)
        call = parse_call(str(vector["plugin"]), environment, json.dumps(stdin).encode(), sandbox)
        result = json.loads(await node.verbs.handle(call))
        # What we say in addition: the version, the interfaces, the default route. `ip4` has its routes inside.
        assert result.pop("cniVersion") == stdin.get("cniVersion", "0.1.0")
        result.pop("interfaces", None)
        for ip in result.get("ips", []):
            ip.pop("interface", None)
        for holder, theirs in ((result, recorded), (result.get("ip4", {}), recorded.get("ip4", {}))):
            if "routes" not in theirs:
                assert all(route["dst"] == "0.0.0.0/0" for route in holder.pop("routes", []))
        assert result == recorded

    run(scenario)


def test_without_an_address_on_the_bridge_there_is_no_default_route() -> None:
    async def scenario(node: Node) -> None:
        node.addresses.bridge = None
        result = await node.add()
        assert result["ips"] == [{"address": "10.32.0.1/12", "interface": 1}]
        assert "routes" not in result

    [link] = run(scenario).pods.links
    assert (link.gateway, link.routes) == (None, ())


def test_in_a_chain_the_previous_result_is_passed_on() -> None:
    async def scenario(node: Node) -> None:
        result = await node.add(prevResult={"interfaces": [{"name": "other0"}], "ips": []})
        names = [interface["name"] for interface in result["interfaces"]]  # type: ignore[union-attr]
        assert names == ["other0", "vethweplc0ffee0", "eth0"]
        assert result["ips"] == [{"address": "10.32.0.1/12", "gateway": "10.32.0.2", "interface": 2}]

    run(scenario)


def test_an_add_whose_answer_was_lost_is_answered_again_and_nothing_is_done_twice() -> None:
    async def scenario(node: Node) -> None:
        first = await node.add()
        assert await node.add() == first

    assert run(scenario).happened == ["allocate c0ffee0123/eth0", "attach c0ffee0123/eth0"]


def test_two_interfaces_of_one_container_are_two_attachments() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        await node.add(interface="net1", name="backend")
        assert sorted(node.addresses.held) == ["c0ffee0123/eth0", "c0ffee0123/net1/backend"]

    run(scenario)


@pytest.mark.parametrize(
    ("sandbox", "message"),
    [
        (
            Sandbox("/run/netns/nosuch", None, "no such file or directory"),
            'error accessing namespace "/run/netns/nosuch": no such file or directory',
        ),
        (
            Sandbox("/proc/1/ns/net", NETNS, is_hosts_own=True),
            "can not specify host network namespace as network namespace to which container should be added",
        ),
    ],
    ids=["missing", "the host's own"],
)
def test_add_refuses_a_namespace_with_weaves_words_before_it_does_anything(sandbox: Sandbox, message: str) -> None:
    async def scenario(node: Node) -> None:
        error = await node.refusal("ADD", sandbox=sandbox)
        assert (error.code, error.message) == (Code.INVALID_SANDBOX, message)

    assert run(scenario).happened == []


def test_add_refuses_another_bridge_than_the_agents() -> None:
    async def scenario(node: Node) -> None:
        error = await node.refusal("ADD", bridge="nobridge")
        assert error.code == Code.INVALID_CONFIG
        assert error.message.startswith('Failed to get netdev for "nobridge" bridge: ')

    assert run(scenario).happened == []


def test_without_an_address_nothing_is_connected() -> None:
    async def scenario(node: Node) -> None:
        node.addresses.refused = "no space left in range 10.32.0.0/12"
        error = await node.refusal("ADD")
        assert error.code == Code.NO_ADDRESS
        assert error.message == "unable to allocate IP address: no space left in range 10.32.0.0/12"

    assert run(scenario).happened == []


def test_an_address_that_may_still_come_is_to_be_asked_for_again() -> None:
    async def scenario(node: Node) -> None:
        async def allocate(ident: str, subnet: Cidr | None) -> Cidr:
            raise IpamWaitError(f"{ident} waits for the peers to agree, in {subnet}")

        node.addresses.allocate = allocate  # type: ignore[method-assign]
        assert (await node.refusal("ADD")).code == Code.TRY_AGAIN_LATER

    run(scenario)


def test_when_the_kernel_refuses_the_address_is_given_back() -> None:
    async def scenario(node: Node) -> None:
        node.pods.broken = "cannot create veth: operation not permitted"
        error = await node.refusal("ADD")
        assert error.code == Code.KERNEL_REFUSED
        assert "operation not permitted" in error.message

    assert run(scenario).happened == ["allocate c0ffee0123/eth0", "release c0ffee0123/eth0"]


def test_a_strange_interface_of_that_name_is_left_alone() -> None:
    stranger = PodInterface("eth0", MacAddress(7), 1500, True, (), (), "", None)

    async def scenario(node: Node) -> None:
        node.pods.interfaces[NETNS, "eth0"] = stranger
        error = await node.refusal("ADD")
        assert error.code == Code.INTERFACE_EXISTS
        assert node.pods.interfaces[NETNS, "eth0"] is stranger

    assert run(scenario).happened == ["allocate c0ffee0123/eth0", "release c0ffee0123/eth0"]


def test_a_failed_retry_leaves_the_first_attachment_alone() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        interface = node.pods.interfaces[NETNS, "eth0"]
        node.pods.interfaces[NETNS, "eth0"] = replace(interface, addresses=(), host_end="veth7")
        assert (await node.refusal("ADD")).code == Code.INTERFACE_EXISTS
        assert "c0ffee0123/eth0" in node.addresses.held

    assert run(scenario).happened == ["allocate c0ffee0123/eth0", "attach c0ffee0123/eth0"]


@pytest.mark.parametrize("plugin", ["weave-net", "weave-ipam"])
@pytest.mark.parametrize("granted", [False, True], ids=["still waiting", "granted at that moment"])
def test_an_add_cancelled_while_it_waits_for_an_address_holds_none_afterwards(plugin: str, granted: bool) -> None:
    async def scenario(node: Node) -> None:
        node.addresses.gate = asyncio.Event()
        node.addresses.grant_although_cancelled = granted
        adding = asyncio.create_task(node.call("ADD", plugin=plugin))
        await node.until("wait")
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert node.addresses.held == {}

    assert run(scenario).happened == (["wait", "release c0ffee0123/eth0"] if granted else ["wait"])


@pytest.mark.parametrize("cancellations", [1, 3])
def test_an_add_cancelled_while_the_kernel_works_waits_for_it_and_undoes_in_reverse(cancellations: int) -> None:
    async def scenario(node: Node) -> None:
        node.pods.gate = asyncio.Event()
        adding = asyncio.create_task(node.call("ADD"))
        await node.until("attaching")
        for _ in range(cancellations):
            adding.cancel()
            await asyncio.sleep(0)
        assert not adding.done()
        node.pods.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert (node.pods.interfaces, node.addresses.held) == ({}, {})

    assert run(scenario).happened[1:] == [
        "attaching",
        "attach c0ffee0123/eth0",
        "detach c0ffee0123/eth0",
        "release c0ffee0123/eth0",
    ]


def test_an_add_cancelled_while_the_kernel_refuses_it_takes_no_interface_away() -> None:
    async def scenario(node: Node) -> None:
        node.pods.gate = asyncio.Event()
        node.pods.fails_late = True
        adding = asyncio.create_task(node.call("ADD"))
        await node.until("attaching")
        adding.cancel()
        await asyncio.sleep(0)
        node.pods.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await adding

    assert run(scenario).happened[1:] == ["attaching", "release c0ffee0123/eth0"]


def test_an_address_stays_reserved_while_its_interface_cannot_be_removed() -> None:
    async def scenario(node: Node) -> None:
        node.pods.gate = asyncio.Event()
        adding = asyncio.create_task(node.call("ADD"))
        await node.until("attaching")
        adding.cancel()
        await asyncio.sleep(0)
        node.pods.broken = "device busy"
        node.pods.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert "c0ffee0123/eth0" in node.addresses.held
        assert (await node.refusal("DEL")).code == Code.KERNEL_REFUSED
        assert "c0ffee0123/eth0" in node.addresses.held
        node.pods.broken = ""
        assert await node.call("DEL") == b""
        assert node.addresses.held == {}

    run(scenario)


def test_a_del_waits_for_the_add_it_overtook() -> None:
    async def scenario(node: Node) -> None:
        node.pods.gate = asyncio.Event()
        adding = asyncio.create_task(node.call("ADD"))
        await node.until("attaching")
        deleting = asyncio.create_task(node.call("DEL"))
        adding.cancel()
        await asyncio.sleep(0)
        assert not deleting.done()
        node.pods.gate.set()
        assert await deleting == b""
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert (node.pods.ports, node.addresses.held) == ({}, {})
        assert len(node.verbs._locks) == 0

    run(scenario)


# --- DEL --------------------------------------------------------------------------------------------------------------


def test_del_removes_the_interface_before_it_frees_the_address() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        node.happened.clear()
        assert await node.call("DEL") == b""

    assert run(scenario).happened == ["detach c0ffee0123/eth0 in 9", "release c0ffee0123/eth0"]


@pytest.mark.parametrize(
    "sandbox",
    [Sandbox("", None, "not given"), Sandbox("/run/netns/gone", None, "no such file or directory")],
    ids=["blank", "gone"],
)
def test_del_needs_no_namespace_and_may_be_repeated(sandbox: Sandbox) -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        for _ in range(3):
            assert await node.call("DEL", sandbox=sandbox) == b""
        assert (node.pods.ports, node.addresses.held) == ({}, {})

    run(scenario)


def test_del_never_looks_into_the_hosts_own_namespace() -> None:
    async def scenario(node: Node) -> None:
        assert await node.call("DEL", sandbox=Sandbox("/proc/1/ns/net", NETNS, is_hosts_own=True)) == b""

    assert run(scenario).happened == ["detach c0ffee0123/eth0"]


def test_del_of_another_network_leaves_the_first_ones_address() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        await node.add(interface="net1", name="backend")
        await node.call("DEL", interface="net1", name="backend")
        assert sorted(node.addresses.held) == ["c0ffee0123/eth0"]

    run(scenario)


def test_del_frees_what_an_earlier_weave_had_reserved_for_the_container() -> None:
    async def scenario(node: Node) -> None:
        node.addresses.held = {"c0ffee0123": Cidr.parse("10.32.0.7/12"), "weave:expose": Cidr.parse("10.32.0.8/12")}
        await node.call("DEL")
        assert sorted(node.addresses.held) == ["weave:expose"]

    run(scenario)


def test_del_of_ours_does_not_touch_what_the_bare_container_holds() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        node.addresses.held["c0ffee0123"] = Cidr.parse("10.32.0.7/12")
        await node.call("DEL")
        assert sorted(node.addresses.held) == ["c0ffee0123"]

    run(scenario)


def test_del_fails_when_the_address_cannot_be_freed_so_that_it_is_tried_again() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        node.addresses.refused = "shutting down"
        assert (await node.refusal("DEL")).code == Code.NO_ADDRESS

    run(scenario)


# --- weave-ipam -------------------------------------------------------------------------------------------------------


def test_as_an_ipam_plugin_only_addresses_are_touched() -> None:
    async def scenario(node: Node) -> None:
        ipam = {"type": "weave-ipam", "gateway": "10.32.0.9", "routes": [{"dst": "0.0.0.0/0"}]}
        bridge: dict[str, object] = {
            "name": "backend",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": ipam,
        }
        result = await node.add(plugin="weave-ipam", **bridge)
        assert result == {
            "cniVersion": "1.1.0",
            "ips": [{"address": "10.32.0.1/12", "gateway": "10.32.0.9"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        }
        assert await node.add(plugin="weave-ipam", **bridge) == result
        previous = {"interfaces": [{"name": "eth0", "sandbox": PATH}], "ips": result["ips"]}
        assert await node.call("CHECK", plugin="weave-ipam", prevResult=previous, **bridge) == b""  # type: ignore[arg-type]
        await node.call("DEL", plugin="weave-ipam", **bridge)  # type: ignore[arg-type]
        error = await node.refusal("CHECK", plugin="weave-ipam", prevResult=previous, **bridge)
        assert (error.code, error.message) == (
            Code.NOT_AS_ADDED,
            "no address is reserved for c0ffee0123/eth0/backend",
        )

    assert run(scenario).happened == ["allocate c0ffee0123/eth0/backend", "release c0ffee0123/eth0/backend"]


# --- CHECK ------------------------------------------------------------------------------------------------------------


def test_check_is_content_with_what_add_made() -> None:
    async def scenario(node: Node) -> None:
        assert await node.call("CHECK", prevResult=await node.add()) == b""

    run(scenario)


def test_check_is_content_with_what_a_later_plugin_changed() -> None:
    async def scenario(node: Node) -> None:
        result = json.loads(await node.call("ADD"))
        result["interfaces"][1]["mac"] = "00:00:00:00:00:0A"
        result["routes"] = []
        interface = node.pods.interfaces[NETNS, "eth0"]
        node.pods.interfaces[NETNS, "eth0"] = replace(interface, mac=MacAddress(10), routes=())
        assert await node.call("CHECK", prevResult=result) == b""

    run(scenario)


def _change_interface(**changes: object) -> Callable[[Node], None]:
    def change(node: Node) -> None:
        interface = node.pods.interfaces[NETNS, "eth0"]
        node.pods.interfaces[NETNS, "eth0"] = replace(interface, **changes)  # type: ignore[arg-type]

    return change


def _change_port(**changes: object) -> Callable[[Node], None]:
    def change(node: Node) -> None:
        port = node.pods.ports["c0ffee0123", "eth0"]
        node.pods.ports["c0ffee0123", "eth0"] = replace(port, **changes)  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda node: node.pods.interfaces.clear(), "interface eth0 is not in the container"),
        (
            _change_interface(mac=MacAddress(7)),
            "interface eth0 has MAC address 00:00:00:00:00:07, not 00:00:00:00:00:02",
        ),
        (_change_interface(up=False), "interface eth0 is down"),
        (_change_interface(addresses=()), "interface eth0 lacks address 10.32.0.1/12"),
        (_change_interface(routes=()), "interface eth0 lacks the route to 0.0.0.0/0"),
        (lambda node: node.pods.ports.clear(), "the host's end of eth0 is missing"),
        (_change_port(master="docker0"), "the host's end of eth0, vethweplc0ffee0, is not on the bridge weave"),
        (_change_port(up=False), "the host's end of eth0, vethweplc0ffee0, is down"),
        (lambda node: node.addresses.held.clear(), "no address is reserved for c0ffee0123/eth0"),
        (
            lambda node: node.addresses.held.update({"c0ffee0123/eth0": Cidr.parse("10.32.0.9/12")}),
            "prevResult does not list 10.32.0.9/12, reserved for c0ffee0123/eth0",
        ),
    ],
    ids=["gone", "MAC", "down", "address", "route", "host end", "bridge", "host end down", "freed", "other"],
)
def test_check_says_what_is_not_as_it_was(spoil: Callable[[Node], None], message: str) -> None:
    async def scenario(node: Node) -> None:
        result = await node.add()
        spoil(node)
        error = await node.refusal("CHECK", prevResult=result)
        assert (error.code, error.message) == (Code.NOT_AS_ADDED, message)

    run(scenario)


def test_check_needs_its_interface_in_the_previous_result() -> None:
    async def scenario(node: Node) -> None:
        result = await node.add()
        error = await node.refusal("CHECK", prevResult=result | {"interfaces": []})
        assert error.code == Code.NOT_AS_ADDED
        assert "prevResult does not list interface eth0 in /run/netns/pod" in f"{error.message}; {error.details}"

    run(scenario)


# --- STATUS, VERSION --------------------------------------------------------------------------------------------------


def test_status_is_good_while_an_address_can_be_given() -> None:
    async def scenario(node: Node) -> None:
        assert await node.call("STATUS") == b""
        node.addresses.refused = "10.32.0.0/12 is full"
        error = await node.refusal("STATUS")
        assert (error.code, error.message) == (
            Code.NOT_AVAILABLE,
            "unable to allocate IP address: 10.32.0.0/12 is full",
        )

    run(scenario)


def test_version_is_answered_here_too() -> None:
    async def scenario(node: Node) -> None:
        assert await node.verbs.handle(Version()) == encode_versions()

    run(scenario)


# --- GC ---------------------------------------------------------------------------------------------------------------


def valid(*attachments: tuple[str, str]) -> dict[str, object]:
    return {"cni.dev/valid-attachments": [{"containerID": c, "ifname": i} for c, i in attachments]}


async def _three_attachments_and_what_is_not_ours(node: Node) -> None:
    await node.add("aaaaaaaa01", sandbox=Sandbox(PATH, 11))
    await node.add("bbbbbbbb02", sandbox=Sandbox(PATH, 12))
    await node.add("bbbbbbbb02", "net1", name="backend", sandbox=Sandbox(PATH, 12))
    node.addresses.held["weave:expose"] = Cidr.parse("10.32.1.1/12")
    node.addresses.held["cccccccc03"] = Cidr.parse("10.32.1.2/12")
    node.happened.clear()


def test_gc_frees_what_is_not_valid_of_its_own_network_only() -> None:
    async def scenario(node: Node) -> None:
        await _three_attachments_and_what_is_not_ours(node)
        assert await node.call("GC", **valid(("aaaaaaaa01", "eth0"))) == b""  # type: ignore[arg-type]
        assert sorted(node.addresses.held) == [
            "aaaaaaaa01/eth0",
            "bbbbbbbb02/net1/backend",
            "cccccccc03",
            "weave:expose",
        ]
        assert sorted(node.pods.ports) == [("aaaaaaaa01", "eth0"), ("bbbbbbbb02", "net1")]

    assert run(scenario).happened == ["detach bbbbbbbb02/eth0", "release bbbbbbbb02/eth0"]


def test_gc_of_another_network_leaves_the_first_one_alone() -> None:
    async def scenario(node: Node) -> None:
        await _three_attachments_and_what_is_not_ours(node)
        assert await node.call("GC", name="backend", plugin="weave-ipam", **valid()) == b""  # type: ignore[arg-type]

    assert run(scenario).happened == ["release bbbbbbbb02/net1/backend"]


def test_gc_removes_an_interface_whose_reservation_is_lost() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        node.addresses.held.clear()
        await node.call("GC", **valid())  # type: ignore[arg-type]
        assert node.pods.ports == {}

    run(scenario)


def test_gc_spares_what_is_being_worked_on() -> None:
    async def scenario(node: Node) -> None:
        node.pods.gate = asyncio.Event()
        adding = asyncio.create_task(node.call("ADD"))
        await node.until("attaching")
        assert await node.call("GC", **valid()) == b""  # type: ignore[arg-type]
        node.pods.gate.set()
        await adding
        assert "c0ffee0123/eth0" in node.addresses.held

    run(scenario)


def test_gc_goes_on_at_failures_and_reports_them_all() -> None:
    async def scenario(node: Node) -> None:
        await node.add("aaaaaaaa01", sandbox=Sandbox(PATH, 11))
        await node.add("bbbbbbbb02", sandbox=Sandbox(PATH, 12))
        node.addresses.refused = "shutting down"
        error = await node.refusal("GC", **valid())
        assert error.code == Code.CLEAN_UP_INCOMPLETE
        assert error.message == "cannot free aaaaaaaa01/eth0: shutting down"
        assert error.details == "cannot free bbbbbbbb02/eth0: shutting down"
        assert node.pods.ports == {}

    run(scenario)


def test_gc_keeps_the_address_of_an_interface_that_it_could_not_remove() -> None:
    async def scenario(node: Node) -> None:
        await node.add()
        node.pods.broken = "device busy"
        assert (await node.refusal("GC", **valid())).code == Code.CLEAN_UP_INCOMPLETE
        assert "c0ffee0123/eth0" in node.addresses.held

    run(scenario)


# --- to_the_end -------------------------------------------------------------------------------------------------------


def test_work_to_the_end_returns_or_raises_as_it_does() -> None:
    async def scenario(_: Node) -> None:
        async def fails() -> None:
            raise KernelError("no")

        assert await to_the_end(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(KernelError):
            await to_the_end(fails())

    run(scenario)


def test_a_cancellation_outlives_the_failure_of_the_work() -> None:
    async def scenario(_: Node) -> None:
        gate = asyncio.Event()

        async def fails() -> None:
            await gate.wait()
            raise KernelError("no")

        task = asyncio.create_task(to_the_end(fails()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, KernelError)

    run(scenario)


def test_a_blocking_kernel_is_called_in_its_thread() -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from typing import cast

    from weavenet.dataplane.kernel import Kernel

    class BlockingKernel:
        def list_pods(self) -> tuple[PodPort, ...]:
            assert threading.current_thread() is not threading.main_thread()
            return ()

        def inspect_pod(self, netns: int, ifname: str) -> PodInterface | None:
            raise KernelError(f"{netns} {ifname}")

        def detach_pod(self, container_id: str, ifname: str, netns: int | None) -> bool:
            return (container_id, ifname, netns) == ("c", "eth0", None)

        def attach_pod(self, link: PodLink) -> PodInterface:
            raise KernelError(link.container_id)

    async def scenario(_: Node) -> None:
        with ThreadPoolExecutor(1) as threads:
            pods = KernelPods(cast("Kernel", BlockingKernel()), threads)
            assert await pods.list_ports() == ()
            assert await pods.detach("c", "eth0", None)
            with pytest.raises(KernelError, match="9 eth0"):
                await pods.inspect(9, "eth0")

    run(scenario)
