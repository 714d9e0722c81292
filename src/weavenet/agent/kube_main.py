"""`weave-kube`: what the containers of the DaemonSet run.

    weave-kube init              container weave-init: look at the kernel, install the CNI executables
    weave-kube launch [ARGS]     container weave: the agent, configured by Weave's environment variables; ARGS are flags
    weave-kube uninstall         remove what was installed on the node

The agent runs in this very process, with the flags that kube_env.py makes of the environment.
"""

import os
import sys

import click

from weavenet.agent.artifacts import CNI_EXECUTABLE, artifact
from weavenet.agent.install import Place, install_executables, uninstall
from weavenet.agent.kube_kernel import check_release, load_module, prepare_bridge_calls
from weavenet.agent.kube_place import init_container_ran, install_place, wants_policy
from weavenet.agent.log import open_log
from weavenet.errors import WeavenetError

EXIT_FAILED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def weave_kube() -> None:
    """Run weavenet on a Kubernetes node; configured by environment variables."""


@weave_kube.command()
def init() -> None:
    """Prepare the node: kernel settings and CNI executables."""
    prepare_node(_place())


@weave_kube.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(arguments: tuple[str, ...]) -> None:
    """Run the agent; ARGUMENTS are further flags of weaver."""
    # All of the agent, which the other commands do without: it takes longer to import than they take to run.
    from weavenet.agent.kube_env import launch_arguments  # noqa: PLC0415
    from weavenet.agent.main import main as weaver  # noqa: PLC0415

    started = launch_arguments(os.environ, arguments)
    place = _place()
    if not init_container_ran(os.environ):
        prepare_node(place)
    log = open_log("info")
    for remark in started.remarks:
        log.info("%s", remark)
    weaver.main(list(started.arguments), prog_name="weaver", obj=place)


@weave_kube.command("uninstall")
def uninstall_command() -> None:
    """Remove from the node what was installed there."""
    log = open_log("info")
    for done in uninstall(_place()):
        log.info("%s", done)


def prepare_node(place: Place) -> None:
    """Look at the kernel and install the executables. Raises WeavenetError."""
    log = open_log("debug" if os.environ.get("WEAVE_DEBUG") else "info")
    check_release(os.uname().release, log)
    prepare_bridge_calls(log, load_module, policy=wants_policy(os.environ))
    for done in install_executables(place):
        log.info("%s", done)


def _place() -> Place:
    return install_place(os.environ, artifact(CNI_EXECUTABLE))


def main() -> None:
    """Run one command."""
    try:
        weave_kube(prog_name="weave-kube")
    except WeavenetError as error:
        click.echo(f"weave-kube: {error}", err=True)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
