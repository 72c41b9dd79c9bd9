# What a developer types; `make` alone lists it. Each command sets up what it needs, once.

PYTHON ?= python3
COVERAGE ?= 95
# Empty for one process that can be debugged. A module stays in one process, which runs its DAGs once.
IN_PARALLEL ?= --numprocesses=auto --dist=loadfile

# "3.10-2.11.2" and so on: a Python and an Airflow.
MATRIX := $(shell awk '/^[0-9]/ { print $$1 "-" $$2 }' .ci/environments)
AIRFLOW := $(shell awk '/^[0-9]/ { version = $$2 } END { print version }' .ci/environments)
# Of make 4: the output of each version in one piece.
SYNCED := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# What knows no Airflow runs with the oldest and the newest Airflow and Python, and not with those between.
WITHOUT_AIRFLOW := client dingtalk sandbox test_meetings.py test_proxies.py test_token_sharing.py test_transport.py test_wire.py
IGNORED_WITH = $(if $(filter $(1),$(firstword $(MATRIX)) $(lastword $(MATRIX))),,$(WITHOUT_AIRFLOW:%=--ignore=tests/%))
WHAT_ENVIRONMENTS_DEPEND_ON := pyproject.toml .ci/environments .ci/env

# Airflow is thousands of modules: compiled once, and not by every process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo ui test test-faults test-matrix test-system lint bench docs dist clean
.SECONDARY:

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.ready  ## run an example DAG in a real Airflow, against the sandbox
	@.venv/bin/python tests/tools/demo.py

ui: .venv/.ready  ## leave an Airflow with the sandbox and the examples running, to look at
	@.venv/bin/python tests/tools/ui.py

test: .venv/.ready  ## run the tests, with coverage
	.venv/bin/python -m pytest $(IN_PARALLEL) --cov --cov-report=term-missing:skip-covered --cov-fail-under=$(COVERAGE)

test-matrix: .venv/bin/uv  ## run the tests with every supported Airflow
	@$(MAKE) --no-print-directory --keep-going --jobs $(SYNCED) $(patsubst %,test-with-%,$(filter-out $(EXCEPT),$(MATRIX)))

test-with-%: .matrix/%/.ready
	@echo "Python $(subst -, with Airflow ,$*)"
	@.matrix/$*/bin/python -m pytest --quiet -p no:cacheprovider $(call IGNORED_WITH,$*)
	@.matrix/$*/bin/python -m pytest --quiet -p no:cacheprovider tests/faults/test_interruptions.py

test-faults: .venv/.ready  ## run the tests behind a network that breaks
	.venv/bin/python -m pytest $(subst loadfile,load,$(IN_PARALLEL)) --quiet tests/faults

test-system: .matrix/3.13-3.3.2/.ready-system .matrix/3.10-2.11.2/.ready  ## run the tests on real deployments
	@.ci/debian
	.matrix/3.13-3.3.2/bin/python -m pytest --numprocesses=3 --dist=loadscope --no-loadscope-reorder $(ONLY) tests/system

lint: .venv/.ready  ## check style, types and security
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/bandit --quiet --recursive --configfile pyproject.toml airflow_provider_dingconf

bench: .venv/.ready  ## measure what the provider costs
	@for each in tests/tools/bench*.py; do .venv/bin/python $$each || exit; done

docs: .venv/.ready-docs  ## build the documentation, into build/docs
	.venv/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --jobs auto docs build/docs

dist: .venv/bin/uv  ## build the source distribution and the wheel, into dist/, and check them
	@rm -rf dist
	@.venv/bin/uv build --quiet
	@.venv/bin/uv tool run --quiet twine check --strict dist/*

clean:  ## remove the environments and all that tools leave behind
	rm -rf .venv .matrix build dist .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/bin/uv:
	@echo "Setting up .venv; this takes some minutes."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/.ready: $(WHAT_ENVIRONMENTS_DEPEND_ON) | .venv/bin/uv
	@.ci/env .venv $(AIRFLOW) --group dev --editable .
	@touch $@

.venv/.ready-docs: .venv/.ready
	@.ci/env .venv $(AIRFLOW) --group docs --editable .
	@touch $@

.matrix/%/.ready: $(WHAT_ENVIRONMENTS_DEPEND_ON) | .venv/bin/uv
	@echo "Setting up Python $(subst -, with Airflow ,$*)."
	@.ci/env .matrix/$* $(lastword $(subst -, ,$*)) --group dev --editable .
	@touch $@

.matrix/%/.ready-system: .matrix/%/.ready
	@.ci/env .matrix/$* $(lastword $(subst -, ,$*)) --group system --editable .
	@touch $@
