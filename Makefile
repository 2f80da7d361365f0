# What a newcomer types. Everything lives in .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# nnU-Net on CPU: OpenMP threads that spin cost two to six times the CPU time.
export GOMP_SPINCOUNT := 0
export OMP_NUM_THREADS := 1
export MPLBACKEND := agg

.PHONY: oidc demo venv test check lint types contracts unit slow system test-full mutation protos protos-check benchmarks clean

## demo: install what it needs and run three hospitals on this machine (DATA=DIR: on your own data)
demo: $(VENV)/.demo
	$(BIN)/msfl demo $(if $(DATA),--data "$(DATA)") $(ARGS)

## venv: everything a developer needs
venv: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.demo $@

## test: install what tests need and run the checks and all fast tests
test: check slow

## check: format, lint, types, contracts, generated code, unit tests
check: lint types contracts protos-check unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/pytest -q -n 2 -m "not slow and not system and not full" --durations=5

slow: $(VENV)/.dev
	$(BIN)/pytest -q -n 2 -m "slow and not system and not full" --durations=10

OIDC := tests/system/oidc
## oidc: the OpenID provider that system tests log in at (npm); without npm those tests say that they skip
oidc:
	@if command -v npm >/dev/null; then \
	  test $(OIDC)/node_modules/.package-lock.json -nt $(OIDC)/package-lock.json || \
	  { npm ci --silent --prefix $(OIDC) && touch $(OIDC)/node_modules/.package-lock.json; }; \
	  else echo "npm is not installed: tests of logins at an OpenID provider will skip"; fi

## system: real processes on loopback
system: $(VENV)/.dev
	$(BIN)/pytest -q -m "system and not full" --durations=10

## test-full: everything, the demo and a reduced real cohort included
test-full: test system mutation
	$(BIN)/pytest -q -m full --durations=10

## mutation: does a test fail for every way in which the decision could be wrong?
mutation: $(VENV)/.dev
	$(BIN)/python tests/mutation/decide.py

PROTO := protos/msfl/protos/v1/federation.proto
define generate
	$(BIN)/python -m grpc_tools.protoc -I protos \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTO)
endef

## protos: generate the wire code again
protos: $(VENV)/.dev
	$(call generate,protos)

protos-check: $(VENV)/.dev
	@rm -rf build/protos && mkdir -p build/protos
	$(call generate,build/protos)
	@for f in build/protos/msfl/protos/v1/*; do cmp -s $$f protos/msfl/protos/v1/$$(basename $$f) \
	  || { echo "$$(basename $$f) is not what federation.proto generates: run make protos"; exit 1; }; done

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
