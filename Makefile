# Everything runs from .venv, which the first target that needs it makes.
# Another interpreter: make install PYTHON=python3.12
# API_KEY, SEED, N and URL reach the commands through the environment, never on a command line.

PYTHON = python3
MODEL = demo
HOST = 0.0.0.0
PORT = 8000
ARGS =
# where a key is made and kept when API_KEY is not set
KEY_FILE = $${XDG_STATE_HOME:-$$HOME/.local/state}/litevl/api-key

BIN = .venv/bin
INSTALLED = .venv/installed

.DEFAULT_GOAL = help
.PHONY: help install serve test test-clients test-browser fuzz faults soak check bench size eval test-gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## .venv with litevl and what its tests need

# pip shows its progress to a person and only its complaints to a log.
$(INSTALLED): setup.cfg setup.py
	@echo "Installing litevl into .venv; PyTorch is large, so the first time takes minutes."
	@$(PYTHON) -m venv .venv
	@test -t 1 || quiet=--quiet; $(BIN)/pip install $$quiet --disable-pip-version-check -e '.[test]'
	@touch $@

serve: $(INSTALLED)  ## start the server (MODEL=demo HOST=0.0.0.0 PORT=8000 ARGS='--flag ...')
	@if [ -n "$$API_KEY" ]; then export LITEVL_API_KEY="$$API_KEY"; \
	else export LITEVL_API_KEY_FILE="$${LITEVL_API_KEY_FILE:-$(KEY_FILE)}"; fi; \
	exec $(BIN)/litevl serve '$(MODEL)' --host '$(HOST)' --port '$(PORT)' $(ARGS)

test: $(INSTALLED)  ## the test suite (ARGS='-k name' for a part of it)
	@$(BIN)/pytest $(ARGS)

test-clients: $(INSTALLED)  ## Node's `openai` and AI SDK against a live server (needs Node 20 or newer)
	@major=$$(node --version 2>/dev/null | tr -dc '0-9.' | cut -d. -f1); \
	if [ "$${major:-0}" -lt 20 ] || ! command -v npm >/dev/null; then \
	echo "make test-clients needs Node 20 or newer with npm: https://nodejs.org, or your system's packages nodejs and npm"; \
	exit 1; fi
	@cd tests/clients && npm ci --silent --no-audit --no-fund
	@$(BIN)/python tests/node_clients.py

test-browser: $(INSTALLED)  ## the page in Debian's Chromium (installed here when you are root)
	@if ! command -v chromium >/dev/null; then \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	echo "make test-browser needs the command chromium: apt-get install chromium, or your system's package"; \
	exit 1; fi; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; fi
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	@$(BIN)/pytest tests/browser_controls.py tests/browser_states.py tests/browser_looks.py $(ARGS)

fuzz: $(INSTALLED)  ## the scheduler in 10,000 random runs, each parser under atheris (FUZZ_RUNS=n FUZZ_SECONDS=n)
	@FUZZ_RUNS=$${FUZZ_RUNS:-10000} FUZZ_STEPS=$${FUZZ_STEPS:-50} \
	$(BIN)/pytest tests/test_scheduler_machine.py $(ARGS)
	@$(BIN)/pip install -q atheris
	@for target in url data_url magic head json_body request answer; do \
	  PYTHONPATH=tests $(BIN)/python -m fuzz.parsers $$target -max_total_time=$${FUZZ_SECONDS:-150} -max_len=1000 \
	    2>&1 | grep -E "Exception|Error|DONE|written to" | sed "s/^/$$target: /"; \
	done

faults: $(INSTALLED)  ## what is made to do harm, all of it, against a server of its own
	@SVT_LOG=0 $(BIN)/python tests/media_faults.py
	@out=$$(FAULT_RUNS=$${FAULT_RUNS:-20} $(BIN)/pytest -q tests/test_alone.py tests/test_leaving.py 2>&1); \
	failed=$$?; [ $$failed -eq 0 ] && echo "$$out" | tail -1 || echo "$$out"; exit $$failed

soak: $(INSTALLED)  ## mixed good and bad clients against a server of its own (SECONDS=7200 ARGS='--rate n --leak block')
	@PYTHONPATH=tests $(BIN)/python -m soak --seconds $(or $(SECONDS),600) $(ARGS)

check: $(INSTALLED)  ## format, lint, types, house rules
	@$(BIN)/ruff format --check --output-format concise .
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/test_house.py

bench: $(INSTALLED)  ## the benchmarks in their quick form, one JSON line each (ARGS='--threads n')
	@for name in limits overhead decode ttft kv server; do \
	$(BIN)/python -m benchmarks.$$name --quick $(ARGS) || exit; done

size:  ## lines a room against its guide, longest functions
	@$(PYTHON) tests/size.py

eval: $(INSTALLED)  ## ask a running server about fresh scenes (SEED=n N=k URL=... API_KEY=...)
	@$(BIN)/python -m training.evaluate $(ARGS)

test-gpu: $(INSTALLED)  ## the same test bodies on a CUDA card
	@$(BIN)/pytest tests/test_gpu.py $(ARGS)

clean:  ## remove what these targets made, .venv included
	@rm -rf .venv tests/clients/node_modules build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
