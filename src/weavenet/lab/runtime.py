"""Calling a CNI plugin exactly as a container runtime does.

A runtime sets CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS and CNI_PATH, puts the network
configuration on the standard input, executes the plugin that `type` names in the host's network namespace, and reads a
result or an error, both JSON, from the standard output (CNI specification 1.1.0, sections 2 and 3). To what comes after
ADD it hands the plugin's own earlier answer as `prevResult`, which is why results are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from weavenet.errors import LabError
from weavenet.lab.namespace import Namespace
from weavenet.lab.process import execute

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod's network namespace, as its runtime knows it."""

    name: str
    container: str
    namespace: Namespace
    interface: str = "eth0"


class _Ip(msgspec.Struct):
    address: str


class _Result(msgspec.Struct):
    ips: list[_Ip] = msgspec.field(default_factory=list)


class _Error(msgspec.Struct):
    code: int
    msg: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A network as a runtime is configured for it: where the plugins are, and the configuration that names one."""

    plugins: Path  # a directory, as in CNI_PATH; the main plugin of a delegating one is sought there, too
    host: Namespace
    configuration: Mapping[str, object]
    environment: Mapping[str, str]

    def add(self, sandbox: Sandbox) -> str:
        """Attach a sandbox and return the result. Raises LabError with the plugin's own words."""
        return self.call("ADD", sandbox)

    def check(self, sandbox: Sandbox, result: str) -> None:
        """Have the plugin verify what ADD did. Raises LabError."""
        self.call("CHECK", sandbox, result)

    def delete(self, sandbox: Sandbox, result: str) -> None:
        """Detach a sandbox. Raises LabError."""
        self.call("DEL", sandbox, result)

    def version(self) -> str:
        """Ask the plugin which versions of CNI it speaks. Raises LabError."""
        return self.call("VERSION", None)

    def call(self, verb: str, sandbox: Sandbox | None, result: str = "") -> str:
        """Execute the plugin for a CNI command and return what it printed. Raises LabError."""
        configuration = dict(self.configuration)
        if result:
            configuration["prevResult"] = msgspec.Raw(result.encode())
        environment = {**self.environment, "CNI_COMMAND": verb, "CNI_PATH": str(self.plugins)}
        if sandbox is not None:
            environment |= {
                "CNI_CONTAINERID": sandbox.container,
                "CNI_NETNS": str(sandbox.namespace.path),
                "CNI_IFNAME": sandbox.interface,
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={sandbox.name}",
            }
        plugin = self.plugins / str(configuration["type"])
        text = msgspec.json.encode(configuration).decode()
        outcome = execute([str(plugin)], namespace=self.host, text=text, env=environment, timeout_s=TIMEOUT_S)
        if outcome.status != 0:
            pod = f" for {sandbox.name}" if sandbox else ""
            raise LabError(f"CNI {verb}{pod} by {plugin.name} failed: {_explain(outcome.output, outcome.errors)}")
        return outcome.output


def address_of(result: str) -> str:
    """Return the first address of a CNI result, as address/prefix length. Raises LabError if there is none."""
    try:
        return msgspec.json.decode(result, type=_Result).ips[0].address
    except (msgspec.DecodeError, IndexError):
        raise LabError(f"the CNI result names no address: {result.strip()!r}") from None


def _explain(output: str, errors: str) -> str:
    """Read an error answer; a plugin that crashed left none, so then take what it printed."""
    try:
        error = msgspec.json.decode(output, type=_Error)
    except msgspec.DecodeError:
        return (errors.strip() or output.strip() or "it printed nothing")[-2000:]
    details = f" ({error.details})" if error.details else ""
    return f"{error.msg}{details}, code {error.code}"
