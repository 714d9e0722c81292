"""`weave manifest`: the service's parameters as options."""

import subprocess
import sys

import pytest
import yaml

from weavenet.cli.main import main
from weavenet.manifest.objects import manifest
from weavenet.manifest.options import ImageSource, parse_options

IMAGE = ImageSource("registry.example/weavenet", "7")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["manifest", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_options_are_the_services_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(
        capsys,
        *("--k8s-version", "v1.29.3", "--image", "registry.example/weavenet:6", "--version", "7"),
        *("--env", "WEAVE_MTU=8916", "--env", "EXTRA_ARGS=--log-level=debug --resume"),
        *("--password-secret", "weave-passwd", "--disable-npc", "--known-peers", "10.0.0.1,10.0.0.2"),
        *("--trusted-subnets", "10.0.0.0/8", "--selinux", "level=s0", "--keep-state"),
    )
    wanted = parse_options(
        [
            ("k8s-version", "1.29"),
            ("env.WEAVE_MTU", "8916"),
            ("env.EXTRA_ARGS", "--log-level=debug --resume"),
            ("password-secret", "weave-passwd"),
            ("disable-npc", "true"),
            ("known-peers", "10.0.0.1,10.0.0.2"),
            ("trusted-subnets", "10.0.0.0/8"),
            ("seLinuxOptions.level", "s0"),
            ("keep-state", "true"),
        ],
        IMAGE,
    )
    assert status == 0
    assert yaml.safe_load(out) == manifest(wanted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k8s-version", "1.5"], "Kubernetes 1.5 is not supported"),
        (["--env", "WEAVE_MTU"], "--env WEAVE_MTU: write NAME=VALUE"),
        (["--env", "WEAVE_MTU=x"], "env.WEAVE_MTU=x: not a number"),
        (["--image", "a b"], "is no repository"),
        (["serve", "--listen", "localhost:x"], "--listen: "),
        (["serve", "--listen", "192.0.2.1:80"], "cannot serve at 192.0.2.1:80"),
    ],
)
def test_nonsense_is_refused_with_status_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert words in err


def test_other_commands_do_not_pay_for_it() -> None:
    program = (
        "import sys, weavenet.cli.main;"
        "print([name for name in ('yaml', 'http.server', 'weavenet.manifest.service', 'weavenet.manifest.text')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
