# `make demo` and `make test` work on a fresh machine with only Python >= 3.11 and make.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= auto
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
NEWEST ?= .venv-newest
TORCH ?= newest
ENGINES ?= .engines
ENGINE ?= $(patsubst benchmarks/engines/%.txt,%,$(wildcard benchmarks/engines/*.txt))

# The first Python that runs and is new enough; PYTHON=/path/to/python make ... overrides it.
PYTHON ?= $(firstword $(foreach python,python3 python python3.14 python3.13 python3.12 python3.11,\
	$(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))

# Installing compiles nothing, which halves its time; modules are compiled when first imported, and must be kept then.
export PYTHONDONTWRITEBYTECODE :=
FIRST_IMPORTS := import matplotlib.pyplot, smolmoe.cli, torch; from transformers import AutoModelForCausalLM, LlamaForCausalLM, MixtralForCausalLM, Trainer

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test test-slow test-gpu test-newest lint types format bench peers engines docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## create .venv and install smolmoe with what its tests need

$(READY): pyproject.toml requirements.lock scripts/install_torch.py
	$(if $(PYTHON),,$(error no Python >= 3.11 found: set PYTHON=/path/to/python3))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/install_torch.py
	$(PIP) --no-deps --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -c '$(FIRST_IMPORTS)'
	@touch $@

lock: $(READY) ## resolve the newest allowed versions into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

demo: $(READY) ## train, upcycle, verify and report on a small model made from this machine's own text (MODEL=... for a real one)
	@$(BIN)/smolmoe quickstart $(if $(MODEL),--model '$(MODEL)')
	@printf '\nTo type smolmoe instead of $(BIN)/smolmoe: . $(BIN)/activate\n'

# The workers are as many as there are cores: one thread each.
test: export OMP_NUM_THREADS := 1
test: $(READY) ## run the tests, in parallel
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test-slow: $(READY) ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY) ## run the tests that need an NVIDIA GPU, a few minutes
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else f"no GPU: torch {torch.__version__} sees none; nothing was tested")'
	$(BIN)/python -m pytest -m gpu

lint: $(READY) ## check the code's rules and format, and that packages import downwards only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/english.py --all

test-newest: ## run the tests with the newest versions of everything, upper bounds ignored (TORCH=2.13.0 keeps a torch)
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python scripts/install_torch.py $(TORCH)
	$(NEWEST)/bin/python -m pip install --quiet packaging
	$(NEWEST)/bin/python scripts/newest.py > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

types: $(READY) ## check the types
	$(BIN)/mypy

format: $(READY) ## rewrite the code to the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure time and memory, compared with mergekit-moe, and update benchmarks/README.md
	$(BIN)/python benchmarks/upcycle.py

peers: $(READY) ## put the same models through smolmoe and three other tools, and update docs/explanation/peers.md
	$(BIN)/python benchmarks/peers.py

engines: $(ENGINE:%=$(ENGINES)/%/.ready) ## environments for `smolmoe verify --in` in .engines (ENGINES=folder, ENGINE="mlx vllm" for some)

$(ENGINES)/%/.ready: benchmarks/engines/%.txt
	$(if $(PYTHON),,$(error no Python >= 3.11 found: set PYTHON=/path/to/python3))
	$(PYTHON) -m venv --clear $(@D)
	$(BEFORE_$*)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(AFTER_$*)
	@touch $@

# A torch without CUDA, without libraries that are of another build; llama.cpp's converter.
BEFORE_openvino = $(@D)/bin/python scripts/install_torch.py 2.13.0
AFTER_vllm = $(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
AFTER_openvino = $(@D)/bin/python -m pip uninstall --quiet --yes torchvision
AFTER_llama.cpp = $(@D)/bin/python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
	--dest $(@D)/source llama-cpp-python==0.3.36 && tar -xzf $(@D)/source/*.tar.gz -C $(@D)/source --strip-components=1

docs: $(READY) ## regenerate the generated pages of docs/ and build the site into site/
	$(BIN)/python scripts/docs.py
	$(BIN)/python scripts/package_order.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove what make and the tools made; runs/ is yours and stays
	rm -rf $(VENV) $(NEWEST) .engines dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
