"""`weave manifest`: the DaemonSet on standard output, or handed out by a small web service.

Options mirror the service's parameters one by one. Whatever costs time to import waits until it is needed, since this
module is imported by every `weave` command.
"""

from collections.abc import Iterable

import click

from weavenet.errors import ManifestError
from weavenet.version import VERSION

# Not a name that anybody could register in some public registry: where the image is kept is for --image to say.
DEFAULT_IMAGE = "localhost/weavenet"
DEFAULT_LISTEN = "127.0.0.1:8080"

_IMAGE = click.option(
    "--image",
    default=DEFAULT_IMAGE,
    show_default=True,
    metavar="REPOSITORY[:TAG]",
    help="Where nodes pull the image from. Default tag: this release.",
)


@click.group(invoke_without_command=True)
@click.option("--k8s-version", default="", help="As in v1.29.3, or the base64 of what `kubectl version` prints.")
@click.option("--version", "tag", default="", help="Tag of the image. Default: this release.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable of the agent. Repeatable.")
@click.option("--password-secret", default="", metavar="NAME", help="Secret, and key in it, that hold the password.")
@click.option("--disable-npc", is_flag=True, help="Do not enforce network policies.")
@click.option("--known-peers", default="", metavar="A,B", help="Peers to connect to. Default: the cluster's nodes.")
@click.option("--trusted-subnets", default="", metavar="A,B", help="Subnets whose traffic needs no encryption.")
@click.option("--selinux", multiple=True, metavar="NAME=VALUE", help="SELinux option of the pod. Repeatable.")
@click.option("--keep-state", is_flag=True, help="Have nodes keep what is on disk when the DaemonSet is deleted.")
@_IMAGE
@click.pass_context
def manifest(context: click.Context, /, **given: object) -> None:
    """Print the Kubernetes manifest of weavenet, for `kubectl apply -f -`."""
    if context.invoked_subcommand is not None:
        return
    from weavenet.manifest.options import parse_image, parse_options  # noqa: PLC0415
    from weavenet.manifest.text import render  # noqa: PLC0415

    release = VERSION
    try:
        options = parse_options(_pairs(given), parse_image(str(given["image"]), release))
    except ManifestError as error:
        raise click.ClickException(str(error)) from error
    click.echo(render(options, release), nl=False)


@manifest.command()
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT", help="Where to listen.")
@_IMAGE
def serve(listen: str, image: str) -> None:
    """Hand out manifests over HTTP: GET /k8s/net?k8s-version=...&env.NAME=..."""
    import logging  # noqa: PLC0415

    from weavenet.manifest.options import parse_image, parse_listener  # noqa: PLC0415
    from weavenet.manifest.service import ManifestService  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log = logging.getLogger("weavenet.manifest")
    release = VERSION
    try:
        service = ManifestService(parse_listener("--listen", listen), parse_image(image, release), release, log)
    except (ManifestError, OSError) as error:
        raise click.ClickException(f"cannot serve at {listen}: {error}") from error
    with service:
        host, port = service.server_address[:2]
        log.info("serving http://%s:%s/k8s/net", host if isinstance(host, str) else host.decode(), port)
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


def _pairs(given: dict[str, object]) -> Iterable[tuple[str, str]]:
    """Turn options into what a query has."""
    for option, parameter in (
        ("k8s_version", "k8s-version"),
        ("tag", "version"),
        ("password_secret", "password-secret"),
        ("known_peers", "known-peers"),
        ("trusted_subnets", "trusted-subnets"),
    ):
        if given[option]:
            yield parameter, str(given[option])
    for option in ("disable_npc", "keep_state"):
        if given[option]:
            yield option.replace("_", "-"), "true"
    yield from _members("--env", "env", given["env"])
    yield from _members("--selinux", "seLinuxOptions", given["selinux"])


def _members(option: str, family: str, given: object) -> Iterable[tuple[str, str]]:
    assert isinstance(given, tuple), "click's own for a repeatable option"
    for item in given:
        name, equals, value = str(item).partition("=")
        if not equals:
            raise click.UsageError(f"{option} {item}: write NAME=VALUE")
        yield f"{family}.{name}", value
