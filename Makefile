# What people and CI run. `make` alone lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv/bin
LOCKS := hpc/envs
CORE := .venv/.made-from-locks
SERVE := .envs/serve-cpu/hala-env.json
WORK := .envs/work-cpu/hala-env.json
FAST := not slow and not slurm and not vllm and not train and not exhaustive
# More processes only take each other the cores: with four the tests took as long, and jobs ran out of time.
PYTEST := $(VENV)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
BENCHMARKS := startup plan runstate tail text judge shape mix score submit chaos throughput train models

# Where nothing may write bytecode, as in many containers, each process compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup serve work demo mini test test-all test-fast lint cluster cluster-stop bench lock clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(CORE)  ## the core environment with the tools to test, in .venv

# Plain venv and pip, so that nothing else need be there. The stamp is newer than the locks when there is nothing to do.
$(CORE): $(LOCKS)/core.txt $(LOCKS)/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hala_hpc needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --requirement $(LOCKS)/core.txt --requirement $(LOCKS)/dev.txt
	$(VENV)/python -m pip install --quiet --no-deps --editable .
	touch $@

serve: $(SERVE)  ## the serve environment for the CPU (vLLM and evaluation), in .envs/serve-cpu

$(SERVE): $(LOCKS)/serve-cpu.txt | $(CORE)
	$(VENV)/hala env build serve-cpu --to .envs/serve-cpu
	touch $@

work: $(WORK)  ## the work environment for the CPU (training, merging, quantizing), in .envs/work-cpu

$(WORK): $(LOCKS)/work-cpu.txt | $(CORE)
	$(VENV)/hala env build work-cpu --to .envs/work-cpu
	touch $@

demo: setup serve  ## from nothing to a finished run on a tiny model
	$(VENV)/python jobs/demo/run_demo.py

mini: setup serve work  ## a whole pipeline, with tiny models that really learn, to its figures: ten minutes
	$(VENV)/python jobs/mini/run_mini.py

lint: setup  ## format, lint and types
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

test: setup  ## lint, types and every test; slurm, vllm and train tests included
	$(MAKE) --jobs 3 --output-sync serve work lint
	$(PYTEST) -m "not exhaustive"

test-all: test  ## and the long forms of tests that try everything
	$(PYTEST) -m "exhaustive and not alone"
	$(VENV)/python -m pytest -m "exhaustive and alone"

test-fast: setup lint  ## lint, types and the quick tests: under a minute
	$(VENV)/python -m pytest -n auto -m "$(FAST)"

cluster: setup  ## start a real Slurm on this machine, to try things on
	$(VENV)/python -m tests.minislurm start

cluster-stop: setup  ## stop it
	$(VENV)/python -m tests.minislurm stop

bench: setup serve work  ## run the benchmarks
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(VENV)/python benchmarks/$$name.py; done

# Pins that still fit stay; delete a .txt to have its newest versions. dev follows core, whose pins bind it.
lock: setup  ## compile hpc/envs/*.in into locked .txt files
	$(VENV)/python -c 'from pathlib import Path; from hala_hpc.slurm.environments import compile_lock; \
	[compile_lock(name, Path("$(LOCKS)"), echo=print) for name in "core dev serve-cpu serve-cuda work-cpu work-cuda".split()]'

clean:  ## remove environments, caches and build outputs; runs stay
	rm -rf .venv .envs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
