# What a contributor runs. Each target makes the virtual environment it needs, in .venv, and adds
# to it only what that target needs: a fresh machine wants python 3.11 or newer, make and git.
#
#     make demo                            the tour: the figure in build/demo
#     make test PYTHON=python3.12          with another Python, for a new .venv
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
#                                          on Linux, torch without its 2 GB of GPU libraries

PYTHON ?= python3
WORKERS ?= 2
SPLITS ?= 20
VENV := .venv
RUN := $(VENV)/bin/python

# These networks are small: a second thread costs more in waiting than it computes, and test workers
# that each start one thread a core get in each other's way.
export OMP_NUM_THREADS ?= 1
# Figures go to files; no window opens.
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all check docs bench bench-uci clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready-core ## fit the inverse sinusoid and draw it, in build/demo
	@mkdir -p build/demo
	PYRALLOY_FIGURES=build/demo $(RUN) examples/plot_inverse_sinusoid.py
	@echo "Done: look at build/demo/inverse_sinusoid.png, then read examples/plot_inverse_sinusoid.py."

test: $(VENV)/.ready-test ## run the quick tests and the examples in docstrings
	$(RUN) -m pytest -n $(WORKERS)

test-all: $(VENV)/.ready-test ## run the slow tests too
	$(RUN) -m pytest -n $(WORKERS) -m ""

check: $(VENV)/.ready-lint ## lint, formatting, types, and which module may import which
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(VENV)/bin/lint-imports

docs: $(VENV)/.ready-docs ## run the examples and build the pages, in docs/_build/html
	rm -rf docs/api
	$(RUN) -m sphinx -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

bench: $(VENV)/.ready-test ## run every benchmark in turn
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(RUN) "$$script"; done

bench-uci: $(VENV)/.ready-test ## the UCI benchmark on its 20 splits (SPLITS=5 for a first look)
	$(RUN) benchmarks/uci.py --splits $(SPLITS) --jobs $(WORKERS)

clean: ## remove what was built, except .venv
	rm -rf build dist docs/_build docs/api docs/gallery docs/sg_execution_times.rst
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# -- the environment: one .venv, and a stamp for each set of packages installed into it --------------

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "pyralloy needs Python 3.11 or newer, but PYTHON=$(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.ready-core: pyproject.toml constraints.txt | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-%: pyproject.toml constraints.txt | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
