# Targets for people and for CI. `make` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
EXTRAS := llama,hub,cluster,train,dev,bench
PYTEST_ARGS ?=
# llama.cpp is built without its image models and its programs' library; add -DGGML_CUDA=on or the like for a GPU.
CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tools/llama_cpp_python.cmake
QUESTION ?= What should I know before adopting a cat?
CODE := pice tests tools bench

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /: /' | awk -F': ' '{ printf "  %-8s %s\n", $$1, $$2 }'

venv: $(VENV)/.stamp ## make .venv with everything (builds llama.cpp, some 3 minutes on 2 cores)

$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	CMAKE_ARGS="$(CMAKE_ARGS)" $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

models/tiny-cloud.gguf: tools/tiny_gguf.py | $(VENV)/.stamp
	mkdir -p $(@D)
	$(BIN)/python tools/tiny_gguf.py --preset cloud --seed 0 $@

models/tiny-edge-a.gguf: tools/tiny_gguf.py | $(VENV)/.stamp
	mkdir -p $(@D)
	$(BIN)/python tools/tiny_gguf.py --preset edge --seed 1 $@

models/tiny-edge-b.gguf: tools/tiny_gguf.py | $(VENV)/.stamp
	mkdir -p $(@D)
	$(BIN)/python tools/tiny_gguf.py --preset edge --seed 2 $@

demo: $(VENV)/.stamp models/tiny-cloud.gguf models/tiny-edge-a.gguf models/tiny-edge-b.gguf ## ask once with emulated engines and once with tiny random models
	$(BIN)/pice ask --config config/emulated.toml "$(QUESTION)"
	$(BIN)/pice ask --config config/llama.toml --mode progressive --max-tokens 256 "$(QUESTION)"

test: $(VENV)/.stamp ## start Kafka and Redis, run the tests (PYTEST_ARGS="-k plan")
	$(BIN)/python -m tools.brokers run -- $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.stamp ## check style and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.stamp ## put the code in its format
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/.stamp ## run the benchmarks
	$(BIN)/python -m bench

clean: ## remove what was made, but not .venv and models/
	rm -rf build dist out bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
