PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Many tests wait for processes, so there may be more of them than processors.
TEST_PROCESSES ?= 3
TEST_TOOLS := gcc libc6-dev strace systemd e2fsprogs xfsprogs btrfs-progs fuse3 postgresql jq chromium
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true

.DEFAULT_GOAL := help
.PHONY: help install demo run test crash test-tools check format clean

help:     ## show these targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(INSTALLED)  ## make .venv and install the pinned dependencies

demo: install  ## train a real model from a dropped file and show what it learned
	$(BIN)/python -m examples.demo

run: install  ## start the daemon on this folder
	$(BIN)/trainbox run

test: install  ## run the whole test suite, fast tests first
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

crash: install  ## kill, cut and fault every state-changing step of a job's life; minutes
	$(BIN)/python -m tests.crash

test-tools:  ## Debian packages that the crash, systemd and ledger tests need (root; without them they are skipped)
	apt-get update --quiet
	apt-get install --yes --quiet --no-install-recommends $(TEST_TOOLS)

check: install  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff write the formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:    ## remove the virtual environment and caches; never what was trained
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trainbox needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python has no venv. Try: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
