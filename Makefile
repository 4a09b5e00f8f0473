# Everything runs in .venv, which the first target that needs it makes. Needs python3 (3.11 or newer), make and git.

PYTHON  ?= python3
WORKERS ?= 2
TORCH   := torch==2.13.0
# Built for the same PyTorch, but their metadata asks for one exact build of it: installed without dependencies.
TORCH_COMPANIONS := torchvision==0.28.0 torchaudio==2.11.0

# Every program that a target starts finds byte code, also where Python is told to write none: imports are most of short ones.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode

BIN := .venv/bin
# Without --no-compile, most of the set-up would be spent on byte code of modules that nothing imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help
.PHONY: help setup test demo bench world-report comfy lint format lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/stamp-pack ## Only make .venv (minutes the first time, instant afterwards)
	@$(BIN)/python scripts/comfy_requirements.py

test: setup ## All tests; those inside a real ComfyUI where one is found. WORKERS=n, ARGS="-k word"
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

demo: setup ## Train one word plainly and by the best recipe; pictures and figures in out/demo
	@$(BIN)/contextual-inversion demo --out out/demo --json out/demo/report.json

bench: setup ## Time and memory of a training step; figures in out/bench.json
	@$(BIN)/contextual-inversion bench --json out/bench.json

world-report: setup ## How well the bundled tiny model obeys its prompts; figures in out/world-report.json
	@$(BIN)/contextual-inversion world-report --json out/world-report.json

comfy: setup ## Start ComfyUI with this pack and open the shipped graph. ARGS="--port 8189 --no-browser"
	@$(BIN)/python scripts/start_comfyui.py $(ARGS)

lint: setup ## ruff: lint and format, nothing changed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup ## ruff: mend and format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: setup ## Write requirements-dev.txt anew from what .venv has
	@$(BIN)/python scripts/freeze_requirements.py requirements-dev.txt

clean: ## Remove .venv, caches and everything made under out/
	rm -rf .venv out build .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Development needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/stamp-packages: requirements-dev.txt scripts/comfy_cpu_stubs.py | .venv/bin/python
	$(PIP) -c requirements-dev.txt $(TORCH)
	$(PIP) --no-deps $(TORCH_COMPANIONS)
	$(PIP) --no-deps -r requirements-dev.txt
	$(BIN)/python scripts/comfy_cpu_stubs.py
	@touch $@

# Editable: the import name contextual_inversion points at this folder, so new files need no reinstalling.
.venv/stamp-pack: pyproject.toml setup.py .venv/stamp-packages
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
