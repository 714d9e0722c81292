"""What the control API can ask of an agent, over the production node in virtual time."""

import asyncio

import pytest
from fake_agent import NAME, RANGE, Agent, running
from virtual_time import HeldExecutor, run, settle

from weavenet.address import Cidr
from weavenet.agent.control import AgentControl
from weavenet.effects import Cancelled, Done, Granted, Persist, PutValue, Refused, TookOver
from weavenet.identity import format_peer_name
from weavenet.ipam.modes import Consensus
from weavenet.node.report import EXPOSED, Report


async def no_report() -> Report:
    raise AssertionError("nobody asks for one here")


def control_of(agent: Agent) -> AgentControl:
    return AgentControl(agent.loop, no_report)


def test_peers_are_looked_for_from_now_on_and_remembered() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            assert await control_of(agent).connect(["192.0.2.2", "192.0.2.3:7000"], replace=False) == []
            await settle()
            assert agent.node.mesh.direct_targets() == ["192.0.2.2", "192.0.2.3:7000"]
            assert agent.happened[0] == "stored targets"
            assert sorted(agent.happened[1:]) == ["dial 1 192.0.2.2:6783", "dial 3 192.0.2.3:7000"]

            await control_of(agent).forget(["192.0.2.2"])
            assert agent.node.mesh.direct_targets() == ["192.0.2.3:7000"]
            await control_of(agent).connect([], replace=True)
            assert agent.node.mesh.direct_targets() == []
            await settle()
            assert agent.store.disk.load().values["targets"] == b"[]"

    run(scenario())


def test_a_peer_that_is_no_address_is_complained_about_and_the_others_are_looked_for() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            complaints = await control_of(agent).connect(["192.0.2.2", "a b"], replace=False)
            assert complaints == ['invalid peer name "a b", should be host[:port]']
            assert agent.node.mesh.direct_targets() == ["192.0.2.2"]

    run(scenario())


def test_addresses_are_given_claimed_looked_up_and_freed() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            control = control_of(agent)
            assert control.default_subnet() == RANGE
            granted = await control.allocate("c1", None, check_alive=True)
            assert isinstance(granted, Granted)
            mine = Cidr.parse("10.32.0.77/24")
            assert await control.claim("c1", mine, check_alive=False, no_error_on_unknown=False) == Done()
            assert set(await control.lookup("c1", None)) == {*granted.addresses, mine}
            assert set((await control.owned())["c1"]) == {*granted.addresses, mine}

            assert await control.release_address("c1", mine.address) == Done()
            assert await control.release("c1") == Done()
            assert await control.owned() == {}
            assert isinstance(await control.release("c1"), Refused)
            assert isinstance(await control.release_address("c1", mine.address), Refused)

    run(scenario())


def test_priming_is_done_when_there_is_a_ring_and_taking_over_nobody_gains_nothing() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            control = control_of(agent)
            assert await control.await_consensus() == Done()
            assert await control.take_over("nobody") == TookOver(0)
            assert await control.take_over(format_peer_name(NAME)) == TookOver(0)

    run(scenario())


def test_a_node_that_was_shut_down_turns_requests_away() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            control = control_of(agent)
            assert await control.shut_down() == Done()
            assert await control.allocate("c1", None, check_alive=False) == Cancelled()

    run(scenario())


def test_with_address_allocation_off_there_is_nothing_to_look_up_and_requests_are_refused() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True, has_ipam=False) as agent:
            control = control_of(agent)
            assert control.default_subnet() is None
            assert await control.lookup("c1", None) == ()
            assert await control.owned() == {}
            off = Refused("IP address allocation is off: the agent was started without a range")
            assert await control.allocate("c1", None, check_alive=False) == off
            assert await control.claim("c1", RANGE, check_alive=False, no_error_on_unknown=False) == off
            assert await control.release("c1") == off
            assert await control.release_address("c1", RANGE.address) == off
            assert await control.await_consensus() == off
            assert await control.take_over("c1") == off
            assert await control.shut_down() == Done()

    run(scenario())


def test_a_shutdown_is_answered_when_it_is_on_disk_and_peers_are_being_told() -> None:
    async def scenario() -> None:
        async with running() as agent:
            agent.loop.take([Persist((PutValue("something", b""),))])
            leaving = asyncio.create_task(control_of(agent).shut_down())
            await settle()
            assert not leaving.done(), "the disk is slow"
            await agent.flush()
            assert await leaving == Done()
            agent.loop.take([Persist((PutValue("more", b""),))])
            assert await agent.loop.catch_up(1.0) == Cancelled(), "and nobody waits for ever"
            await agent.flush()

    run(scenario())


def test_what_the_host_itself_holds_is_no_containers() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            await control_of(agent).allocate(EXPOSED, None, check_alive=False)
            address = Cidr.parse("10.32.0.9/24")
            await control_of(agent).claim(EXPOSED, address, check_alive=False, no_error_on_unknown=False)
            await control_of(agent).allocate("c1", None, check_alive=False)
            stored = {(put.ident, put.is_container) for put in agent.store.disk.load().allocations}
            assert stored == {(EXPOSED, False), ("c1", True)}

    run(scenario())


# --- callers that hang up ---------------------------------------------------------------------------------------------


def test_a_caller_that_hangs_up_while_it_waits_leaves_no_address_behind() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            call = asyncio.create_task(control_of(agent).allocate("c1", None, check_alive=False))
            await settle()
            call.cancel()
            await settle()
            assert agent.node.ipam.status().pending_allocates == ()
            assert agent.held("c1") == ()

    run(scenario())


async def hang_up_before_the_disk_answers(agent: Agent, control: AgentControl, ident: str) -> None:
    call = asyncio.create_task(control.allocate(ident, None, check_alive=False))
    await settle()
    assert agent.held(ident), "the core has decided; only the disk is slow"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await agent.flush()


def test_an_address_whose_reply_comes_after_the_caller_hung_up_is_released() -> None:
    async def scenario() -> None:
        async with running() as agent:
            await hang_up_before_the_disk_answers(agent, control_of(agent), "c1")
            assert agent.held("c1") == ()
            assert agent.store.disk.load().allocations == (), "neither in memory nor on disk"

    run(scenario())


def test_an_address_whose_reply_and_hang_up_cross_is_released() -> None:
    async def scenario() -> None:
        async with running() as agent:
            call = asyncio.create_task(control_of(agent).allocate("c1", None, check_alive=False))
            await settle()
            agent.disk_thread.run_next()
            for _ in range(20):
                if agent.loop._waiting:
                    await asyncio.sleep(0)
            assert not agent.loop._waiting
            call.cancel()  # its answer is there, but it has not run since
            with pytest.raises(asyncio.CancelledError):
                await call
            await agent.flush()
            assert agent.held("c1") == ()

    run(scenario())


def test_an_address_that_was_held_before_stays_when_a_second_caller_hangs_up() -> None:
    async def scenario() -> None:
        async with running() as agent:
            control = control_of(agent)
            first = asyncio.create_task(control.allocate("c1", None, check_alive=False))
            await agent.flush()
            granted = await first
            call = asyncio.create_task(control.allocate("c1", None, check_alive=False))
            call.cancel()
            await agent.flush()
            assert agent.held("c1") == granted.addresses

    run(scenario())


def test_of_two_callers_for_one_identifier_one_hanging_up_does_not_take_the_others_address() -> None:
    async def scenario() -> None:
        async with running() as agent:
            control = control_of(agent)
            first = asyncio.create_task(control.allocate("c1", None, check_alive=False))
            second = asyncio.create_task(control.allocate("c1", None, check_alive=False))
            await settle()
            first.cancel()
            await agent.flush()
            outcome = await second
            assert isinstance(outcome, Granted)
            assert agent.held("c1") == outcome.addresses
            assert agent.store.disk.holds("c1", outcome.addresses[0])

    run(scenario())


def test_when_all_callers_for_one_identifier_hang_up_its_address_is_released() -> None:
    async def scenario() -> None:
        async with running() as agent:
            control = control_of(agent)
            calls = [asyncio.create_task(control.allocate("c1", None, check_alive=False)) for _ in range(3)]
            await settle()
            for call in calls:
                call.cancel()
            await agent.flush()
            assert agent.held("c1") == ()
            assert agent.store.disk.load().allocations == ()

    run(scenario())


def test_freeing_an_identifier_ends_its_waiting_requests() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            control = control_of(agent)
            calls = [asyncio.create_task(control.allocate("c1", None, check_alive=False)) for _ in range(2)]
            await settle()
            assert await control.release("c1") == Done()
            assert [await call for call in calls] == [Cancelled(), Cancelled()]

    run(scenario())


def test_held_work_is_work_that_waits() -> None:
    # The executor that these tests rest on.
    thread = HeldExecutor()
    future = thread.submit(lambda: 1)
    assert not future.done()
    thread.run_next()
    assert future.result() == 1
