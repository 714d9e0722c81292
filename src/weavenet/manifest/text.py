"""A manifest as YAML text, with a head that says what it is and for whom."""

import hashlib

from weavenet.manifest.objects import manifest
from weavenet.manifest.options import ManifestOptions


def render(options: ManifestOptions, release: str) -> str:
    """Return the whole file. The same options give the same bytes."""
    import yaml  # noqa: PLC0415 - takes as long to import as all the rest of the command line

    class Dumper(yaml.SafeDumper):
        """Writes equal parts out: people edit these files, and an alias that they did not see changes two places."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

    head = [f"weavenet {release} for Kubernetes {options.kubernetes.version}"]
    if options.kubernetes.remark:
        head.append(f"Note: {options.kubernetes.remark}.")
    head.append(f"Image: {options.image}; every node must be able to pull it, or have it.")
    body = yaml.dump(manifest(options), Dumper=Dumper, sort_keys=False, default_flow_style=False, width=120)
    return "".join(f"# {line}\n" for line in head) + body


def entity_tag(text: str) -> str:
    """Return what tells this text from another, for caches."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
