"""A private container runtime inside a network namespace: containerd, runc and `ctr run --cni`, as on a node.

It is the runtime's own process and files only: root, state and socket directories of its own, in a mount namespace of
its own, ended by its process id. `ctr` (1.6) looks for CNI configurations in /etc/cni/net.d and for plugins in
/opt/cni/bin and cannot be told otherwise; in the mount namespace those are the caller's directories, and /etc, /opt and
/var/lib are overlays whose changes are lost with it. /run is empty there, so a socket that a plugin is to reach must be
elsewhere.

A container is a static program that echoes UDP datagrams on port 7. It has no shell or tools: `Container.run` runs the
host's programs in the container's network namespace instead, which is all of it that concerns a network plugin. Cgroups
are switched off, as they would be made in the machine's own tree.

Where ADD fails, `start` raises with what ctr printed. DEL is called by ctr when a container that it waits for ends,
with a blank CNI_NETNS: the harder one of the two ways.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("containerd", "ctr", "runc", "gcc", "nsenter", "unshare")
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0

_ADDRESS = "/run/private-containerd.sock"  # in the mount namespace; short, as a socket's path must be
_READY = "ready"
_ECHO_PORT = 7
_PROGRAM = f"""
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>
static void end(int number) {{ (void)number; _exit(0); }}
int main(void) {{
    static char data[65536];
    struct sockaddr_in here = {{.sin_family = AF_INET, .sin_port = htons({_ECHO_PORT})}}, peer;
    int echo = socket(AF_INET, SOCK_DGRAM, 0);
    signal(SIGTERM, end);
    if (bind(echo, (struct sockaddr *)&here, sizeof here) || write(1, "{_READY}\\n", {len(_READY) + 1}) < 0)
        return 1;
    for (;;) {{
        socklen_t size = sizeof peer;
        ssize_t n = recvfrom(echo, data, sizeof data, 0, (struct sockaddr *)&peer, &size);
        if (n >= 0)
            sendto(echo, data, n, 0, (struct sockaddr *)&peer, size);
    }}
}}
"""
_ASK = f"""
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(0.2)
for _ in range(int(float(sys.argv[2]) / 0.2)):
    try:
        asking.sendto(b"?", (sys.argv[1], {_ECHO_PORT}))
        sys.exit(asking.recv(1) != b"?")
    except OSError:
        pass
sys.exit(1)
"""

_CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
grpc.address = "{address}"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
"""

# $1 is the base directory, $2 the CNI configurations, $3 the plugins.
_PREPARE_AND_RUN = """
set -e
mount --make-rprivate /
mkdir -p "$1/layers"
mount -t tmpfs layers "$1/layers"
for directory in etc opt var/lib; do
    layer="$1/layers/$directory"
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay -o "lowerdir=/$directory,upperdir=$layer/upper,workdir=$layer/work" "/$directory"
done
mkdir -p /etc/cni/net.d /opt/cni/bin
mount --bind "$2" /etc/cni/net.d
mount --bind "$3" /opt/cni/bin
mount -t tmpfs run /run
exec containerd --config "$1/config.toml" --log-level warn
"""


def missing_programs() -> list[str]:
    """Return the programs that this needs and that are not installed."""
    return [program for program in NEEDED if shutil.which(program) is None]


@dataclass
class Container:
    """A running container."""

    container_id: str  # what CNI_CONTAINERID is: ctr puts its own namespace in front
    pid: int
    attending: subprocess.Popen[str]  # `ctr run`, which waits for it

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the host in the container's network namespace."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            check=check,
            text=True,
            capture_output=True,
            timeout=START_LIMIT_S,
        )

    def reaches(self, address: str, limit_s: float = 2.0) -> bool:
        """Say whether the container at that address answers this one within the limit."""
        return self.run(sys.executable, "-c", _ASK, address, str(limit_s), check=False).returncode == 0


class Runtime:
    """containerd in a network namespace; made by `running_runtime`."""

    def __init__(self, base: Path, containerd: subprocess.Popen[bytes], environment: Mapping[str, str]) -> None:
        """Speak to that containerd; `environment` is what plugins find in theirs, beside CNI_*."""
        self._base = base
        self._containerd = containerd
        self._environment = dict(environment)
        self._containers: dict[str, Container] = {}

    def start(self, name: str) -> Container:
        """Run a container, and return when its network is there. Raises RuntimeError with what ctr said otherwise."""
        options = ["--rootfs", "--cni", "--cgroup", "", "--runc-root", str(self._base / "runc")]
        attending = subprocess.Popen(
            self._inside("run", *options, str(self._base / "rootfs"), name, "/echo"),
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert attending.stdout is not None
        if attending.stdout.readline().strip() != _READY:
            complaint = self._remove(name, attending)
            message = f"ctr run failed: {complaint.strip()}"
            raise RuntimeError(message)
        pid = int(self._ctr("tasks", "list").split(f"{name} ")[1].split()[0])
        self._containers[name] = Container(f"default-{name}", pid, attending)
        return self._containers[name]

    def stop(self, name: str) -> str:
        """End a container; ctr then calls DEL. Return what ctr said, which is nothing if DEL succeeded."""
        container = self._containers.pop(name)
        self._ctr("tasks", "kill", "--signal", "SIGTERM", name)
        return self._remove(name, container.attending)

    def stop_all(self) -> None:
        """End every container that was started."""
        for name in list(self._containers):
            self.stop(name)

    def wait_until_ready(self) -> None:
        """Return when containerd answers. Raises RuntimeError if it ended or does not."""
        socket_path = Path(f"/proc/{self._containerd.pid}/root{_ADDRESS}")
        deadline = time.monotonic() + START_LIMIT_S
        while self._containerd.poll() is None and time.monotonic() < deadline:
            if socket_path.exists() and self._ctr_run("version").returncode == 0:
                return
            time.sleep(0.02)
        message = f"containerd does not run: {(self._base / 'containerd.log').read_text()}"
        raise RuntimeError(message)

    def _remove(self, name: str, attending: subprocess.Popen[str]) -> str:
        try:
            _, complaint = attending.communicate(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            attending.kill()
            _, complaint = attending.communicate()
            complaint += f"\nctr run was killed after {STOP_LIMIT_S} s"
        # ctr leaves both behind when the network could not be set up; otherwise there is no task any more.
        self._ctr_run("tasks", "delete", "--force", name)
        self._ctr_run("containers", "delete", name)
        return complaint

    def _ctr(self, *arguments: str) -> str:
        done = self._ctr_run(*arguments)
        if done.returncode:
            message = f"ctr {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
            raise RuntimeError(message)
        return done.stdout

    def _ctr_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(*arguments),
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S,
        )

    def _inside(self, *arguments: str) -> list[str]:
        enter = ["nsenter", "--target", str(self._containerd.pid), "--mount", "--net"]
        return [*enter, "ctr", "--address", _ADDRESS, *arguments]


@contextlib.contextmanager
def running_runtime(
    netns: str | Path,
    base: Path,
    configurations: Path,
    plugins: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Runtime]:
    """Run containerd in a network namespace, named or at a path, with that content of /etc/cni/net.d and /opt/cni/bin.

    `base` must be empty, and is the caller's to remove. Plugins and sockets must not be under /run.
    """
    _write_files(base)
    where = Path("/run/netns") / netns  # a whole path wins
    command = ["nsenter", f"--net={where}", "unshare", "--mount", "sh", "-c", _PREPARE_AND_RUN, "sh"]
    with (base / "containerd.log").open("wb") as log:
        containerd = subprocess.Popen(
            [*command, str(base), str(configurations), str(plugins)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    runtime = Runtime(base, containerd, environment or {})
    try:
        runtime.wait_until_ready()
        try:
            yield runtime
        finally:
            runtime.stop_all()
    finally:
        containerd.send_signal(signal.SIGTERM)
        try:
            containerd.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            containerd.kill()
            containerd.wait()


def _write_files(base: Path) -> None:
    (base / "config.toml").write_text(textwrap.dedent(_CONFIG).format(base=base, address=_ADDRESS))
    rootfs = base / "rootfs"
    for directory in ("dev", "proc", "sys", "etc", "tmp", "run"):
        (rootfs / directory).mkdir(parents=True)
    source = base / "echo.c"
    source.write_text(_PROGRAM)
    compile_it: Sequence[str] = ["gcc", "-static", "-Os", "-s", "-o", str(rootfs / "echo"), str(source)]
    subprocess.run(compile_it, check=True)
