# Two commands from nothing: `make demo` and `make test`. `make help` lists the rest.

# Overridable: the interpreter to build .venv with, and more flags for pip.
PYTHON ?=
PIP_FLAGS ?=

VENV := .venv
PY := $(VENV)/bin/python
# What the demo needs, and all tools: two stages, so that a first demo waits for no test tool.
DEMO_READY := $(VENV)/.molfun-demo
STAMP := $(VENV)/.molfun-setup
DOCS_READY := $(VENV)/.molfun-docs
LOG := $(VENV)/setup.log
# There while packages are being written, with the process id of make in it. If that process is gone,
# a setup was cut short and may have left half a package that pip takes for whole; then .venv is
# built again from the start.
UNFINISHED := $(VENV)/.molfun-unfinished

TORCH := torch==2.13.0
PROJECT := .[openfold]
SITE := .[docs,notebooks,esm,lightning,pet]
TOOLS := .[openfold,score,esm,pet,tune,int8,optimizers,notebooks,docs,dev]
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11, 4))
# Python compiles what it imports; pip would compile all of it first, which takes a minute.
INSTALL := $(PY) -m pip install --disable-pip-version-check --no-compile -c constraints.txt $(PIP_FLAGS)

# one process a core; the slow tests hold a few GB each
PYTEST := $(PY) -m pytest -q -n auto --maxprocesses 4

MAKEFLAGS += --no-print-directory
# Containers often set it, and every process would compile torch and transformers again: 20 s each.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup demo test lint check proof docs bench clean
.DEFAULT_GOAL := help

# $(call step,what is done,command): one line with the time; the end of the output if it fails
define step
@start=$$(date +%s); printf '%s ... ' '$(1)'; code=0; $(2) >$(LOG) 2>&1 || code=$$?; \
if [ $$code -eq 0 ]; then echo "$$(($$(date +%s) - start)) s"; exit; fi; \
if [ $$code -lt 128 ]; then rm -f $(UNFINISHED); fi; \
echo failed; tail -n 15 $(LOG) >&2; exit 1
endef

help:
	@echo 'make demo    build .venv with torch, the project and openfold (once), then fine-tune on'
	@echo '             synthetic data with LoRA; writes runs/demo'
	@echo 'make setup   build .venv as for the demo, then add all backbones and the test tools (once)'
	@echo 'make test    set up, then run all tests but those of make proof'
	@echo 'make lint    set up, then lint, format, types and layers'
	@echo 'make check   make lint, then the fast tests'
	@echo 'make proof   set up, then exhaustive matrices, a soak of 30 minutes and quick benchmarks'
	@echo 'make docs    run the tutorials and build the documentation into build/site, strictly'
	@echo 'make bench   set up, then run the benchmarks; QUICK=1 for small sizes'
	@echo 'make clean   remove caches, build files and runs/demo; .venv stays'
	@echo 'PYTHON=...   interpreter to build .venv with (3.11.4 or newer)'
	@echo 'PIP_FLAGS=.. more flags for pip, such as an index with CPU builds of torch'

setup: $(STAMP)

$(PY):
	@for python in $(PYTHONS); do \
	    if $$python -c '$(FITS)' 2>/dev/null; then \
	        echo "creating $(VENV) with $$($$python -V 2>&1)"; \
	        exec $$python -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "error: no Python 3.11.4 or newer with venv and ensurepip (tried: $(PYTHONS))." \
	     "Install one, or pass PYTHON=/path/to/python3." >&2; exit 1

# $(call begin,stage before): refuse a second make; start again where the last one was cut short
define begin
@if [ -e $(UNFINISHED) ]; then \
    if ps -o stat= -p "$$(cat $(UNFINISHED))" 2>/dev/null | grep -q '^[^Z]'; then \
        echo "error: another make is setting up $(VENV)." \
             "Wait for it, or delete $(UNFINISHED) if there is none." >&2; exit 1; \
    fi; \
    echo 'the last setup was cut short; starting again'; \
    rm -rf $(VENV); $(MAKE) $(1); \
fi
@echo $$PPID >$(UNFINISHED); $(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >$(LOG)
endef

define finish
@rm -f $(UNFINISHED); touch $@
endef

$(DEMO_READY): pyproject.toml constraints.txt molfun/cli/install.py $(PY)
	$(call begin,$(PY))
	$(call step,installing $(TORCH),$(INSTALL) '$(TORCH)')
	$(call step,installing the project,$(INSTALL) -e '$(PROJECT)')
	@$(VENV)/bin/molfun install openfold
	$(finish)

$(STAMP): $(DEMO_READY)
	$(call begin,$(DEMO_READY))
	$(call step,installing test tools and all backbones,$(INSTALL) -e '$(TOOLS)')
	$(finish)
	@echo 'setup done'

$(DOCS_READY): $(DEMO_READY)
	$(call begin,$(DEMO_READY))
	$(call step,installing mkdocs,$(INSTALL) -e '$(SITE)')
	$(finish)

demo: $(DEMO_READY)
	@$(PY) scripts/fine_tune.py --demo --strategy lora --epochs 3 --output runs/demo

test: setup
	@$(PYTEST) -m 'not proof'

lint: setup
	@echo 'lint'; $(PY) -m ruff check --quiet
	@echo 'format'; $(PY) -m ruff format --check --quiet
	@echo 'types'; $(PY) -m mypy
	@echo 'layers'; $(VENV)/bin/lint-imports --no-logo

check: lint
	@echo 'fast tests'; $(PYTEST) -m 'not slow and not proof'

proof: setup
	@echo 'exhaustive matrices'; $(PYTEST) -m proof
	@echo 'soak'; $(PY) tests/soak/kill_and_resume.py --minutes 30
	@$(PY) tests/soak/kill_a_process.py --kills 20 && $(PY) tests/soak/kill_a_command.py --kills 20
	@echo 'several processes against one'; $(PY) tests/soak/several_against_one.py
	@echo 'families of language models'; $(PY) tests/soak/families.py
	@echo 'benchmarks'; $(PY) benchmarks/run.py --quick

docs: $(DOCS_READY)
	@RUN_TUTORIALS=1 NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo 'the site is in build/site: open build/site/index.html'

bench: setup
	@$(PY) benchmarks/run.py $(if $(QUICK),--quick)

clean:
	@rm -rf build dist runs/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache .coverage *.egg-info
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo 'caches, build files and runs/demo removed; delete $(VENV) to set up again'
