# Everything starts from a fresh clone with Python 3.11 or newer and pip: each target sets up what it needs, once.
#
#   make demo     ask a real DICOM image a question and look at the answer
#   make serve    serve the embedded model on this computer (ARGS="--port 9000" for its options)
#   make test     the test suite
#   make test-slicer  the tests of the 3D Slicer module, on three versions of Slicer's own libraries (about 5 GB, once)
#   make test-ray     the tests of several replicas and of batches on Ray (some 600 MB, once)
#   make lint     ruff and mypy
#   make bench    the side-by-side benchmarks
#   make clean    remove the virtual environment and what the targets wrote
#
# TORCH is the one requirement that differs between machines. On Linux, PyPI's torch is the CUDA build (some GB); for the
# CPU build say
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

# What `make demo` asks. The first scan comes with pydicom (the names are those of pydicom.examples); the second one is an
# abdominal CT series, used where the data pack lies beside the checkout.
DEMO_OUT ?= medsight-answer
DEMO_EXAMPLE ?= overlay
DEMO_QUESTION ?= Segment the liver in this image.
DEMO_CT ?= ../shared/data/dicom/ct_abdomen_totalseg
DEMO_CT_SLICE ?= 10
DEMO_CT_QUESTION ?= Segment the liver in this image.

# Options of `medsight serve` for `make serve`.
ARGS ?=

# Versions of Slicer's libraries, as the wheel slicer-core has them. The views and the panel are tested with the first one
# alone, because trame-slicer, which draws the views without the desktop program, goes with no other.
SLICER_WITH_VIEWS := 5.11.0.6
SLICERS ?= $(SLICER_WITH_VIEWS) 5.12.4.0 5.13.31053.0
SCENE_TESTS := $(patsubst %,tests/slicer/test_%.py,capture export prompts segments sources statistics volumes)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo serve test test-slicer test-ray lint bench clean

RUN := $(VENV)/.ready-to-run
SERVE := $(VENV)/.ready-to-serve
DEV := $(VENV)/.ready-to-develop
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

help:
	@sed -n 's/^#   make/make/p' $(firstword $(MAKEFILE_LIST)) | grep -v TORCH

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MedSIGHT needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Say make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made in $(VENV). On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }

# torch goes first and alone: what follows then finds it present and does not fetch another build.
$(RUN): pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV) (once; some minutes) ..."
	@$(PIP) install $(TORCH)
	@$(PIP) install -e '.[model]'
	@touch $@

$(SERVE): $(RUN)
	@echo "Setting up the server (once) ..."
	@$(PIP) install -e '.[server]'
	@touch $@

$(DEV): $(RUN)
	@echo "Setting up the tools for tests and training (once) ..."
	@$(PIP) install -e '.[train,dev]'
	@touch $@

demo: $(RUN)
	@scan=$$($(VENV)/bin/python -c 'import sys; from pydicom import examples; print(examples.get_path(sys.argv[1]))' '$(DEMO_EXAMPLE)'); \
	echo; echo "== A DICOM image that comes with pydicom: $$(basename "$$scan")"; \
	$(VENV)/bin/medsight ask "$$scan" '$(DEMO_QUESTION)' --out '$(DEMO_OUT)/$(DEMO_EXAMPLE)'
	@if [ -d '$(DEMO_CT)' ]; then \
	  echo; echo "== An abdominal CT series, slice $(DEMO_CT_SLICE)"; \
	  $(VENV)/bin/medsight ask '$(DEMO_CT)' '$(DEMO_CT_QUESTION)' --slice $(DEMO_CT_SLICE) --out '$(DEMO_OUT)/ct_abdomen'; \
	fi
	@echo; echo "The pictures and pages are here (open report.html in a browser and click a word):"; \
	find "$$PWD/$(DEMO_OUT)" \( -name overlay.png -o -name report.html -o -name segmentation.dcm \) | sort | sed 's/^/  /'

# exec, so that a signal to make's shell reaches the server.
serve: $(SERVE)
	@exec $(VENV)/bin/medsight serve $(ARGS)

# One thread per worker: two workers with two threads each would fight over two cores.
test: $(DEV)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# An environment for each, without torch and without what Slicer does not bring. No compiling: most of it is never used.
# The tests that need a server start it in $(VENV), as `make serve` sets it up; without that they are skipped.
.venv-slicer-%/.ready: tests/slicer/requirements.txt tests/slicer/requirements-views.txt
	@echo "Setting up $(@D) (once; some minutes) ..."
	@rm -rf '$(@D)' && $(PYTHON) -m venv '$(@D)'
	@'$(@D)/bin/python' -m pip --disable-pip-version-check --quiet install --no-compile 'slicer-core==$*' \
	  -r tests/slicer/requirements$(if $(filter $(SLICER_WITH_VIEWS),$*),-views).txt
	@touch $@

test-slicer: $(patsubst %,.venv-slicer-%/.ready,$(SLICERS))
	@served="$$PWD/$(VENV)/bin/python"; \
	if "$$served" -c 'import torch, uvicorn' 2>/dev/null; then \
	  export MEDSIGHT_SERVER_PYTHON="$${MEDSIGHT_SERVER_PYTHON:-$$served}"; \
	fi; \
	for version in $(SLICERS); do \
	  echo "== slicer-core $$version"; \
	  tests='$(SCENE_TESTS)'; if [ "$$version" = '$(SLICER_WITH_VIEWS)' ]; then tests=tests/slicer; fi; \
	  OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen VTK_DEFAULT_OPENGL_WINDOW=vtkOSOpenGLRenderWindow PYTHONPATH="$$PWD" \
	    ".venv-slicer-$$version/bin/python" -m pytest -q -n 2 --dist loadfile $$tests; \
	done

$(VENV)/.ready-to-scale: $(DEV)
	@echo "Setting up Ray (once) ..."
	@$(PIP) install -e '.[ray]'
	@touch $@

# Ray makes its workers nicer than this process, which not every container allows to be taken back.
test-ray: $(VENV)/.ready-to-scale
	@RAY_worker_niceness=0 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q tests/server/test_ray.py tests/batch/test_ray.py

lint: $(DEV)
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m mypy

bench: $(DEV)
	@shopt -s nullglob; for script in benchmarks/*.py; do echo "== $$script"; $(VENV)/bin/python "$$script"; done

clean:
	rm -rf $(VENV) .venv-slicer-* $(DEMO_OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
