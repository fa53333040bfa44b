# agentrl: `make demo` shows it, `make test` tests it, `make check` is for every commit.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Without an NVIDIA driver torch's CPU build is a tenth of the download; override with TORCH_INDEX= (empty).
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,--extra-index-url https://download.pytorch.org/whl/cpu)
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --retries 2
STAMP  := $(VENV)/.installed
LIBRARIES ?= .venv-libraries

.PHONY: help demo test test-ui check test-fast lint format docs site test-learner test-agents agents-environments test-programs test-adapters test-verifiers test-families test-sandbox test-docker test-vllm test-chaos test-distributed test-faults test-gpu wheel-check clean

help:
	@sed -n 's/^## //p' Makefile

## make demo          a small model learns to use Python, on this machine, in a few minutes
demo: $(STAMP)
	$(BIN)/agentrl demo

## make test          the whole suite that needs no engine of its own (seven to fifteen minutes on two cores)
test: $(STAMP)-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu and not docker and not vllm and not chaos and not hostile and not ui and not faults and not distributed"

## make lint          format, lint, types, import rules
lint: $(STAMP)-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --summary=none
	$(BIN)/lint-imports

## make check         lint, and the fast tests, beside each other (a minute or two)
check: $(STAMP)-dev
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint test-fast

test-fast: $(STAMP)-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --hypothesis-profile=check \
		-m "not slow and not gpu and not docker and not vllm and not chaos and not hostile and not ui and not faults and not distributed"

## make test-learner  learner, adapters and the memory plan, the slow tests too (a part of make test)
test-learner: $(STAMP)-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu" tests/agentrl/learner tests/agentrl/test_memory.py tests/agentrl/test_fitting.py

## make format        let ruff format and mend
format: $(STAMP)-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## make test-sandbox  243 hostile programs at every level of isolation, as root and as an ordinary user
test-sandbox: $(STAMP)-dev $(LIBRARIES)/.installed
	AGENTRL_TEST_LIBRARIES=$(abspath $(LIBRARIES)) $(BIN)/python -m pytest -q -m "hostile and not docker" tests/sandbox

## make test-faults   what models, tools and machines do wrong, through public commands and files
test-faults: $(STAMP)-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "faults" tests/faults

# What some of the hostile programs import; never the trainer's own packages.
$(LIBRARIES)/.installed: Makefile
	$(PYTHON) -m pip --disable-pip-version-check install --quiet --upgrade --target $(LIBRARIES) numpy sympy matplotlib
	@touch $@

## make test-ui       the page in a headless Chromium, with accessibility checks, in an environment of its own
AXE ?= 4.14.1
UI   = .venv-ui
test-ui:
	@command -v chromium chromium-browser >/dev/null || test -n "$$AGENTRL_CHROMIUM" || { \
	  echo "no Chromium (apt-get install chromium, or name one in AGENTRL_CHROMIUM)"; exit 1; }
	test -x $(UI)/bin/python || $(PYTHON) -m venv $(UI)
	$(UI)/bin/python -m pip install --quiet 'playwright>=1.50' 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-asyncio>=0.24' -e .
	test -e $(UI)/axe/axe.min.js || { mkdir -p $(UI)/axe && cd $(UI)/axe && npm pack --silent axe-core@$(AXE) && \
	  tar xzf axe-core-*.tgz --strip 1 package/axe.min.js; }
	AGENTRL_AXE=$(abspath $(UI)/axe) $(UI)/bin/python -m pytest -q -m ui tests/ui

## make test-docker   the Docker backend on a real engine (installs and starts one if none runs)
test-docker: $(STAMP)-dev
	PYTHON=$(BIN)/python scripts/test_docker.sh -q

## make test-vllm     real vLLM servers on loopback, in an environment of their own (.venv-vllm)
test-vllm:
	scripts/test_vllm.sh -q

## make test-agents   programs of smolagents, the OpenAI Agents SDK, LangGraph and curl, and environments of reasoning-gym, Gymnasium, ...
test-agents: $(STAMP)-dev agents-environments
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-programs test-adapters test-verifiers

# By itself: the limit on the tests is none on downloads.
agents-environments:
	PYTHON=$(PYTHON) scripts/test_agents.sh --build
	PYTHON=$(PYTHON) scripts/test_adapters.sh --build
	PYTHON=$(PYTHON) scripts/test_verifiers.sh --build

test-programs: $(STAMP)-dev
	PYTHON=$(PYTHON) TEST_PYTHON=$(BIN)/python scripts/test_agents.sh -q

test-adapters:
	PYTHON=$(PYTHON) scripts/test_adapters.sh -q

test-verifiers:
	PYTHON=$(PYTHON) scripts/test_verifiers.sh -q

## make test-families model families by the package renderers, and against the templates and the trainer of TRL (.venv-families)
FAMILIES ?= .venv-families
test-families: $(STAMP)-dev $(FAMILIES)/.installed
	AGENTRL_REQUIRE_ADAPTERS=1 PYTHONPATH=$(abspath $(FAMILIES)) $(BIN)/python -m pytest -q \
	  tests/agentrl/test_native_renderer.py tests/adapters/test_trl.py

# --upgrade: without it, pip leaves the half of a package that an interrupted run wrote. Only what has a stamp goes.
$(FAMILIES)/.installed: Makefile pyproject.toml constraints.txt
	test ! -e $@ || rm -rf $(FAMILIES)
	$(PYTHON) -m pip --disable-pip-version-check install --quiet --no-deps -c constraints.txt --upgrade \
	  --target $(FAMILIES) renderers openai-harmony tiktoken prime-pydantic-config httpx httpcore requests urllib3 charset-normalizer \
	  'trl==1.16.0' datasets pyarrow pandas dill multiprocess xxhash python-dateutil pytz six tzdata
	@touch $@

## make test-distributed  rollout workers on Ray clusters of several nodes on this machine (.venv-ray)
RAY ?= .venv-ray
test-distributed: $(STAMP)-dev $(RAY)/.installed
	AGENTRL_REQUIRE_ADAPTERS=1 PYTHONPATH=$(abspath $(RAY)) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m distributed tests/distributed

$(RAY)/.installed: Makefile
	test ! -e $@ || rm -rf $(RAY)
	$(PYTHON) -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(RAY) 'ray==2.60.0' \
	  click filelock jsonschema jsonschema-specifications referencing rpds-py attrs typing-extensions msgpack packaging protobuf \
	  pyyaml requests urllib3 idna certifi charset-normalizer
	@touch $@

## make test-chaos    runs killed at every durable write and at a hundred random moments (STORM=100)
STORM ?= 100
test-chaos: $(STAMP)-dev
	AGENTRL_STORM=$(STORM) $(BIN)/python -m pytest -q -m chaos tests

## make test-gpu      what needs an NVIDIA GPU
test-gpu: $(STAMP)-dev
	$(BIN)/python -m pytest -q -m gpu tests/gpu

$(STAMP): pyproject.toml constraints.txt
	@test "$$(uname -s)" = Linux || { echo "agentrl needs Linux (on Windows: WSL 2; on macOS: a Linux container)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "agentrl needs Python 3.11 or newer as $(PYTHON) (or: make PYTHON=python3.12 ...). On Debian or Ubuntu:"; \
	  echo "    sudo apt-get install python3 python3-venv make"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian or Ubuntu:"; \
	  echo "    sudo apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -c constraints.txt $(TORCH_INDEX) torch
	$(PIP) -c constraints.txt -e '.[train]'
	@touch $@

$(STAMP)-dev: $(STAMP)
	$(PIP) -c constraints.txt -e '.[train,docker,dev]'
	@touch $@

## make docs          write the pages that are made from code, and build the site (build/site); a warning fails
docs: $(STAMP)-dev
	$(BIN)/python scripts/configuration_page.py
	$(BIN)/python scripts/algorithm_pages.py
	$(BIN)/python scripts/api_page.py
	@$(MAKE) --no-print-directory site

# The site alone, in an environment of its own: `make site`.
MATERIAL ?= 9.8.2
SITE      = .venv-docs
site:
	test -x $(SITE)/bin/mkdocs || { $(PYTHON) -m venv $(SITE) && \
	  $(SITE)/bin/python -m pip --disable-pip-version-check install --quiet 'mkdocs-material==$(MATERIAL)'; }
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict

## make wheel-check   build the wheel, look into it, and use it in an environment of its own (under two minutes)
wheel-check: $(STAMP)-dev
	$(BIN)/python scripts/check_wheel.py

clean:
	rm -rf $(VENV) dist build
