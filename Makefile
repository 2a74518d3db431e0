# `make demo` and `make test` do everything, set-up included. After set-up nothing needs the network.
#
#   make setup | demo | test | lab | notebooks | train-tiny | lint | clean
#
# Variables (make setup PIP_ARGS="..."):
#   PYTHON    the Python (3.11 or newer) that makes the environment; found when empty
#   PIP_ARGS  more arguments for pip, for instance another package index; empty by default
#   VENV      where the environment lives
#   MINUTES   time budget of `make train-tiny`

PYTHON ?=
PIP_ARGS ?=
VENV ?= .venv
MINUTES ?= 9

SHELL := /bin/sh
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
NOTEBOOKS = $(shell find notebooks -name '*.ipynb' -not -path '*/.*' 2>/dev/null | sort)

# Tools keep their settings and caches inside build/, so that nothing is written outside this folder.
HOME_DIR := $(CURDIR)/build/home
LOCAL := env IPYTHONDIR="$(HOME_DIR)/ipython" JUPYTER_CONFIG_DIR="$(HOME_DIR)/jupyter" \
  JUPYTER_DATA_DIR="$(HOME_DIR)/jupyter-data" JUPYTER_RUNTIME_DIR="$(HOME_DIR)/jupyter-runtime" \
  MPLCONFIGDIR="$(HOME_DIR)/matplotlib"
OFFLINE := $(LOCAL) HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HOME="$(HOME_DIR)/huggingface"
PIP := env PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -q -c constraints.txt $(PIP_ARGS)

.PHONY: help setup demo test lab notebooks train-tiny lint clean
help:
	@echo "make setup | demo | test | lab | notebooks | train-tiny | lint | clean   (see README.md)"

setup: $(READY)

# An environment that is there and has pip is kept and brought up to date; a half-made one is made again.
$(READY): constraints.txt pyproject.toml
	@exec </dev/null; set -e; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  base=; \
	  for p in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python3.14 python); do \
	    if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then base=$$p; break; fi; \
	  done; \
	  if [ -z "$$base" ]; then \
	    echo "No Python 3.11 or newer that can make environments (modules venv and ensurepip) was found." >&2; \
	    echo "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	    echo "(Debian and Ubuntu keep ensurepip in a package of its own: python3-venv.)" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$base" --version)"; \
	  clear=; if [ -f $(VENV)/pyvenv.cfg ]; then clear=--clear; fi; \
	  "$$base" -m venv $$clear $(VENV); \
	fi; \
	echo "Installing the packages of constraints.txt (two to three minutes)"; \
	$(PIP) setuptools; \
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(OFFLINE) $(VENV)/bin/st2v generate "a red circle bounces over green stripes" --frames 80 --seed 0 --demo outputs/demo </dev/null

# Both parts always run; the target fails when either fails. pytest's exit code 5 means "no test collected".
test: $(READY)
	@exec </dev/null; mkdir -p "$(HOME_DIR)"; status=0; \
	$(OFFLINE) $(PY) -m pytest -n 2 --dist worksteal --durations=25 tests || status=1; \
	if [ -n "$(NOTEBOOKS)" ]; then \
	  $(OFFLINE) $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 300 notebooks \
	    || [ $$? -eq 5 ] || status=1; \
	else \
	  echo "notebooks/ holds no notebook yet"; \
	fi; \
	exit $$status

lab: $(READY)
	$(LOCAL) $(PY) -m jupyterlab notebooks

# Executes every notebook in place (a failing one keeps its old outputs), stamps it, then builds HTML into build/html.
# One alone: make notebooks NOTEBOOKS=notebooks/06_metrics.ipynb
notebooks: $(READY)
	@exec </dev/null; set -e; \
	if [ -z "$(NOTEBOOKS)" ]; then echo "notebooks/ holds no notebook yet"; exit 0; fi; \
	for n in $(NOTEBOOKS); do \
	  $(OFFLINE) $(PY) -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
	    --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.store_widget_state=False "$$n"; \
	  $(OFFLINE) $(PY) -m st2v_lib.notebook.stamp "$$n"; \
	  out="build/html/$$(dirname "$${n#notebooks/}")"; mkdir -p "$$out"; \
	  $(OFFLINE) $(PY) -m nbconvert --to html --output-dir "$$out" "$$n"; \
	done

train-tiny: $(READY)
	$(LOCAL) $(VENV)/bin/st2v train all --preset tiny --minutes $(MINUTES) --out runs/tiny

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Leaves the environment, trained runs and shipped data alone.
clean:
	rm -rf build dist outputs .pytest_cache .ruff_cache *.egg-info
	find st2v_lib tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +
