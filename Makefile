# One command per intention. `make` lists them. A virtual environment is made on first use; nothing else is installed.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep -o 'torch==[^"]*' pyproject.toml)

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tierwise needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else 0' && { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); }
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) --no-deps --no-build-isolation --editable . && touch $@

setup: $(STAMP)  ## create .venv from requirements.lock

demo: $(STAMP)  ## classify a dozen reviews through three live tiers (first run: fetches about 500 MB of base weights)
	@$(BIN)/tierwise demo

serve: $(STAMP)  ## keep the three tiers up until Ctrl-C
	@$(BIN)/tierwise serve

test: $(STAMP)  ## unit, service and system tests
	$(BIN)/python -m pytest

# tests/conftest.py, which loads torch, stays out: these need none, and a slow kernel takes a minute for it
e2e: $(STAMP)  ## the containers: needs Docker, and sch_netem for shaped links; else skipped with the reason
	$(BIN)/python -m pytest -p tests.hooks --confcutdir tests/e2e tests/e2e -rs $(E2E)

faults: $(STAMP)  ## every fault on the edge and the cloud link: in process; with Docker and sch_netem also for real (a table)
	TIERWISE_TEST_FAULTS=all $(BIN)/python -m pytest tests/faults tests/e2e/test_faults.py -rs

CASES ?= 1000
TEXTS ?= 10000
fuzz: $(STAMP)  ## CASES generated requests an operation of the OpenAPI document, TEXTS generated texts (minutes)
	TIERWISE_TEST_CASES=$(CASES) TIERWISE_TEST_TEXTS=$(TEXTS) $(BIN)/python -m pytest \
		tests/service/test_schema.py tests/service/test_any_input.py --durations=6

load: $(STAMP)  ## open-loop load at rest, at half and at five times saturation (minutes; prints a table)
	$(BIN)/python -m tests.load.overload $(LOAD)

soak: $(STAMP)  ## half load for 30 minutes: memory, descriptors, errors (SOAK="--minutes 5": shorter)
	$(BIN)/python -m tests.load.soak $(SOAK)

netns: $(STAMP)  ## the shapers alone, in network namespaces: needs root and sch_netem
	$(BIN)/python -m pytest tests/netns -rs

check: $(STAMP)  ## style, types, imports, lock file, dashboards
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python deploy/lock.py --check
	$(BIN)/python deploy/grafana/make_dashboards.py --check

audit: $(STAMP)  ## known vulnerabilities of the pinned packages (needs PyPI's vulnerability service)
	echo $(TORCH) | $(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		--requirement requirements.lock --requirement /dev/stdin

lock: $(STAMP)  ## resolve pyproject.toml into requirements.lock (a minute or two)
	$(BIN)/python deploy/lock.py

bench: $(STAMP)  ## model and service speed against transformers' own (minutes)
	$(BIN)/python -m tests.bench.speed

docs: $(STAMP)  ## write the documentation's tables and pictures from what was measured, then build the site in site/
	$(BIN)/python -m lab.docs.tables
	$(BIN)/python -m lab.docs.pictures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

up:  ## containers with shaped links, Prometheus, Grafana (TIERWISE_DASHBOARDS=0: without Grafana)
	@deploy/up.sh

down:  ## stop the containers and remove what they left
	docker compose down --volumes --remove-orphans

clean:  ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo serve test e2e faults fuzz load soak netns check audit lock bench docs up down clean
