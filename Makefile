# Everything runs in .venv, which the first target that needs it creates.
# Needed: python3 (3.10 or newer; the pins are tested on 3.11), make, and a package registry that pip can reach.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

# A stamp is older than these files: install again. Otherwise nothing is installed.
SPEC       := setup.cfg pyproject.toml constraints.txt
CREATED    := $(VENV)/.created
INSTALLED  := $(VENV)/.installed-dev
WITH_DOCS  := $(VENV)/.installed-docs
WITH_PEERS := $(VENV)/.installed-peers
TORCH      := $(shell sed -n 's/^\(torch==[^ ;\#]*\).*/\1/p' constraints.txt)

RESULTS := results/demo
DEMO    := $(BIN)/python -m experiments.uci_regression boston --methods bbb,nng-ffg,nng-mvg,nng-kron,mix-full-het --output $(RESULTS)
PEERS   := $(BIN)/python -m experiments.peers boston --output results/peers
BENCH   := $(BIN)/python -m benchmarks.step_cost
TEST    := $(BIN)/python -m pytest -n 2 --dist worksteal
SPHINX  := $(BIN)/python -m sphinx -W --keep-going -q

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo peers bench bench-full test lint format docs clean distclean

help:
	@echo "make demo       train five posteriors on the Boston splits; tables and figures in $(RESULTS)"
	@echo "make peers      install the methods of others and run them on the Boston splits; tables in results/peers"
	@echo "make bench      what a training step costs, a quick look; results/benchmarks/quick"
	@echo "make bench-full the same in earnest, methods of others included, for hours; results/benchmarks/full"
	@echo "make test       run all tests"
	@echo "make lint       ruff check, ruff format --check, mypy"
	@echo "make format     let ruff format and fix the code"
	@echo "make docs       build the documentation and run its examples"
	@echo "make venv       only create the environment ($(VENV))"
	@echo "make clean      remove what was built, but not $(VENV) or results/"
	@echo "make distclean  remove $(VENV) too"

venv: $(INSTALLED)

demo: $(INSTALLED)
	@echo "$(DEMO)"
	@$(DEMO)
	@echo "Tables and figures:"
	@find $(RESULTS) -name '*.csv' -o -name '*.md' -o -name '*.png' | sort | sed 's/^/  /'

peers: $(WITH_PEERS)
	$(PEERS)

bench: $(INSTALLED)
	$(BENCH) table mlp width replicas stages prediction --quick --threads 1 --output results/benchmarks/quick

bench-full: $(WITH_PEERS)
	$(BENCH) --output results/benchmarks/full

test: $(INSTALLED)
	$(TEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(WITH_DOCS)
	$(SPHINX) -b html docs docs/_build/html
	$(SPHINX) -b doctest docs docs/_build/doctest
	@echo "Documentation: docs/_build/html/index.html"

clean:
	rm -rf docs/_build docs/gallery build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find noisynat uci_data experiments benchmarks examples tests docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)

$(CREATED):
	@echo "Creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "noisynat needs Python 3.10 or newer")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and by its exact version: left to the resolver it may be another build, gigabytes larger.
$(INSTALLED): $(CREATED) $(SPEC)
	@test -n "$(TORCH)" || { echo "constraints.txt pins no torch version" >&2; exit 1; }
	@echo "Installing $(TORCH) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt "$(TORCH)"
	@echo "Installing noisynat and its tools"
	@$(PIP) install -c constraints.txt -e ".[experiments,test,dev]"
	@touch $@

$(WITH_DOCS): $(INSTALLED)
	@echo "Installing the documentation tools"
	@$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $@

# Some ask for torchvision without needing it, and one built for another torch (CUDA's for the CPU's) cannot be imported,
# which stops laplace-torch's own import: then it goes.
$(WITH_PEERS): $(INSTALLED)
	@echo "Installing the methods of others"
	@$(PIP) install -c constraints.txt -e ".[peers]"
	@$(BIN)/python -c "import torchvision" 2> /dev/null || $(PIP) uninstall -y torchvision
	@touch $@
