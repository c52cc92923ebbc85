# `make` alone lists what there is. Every target does its own set-up first.
PYTHON ?= python3
WORKERS ?= 2
JOBS ?= 2
SEED ?= $(shell date +%s)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test faults check format manifests horovod clean

help:
	@echo "make train   set up, write the digits data, train on $(WORKERS) workers (WORKERS=n)"
	@echo "make test    set up, run the tests, $(JOBS) at a time (JOBS=n)"
	@echo "make faults  set up, inject every fault into runs (SEED=n; OUT=FILE.json for a record)"
	@echo "make check   set up, check format, lint and types"
	@echo "make format  set up, format the code"
	@echo "make manifests  set up, record in k8s/ what distrain submit kubernetes renders"
	@echo "make horovod set up, build and install Horovod, for --parallel.backend horovod"
	@echo "make clean   remove the environment, data and runs that make has made"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "== setting up $(VENV) (once; a few minutes, mostly torch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	@touch $@

shards/%/manifest.json: | $(READY)
	$(BIN)/distrain data make $* shards/$*

train: $(READY) shards/digits/manifest.json
	@echo "== training a convolutional net on handwritten digits, $(WORKERS) workers"
	$(BIN)/distrain train examples/digits.toml --workers $(WORKERS)

test: $(READY)
	@echo "== running the tests"
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

faults: $(READY)
	@echo "== injecting every fault"
	$(BIN)/python -m tests.faults --seed $(SEED) $(if $(OUT),--out $(OUT))

check: $(READY)
	@echo "== checking format, lint and types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

manifests: $(READY)
	for form in job jobset trainjob; do \
	  $(BIN)/distrain submit kubernetes examples/digits.toml --nodes 2 --form $$form --dry-run \
	    >k8s/$$form/digits.yaml || exit; \
	done

horovod: $(READY)
	$(BIN)/python tools/build_horovod.py

clean:
	rm -rf $(VENV) shards runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
