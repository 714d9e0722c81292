"""The shell around the node: what is done in which order, what waits for the disk, and what becomes of requests.

The node is the production one; the disk, its thread, and TCP are fakes that write down what happened. Only for the
timer a node takes its place that is nothing but a deadline.
"""

import asyncio
import logging

import pytest
from fake_agent import FakeStore, listed_log, running
from virtual_time import HeldExecutor, read_clock, run, settle

from weavenet.address import Address, Endpoint
from weavenet.agent.loop import OUTBOX_MAX, STORE_TIMEOUT_S, NodeLoop
from weavenet.effects import (
    Cancelled,
    CloseTcp,
    ConnectionNumber,
    Dial,
    Done,
    Effect,
    Granted,
    Level,
    Note,
    Now,
    Persist,
    PutValue,
    Reconcile,
    Refused,
    Reply,
    RequestNumber,
    SendSpecialFrame,
    SendTcp,
)
from weavenet.errors import StoreError
from weavenet.ipam.modes import Consensus
from weavenet.mesh.connector import Target
from weavenet.node import inputs as i

REMOTE = Endpoint(Address(0xC0000202), 6783)
ONE, TWO = ConnectionNumber(1), ConnectionNumber(3)


def allocate(ident: str):
    return lambda number: i.Allocate(number, ident, None, is_container=True)


def put(key: str) -> Persist:
    return Persist((PutValue(key, b""),))


# --- the order of effects ---------------------------------------------------------------------------------------------


def test_effects_are_performed_in_the_order_they_came() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([Dial(ONE, REMOTE), SendTcp(ONE, b"a"), SendTcp(TWO, b"b")])
            agent.loop.take([SendSpecialFrame(REMOTE, 0, b""), CloseTcp(ONE), Note(Level.WARNING, "said")])
            await settle()

            assert agent.happened == [f"dial 1 {REMOTE}", "send 1 a", "send 3 b", f"frame to {REMOTE}", "close 1"]
            assert agent.logged == [(logging.WARNING, "said")]

    run(scenario())


def test_nothing_behind_a_persist_is_done_before_the_disk_has_it() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([SendTcp(ONE, b"before"), put("ring"), SendTcp(ONE, b"after")])
            await settle()
            assert agent.happened == ["send 1 before"]

            agent.disk_thread.run_next()
            await settle()
            assert agent.happened == ["send 1 before", "stored ring", "send 1 after"]

    run(scenario())


def test_what_comes_while_the_disk_writes_waits_behind_what_waits_already() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([put("a"), SendTcp(ONE, b"1")])
            await settle()
            agent.loop.take([SendTcp(ONE, b"2"), put("b"), SendTcp(ONE, b"3")])
            await settle()
            assert agent.happened == []

            agent.disk_thread.run_next()
            await settle()
            assert agent.happened == ["stored a", "send 1 1", "send 1 2"]
            agent.disk_thread.run_next()
            await settle()
            assert agent.happened[3:] == ["stored b", "send 1 3"]

    run(scenario())


def test_changes_that_wait_together_are_one_commit_in_their_order_and_effects_keep_theirs() -> None:
    async def scenario() -> None:
        async with running() as agent:
            for key in "abc":
                agent.loop.take([put(key), SendTcp(ONE, key.encode())])
            await agent.flush()

            assert agent.happened == ["stored a b c", "send 1 a", "send 1 b", "send 1 c"]

    run(scenario())


def test_twenty_pods_that_start_at_once_cost_two_commits_and_each_gets_its_own_address() -> None:
    async def scenario() -> None:
        async with running() as agent:
            calls = [asyncio.create_task(agent.loop.request(allocate(f"c{n}"), 60.0)) for n in range(20)]
            await agent.flush()
            granted = {cidr for call in calls for cidr in (await call).addresses}

            assert len(granted) == 20
            assert len([line for line in agent.happened if line.startswith("stored")]) <= 2

    run(scenario())


def test_an_address_is_answered_with_only_when_it_is_on_disk() -> None:
    async def scenario() -> None:
        async with running() as agent:
            call = asyncio.create_task(agent.loop.request(allocate("c1"), 60.0))
            await settle()
            assert not call.done()
            assert agent.store.disk.load().allocations == ()

            await agent.flush()
            outcome = await call
            assert isinstance(outcome, Granted)
            assert agent.store.disk.holds("c1", outcome.addresses[0])

    run(scenario())


def test_a_disk_that_fails_ends_the_loop_and_what_waited_for_it_is_never_done() -> None:
    async def scenario() -> None:
        async with running() as agent:
            call = asyncio.create_task(agent.loop.request(allocate("c1"), 60.0))
            await settle()
            agent.loop.take([SendTcp(ONE, b"behind")])
            agent.store.failure = "no space left on device"
            agent.disk_thread.run_next()
            await settle()

            with pytest.raises(StoreError, match="no space left"):
                await agent.task
            assert agent.happened == []
            assert not call.done(), "nobody is told of an address that is not on disk"
            call.cancel()

    run(scenario())


def test_a_disk_that_hangs_ends_the_loop_with_words_for_it() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([put("ring"), SendTcp(ONE, b"behind")])
            await asyncio.sleep(STORE_TIMEOUT_S + 1)

            with pytest.raises(StoreError, match=r"did not .* within 30 s"):
                await agent.task
            assert agent.happened == []

    run(scenario())


def test_an_outbox_that_swells_without_end_is_the_end() -> None:
    async def scenario() -> None:
        async with running() as agent:
            with pytest.raises(AssertionError, match="far behind"):
                agent.loop.take([Reconcile()] * OUTBOX_MAX)

    run(scenario())


def test_a_hint_for_the_kernel_is_an_event_and_many_are_one() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.reconcile_wanted.clear()
            effects: list[Effect] = [Reconcile()] * 100
            agent.loop.take(effects)
            assert not agent.loop.reconcile_wanted.is_set(), "it has its place in the order, too"
            await settle()
            assert agent.loop.reconcile_wanted.is_set()

    run(scenario())


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_is_answered_with_what_the_core_says() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            assert isinstance(await agent.loop.request(allocate("c1"), 60.0), Granted)
            assert await agent.loop.request(lambda number: i.Release(number, "c1"), 60.0) == Done()
            refused = await agent.loop.request(lambda number: i.Release(number, "c1"), 60.0)
            assert refused == Refused("Delete: no addresses for c1")

    run(scenario())


def test_requests_are_told_apart_and_answered_each_in_its_time() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            waiting = asyncio.create_task(agent.loop.request(allocate("c1"), 60.0))
            await settle()
            assert isinstance(await agent.loop.request(lambda number: i.Release(number, "other"), 60.0), Refused)
            assert not waiting.done()
            waiting.cancel()

    run(scenario())


def test_a_request_that_times_out_waits_no_longer_in_the_core_either() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            began_s = read_clock().monotonic_s
            outcome = await agent.loop.request(allocate("c1"), 60.0)

            assert outcome == Cancelled()
            assert read_clock().monotonic_s == pytest.approx(began_s + 60.0)
            assert agent.node.ipam.status().pending_allocates == ()
            assert agent.held("c1") == ()

    run(scenario())


def test_a_caller_that_hangs_up_ends_its_request_in_the_core_too() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            call = asyncio.create_task(agent.loop.request(allocate("c1"), 60.0))
            await settle()
            assert [ident for ident, _ in agent.node.ipam.status().pending_allocates] == ["c1"]

            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert agent.node.ipam.status().pending_allocates == ()
            assert agent.held("c1") == ()

    run(scenario())


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([Reply(RequestNumber(99), Done()), SendTcp(ONE, b"on")])
            await settle()
            assert agent.happened == ["send 1 on"]

    run(scenario())


# --- the timer --------------------------------------------------------------------------------------------------------


class Ticking:
    """A node that is nothing but a deadline, and writes down when it was woken."""

    def __init__(self, due_s: float | None = None) -> None:
        self.due_s = due_s
        self.handled: list[tuple[i.Input, float]] = []

    def next_deadline(self) -> float | None:
        return self.due_s

    def handle(self, happened: i.Input, now: Now) -> list[Effect]:
        self.handled.append((happened, now.monotonic_s))
        if isinstance(happened, i.TimerFired) and self.due_s is not None and now.monotonic_s >= self.due_s:
            self.due_s = None
        return []


def ticking_loop(node: Ticking, clock=read_clock) -> NodeLoop:
    return NodeLoop(node, clock, FakeStore([]), HeldExecutor(), listed_log([]))


def test_the_node_is_woken_when_its_deadline_has_come() -> None:
    async def scenario() -> None:
        began_s = read_clock().monotonic_s
        node = Ticking(began_s + 5.0)
        ticking_loop(node).take([])
        await asyncio.sleep(10.0)
        assert node.handled == [(i.TimerFired(), pytest.approx(began_s + 5.0))]

    run(scenario())


def test_a_deadline_that_moves_takes_the_timer_with_it() -> None:
    async def scenario() -> None:
        began_s = read_clock().monotonic_s
        node = Ticking(began_s + 5.0)
        loop = ticking_loop(node)
        loop.take([])
        node.due_s = began_s + 2.0
        loop.take([])
        await asyncio.sleep(3.0)
        assert [when for _, when in node.handled] == [pytest.approx(began_s + 2.0)]

        node.due_s = began_s + 100.0
        loop.take([])
        node.due_s = None
        loop.take([])
        await asyncio.sleep(200.0)
        assert len(node.handled) == 1, "a deadline that is gone wakes nobody"

    run(scenario())


def test_a_deadline_in_the_past_is_due_now() -> None:
    async def scenario() -> None:
        began_s = read_clock().monotonic_s
        node = Ticking(began_s - 5.0)
        ticking_loop(node).take([])
        await settle()
        assert node.handled == [(i.TimerFired(), began_s)]

    run(scenario())


def test_a_timer_that_fires_early_is_set_again_for_the_rest() -> None:
    async def scenario() -> None:
        began_s = read_clock().monotonic_s
        # The loop's clock runs ahead of the node's by a hundredth, so that every timer is early by that much.
        node = Ticking(began_s + 5.0)
        ticking_loop(node, lambda: Now(began_s + (read_clock().monotonic_s - began_s) * 0.99, 0.0)).take([])
        await asyncio.sleep(10.0)

        assert len(node.handled) >= 2
        assert node.due_s is None, "it was woken again when the time had really come"

    run(scenario())


def test_the_node_keeps_time_by_itself() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            agent.loop.feed(i.Connect((Target("192.0.2.2", Endpoint(REMOTE.address, 0)),), replace=False))
            await settle()
            assert agent.happened == ["stored targets", f"dial 1 {REMOTE}"]
            agent.loop.feed(i.DialFailed(ONE, "connect: connection refused"))
            await asyncio.sleep(60.0)
            assert agent.happened[2] == f"dial 3 {REMOTE}", "a failed dial is tried again when its time has come"

    run(scenario())
