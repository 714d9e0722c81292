#!/bin/sh
# Install what weavenet needs to be built, tested and shown on Debian 12; do nothing, quickly, when all is there.
#
# In order: Debian packages (as root; otherwise the missing ones are named), the virtual environment .venv with the
# versions and hashes of constraints.txt, weavenet itself as an editable install, its bytecode, the CNI executable and the
# eBPF object.
# Running it twice, or again after it was interrupted, is fine: each step first looks whether it is done.
set -eu
cd "$(dirname "$0")/.."

# For building: gcc libc6-dev (the static CNI executable), clang linux-libc-dev libbpf-dev (the eBPF object), make.
# For running: iproute2 libbpf1 nftables. For the lab and the tests: the rest.
packages="make gcc libc6-dev clang linux-libc-dev libbpf-dev python3-venv
          iproute2 libbpf1 nftables
          iputils-ping iperf3 iptables ethtool containerd runc containernetworking-plugins busybox-static"
venv=.venv
stamp=$venv/.weavenet-setup

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

missing_packages() {
    # One call for all: `ii` is installed. busybox-static and busybox exclude each other, and either will do.
    installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $packages busybox 2>/dev/null |
        sed -n 's/^ii  *//p' | sed 's/^busybox$/busybox-static/') || true
    for package in $packages; do
        case "
$installed
" in
        *"
$package
"*) ;;
        *) printf ' %s' "$package" ;;
        esac
    done
}

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "this is no Debian: install the counterparts of these yourself:" $packages
        return
    fi
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "not root, so these Debian packages stay missing (as root: apt-get install$missing)"
        return
    fi
    say "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Lists that are too old name packages that are no longer on the mirror; so always renew them before an install.
    apt-get -q update >/dev/null || say "apt-get update failed; going on with the package lists there are"
    apt-get -q -y install --no-install-recommends $missing >/dev/null ||
        die "apt-get could not install$missing; the lines above say why"
}

# A Python that can make a virtual environment: Debian's own lacks ensurepip until python3-venv is installed.
find_python() {
    for candidate in python3.11 python3 python3.12 python3.13 /usr/bin/python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or later with the venv module (as root: apt-get install python3-venv)"
}

# What the environment is made of: when this changes, it is brought up to date.
fingerprint() {
    cat constraints.txt pyproject.toml | sha256sum
    pwd
}

install_python() {
    # The interpreter may have gone since, or the checkout may have been moved; both make the environment useless.
    if "$venv/bin/python" -c 'import weavenet' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "making the virtual environment $venv with $python"
        "$python" -m venv --clear "$venv" || die "could not make $venv"
    fi
    say "installing the pinned Python packages"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt ||
        die "pip could not install constraints.txt; the lines above say why"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
        die "pip could not install weavenet itself; the lines above say why"
    fingerprint >"$stamp"
}

# An agent that finds no bytecode compiles 20,000 lines before it does anything, and where PYTHONDONTWRITEBYTECODE is set
# each one does. What is compiled already is looked at and left.
compile_python() {
    "$venv/bin/python" -m compileall -q src/weavenet || die "src/weavenet does not compile; the lines above say why"
}

# The shim and the eBPF object, whose rules and dependencies are in the Makefile.
build_artifacts() {
    for need in "gcc build/weave-cni" "clang build/fastdp.o"; do
        compiler=${need% *} artifact=${need#* }
        if command -v "$compiler" >/dev/null; then
            make -s "$artifact" || die "could not build $artifact"
        else
            say "$artifact is not built: $compiler is missing; the lab and the kernel tests need it"
        fi
    done
}

install_packages
install_python
compile_python
build_artifacts
