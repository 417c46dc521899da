# Every target sets up what it needs: a machine with python3 (3.11 or newer) and make is enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo demo-real test test-oldest check bench docs site lock clean

setup: .venv/ready

# uv installs the locked, hashed packages from wherever pip or uv are set to look. They are compiled once, not by each
# new process where Python may not write.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "opendino needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "Installing PyTorch and the other packages into .venv, about 7 GB: this takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# Trains on images drawn on the spot and judges the result. RUN=... puts it elsewhere.
RUN ?= runs/demo
demo: setup
	@test ! -e $(RUN) || { echo "$(RUN) exists: make demo RUN=runs/demo-2, or $(BIN)/opendino resume $(RUN)"; exit 1; }
	$(BIN)/opendino demo --out $(RUN)

# The same for three minutes on a folder of your own images: make demo-real DATA=photos
demo-real: setup
	@test -n "$(DATA)" || { echo "Name a folder of images: make demo-real DATA=photos"; exit 1; }
	$(BIN)/opendino train $(DATA) --minutes 3

# One process more than cores: tests often wait for programs that they start.
test: setup
	$(BIN)/python -m pytest --numprocesses $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --dist loadfile --no-loadscope-reorder $(ARGS)

# A quick selection of tests with the oldest versions that pyproject.toml allows, in an environment of their own; then PYTHON may be
# another one: make test-oldest PYTHON=python3.12. VERSIONS=highest takes the newest ones.
VERSIONS ?= lowest-direct
QUICK := tests/core tests/models tests/views tests/story/test_golden.py tests/story/test_golden_models.py tests/test_losses.py \
  tests/test_start.py tests/test_loading.py tests/embeddings tests/interop/test_exporting.py tests/serve
test-oldest:
	rm -rf build/$(VERSIONS)
	$(PYTHON) -m venv build/$(VERSIONS)
	build/$(VERSIONS)/bin/python -m pip install --quiet uv
	build/$(VERSIONS)/bin/uv pip install --quiet --python build/$(VERSIONS)/bin/python --resolution $(VERSIONS) \
	  --editable ".[app,export,finetune,medical,science,search,serve,sklearn,streams,video]" \
	  "fsspec>=2024.2" "hypothesis>=6.100" "pytest>=8.3" "pytest-timeout>=2.3" "scipy>=1.13" \
	  "torchvision>=0.24"
	build/$(VERSIONS)/bin/python -m pytest -W default -m "not slow" $(QUICK) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/demo.py $(ARGS)

# The pages of methods and results with the figure of the README, and the tables of flags.
docs: setup
	$(BIN)/python docs/methods.py
	$(BIN)/python docs/flag_tables.py
	$(BIN)/python docs/results.py

# Everything below docs/, the help of the commands and the names of Python as pages: build/site/index.html. A link that leads
# nowhere, or a page that the menu lacks, is an error.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock:
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --extra dev --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache
