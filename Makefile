# The door to everything: `make help` lists what there is.
#
# Each target installs what it needs first (scripts/setup.sh, which does nothing when all is there). `check` is the fast
# part and needs no root; `test` is everything. The last thing `make test` prints is the test runner's own summary.

SHELL := /bin/sh
.SUFFIXES:
.SILENT:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
SHIM := build/weave-cni
FASTDP := build/fastdp.o
ROOT := $(filter 0,$(shell id -u))

CC := gcc
CLANG := clang
CFLAGS := -static -Os -std=c11 -Wall -Wextra -Werror
# Debian keeps asm/types.h below the machine's own directory, where `-target bpf` does not look.
BPF_CFLAGS := -O2 -g -target bpf -Wall -Werror -idirafter /usr/include/$(shell $(CC) -print-multiarch 2>/dev/null)

# The container image. With docker: make image IMAGE_BUILD='docker build'
IMAGE ?= localhost/weavenet:$(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' src/weavenet/version.py)
BASE_IMAGE ?= debian:bookworm-slim
IMAGE_BUILD ?= buildah bud --isolation chroot --network host
FUZZ_SECONDS ?= 20

# How this machine reaches packages, lent to the build as secrets; see the Dockerfile.
LENT = $(if $(wildcard $(2)),--secret id=$(1)$(comma)src=$(2))
comma := ,

.PHONY: help setup artifacts pins image demo lab lab-down fmt lint unit sim fuzz kernel bench scale check test clean

help: ## this list
	awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (as root), the virtual environment, the shim, the eBPF object
	+scripts/setup.sh

# What setup.sh asks for once the compilers are there; both can be asked for alone.
artifacts: $(SHIM) $(FASTDP)

$(SHIM): shim/weave-cni.c
	mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $<

$(FASTDP): src/weavenet/dataplane/bpf/fastdp.c $(wildcard src/weavenet/dataplane/bpf/*.h)
	mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c -o $@ $<

pins: setup ## renew constraints.txt: versions and hashes of all we depend on, naming no host
	$(BIN)/pip-compile --quiet --upgrade --extra dev --generate-hashes --allow-unsafe --strip-extras --no-header \
		--no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--output-file constraints.txt pyproject.toml

image: ## the container image, with buildah; IMAGE and BASE_IMAGE name it and its base (see the Dockerfile)
	$(IMAGE_BUILD) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		$(call LENT,pip-configuration,/etc/pip.conf) $(call LENT,certificates,/etc/ssl/certs/ca-certificates.crt) \
		--tag $(IMAGE) -f Dockerfile .

demo: setup ## three hosts, pods that talk, a fourth host that joins; then everything is taken down (root)
	$(BIN)/python -m weavenet.lab demo

lab: setup ## three hosts with two pods each, left up to play with (root)
	$(BIN)/python -m weavenet.lab up

lab-down: setup ## take the lab down (root)
	$(BIN)/python -m weavenet.lab down

fmt: setup ## format, and repair what a linter can repair
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: setup ## style, types, import contracts
	$(BIN)/ruff format --check --quiet || { echo 'lint: not formatted; run: make fmt'; exit 1; }
	$(BIN)/ruff check --quiet
	$(BIN)/mypy --no-error-summary
	mkdir -p build
	$(BIN)/lint-imports --no-cache >build/lint-imports.txt || { cat build/lint-imports.txt; exit 1; }

unit: setup ## tests that need neither root nor a network
	$(BIN)/pytest -q -m 'not kernel'

# Hash order must not show: the first seeds are played again under another one, and all that happened must be the same.
SEEDS ?= 190
test: SEEDS := 70 # so that everything takes less than 20 minutes; the others run with make sim

sim: setup ## the production node in virtual time: 200 seeds of 20 nodes (80 as a part of make test)
	mkdir -p build
	PYTHONHASHSEED=1 $(BIN)/python -m weavenet.sim --seeds 10 --nodes 20 --digest >build/sim-1.txt || { cat build/sim-1.txt; exit 1; }
	PYTHONHASHSEED=2 $(BIN)/python -m weavenet.sim --seeds 10 --nodes 20 --digest >build/sim-2.txt || { cat build/sim-2.txt; exit 1; }
	cmp build/sim-1.txt build/sim-2.txt || { echo 'sim: the same seeds ran differently under another hash order'; exit 1; }
	PYTHONHASHSEED=1 $(BIN)/python -m weavenet.sim --first 11 --seeds $(SEEDS) --nodes 20 >build/sim.txt || { tail -n 40 build/sim.txt; exit 1; }
	tail -n 1 build/sim.txt

fuzz: setup ## feed every decoder and state machine hostile bytes, FUZZ_SECONDS each; then property tests, much longer
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps -r tests/fuzz/requirements.txt
	for target in $$($(BIN)/python tests/fuzz/targets.py); do \
		echo "fuzz: $$target"; \
		$(BIN)/python tests/fuzz/fuzz.py $$target $(FUZZ_SECONDS) >build/fuzz.log 2>&1 || { tail -n 60 build/fuzz.log; exit 1; }; \
		grep -E '^stat::(number|new_units|peak)' build/fuzz.log | tr '\n' ' '; echo; \
	done
	$(BIN)/pytest -q tests/fuzz
	$(BIN)/pytest -q -m 'not kernel' --hypothesis-profile fuzz

kernel: setup ## tests on the real kernel, in network namespaces (root)
ifdef ROOT
	$(BIN)/pytest -q -m kernel
else
	echo 'kernel: skipped: the tests in network namespaces need root'
endif

bench: setup ## measure beside bare link, kernel VXLAN, Debian's plugins, and the Weave Net that WEAVENET_REAL_WEAVER names (root)
	$(BIN)/python -m weavenet.lab bench

check: lint sim unit ## lint, unit and sim: rootless

# One run of the test runner at the end, so that its summary counts everything and is the last line.
test: lint sim ## everything; without root the kernel tests are skipped, with a line that says so
ifdef ROOT
	$(BIN)/pytest -q
else
	echo 'kernel: skipped: the tests in network namespaces need root'
	$(BIN)/pytest -q -m 'not kernel'
endif

scale: setup ## meshes of up to 1,000 nodes in virtual time, two hours; writes a section of docs/benchmarks.md
	$(BIN)/python -m weavenet.sim.scale --into docs/benchmarks.md

clean: ## remove what was built (not the virtual environment)
	rm -rf build dist
