# `make run` shows the whole story, `make test` proves it; each sets up what it needs.
STACK ?= cpu
PYTHON ?= python3
export PYTHON
# First imports of this stack are slow where bytecode is not kept.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
READY := .venv/.ready-$(STACK)

.DEFAULT_GOAL := help
.PHONY: help setup data run test team studies picture docs lint lock audit sbom clean \
	gpu-check bench-step bench-rollouts bench-overlap bench-flow bench-memory soak

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements/$(STACK).txt pyproject.toml infra/setup.sh
	@bash infra/setup.sh $(STACK)
	@touch $@

setup: $(READY) ## build .venv (STACK=cpu or gpu)

data: setup # the embedded raw data, pinned by data.dvc
	@$(BIN)/dvc pull --quiet --remote embedded data.dvc

run: data ## thaw a frozen model: every arm of params.yaml, a table and a report
	@PATH="$(CURDIR)/$(BIN):$$PATH" thaw sweep

test: data ## all tests, two files at a time
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

team: data ## a team's servers on this machine, without containers, until ctrl-C (infra/README.md)
	@PATH="$(CURDIR)/$(BIN):$$PATH" thaw team

studies: data ## what the claims rest on: every sweep of studies/, hours of it; interrupted, it goes on
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m studies

picture: setup ## docs/images/sweep-*.svg, drawn of what is kept of a study
	@$(BIN)/python -m studies.picture

docs: setup ## the documentation, into build/docs/index.html; a warning is an error
	@$(BIN)/python -m sphinx --conf-dir docs --doctree-dir build/docs-cache --fresh-env --fail-on-warning --quiet . build/docs
	@echo build/docs/index.html

bench-rollouts: setup ## tokens a second of each rollout engine beside the bare library
	@$(BIN)/python -m benchmarks.rollouts

gpu-check: ## all that only a GPU can show, in nine minutes, into build/bench/gpu-check.md (STACK=gpu)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check $(if $(DEVICE),--device $(DEVICE))

bench-overlap: setup ## time a step and outcome of rollout.staleness 0 and 1 (five seeds of each, most of an hour)
	@$(BIN)/python -m benchmarks.overlap $(if $(QUICK),--quick)

bench-flow: setup ## what a sweep costs beside the bare commands of its stages
	@$(BIN)/python -m benchmarks.flow

bench-memory: setup ## memory of each process of ZeRO 3 beside what `thaw plan` computes
	@$(BIN)/python -m benchmarks.memory

soak: data ## the long life of thaw serve: 200 runs, and something killed now and then (RUNS=6, MINUTES=10 for less)
	@$(BIN)/python -m benchmarks.soak $(if $(RUNS),--runs $(RUNS)) $(if $(MINUTES),--minutes $(MINUTES))

lint: setup ## ruff and the type checker
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python --level error

bench-step: setup ## step time and memory beside TRL, into build/bench (some minutes; QUICK=1 for less)
	@$(BIN)/python -m benchmarks.step $(if $(QUICK),--quick)

lock: setup # pin what pyproject.toml asks for; UPGRADE=1 takes the newest versions that fit
	@bash infra/lock.sh

audit: setup ## known vulnerabilities of the pinned versions; asks an advisory database on the internet
	@bash infra/audit.sh

sbom: setup ## a bill of materials and the licences of the pinned versions, build/sbom.json and build/licences.md
	@bash infra/sbom.sh

clean: ## remove what was built, not what was installed or registered
	rm -rf build
