"""What a lab consists of, on disk, so that `lab down` can remove it all in another process, even after a crash.

    /run/weavenet-lab/NAME/lab.json          the record: hosts, pods, processes
                          /ns/...            one mounted file per network namespace
                          /bin/weave-net     the CNI executable under the names runtimes call it by
                          /host1/...         weave.sock, cni.sock, weaver.log
    /var/lib/weavenet-lab/NAME/host1/...     the agent's database: on a disk, as on real hosts, as it takes time

Namespaces and mounts need no record: what lies in the lab's directory is the lab's. Processes do, and are written down
before a signal can interrupt the lab.
"""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from weavenet.errors import LabError
from weavenet.lab.namespace import Namespace
from weavenet.lab.process import Process

RUN_ROOT = Path("/run/weavenet-lab")
STATE_ROOT = Path("/var/lib/weavenet-lab")
UNDERLAY = "underlay"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(slots=True)
class HostRecord:
    """A host: number N is called hostN, has the underlay address 10.99.0.N and the peer name 7a:00:00:00:00:NN."""

    number: int
    agent: Process | None = None

    @property
    def name(self) -> str:
        """The name by which users call the host."""
        return f"host{self.number}"

    @property
    def address(self) -> str:
        """The address of the host on the underlay."""
        return f"10.99.0.{self.number}"

    @property
    def peer_name(self) -> str:
        """The name of the host's agent in the mesh."""
        return f"7a:00:00:00:00:{self.number:02x}"


@dataclass(slots=True)
class PodRecord:
    """A pod: its host, its container ID, and the result of CNI ADD, which DEL wants to see again; empty before ADD."""

    name: str
    host: int
    container: str
    address: str = ""
    result: str = ""


@dataclass(slots=True)
class Record:
    """A lab as it is on disk. The owner is the process that will take the lab down itself; none if it is left up."""

    owner: Process | None = None
    hosts: list[HostRecord] = field(default_factory=list)
    pods: list[PodRecord] = field(default_factory=list)
    others: list[Process] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the things of one lab lie."""

    name: str
    run_root: Path = RUN_ROOT
    state_root: Path = STATE_ROOT

    def __post_init__(self) -> None:
        """Refuse a name that does not fit into a path."""
        if not _NAME.fullmatch(self.name):
            raise LabError(f"a lab cannot be called {self.name!r}: small letters, digits and hyphens, at most 31")

    @property
    def run(self) -> Path:
        """The lab's directory."""
        return self.run_root / self.name

    @property
    def state(self) -> Path:
        """The lab's directory on disk."""
        return self.state_root / self.name

    @property
    def namespaces(self) -> Path:
        """Where the namespaces are mounted."""
        return self.run / "ns"

    @property
    def executables(self) -> Path:
        """Where the CNI executable has its names: what a runtime is given as CNI_PATH."""
        return self.run / "bin"

    @property
    def record(self) -> Path:
        """The file with the record."""
        return self.run / "lab.json"

    def namespace(self, name: str) -> Namespace:
        """Return the namespace of a host, a pod or the underlay."""
        return Namespace(self.namespaces / name)

    def host(self, host: HostRecord) -> Path:
        """Return the run directory of a host's agent."""
        return self.run / host.name

    def log(self, host: HostRecord) -> Path:
        """Return the log of a host's agent."""
        return self.host(host) / "weaver.log"

    def make(self) -> None:
        """Make the directories. Raises LabError if the lab is there already, or if that is not allowed."""
        try:
            self.run_root.mkdir(parents=True, exist_ok=True)
            self.run.mkdir(mode=0o700)
            for directory in (self.namespaces, self.executables, self.state):
                directory.mkdir(parents=True)
        except FileExistsError as error:
            raise LabError(
                f"{error.filename} is there already; take the lab down: lab --lab {self.name} down"
            ) from None
        except PermissionError as error:
            raise LabError(f"cannot make {error.filename}; a lab needs root") from None

    def remove(self) -> None:
        """Remove the directories and what is in them; mounts must be gone before."""
        for directory in (self.state, self.run):
            shutil.rmtree(directory, ignore_errors=True)
            if directory.exists():
                raise LabError(f"cannot remove {directory}")
            with suppress(OSError):  # another lab is up
                directory.parent.rmdir()

    def load(self) -> Record:
        """Read the record; an empty one if the lab was killed before it could write any. Raises LabError."""
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=Record)
        except FileNotFoundError:
            if self.run.exists():
                return Record()
            raise LabError(f"there is no lab called {self.name}; bring it up: lab --lab {self.name} up") from None
        except PermissionError:
            raise LabError(f"cannot read {self.record}; a lab needs root") from None
        except msgspec.DecodeError as error:
            raise LabError(f"{self.record} is damaged: {error}") from None

    def save(self, record: Record) -> None:
        """Write the record, whole or not at all."""
        draft = self.record.with_suffix(".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        draft.replace(self.record)
