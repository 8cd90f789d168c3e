# Three commands: `make demo`, `make test`, `make slow`. Each sets up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Without a GPU, take the CPU build of torch (2 GB less), unless pip is told where to look.
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP_TOLD := $(PIP_INDEX_URL)$(PIP_EXTRA_INDEX_URL)$(PIP_FIND_LINKS)
TORCH := $(if $(PIP_TOLD)$(shell command -v nvidia-smi),,--extra-index-url $(CPU_INDEX))

.PHONY: demo test slow bench lint clean

demo: $(INSTALLED)
	$(BIN)/harness eval --model conse --suite demo

test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/pytest

slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation deepspeed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

bench: $(INSTALLED)
	$(BIN)/pytest tests/bench --benchmark-enable --benchmark-only

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy harness models tasks plugins

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
