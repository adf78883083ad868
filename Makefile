# Two commands matter to a newcomer: "make demo" and "make test". Both do all the set-up they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euc
.NOTPARALLEL:

# The tests start thousands of commands: what Python has compiled is kept, but not among the sources.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache

PYTHON := .venv/bin/python
C_FILES = $(wildcard src/agent/*.[ch] src/hotupgrade/include/*.h)
PY_FILES = src tests scripts/fetch-debian-patches scripts/fetch-debian-tree hatch_build.py $(wildcard benchmarks)

.PHONY: help setup ovs guest demo demo-kernel compare test test-full test-datapaths test-unit test-real crosscheck compilers lint soak fuzz bench clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install packages and make .venv (nothing to do: under two seconds)
	@scripts/setup
	$(MAKE) --silent --no-print-directory -C src/agent >/dev/null

ovs: ## build Open vSwitch twice: as Debian ships it, and without its three security patches
	@scripts/build-ovs fixed
	scripts/build-ovs vulnerable

demo: setup ovs ## upgrade a running Open vSwitch under full load, roll back, upgrade again; report in build/demo
	@$(PYTHON) -m hotupgrade.vswitch.demo

guest: setup ## what a guest with Debian's kernel boots from; unpacked in build/kernel, not installed
	@scripts/build-guest

demo-kernel: setup ovs guest ## upgrade a switch with the kernel's datapath, in a guest; shared libraries, then one program
	@scripts/build-ovs --static vulnerable
	scripts/build-ovs --static fixed
	$(PYTHON) -m hotupgrade.vswitch.datapaths.demo

test: setup ovs ## every test but the longest; of the real programs only the small ones
	@scripts/build-real sqlite3 memcached
	scripts/install-packages compare
	$(PYTHON) -m pytest -n auto tests/unit
	$(PYTHON) -m pytest -n 2 -m "not full" tests/live
	$(PYTHON) -m pytest -m "not full" tests/ovs tests/real/test_sqlite.py tests/real/test_memcached.py

test-full: test ## the longest too: the statically linked switch, what is done often
	@scripts/build-ovs --static fixed
	$(PYTHON) -m pytest -m full tests/live tests/ovs

test-datapaths: setup ovs guest ## the kernel's datapath, offload, sessions, AF_XDP: every test of datapaths without DPDK
	@$(PYTHON) -m pytest tests/ovs/test_datapaths.py

test-real: setup ## real programs from Debian's sources, upgraded while they serve; the first time builds for long
	@scripts/build-real all
	$(PYTHON) -m pytest tests/real
	$(PYTHON) tests/real/table.py

crosscheck: setup ovs ## references against the linker's records, on libraries large and small; writes docs/references.md
	@scripts/install-packages crosscheck
	scripts/build-ovs --static fixed
	PYTHONPATH=tests:src nice -n 10 $(PYTHON) -m crosscheck

compilers: setup ## upgrades of a small program in every flavour of compiler and linker; writes docs/compilers.md
	@scripts/install-packages compilers
	PYTHONPATH=tests:src $(PYTHON) -m live.flavours

compare: setup ovs ## ways to upgrade a switch side by side on the same traffic (hours); writes docs/comparison.md
	@scripts/install-packages compare
	scripts/build-ovs loops tests/ovs/patches/loops.patch
	$(PYTHON) -m hotupgrade.vswitch.compare --loops loops --page docs/comparison.md

test-unit: setup ## the tests that start no process
	@$(PYTHON) -m pytest -n auto tests/unit

soak: setup ovs ## kills, upgrades, OVS under load for MINUTES=60; report in build/soak/report.json
	@$(PYTHON) tests/soak/soak.py --minutes $(MINUTES)

lint: setup ## ruff, mypy, clang-format
	@$(PYTHON) -m ruff check $(PY_FILES)
	$(PYTHON) -m ruff format --check $(PY_FILES)
	$(PYTHON) -m mypy
	[ -z "$(C_FILES)" ] || clang-format --dry-run -Werror $(C_FILES)

fuzz: setup ## hostile files and records, coverage-guided, for MINUTES (60); report in build/fuzz
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=tests:src $(PYTHON) -m fuzz.run --minutes $(or $(MINUTES),60)

bench: setup ovs ## measure; table and build/bench/results.json
	@$(PYTHON) benchmarks/run.py

clean: ## remove what was built, but not .venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f src/hotupgrade/native/*.bin src/hotupgrade/native/*.so src/hotupgrade/native/*.json
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf .venv
