"""Running the pod of a DaemonSet on a lab host as kubelet and a container runtime do, but without an image.

What the manifest says is what a container gets: command, environment, capabilities, a root file system that is
read-only, and of the node's files those directories that are mounted. The image is this machine's own file system,
below an overlay. Processes get a mount namespace of their own, which ends with them; so nothing has to be unmounted.

    node's /var/lib/weave      is   NODE/var/lib/weave, a directory of the test
    node's /run/weavenet       is   the directory in which the lab looks for a host's agent
    service account            is   ServiceAccount, the files of which change as kubelet changes them

Not played: seccomp, AppArmor and SELinux, cgroups, probes, and restarts.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weavenet.kube.access import SERVICE_ACCOUNT

CHECKOUT = Path(__file__).parents[2]


class ServiceAccount:
    """The files that a pod finds below /var/run/secrets. All change at once, by a link that is replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._count = 0

    def write(self, **content: str) -> None:
        """Have files with this content, and no others."""
        self._count += 1
        version = self.directory / f"..version-{self._count}"
        version.mkdir()
        for name, text in content.items():
            (version / name).write_text(text)
        link = self.directory / "..new"
        link.symlink_to(version.name)
        link.replace(self.directory / "..data")
        for name in content:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")


@dataclass
class Pod:
    """One pod of a DaemonSet on one node."""

    spec: Mapping[str, Any]  # the DaemonSet's
    node: Path  # what of its file system is the test's
    node_name: str
    stage: Path  # where its root is mounted, in its own mount namespace
    account: ServiceAccount
    environment: Mapping[str, str]  # what kubelet adds
    elsewhere: Mapping[str, Path] = field(default_factory=dict)  # paths of the node that are not below `node`

    def init_command(self) -> list[str]:
        """Return the command that runs the init container."""
        (container,) = self._pod["initContainers"]
        return self._command(container)

    def command(self) -> list[str]:
        """Return the command that becomes the main process."""
        (container,) = self._pod["containers"]
        return self._command(container)

    @property
    def _pod(self) -> Mapping[str, Any]:
        return self.spec["template"]["spec"]

    def _command(self, container: Mapping[str, Any]) -> list[str]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"]
        assert rights["capabilities"]["drop"] == ["ALL"]
        capabilities = ",".join(f"+{name.lower()}" for name in rights["capabilities"]["add"])
        setpriv = ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all"]
        if not rights.get("allowPrivilegeEscalation", True):
            setpriv.append("--no-new-privs")
        variables = [f"{name}={value}" for name, value in self._variables(container).items()]
        run = ["env", "-i", *variables, *setpriv, "--", *container["command"]]
        script = "\n".join([*self._preparations(container), f'exec chroot "$root" {shlex.join(run)}'])
        return ["unshare", "--mount", "sh", "-c", script]

    def _variables(self, container: Mapping[str, Any]) -> dict[str, str]:
        given = {each["name"]: each.get("value", self.node_name) for each in container.get("env", ())}
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, **self.environment, **given}

    def _preparations(self, container: Mapping[str, Any]) -> list[str]:
        self.stage.mkdir(exist_ok=True)
        lines = [
            "set -e",
            "mount --make-rprivate /",
            f"stage={shlex.quote(str(self.stage))}",
            'root="$stage/root"',
            'mount -t tmpfs pod "$stage"',
            'mkdir "$stage/upper" "$stage/work" "$root"',
            'mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root"',
            'mount --rbind /proc "$root/proc"',
            'mount --bind /proc/sys "$root/proc/sys"',
            'mount -o remount,bind,ro "$root/proc/sys"',
        ]
        for source, target, read_only in self._mounts(container):
            place = f'"$root"{shlex.quote(target)}'
            lines.append(
                f"mkdir -p {place}" if source.is_dir() else f"mkdir -p {place} && rmdir {place} && touch {place}"
            )
            lines.append(f"mount --rbind {shlex.quote(str(source))} {place}")
            if read_only:
                lines.append(f"mount -o remount,bind,ro {place}")
        return [*lines, 'mount -o remount,bind,ro "$root"']

    def _mounts(self, container: Mapping[str, Any]) -> Iterator[tuple[Path, str, bool]]:
        """Return what is mounted in a container, where, and whether it is read-only."""
        # Of the machine's file systems the overlay has only the first one; the programs may be on another.
        for place in dict.fromkeys((str(CHECKOUT), sys.prefix, "/dev", "/sys")):
            yield Path(place), place, True
        # Links are resolved out here: inside the root that is being made they would lead out of it.
        yield self.account.directory, os.path.realpath(SERVICE_ACCOUNT), True
        volumes = {volume["name"]: volume for volume in self._pod["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "configMap" in volume:  # there is none
                assert volume["configMap"]["optional"]
                continue
            source = self._source(volume["hostPath"])
            if source is not None:
                yield source, os.path.realpath(mount["mountPath"]), mount.get("readOnly", False)

    def _source(self, host_path: Mapping[str, str]) -> Path | None:
        """Return where a directory of the node is; None for modules, of which this machine may have none."""
        path = Path(host_path["path"])
        if path.is_relative_to("/proc") or path.is_relative_to("/lib"):
            return path if path.exists() else None
        source = self.elsewhere.get(str(path), self.node / path.relative_to("/"))
        if host_path.get("type") == "DirectoryOrCreate":
            source.mkdir(parents=True, exist_ok=True)
        assert source.exists(), f"the node has no {path}"
        return source
