# One command per intention. `make` lists them. A virtual environment is made on first use; nothing else is installed.
# `demo` and `serve` put into it what tiers on CPUs need; other commands add torch (gigabytes where it is for CUDA) and tools.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TIERS := $(VENV)/.tiers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep -o 'torch==[^"]*' pyproject.toml)

help:  ## print this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(TIERS): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tierwise needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else 0' && { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python deploy/lock.py --pick 'tierwise[lab,otel]' setuptools >$(VENV)/picked
	$(PIP) --no-deps --require-hashes --requirement $(VENV)/picked
	$(PIP) --no-deps --no-build-isolation --editable . && touch $@

$(STAMP): $(TIERS)
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) && touch $@

setup: $(STAMP)  ## create .venv from requirements.lock, with torch

demo: $(TIERS)  ## classify a dozen reviews through three live tiers (the first run fetches about 500 MB of base weights)
	@$(BIN)/tierwise demo

serve: $(TIERS)  ## keep three tiers up until Ctrl-C (ports 8080 to 8082)
	@$(BIN)/tierwise serve

# in three processes: what hundreds of apps leave behind slows what follows down
test: $(STAMP)  ## run the unit, service, system and load tests
	$(BIN)/python -m pytest tests/unit
	$(BIN)/python -m pytest tests/service
	$(BIN)/python -m pytest tests/system tests/load

# tests/conftest.py, which loads torch, stays out: these need none, and a slow kernel takes a minute for it
e2e: $(STAMP)  ## test the containers (needs Docker, and sch_netem for shaped links; else skips and says why)
	$(BIN)/python -m pytest -p tests.hooks --confcutdir tests/e2e tests/e2e -rs $(E2E)

faults: $(STAMP)  ## test every fault of both links, and of meshes, in process; with Docker and sch_netem on containers too (prints a table)
	TEST_FAULTS=all $(BIN)/python -m pytest tests/faults tests/system/test_mesh.py tests/e2e/test_faults.py -rs

CASES ?= 1000
TEXTS ?= 10000
fuzz: $(STAMP)  ## test CASES generated requests of each OpenAPI operation, and TEXTS generated texts (minutes)
	TEST_CASES=$(CASES) TEST_TEXTS=$(TEXTS) $(BIN)/python -m pytest \
		tests/service/test_schema.py tests/service/test_any_input.py --durations=6

load: $(STAMP)  ## measure open-loop load at rest, at half of saturation and at five times it (minutes; prints a table)
	$(BIN)/python -m tests.load.overload $(LOAD)

soak: $(STAMP)  ## watch memory, descriptors and errors at half load for 30 minutes (SOAK="--minutes 5": shorter)
	$(BIN)/python -m tests.load.soak $(SOAK)

netns: $(STAMP)  ## test the shapers alone, in network namespaces (needs root and sch_netem)
	$(BIN)/python -m pytest tests/netns -rs

check: $(STAMP)  ## check style, types, imports, lock file, made files
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python deploy/lock.py --check
	$(BIN)/python deploy/grafana/make_dashboards.py --check
	$(BIN)/python deploy/kubernetes/make_links.py --check
	$(BIN)/python deploy/mesh/make_compose.py --check

audit: $(STAMP)  ## look for known vulnerabilities of the pinned packages (needs PyPI's vulnerability service)
	echo $(TORCH) | $(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		--requirement requirements.lock --requirement /dev/stdin

lock: $(STAMP)  ## resolve pyproject.toml into requirements.lock (a minute or two)
	$(BIN)/python deploy/lock.py

bench: $(STAMP)  ## measure the encoder beside what one would run instead, and what a tier adds (minutes; DATA=: real texts)
	$(BIN)/python -m tests.bench.speed $(if $(DATA),--data $(DATA))

gpu: $(STAMP)  ## test and measure on an NVIDIA GPU (GPU="--device cpu --quick": rehearse it on a CPU)
	$(BIN)/python -m tests.bench.gpu $(GPU)

accuracy: $(STAMP)  ## measure what int8 costs beside fp32: DATA=imdb.parquet (an hour at first; goes on where it was stopped)
	$(BIN)/python -m tests.bench.accuracy --data $(DATA)

docs: $(STAMP)  ## write the manual's tables and pictures from measured JSON, then build the site in site/
	$(BIN)/python -m lab.docs.tables
	$(BIN)/python -m lab.docs.pictures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

up:  ## start containers with shaped links, Prometheus, Grafana (TIERWISE_DASHBOARDS=0: without Grafana)
	@deploy/up.sh

down:  ## stop the containers and remove their networks and volumes
	docker compose down --volumes --remove-orphans

clean:  ## remove the virtual environment, the built site and the tools' caches
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo serve test e2e faults fuzz load soak netns check audit lock bench accuracy gpu docs up down clean
