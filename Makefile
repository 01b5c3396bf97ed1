# make demo   both stages and a sweep on the digits that scikit-learn ships, and their page;
#             downloads no data
# make test   the tests that run on a laptop
# make lint   ruff, pyright, and the rules for imports between modules
# make docs   the site, in build/docs; warnings are errors
# make notebooks   run docs/notebooks in Jupyter's kernel
#
# Each first creates or updates a virtual environment in .venv. PYTHON=python3.12 selects
# the interpreter. CONSTRAINTS= (empty) installs the newest versions that pyproject.toml
# allows, instead of the tested ones; CONSTRAINTS=build/lowest.txt the oldest.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VERSION),)
$(error cannot run $(PYTHON): pass Python 3.11 or later, e.g. make PYTHON=python3.12)
endif
ifneq ($(shell $(PYTHON) -c 'import sys; print(sys.version_info < (3, 11))'),False)
$(error lt_jax needs Python 3.11 or later, $(PYTHON) is $(VERSION): \
  pass another, e.g. make PYTHON=python3.12)
endif

# Empty files in the environment that record what was installed, and when.
MADE := $(VENV)/.made-with-$(VERSION)
SET := $(if $(CONSTRAINTS),$(basename $(notdir $(CONSTRAINTS))),newest)
DEMO := $(VENV)/.demo-$(SET)
DEV := $(VENV)/.dev-$(SET)

INSTALL = $(VENV)/bin/pip install --quiet --disable-pip-version-check \
  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),\
  --upgrade --upgrade-strategy eager)

.PHONY: demo test lint docs notebooks
.DELETE_ON_ERROR:

# The dev environment contains the demo's packages.
demo: $(if $(wildcard $(DEV)),$(DEV),$(DEMO))
	$(VENV)/bin/lt-jax run --config configs/digits_lt.py --workdir runs/digits
	$(VENV)/bin/lt-jax sweep --config configs/digits_lt.py --workdir runs/digits

# In the order of the folders: by default, the file with the fewest tests would come last,
# and those with processes of their own take longest.
test: $(DEV)
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -m pytest -q tests/test_layers.py

docs: $(DEV)
	JAX_PLATFORMS=cpu $(VENV)/bin/sphinx-build -W --keep-going -q docs build/docs

notebooks: $(DEV)
	$(VENV)/bin/python -m pytest -q -m slow tests/test_notebooks.py

# The oldest versions of what pyproject.toml names, with the newest of everything else.
build/lowest.txt: pyproject.toml $(MADE)
	@mkdir -p build
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --no-header --no-annotate \
	  --python $(VENV)/bin/python --extra all --output-file $@ pyproject.toml

$(MADE):
	@echo "Creating $(VENV) with $(PYTHON) ($(VERSION))"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(DEMO): $(MADE) pyproject.toml $(CONSTRAINTS)
	@echo "Installing lt_jax[demo] into $(VENV), $(SET) versions: about 1 GB, one to two minutes"
	@rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(DEV): $(MADE) pyproject.toml $(CONSTRAINTS)
	@echo "Installing lt_jax[dev,demo,docs] into $(VENV), $(SET) versions: about 1 GB, one to two minutes"
	@rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	@$(INSTALL) -e '.[dev,demo,docs]'
	@touch $@
