# Every target sets up what it needs in $(VENV); nothing outside this folder changes but the cache (docs/operations.md, "Installing").
VENV ?= .venv
PYTHON_IN_VENV := $(VENV)/bin/python
PYTEST_FLAGS ?=
SHELL := /bin/bash
# With no environment at all bash has a PATH of its own, but doesn't hand it on.
export PATH := $(or $(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
.DEFAULT_GOAL := help

CPP_SOURCES := $(shell find loader/csrc tests/cpp tests/emulated_cuda -name '*.cc' -o -name '*.h' 2>/dev/null)
CORE_SOURCES := $(wildcard loader/CMakeLists.txt) $(filter loader/%,$(CPP_SOURCES))
CREATED := $(VENV)/.created
PACKAGES := $(VENV)/.packages
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers

.PHONY: help setup demo up test test-slow test-cycles test-exact test-hostile check format perf-quick perf peers proto clean

help:
	@echo "make demo        cold, warm and swapped models through real Triton servers; a killed server; receipts"
	@echo "make up          two servers and the gateway on ports 8000, 8001, 8002, until Ctrl-C"
	@echo "make test        all tests but the slow ones          make test-slow   those"
	@echo "make test-cycles a thousand turns of load, park, wake, unload: nothing leaks"
	@echo "make test-hostile ten thousand bad requests over HTTP and over gRPC, each answered with a typed error; what"
	@echo "                 schemathesis makes of the OpenAPI document, each answered as that says"
	@echo "make test-exact  streams interrupted and resumed elsewhere, to the bit: every architecture, about an hour"
	@echo "make check       ruff, mypy --strict, clang-format, import directions, generated files"
	@echo "make perf-quick  a few minutes of benchmarks          make perf        all of them"
	@echo "make peers       what perf.loader compares ours with: runai-model-streamer, fastsafetensors, tensorizer"
	@echo "make proto       regenerate the gRPC code             make format      let ruff and clang-format rewrite"
	@echo "make setup       only the environment                 make clean       remove it and all build outputs"

setup: $(READY)

$(CREATED):
	@scripts/create_venv.sh $(VENV)
	@touch $@

$(PACKAGES): $(CREATED) pyproject.toml constraints.txt scripts/install_packages.sh
	@scripts/install_packages.sh $(VENV) build - demo test dev
	@touch $@

$(READY): $(PACKAGES) $(CORE_SOURCES) scripts/install_project.sh
	@scripts/install_project.sh $(VENV)
	@touch $@

demo: $(READY)
	@$(VENV)/bin/serverless-triton demo

up: $(READY)
	@$(VENV)/bin/serverless-triton up --servers 2

test: $(READY)
	@$(PYTHON_IN_VENV) -m pytest tests -m "not slow and not gpu and not faults_long and not exact" $(PYTEST_FLAGS)

test-slow: $(READY)
	@$(PYTHON_IN_VENV) -m pytest tests -m "slow and not gpu" $(PYTEST_FLAGS)

test-cycles: $(READY)
	@CYCLES=1000 $(PYTHON_IN_VENV) -m pytest tests/e2e/test_cycles.py $(PYTEST_FLAGS)

# What an architecture must pass on a processor before `mode` "auto" promises exactness for it.
test-exact: $(READY)
	@$(PYTHON_IN_VENV) -m pytest tests/exact $(PYTEST_FLAGS)

test-hostile: $(READY)
	@BAD_REQUESTS=10000 FUZZ_EXAMPLES=500 $(PYTHON_IN_VENV) -m pytest tests/integration/gateway/test_bad_requests.py \
		tests/integration/gateway/test_bad_messages.py tests/integration/gateway/test_openapi_fuzzed.py \
		tests/e2e/test_foreign_models.py::test_no_bad_message_ends_a_stock_model_or_its_server $(PYTEST_FLAGS)

check: $(READY)
	@PATH=$(abspath $(VENV)/bin):$$PATH scripts/check.sh $(CPP_SOURCES)

format: $(READY)
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .
	@$(if $(CPP_SOURCES),$(VENV)/bin/clang-format -i $(CPP_SOURCES))

perf-quick: $(READY)
	@$(PYTHON_IN_VENV) -m perf.quick

perf: $(READY) $(PEERS)
	@$(PYTHON_IN_VENV) -m perf

# The loaders that ours is compared with: only `make perf` needs them.
peers: $(PEERS)

$(PEERS): $(READY)
	@scripts/install_packages.sh $(VENV) peers
	@touch $@

proto: $(READY)
	@scripts/generate_proto.sh $(PYTHON_IN_VENV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
