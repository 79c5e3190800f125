# Two commands matter: `make demo` and `make test`; both set up what they need.
VENV ?= .venv
PYTHON_IN_VENV := $(VENV)/bin/python
# Start-up is imports: without .pyc files it takes more than twice as long.
unexport PYTHONDONTWRITEBYTECODE
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu gpu-smoke lock-gpu test-gpu-env demo test test-long test-fast test-scripts mutants lint lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## install the pinned CPU environment into .venv (Python 3.11, 3 GB; nothing to do the second time)
	@bash scripts/setup_cpu.sh

setup-gpu: ## install the pinned GPU environment into .venv-gpu (Python 3.12, Linux x86_64, 10 GB)
	@VENV=.venv-gpu bash scripts/setup_gpu.sh

gpu-smoke: setup-gpu ## ten minutes on one card: `exgrpo doctor` in the GPU environment (docs/gpu.md)
	.venv-gpu/bin/python -m recipe.exgrpo.cli.main doctor

demo: setup ## train a tiny model with ExGRPO through verl, FSDP2 and vLLM on this machine, and plot it
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/run_demo.sh

test: setup ## run the tests, the real stack included (20 minutes)
	$(PYTHON_IN_VENV) -m pytest -m "not long and not scripts"

test-long: setup ## run the rest: whole runs under fault, other policies, evaluation, odd files (20 minutes)
	$(PYTHON_IN_VENV) -m pytest -m long

test-fast: setup ## run the unit tests
	$(PYTHON_IN_VENV) -m pytest -m "not slow and not verl and not stack and not long and not scripts"

test-scripts: setup ## run every reproduction script with the tiny model
	$(PYTHON_IN_VENV) -m pytest -m scripts

test-gpu-env: setup-gpu ## run what of the tests needs no GPU in the GPU environment, and its own (10 minutes)
	.venv-gpu/bin/python -m pytest tests/gpu_env
	.venv-gpu/bin/python -m pytest tests/checks tests/presets -m "not stack and not long and not scripts"

mutants: setup ## plant every fault of tests/mutants.yaml and show what its tests do not notice (20 minutes)
	$(PYTHON_IN_VENV) scripts/mutants.py

lint: setup ## ruff and shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/shellcheck $$(find scripts -name '*.sh' -o -name '*.sbatch') .ci/run

lock: setup ## resolve requirements-cpu.in anew into requirements-cpu.lock
	$(PYTHON_IN_VENV) scripts/make_lock.py

lock-gpu: setup-gpu ## resolve requirements-gpu.txt anew into requirements-gpu.lock
	$(PYTHON_IN_VENV) scripts/make_lock.py --gpu --python .venv-gpu/bin/python

clean: ## remove caches and build leftovers; .venv and outputs/ (your runs) stay
	rm -rf build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./.venv -o -path ./outputs -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
