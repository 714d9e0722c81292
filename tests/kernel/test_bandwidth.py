"""Limits on what pods send and receive: set, read back and removed, on the real kernel and on the fake; and that they
hold, on the real one, through CNI."""

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from nat_host import NatHost, nat_host

from weavenet.address import Cidr, parse_address
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.kernel import reconcile, teardown
from weavenet.dataplane.limits import Limiter, RateLimit, limiter_of
from weavenet.dataplane.model import MacAddress, PodLink, Programs
from weavenet.dataplane.plan import DeleteDevice
from weavenet.errors import LabError
from weavenet.lab.record import PodRecord
from weavenet.lab.traffic import Route, throughput

SETTINGS = HostSettings(mac=MacAddress(0x7A_00_00_00_00_01), programs=Programs("ingress-1", "egress-1"))
SLOW, FAST = RateLimit(125_000, 12_500), RateLimit(90_000_000_000, 1 << 30)


@pytest.fixture
def ready(host):
    reconcile(host.kernel, SETTINGS)
    return host


def link_for(netns: int, **changes) -> PodLink:
    link = PodLink(
        "c0ffee0123456789",
        "eth0",
        netns,
        Cidr.parse("10.32.0.2/12"),
        parse_address("10.32.0.1"),
        (),
        mtu=1376,
        hairpin=True,
    )
    return replace(link, **changes)


@pytest.mark.parametrize("limits", [(SLOW, SLOW), (SLOW, None), (None, SLOW), (FAST, FAST), (None, None)])
def test_limits_are_read_back_as_they_were_set_and_gone_with_the_pod(ready, limits) -> None:
    before = ready.kernel.observe()
    netns = ready.make_namespace()
    ingress, egress = limits
    made = ready.kernel.attach_pod(link_for(netns, ingress=ingress, egress=egress))
    seen = ready.kernel.inspect_pod(netns, "eth0")
    assert seen == made
    assert (seen.ingress, seen.egress) == limits
    assert len(ready.kernel.observe().limiters) == (egress is not None)
    assert reconcile(ready.kernel, SETTINGS) == ()
    assert ready.kernel.detach_pod("c0ffee0123456789", "eth0", None)
    assert ready.kernel.observe() == before


def test_a_limiter_whose_pod_is_gone_is_removed(ready) -> None:
    netns = ready.make_namespace()
    link = link_for(netns, egress=SLOW)
    host_end = ready.kernel.attach_pod(link).host_end
    ready.delete_device(host_end)
    limiter = limiter_of(link.container_id, "eth0")
    assert ready.kernel.observe().limiters == (limiter,)
    assert reconcile(ready.kernel, SETTINGS) == (DeleteDevice(limiter.name),)


def test_a_limiter_that_a_lost_pod_left_is_not_in_the_way(ready) -> None:
    link = link_for(ready.make_namespace(), egress=SLOW)
    ready.delete_device(ready.kernel.attach_pod(link).host_end)
    again = replace(link, netns=ready.make_namespace())
    assert ready.kernel.attach_pod(again).egress == SLOW


def test_a_teardown_removes_limiters_and_no_device_of_somebody_elses(ready) -> None:
    ready.add_device("ifb7", "ifb")
    ready.kernel.attach_pod(link_for(ready.make_namespace(), egress=SLOW))
    teardown(ready.kernel)
    assert ready.kernel.observe().limiters == ()
    ready.delete_device("ifb7")


@pytest.mark.kernel
def test_a_pod_that_cannot_be_limited_is_not_connected(real_host) -> None:
    reconcile(real_host.kernel, SETTINGS)
    limiter = limiter_of("c0ffee0123456789", "eth0")
    real_host.add_device(limiter.name, "bridge")
    before = real_host.kernel.observe()
    with pytest.raises(Exception, match="File exists"):
        real_host.kernel.attach_pod(link_for(real_host.make_namespace(), egress=SLOW))
    assert real_host.kernel.observe() == before
    real_host.delete_device(limiter.name)


def test_two_interfaces_of_a_container_have_two_limiters() -> None:
    one, other = limiter_of("c", "eth0"), limiter_of("c", "net1")
    assert isinstance(one, Limiter)
    assert one.name != other.name
    assert len(one.name) == 15


# --- that they hold ---------------------------------------------------------------------------------------------------

MBIT_S = 20
LIMITS = {"ingressRate": MBIT_S * 10**6, "ingressBurst": 10**6, "egressRate": MBIT_S * 10**6, "egressBurst": 10**6}


def to_pod_mbit_s(node: NatHost, pod: PodRecord) -> float:
    return throughput(node.lab, Route("host1", pod.name, pod.address), 2).mbit_s


def from_pod_mbit_s(node: NatHost, pod: PodRecord) -> float:
    return throughput(node.lab, Route(pod.name, "host1", "10.32.0.1"), 2).mbit_s


@pytest.mark.kernel
def test_a_limited_pod_sends_and_receives_as_fast_as_it_may_and_others_faster(tmp_path: Path) -> None:
    with nat_host(f"limits-{os.getpid()}", tmp_path) as node:
        node.start_agent("--expose-ip", "auto")
        limited, free = node.pod("limited", bandwidth=LIMITS), node.pod("free")
        # Generous: what queues and bursts add is a tenth, and a machine that is busy takes away more.
        assert MBIT_S / 3 < to_pod_mbit_s(node, limited) < MBIT_S * 1.3
        assert MBIT_S / 3 < from_pod_mbit_s(node, limited) < MBIT_S * 1.3
        assert to_pod_mbit_s(node, free) > MBIT_S * 2
        node.check(limited, bandwidth=LIMITS)
        with pytest.raises(LabError, match="the ingress limit is 20000000 bit/s"):
            node.check(limited, bandwidth=LIMITS | {"ingressRate": 10**6})
        port = json.loads(limited.result)["interfaces"][0]["name"]
        node.run("tc", "qdisc", "delete", "dev", port, "ingress")
        with pytest.raises(LabError, match="the egress limit is none"):
            node.check(limited, bandwidth=LIMITS)
        node.remove(limited)
        assert "wlimit" not in node.run("ip", "link")
