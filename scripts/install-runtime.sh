#!/bin/sh
# Make the environment that the image runs from. In two steps, so that a change of ours does not download again:
#
#     install-runtime.sh packages DIR    the packages weavenet needs to run, in the versions of constraints.txt
#     install-runtime.sh weavenet DIR    weavenet itself, the eBPF object and the CNI executable
#
# constraints.txt also pins what only development needs. Which of it running needs is asked of pip, with a trial run;
# what is then installed must have the hashes of constraints.txt.
set -eu
cd "$(dirname "$0")/.."

step=$1 target=$2
tools=/tmp/weavenet-tools

pip() { "$tools/bin/python" -m pip --disable-pip-version-check "$@"; }

# The lines of constraints.txt, with their hashes, of the packages named on standard input.
pins_of() {
    "$tools/bin/python" -c '
import re, sys
from pathlib import Path

canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()
wanted = {canonical(line.strip()) for line in sys.stdin if line.strip()}
pins = re.findall(r"^[^\s#](?:.*\\\n)*.*$", Path("constraints.txt").read_text(), re.MULTILINE)
found = {canonical(pin.partition("==")[0]): pin for pin in pins}
missing = sorted(wanted - found.keys())
if missing:
    sys.exit(f"constraints.txt does not pin {missing}; run: make pins")
print("\n".join(found[name] for name in sorted(wanted)))'
}

install_packages() {
    python3 -m venv "$tools"
    python3 -m venv --without-pip "$target"
    echo setuptools | pins_of >/tmp/build-pins.txt
    pip install --quiet --require-hashes -r /tmp/build-pins.txt

    "$tools/bin/python" -c '
import tomllib
from pathlib import Path

print("\n".join(tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]))' >/tmp/wanted.txt
    sed -n 's/^\([^ #]*==[^ ]*\).*/\1/p' constraints.txt >/tmp/versions.txt
    pip install --quiet --dry-run --ignore-installed --report /tmp/report.json \
        -r /tmp/wanted.txt -c /tmp/versions.txt
    "$tools/bin/python" -c '
import json
from pathlib import Path

for item in json.loads(Path("/tmp/report.json").read_text())["install"]:
    print(item["metadata"]["name"])' | pins_of >/tmp/pins.txt
    pip --python "$target/bin/python" install --quiet --require-hashes --no-deps -r /tmp/pins.txt
}

install_weavenet() {
    pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /tmp/wheels .
    pip --python "$target/bin/python" install --quiet --no-deps /tmp/wheels/weavenet-*.whl
    install -D -m 0755 build/weave-cni "$target/lib/weavenet/weave-cni"
    install -D -m 0644 build/fastdp.o "$target/lib/weavenet/fastdp.o"
}

case $step in
packages) install_packages ;;
weavenet) install_weavenet ;;
*) echo "install-runtime.sh: no step $step" >&2; exit 1 ;;
esac
