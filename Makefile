# Everything a person does with this project, one line each. A fresh machine needs Python 3.11+ and make;
# `make e2e` installs what else it needs, and is for root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHIPPED := build/shipped
FUZZER := build/fuzzer
PRESS := build/press
ON_ALL_CORES := -n auto --dist worksteal
FUZZ_SECONDS ?= 60
SOAK ?= --report

.PHONY: help install run test check lint types imports coverage guards as-root e2e e2e-full e2e-image wheel test-wheel fuzz bench bench-scale soak lock reference docs docs-serve image clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## virtual environment with the locked dependencies and the command

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: name a newer one, as in 'make install PYTHON=python3.12'"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.python requirements/build.txt requirements/run.txt pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt -r requirements/run.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

run: $(VENV)/.installed ## the demo; with C8Y_BASEURL set, the proxy in front of that tenant
	@if [ -n "$$C8Y_BASEURL" ]; then exec $(BIN)/c8y-realtime-proxy run; else exec $(BIN)/c8y-realtime-proxy demo; fi

test: $(VENV)/.tools ## unit and loopback tests, Python only, on all cores
	$(BIN)/python -m pytest $(ON_ALL_CORES)

check: lint types imports ## everything that reads the code without running it

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tools
	$(BIN)/mypy

imports: $(VENV)/.tools
	$(BIN)/lint-imports

coverage: $(VENV)/.tools ## tests with branch coverage
	$(BIN)/coverage run -m pytest && $(BIN)/coverage report

guards: $(VENV)/.tools ## take every guard away, one by one, and expect the tests to notice; GUARDS="--only S-27" for some
	$(BIN)/python -m tests.attacks.guards $(GUARDS)

$(VENV)/.e2e: $(VENV)/.tools requirements/e2e.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/e2e.txt
	@touch $@

as-root:
	@[ "$$(id -u)" = 0 ] || { echo "make e2e runs pods as a kubelet does, each in a network and a root of its own: run it as root"; exit 1; }

e2e: as-root $(VENV)/.e2e ## real CometD and Faye servers, official clients, Chromium; manifests; a table of WebSocket conformance; as root
	tests/e2e/setup
	$(BIN)/python -m pytest tests/e2e -p no:randomly

e2e-full: e2e e2e-image $(SHIPPED)/.installed ## e2e and the heavier suites: the image; the chart, by Helm; a gateway, booted; Autobahn's, where there is a Python 2.7; as root
	tests/e2e/helm/setup
	$(BIN)/python -m pytest tests/e2e/helm/rendered.py tests/e2e/helm/refused.py tests/e2e/helm/started.py
	tests/e2e/edge/setup
	tests/e2e/edge/run
	tests/e2e/conformance/setup
	@if [ -d tests/e2e/conformance/.venv ]; then set -x; $(BIN)/python -m pytest tests/e2e/conformance/autobahn.py; fi
	tests/bench/setup
	$(BIN)/python -m pytest tests/bench -p no:randomly
	$(MAKE) soak SOAK="--minutes 1"

e2e-image: $(VENV)/.e2e ## build the image of Debian's packages and run it in containers; as root
	tests/e2e/setup
	tests/e2e/image/setup
	BASE=debian deploy/image/build
	$(BIN)/python -m pytest tests/e2e/image/claims.py -p no:randomly

$(VENV)/.compiler: $(VENV)/.installed requirements/compile.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/compile.txt
	@touch $@

wheel: $(VENV)/.compiler ## dist/: the wheel as it ships, with the hot rooms compiled; needs gcc and Python's headers
	rm -rf build/wheel dist && mkdir -p build/wheel
	cp -r pyproject.toml README.md LICENSE proxy build/wheel/
	find build/wheel -name __pycache__ -prune -exec rm -rf {} +
	cd build/wheel && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 ../../$(BIN)/pip wheel --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --wheel-dir ../../dist .

$(SHIPPED)/.installed: $(VENV)/.compiler pyproject.toml $(shell find proxy -type f -not -path '*/__pycache__/*') requirements/run.txt requirements/dev.txt
	$(MAKE) wheel
	$(PYTHON) -m venv --clear $(SHIPPED)
	$(SHIPPED)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt -r requirements/dev.txt
	$(SHIPPED)/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall dist/*.whl
	@touch $@

test-wheel: $(SHIPPED)/.installed ## the tests of what is compiled, on the wheel as it ships
	rm -rf build/tests && mkdir -p build/tests && cp -r pyproject.toml tests build/tests/
	cd build/tests && ../../$(SHIPPED)/bin/python -m pytest @tests/compiled.txt $(ON_ALL_CORES)

$(FUZZER)/.installed: requirements/run.txt requirements/fuzz.txt
	$(PYTHON) -m venv --clear $(FUZZER)
	$(FUZZER)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt -r requirements/fuzz.txt
	@touch $@

fuzz: $(FUZZER)/.installed ## look for bytes that the rooms misread, guided by coverage; FUZZ_SECONDS=300 for each target
	$(FUZZER)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

bench: $(SHIPPED)/.installed ## cost beside nginx, HAProxy and Node; BENCH="--modes paced,echo --only nginx,proxy" for a part
	tests/bench/setup
	$(SHIPPED)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	$(SHIPPED)/bin/python -m tests.bench $(BENCH)

soak: $(SHIPPED)/.installed ## half an hour of faults, all of them as root; writes docs/soak.md; SOAK="--minutes 5" for one cycle
	tests/soak/setup
	$(SHIPPED)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	$(SHIPPED)/bin/python -m tests.soak $(SOAK)

bench-scale: $(SHIPPED)/.installed ## what a client takes of one process; SCALE="--clients 5000"
	tests/bench/setup
	$(SHIPPED)/bin/python -m tests.bench.scale $(SCALE)

lock: $(VENV)/.python ## resolve the dependencies anew and pin them by hash
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group build -o requirements/build.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group dev -c requirements/run.txt -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group compile -c requirements/run.txt -c requirements/dev.txt -o requirements/compile.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group e2e -c requirements/run.txt -c requirements/dev.txt -o requirements/e2e.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group bench -c requirements/run.txt -c requirements/dev.txt -o requirements/bench.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group fuzz -c requirements/run.txt -o requirements/fuzz.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group docs -c requirements/run.txt -c requirements/dev.txt -o requirements/docs.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --group sbom -c requirements/run.txt -c requirements/compile.txt -o requirements/sbom.txt

reference: $(VENV)/.tools ## write what is generated from the code anew: schemas, and pages on configuration, commands, metrics and the chart
	$(BIN)/python -m proxy.config schema > config/schema.json
	$(BIN)/python -m proxy.config reference > docs/configuration.md
	$(BIN)/python -m proxy.cli.reference > docs/commands.md
	$(BIN)/python -m proxy.operations > docs/metrics.md
	$(BIN)/python deploy/helm/reference.py

$(PRESS)/.installed: requirements/docs.txt
	@$(PYTHON) -m venv --clear $(PRESS)
	$(PRESS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

docs: $(PRESS)/.installed ## the site of docs/, in build/site; a link that leads nowhere fails it
	NO_MKDOCS_2_WARNING=1 $(PRESS)/bin/mkdocs build

docs-serve: $(PRESS)/.installed ## the site at http://localhost:8000/, as it is being written
	NO_MKDOCS_2_WARNING=1 $(PRESS)/bin/mkdocs serve --watch . --dev-addr localhost:8000

image: ## container image, with buildah; BASE=debian where no image registry is reachable; WHEEL=dist for a tested wheel
	deploy/image/build

clean: ## remove what was built and installed
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find tests '(' -name target -o -name node_modules -o -name .venv ')' -prune -exec rm -rf {} +
