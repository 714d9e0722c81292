"""`weaver`: one agent per host. Reads its flags, runs, and leaves the data plane alone at its end.

The flags are Weave's where Weave has them (docs/protocol.md, "Router daemon"); `--state-dir`, `--run-dir`,
`--bpf-object`, `--password-file`, `--password-fd`, `--no-password` and `--reset` are ours.
"""

import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from weavenet.agent import config as c
from weavenet.agent.install import Place
from weavenet.agent.log import LEVEL_NAMES, open_log
from weavenet.agent.reset import reset_host
from weavenet.agent.run import run_agent
from weavenet.agent.sleeve import fork_forwarder
from weavenet.errors import WeavenetError
from weavenet.version import VERSION

EXIT_FAILED = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="weave", message="%(prog)s %(version)s")
@click.option("--name", default="", help="Peer name, six hex groups. Default: the bridge's MAC, or the machine's ids.")
@click.option("--nickname", default=c.default_nickname, help="What this peer calls itself. Default: the host name.")
@click.option("--host", default="", help="Local address to listen on and dial from. Default: all.")
@click.option("--port", default=c.DEFAULT_PORT, type=click.IntRange(1, c.PORT_MAX), show_default=True)
@click.option(
    "--password", default=None, help="Better any of the next two or $WEAVE_PASSWORD: flags show in process lists."
)
@click.option("--password-file", type=click.Path(path_type=Path), default=None, help="File that holds the password.")
@click.option("--password-fd", type=click.IntRange(0), default=None, help="Open descriptor to read the password from.")
@click.option("--no-password", is_flag=True, help="Forget stored passwords: the mesh is not encrypted.")
@click.option("--trusted-subnets", default="", help="Comma-separated subnets whose traffic needs no encryption.")
@click.option("--conn-limit", default=200, type=click.IntRange(0), show_default=True, help="0 is no limit.")
@click.option("--no-discovery", is_flag=True, help="Connect only to the peers that are named.")
@click.option("--min-protocol-version", default=1, type=click.IntRange(1, 2), show_default=True)
@click.option("--mtu", default=0, type=click.IntRange(0, c.MTU_MAX), help=f"0 is {c.DEFAULT_MTU_BYTES}.")
@click.option("--no-fastdp", is_flag=True, help="Reach peers by sleeve only, in user space.")
@click.option("--no-sleeve", is_flag=True, help="Reach peers by fastdp only; then encrypted traffic has no way.")
@click.option("--no-fast-sleeve", is_flag=True, help="Speak sleeve as Weave Net does, also with our own peers.")
@click.option("--weave-bridge", default="weave", show_default=True)
@click.option("--ipalloc-range", default="", help="Range to share, as in 10.32.0.0/12. None: no address allocation.")
@click.option("--ipalloc-default-subnet", default="", help="Where addresses come from by default. Default: the range.")
@click.option("--ipalloc-init", default="", help="consensus[=N], seed=NAME,..., or observer.")
@click.option("--resume", is_flag=True, help="Use the stored peers.")
@click.option("--state-dir", type=click.Path(path_type=Path), default=c.DEFAULT_STATE_DIR, show_default=True)
@click.option("--run-dir", type=click.Path(path_type=Path), default=c.DEFAULT_RUN_DIR, show_default=True)
@click.option("--bpf-object", type=click.Path(path_type=Path), default=c.DEFAULT_BPF_OBJECT, show_default=True)
@click.option("--host-root", type=click.Path(path_type=Path), default=Path("/"), help="Where the host's files are.")
@click.option(
    "--networks-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Networks that pods may ask for by annotation.",
)
@click.option("--status-addr", default="", help="Serve status and metrics over TCP here, as in 127.0.0.1:6782.")
@click.option("--metrics-addr", default="", help="Serve metrics, and nothing else, over TCP here.")
@click.option("--http-addr", default="", help="Serve the whole control API over TCP here: whoever reaches it rules.")
@click.option(
    "--expose-ip", default="", help="Address of the bridge, pods' gateway: auto, or CIDR[,...]. Default: when needed."
)
@click.option(
    "--no-masq-local", is_flag=True, help="Pods of this host see outside clients' own addresses, not this host's."
)
@click.option("--expect-npc", is_flag=True, help="Weave's; does nothing: network policy is no program of its own here.")
@click.option("--kube-node", default="", help="Our node's name: take part in the Kubernetes cluster it is of.")
@click.option("--kube-api", default="", help="API server, https://HOST:PORT. Default: the pod's.")
@click.option("--kube-token-file", type=click.Path(path_type=Path), default=None, help="Default: the pod's.")
@click.option("--kube-ca-file", type=click.Path(path_type=Path), default=None, help="Default: the pod's.")
@click.option("--kube-daemonset", default="weave-net", show_default=True, help="What runs us; deleted: uninstall.")
@click.option("--log-level", type=click.Choice(LEVEL_NAMES), default="info", show_default=True)
@click.option("--keep-state", is_flag=True, help="What is on disk stays when the node is left or reset.")
@click.option("--reset", is_flag=True, help="Remove all that is ours from this host's kernel and disk, and exit.")
@click.argument("peers", nargs=-1)
@click.pass_obj  # `weave-kube launch` says where the node's CNI files go
def main(  # type: ignore[explicit-any]  # click's keywords, checked by Flags
    place: Place | None, /, *, reset: bool, **given: Any
) -> None:
    """Run a weavenet peer; PEERS are addresses, host[:port], of some that exist."""
    try:
        # Before a password is read, as it faces strangers.
        forwarder = None if reset or given["no_sleeve"] else fork_forwarder()
        config = c.build_config(c.Flags(**given))
        log = open_log(config.log_level)
        if given["password"]:
            log.warning("--password shows in process lists; use --password-file, --password-fd or $WEAVE_PASSWORD")
        if reset:
            reset_host(config, log)
        else:
            log.info("weave  %s", VERSION)
            uvloop.run(run_agent(config, log, forwarder, place))
    except WeavenetError as error:
        click.echo(f"weaver: {error}", err=True)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
