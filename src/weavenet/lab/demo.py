"""The scripted demonstration: what weavenet does, shown on one machine in under a minute.

Three hosts, each agent told one neighbour at most; two pods per host attached by the CNI executable; pods that talk;
what the operator sees; a fourth host that joins a running network with one command. Every command shown is really run,
and its output is its own. A step that fails ends the demonstration with what failed and why, and whatever happens,
everything is taken down.
"""

import time
from collections.abc import Sequence

import click

from weavenet.errors import LabError
from weavenet.lab import agents, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.process import Deadline, run, this_process
from weavenet.lab.record import HostRecord, Paths, PodRecord

HOSTS = 3
PODS_PER_HOST = 2
TRANSFER_S = 3


class Screen:
    """What the demonstration shows: numbered steps, commands with their output, and remarks."""

    def __init__(self, steps: int) -> None:
        """Start the clock."""
        self._steps = steps
        self._step = 0
        self._start_s = time.monotonic()

    def step(self, text: str) -> None:
        """Begin a step."""
        self._step += 1
        elapsed_s = time.monotonic() - self._start_s
        click.echo()
        click.secho(f"[{self._step}/{self._steps}] {text}", bold=True, nl=False)
        click.echo(f"   ({elapsed_s:.1f} s)")

    def say(self, text: str) -> None:
        """Make a remark."""
        click.echo(f"    {text}")

    def command(self, where: str, argv: Sequence[str]) -> None:
        """Show a command that is about to run."""
        click.secho(f"  {where}# {' '.join(argv)}", fg="cyan")

    def output(self, text: str) -> None:
        """Show what a command printed."""
        for line in text.rstrip("\n").splitlines():
            click.echo(f"    {line}".rstrip())


def demonstrate(paths: Paths) -> None:
    """Run the demonstration in a lab of its own, and take it down. Raises LabError."""
    screen = Screen(steps=8)
    screen.step(f"{HOSTS} hosts: network namespaces joined by one bridge")
    lab: Lab | None = None
    try:
        lab = Lab.create(paths, owner=this_process())
        _bring_up(lab, screen)
        pods = _attach_pods(lab, screen)
        _talk(lab, screen, pods)
        _ask(lab, screen)
        _join(lab, screen, pods)
        screen.step("Taking everything down")
        for pod in list(lab.record.pods):
            lab.remove_pod(pod)
        screen.say("every pod detached by CNI DEL, its address free again")
        _show_free(lab, screen)
    except BaseException as error:
        click.echo()
        what = "Interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "Failed"
        click.secho(f"{what}; taking everything down", bold=True)
        raise
    finally:
        if lab is not None:  # else Lab.create has left nothing
            lab.down()
    if paths.run.exists() or paths.state.exists():
        raise LabError(f"{paths.run} or {paths.state} is still there")
    screen.say("agents ended, namespaces gone; nothing is left on this machine")
    click.echo()
    click.secho("The demonstration went well.", fg="green")


def bring_up(lab: Lab, hosts: int, *, options: Sequence[str] = ()) -> list[HostRecord]:
    """Make hosts and start an agent on each, the first told of nobody, each other only of the one before it."""
    made = [lab.add_host() for _ in range(hosts)]
    for before, host in zip([None, *made], made, strict=False):
        lab.start_agent(host, peers=[before.address] if before else [], consensus=hosts, options=options)
    return made


def _bring_up(lab: Lab, screen: Screen) -> None:
    for host in [lab.add_host() for _ in range(HOSTS)]:
        screen.say(f"{host.name}  {host.address}")
    screen.step("An agent on each, told at most one neighbour")
    before: HostRecord | None = None
    begin_s = time.monotonic()
    for host in lab.record.hosts:
        peers = [before.address] if before else []
        screen.command(host.name, ["weaver", f"--ipalloc-range={agents.RANGE}", "...", *peers])
        lab.start_agent(host, peers=peers, consensus=HOSTS)
        before = host
    lab.wait_until_connected(poll_s=0.01)
    elapsed_s = time.monotonic() - begin_s
    screen.say(f"all {HOSTS} connected to each other {elapsed_s:.2f} s after the first was started")


def _attach_pods(lab: Lab, screen: Screen) -> list[PodRecord]:
    screen.step(f"{PODS_PER_HOST} pods per host, attached by the CNI executable as a container runtime calls it")
    for host in lab.record.hosts:
        for _ in range(PODS_PER_HOST):
            begin_s = time.monotonic()
            pod = lab.add_pod(host)
            screen.say(f"{pod.name} on {host.name}: {pod.address}  ({(time.monotonic() - begin_s) * 1000:.0f} ms)")
    return list(lab.record.pods)


def _talk(lab: Lab, screen: Screen, pods: Sequence[PodRecord]) -> None:
    first, neighbour, far = pods[0], pods[1], pods[-1]
    screen.step("Pods talk: ping on one host and across hosts, then TCP")
    for other in (neighbour, *(pod for pod in pods if pod.host not in (first.host, far.host)), far):
        _ping(lab, screen, first, other)
    argv = traffic.throughput_command(far.address, TRANSFER_S)
    screen.command(first.name, argv)
    measured = traffic.throughput(lab, traffic.Route(first.name, far.name, far.address), TRANSFER_S)
    screen.say(f"{measured.mbit_s:,.0f} Mbit/s from {first.name} on host{first.host} to {far.name} on host{far.host}")


def _ask(lab: Lab, screen: Screen) -> None:
    screen.step("What the operator sees")
    host = lab.record.hosts[0]
    for words in ([], ["connections"], ["ipam"]):
        weave(lab, screen, host, ["status", *words])


def _join(lab: Lab, screen: Screen, pods: Sequence[PodRecord]) -> None:
    screen.step("A fourth host joins the running network")
    first = lab.record.hosts[0]
    newcomer = lab.add_host()
    lab.start_agent(newcomer, peers=[], consensus=HOSTS)
    screen.say(f"{newcomer.name}  {newcomer.address}: its agent was told nobody")
    deadline = Deadline.after(10.0, f"the agent of {newcomer.name} does not answer")
    while not _answers(lab, newcomer):
        deadline.pause()
    weave(lab, screen, newcomer, ["connect", first.address])
    begin_s = time.monotonic()
    lab.wait_until_connected(poll_s=0.01)
    screen.say(f"connected to all {len(lab.record.hosts) - 1} others after {time.monotonic() - begin_s:.2f} s")
    weave(lab, screen, newcomer, ["status", "connections"])
    pod = lab.add_pod(newcomer)
    screen.say(f"{pod.name} on {newcomer.name}: {pod.address}")
    for number in sorted({pod.host for pod in pods}):
        _ping(lab, screen, pod, next(other for other in pods if other.host == number))


def _show_free(lab: Lab, screen: Screen) -> None:
    weave(lab, screen, lab.record.hosts[0], ["status", "ipam"])


def _answers(lab: Lab, host: HostRecord) -> bool:
    try:
        agents.query(lab.paths, host, "/status")
    except LabError:
        assert host.agent is not None
        if not host.agent.is_alive():
            raise LabError(f"the agent of {host.name} ended:\n{agents.log_tail(lab.paths, host)}") from None
        return False
    return True


def _ping(lab: Lab, screen: Screen, source: PodRecord, target: PodRecord) -> None:
    screen.command(source.name, traffic.ping_command(target.address))
    try:
        screen.say(traffic.ping(lab, traffic.Route(source.name, target.name, target.address)))
    except LabError as error:
        raise LabError(f"from host{source.host} to host{target.host}: {error}") from None


def weave(lab: Lab, screen: Screen, host: HostRecord, words: Sequence[str]) -> None:
    """Run the `weave` command on a host and show it. Raises LabError."""
    screen.command(host.name, ["weave", *words])
    program = str(agents.programs() / "weave")
    screen.output(run([program, *words], namespace=lab.namespace(host.name), env=lab.environment(host)))
