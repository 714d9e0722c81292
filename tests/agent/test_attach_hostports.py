"""Host ports within the CNI verbs: when they are led to a pod, and that a failed ADD leaves none."""

import cni_node as attach
import pytest

from weavenet.cni.codes import Code

WEB = {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]}


def test_a_host_port_is_led_to_the_pod_once_it_is_connected_and_given_up_before_it_is_not() -> None:
    async def scenario(node) -> None:
        await node.add(runtimeConfig=WEB)
        await node.call("DEL", runtimeConfig=WEB)

    assert attach.run(scenario).happened == [
        "allocate c0ffee0123/eth0",
        "attach c0ffee0123/eth0",
        "publish 80/tcp -> 10.32.0.1:8080",
        "withdraw",
        "detach c0ffee0123/eth0 in 9",
        "release c0ffee0123/eth0",
    ]


def test_an_add_that_is_answered_again_leads_the_ports_again() -> None:
    async def scenario(node) -> None:
        first = await node.add(runtimeConfig=WEB)
        assert await node.add(runtimeConfig=WEB) == first

    assert attach.run(scenario).happened.count("publish 80/tcp -> 10.32.0.1:8080") == 2


@pytest.mark.parametrize("what", ["taken", "broken"])
def test_an_add_whose_port_is_not_to_be_had_leaves_nothing(what: str) -> None:
    async def scenario(node) -> None:
        if what == "taken":
            node.ports.taken = 80
        else:
            node.ports.broken = "nftables refused"
        error = await node.refusal("ADD", runtimeConfig=WEB)
        assert error.code == (Code.HOST_PORT_TAKEN if what == "taken" else Code.KERNEL_REFUSED)
        assert (node.pods.ports, node.pods.interfaces, node.addresses.held) == ({}, {}, {})

    assert attach.run(scenario).happened[-2:] == ["detach c0ffee0123/eth0", "release c0ffee0123/eth0"]


def test_check_names_a_port_that_is_not_led_to_the_pod() -> None:
    async def scenario(node) -> None:
        result = await node.add(runtimeConfig=WEB)
        await node.call("CHECK", prevResult=result, runtimeConfig=WEB)
        node.ports.published.clear()
        error = await node.refusal("CHECK", prevResult=result, runtimeConfig=WEB)
        assert error.message == "host port 80/tcp -> 10.32.0.1:8080 is not set up"

    attach.run(scenario)


def test_garbage_collection_gives_up_ports() -> None:
    async def scenario(node) -> None:
        await node.add(runtimeConfig=WEB)
        await node.call("GC", **{"cni.dev/valid-attachments": []})
        assert node.ports.published == {}

    attach.run(scenario)
