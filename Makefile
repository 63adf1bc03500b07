# make demo   trains, evaluates and draws on the embedded data: no network, no GPU
# make test   ruff, mypy and the tests that take little time
# make test-all   the same with the slow tests, the soak and the documentation
# make soak   kills small runs again and again, for MINUTES, and compares what they end with
# make docs   builds the documentation into site/
# make keep   copies the finished run runs/nano_64px, with its weights, to results/, beside the model's card
# make figures   fills README and docs/ with the figures of committed results
# All make .venv first if it is missing. Variables:
#   PYTHON       the interpreter that .venv is made from (3.11 or newer)
#   TORCH_INDEX  a wheel index for torch, e.g. https://download.pytorch.org/whl/cu130
#   MINUTES      how long make soak runs (default 3)
#   EXTRAS       optional dependencies to install (see setup.cfg)

PYTHON ?= python3
TORCH_INDEX ?=
MINUTES ?= 3
EXTRAS ?= aim,wandb,tensorboard,trackio,peft,search,export,report,demo,docs,test
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test test-all soak docs keep figures lint format clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP)
	$(BIN)/python train.py --config configs/demo.yaml --overwrite_output_dir
	$(BIN)/python eval.py --model results/demo --split test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m ""
	$(MAKE) soak docs

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

# Without the check for newer builders of sites, which is an advertisement.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

keep:
	@test -f runs/nano_64px/metrics.json || { echo 'There is no finished run in runs/nano_64px; train it first.'; exit 1; }
	find results/nano_64px -type f ! -path results/nano_64px/model/README.md -delete
	cd runs/nano_64px && cp -r $$(ls | grep -v checkpoints) ../../results/nano_64px

figures: $(STAMP)
	$(BIN)/python -m docs.figures

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) results/demo build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
