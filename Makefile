# `make demo` and `make test` are all a fresh machine needs: Python 3.11 and make.
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON = python3
endif
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo showcase test test-slow test-geneicl test-s3 test-nvflare sbom audit lint format bench docs dist clean

setup: $(READY)

# Reinstalled when the dependencies change; the package itself is installed as links to the folders.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/equipoise demo --preset quick --out demo

showcase: $(READY)
	$(BIN)/equipoise demo --preset $(or $(PRESET),showcase) --out showcase

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# What takes more than half a minute: killed processes, bags of 50,000 tiles, 500 clients, submitted jobs.
test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

# A pretrained model of RNA. Its package stays apart: where it is installed, every study with RNA has its baseline.
test-geneicl: $(READY)
	test -d $(VENV)/geneicl || $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/geneicl 'geneicl>=1.0,<2'
	PYTHONPATH=$(CURDIR)/$(VENV)/geneicl $(BIN)/python -m pytest tests/models/probes/test_geneicl.py $(ARGS)

# Slides, stores and run folders in a bucket, against a server on this machine. Its packages stay apart: they are large.
test-s3: $(READY)
	test -d $(VENV)/s3 || $(BIN)/python -m pip install --quiet --constraint constraints.txt --target $(VENV)/s3 s3fs 'moto[server]>=5.2,<6'
	PYTHONPATH=$(CURDIR)/$(VENV)/s3 $(BIN)/python -m pytest tests/datasets/remote/test_s3.py tests/platform/run/test_runs_on_s3.py $(ARGS)

# Exported jobs in NVFlare's simulator. Its packages stay apart: they bring a web server.
test-nvflare: $(READY)
	test -d $(VENV)/nvflare || $(BIN)/python -m pip install --quiet --constraint constraints.txt --target $(VENV)/nvflare 'nvflare>=2.9,<2.10'
	PYTHONPATH=$(CURDIR)/$(VENV)/nvflare $(BIN)/python -m pytest tests/platform/federation/nvflare/test_nvflare.py $(ARGS)

# What is installed, as CycloneDX, and what is known to be wrong with it. The second asks a service of the network.
$(VENV)/audit/bin/python:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet cyclonedx-bom pip-audit

sbom: $(READY) $(VENV)/audit/bin/python
	mkdir -p dist
	$(VENV)/audit/bin/cyclonedx-py environment $(BIN)/python -o dist/sbom.cdx.json

audit: $(VENV)/audit/bin/python
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@for file in $$(grep -l "__main__" benchmarks/*.py); do echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

docs: $(READY)
	$(BIN)/python -m docs.build
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Source archive and wheel; the wheel is built from the archive, with the tools of the environment.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist site demo showcase runs
