# Needs make and a Python >= 3.10; all else goes into .venv. Written for the make of macOS (3.81) too: no .ONESHELL.

# Not ?=: it is cleared when it is made, and must not be somebody's $VENV from the environment.
VENV := .venv
# Which Python .venv is made with; empty: the first on PATH that will do.
PYTHON ?=
# For the demo, for example: make demo ARGS="--chaos -p 4 -t 16"
ARGS ?=
# For pytest, for example: make test PYTEST_ARGS="-k retries -x"
PYTEST_ARGS ?=
# How many tests run beside each other; auto: two for each processor. With 0 all run in one process.
PYTEST_WORKERS ?= auto
# For the benchmarks, for example: make bench BENCH_ARGS="--rounds 5 --scenarios stream,latency"
BENCH_ARGS ?=
# What bench-self compares with, for example: make bench-self BASE=HEAD~1
BASE ?=

bin := $(VENV)/bin
pip_install := $(bin)/python -m pip install --quiet --disable-pip-version-check --no-input
export PIP_ROOT_USER_ACTION := ignore
# The tests start thousands of interpreters: to compile for each what they import takes a quarter of all their time.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format pytest test-all fuzz coverage bench bench-quick bench-self bench-growth bench-micro clean \
    environments-bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## parse every Python file of this Python in a pool (ARGS="--chaos": while workers are killed)
	@$(bin)/mpms demo $(ARGS)

test: lint pytest ## all that has to be green: lint, types, tests

lint: $(VENV)/.installed-test ## ruff check, ruff format --check, mypy
	$(bin)/ruff check --quiet
	$(bin)/ruff format --check --quiet || { echo 'Not formatted: make format'; exit 1; }
	$(bin)/mypy

format: $(VENV)/.installed-test ## ruff format, and the fixes that ruff can make
	$(bin)/ruff check --fix
	$(bin)/ruff format

# Without coverage: it slows down what the tests measure. First what can run side by side, then what has to be alone.
# Exit code 5 says that no test was selected, which is no error as long as the other half has some.
pytest: $(VENV)/.installed-test
	@tests() { $(bin)/python -m pytest "$$@" $(PYTEST_ARGS); }; \
	beside=0; tests -n $(PYTEST_WORKERS) --dist worksteal -m 'not alone' || beside=$$?; \
	alone=0; tests -m alone || alone=$$?; \
	case "$$beside $$alone" in '0 0' | '0 5' | '5 0') ;; *) exit 1 ;; esac

# One virtual environment per version, kept. The start methods are told to the tests by the environment.
test-all: ## the tests under every Python from 3.10 that is found, with every start method
	@tools/pythons | { \
	failed=; passed=; \
	while read -r version python; do \
	    echo "== Python $$version: $$python"; \
	    if MPMS_TEST_START_METHODS=forkserver,fork,spawn MPMS_TEST_DASK=all \
	        $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON="$$python" pytest </dev/null; \
	    then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "== passed:$${passed:- none}; failed:$${failed:- none}"; \
	test -n "$$passed" && test -z "$$failed"; }

# Long runs, so the limits per test are lifted too.
fuzz: $(VENV)/.installed-test ## long property and simulation runs
	HYPOTHESIS_PROFILE=nightly MPMS_FUZZ=1 \
	    $(bin)/python -m pytest --timeout=0 -o faulthandler_timeout=0 $(PYTEST_ARGS) tests/core tests/sim

coverage: $(VENV)/.installed-test ## branch coverage of core and wire by their own tests
	$(bin)/python -m pytest --cov --cov-report=term $(PYTEST_ARGS) tests/core tests/wire

bench: environments-bench ## mpms beside other pools, half an hour and more: benchmarks/results/latest.md, .json, .svg
	.venv-bench/bin/python -m benchmarks $(BENCH_ARGS)

bench-quick: environments-bench ## the most telling of it, in two minutes: benchmarks/results/quick.*
	.venv-bench/bin/python -m benchmarks --quick $(BENCH_ARGS)

bench-self: ## this checkout beside another revision (BASE=REV); fails if it has become slower
	@test -n "$(BASE)" || { echo 'Beside which revision? make bench-self BASE=REV' >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-bench
	.venv-bench/bin/python -m benchmarks.compare $(BENCH_ARGS) $(BASE)

bench-growth: ## how mpms grows with processes, threads, waiting tasks and sizes: benchmarks/results/growth.*
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-bench
	@set -e; free=$$(tools/pythons | awk '$$1 ~ /t$$/ { sub(/^[^ ]+ /, ""); print; exit }'); \
	if test -n "$$free"; then \
	    $(MAKE) --no-print-directory VENV=.venv-bench-t PYTHON="$$free" .venv-bench-t/.installed; \
	    set -- --free-threaded .venv-bench-t/bin/python; \
	else \
	    echo "bench-growth: there is no free-threaded Python on PATH: without its curves"; set --; \
	fi; \
	.venv-bench/bin/python -m benchmarks.growth "$$@" $(BENCH_ARGS)

bench-micro: ## the hot functions alone, by pyperf
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-bench
	PYTHONPATH=src .venv-bench/bin/python -m benchmarks.micro --fast --inherit-environ PYTHONPATH $(BENCH_ARGS)

# Two of them: both versions have the same name.
environments-bench:
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-bench
	@$(MAKE) --no-print-directory VENV=.venv-bench-2.6 PYTHON=.venv-bench/bin/python .venv-bench-2.6/.installed-2.6

clean: ## remove what make made
	rm -rf .venv .venv-3.* .venv-bench .venv-bench-2.6 .venv-bench-t build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is done: bin/python exists before pip does, if the making was interrupted.
$(VENV)/.made:
	@python='$(PYTHON)'; \
	if test -z "$$python"; then python=$$(tools/pythons --first | cut -d ' ' -f 2-); fi; \
	test -n "$$python" || exit 1; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "$$python: Python 3.10 or newer is needed" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "$$python has no ensurepip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	echo "$(VENV): $$("$$python" --version), $$python"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "$(VENV): installing mpms"
	@$(pip_install) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	@echo "$(VENV): installing mpms and what its tests need"
	@$(pip_install) -e '.[test]'
	@touch $@ $(VENV)/.installed

# One by one: a peer that can't be installed is shown as such, and stops no other. It is tried again when the list
# changes, or after `make clean`.
$(VENV)/.installed-bench: benchmarks/requirements.txt | $(VENV)/.made
	@echo "$(VENV): installing what mpms is compared with"
	@grep -v '^ *\(#\|$$\)' $< | while read -r requirement; do \
	    $(pip_install) "$${requirement%% *}" </dev/null || echo "$(VENV): without $$requirement" >&2; \
	done
	@touch $@

$(VENV)/.installed-2.6: benchmarks/requirements-2.6.txt | $(VENV)/.made
	@echo "$(VENV): installing mpms 2.6"
	@$(pip_install) -r $< || echo "$(VENV): without mpms 2.6" >&2
	@touch $@
