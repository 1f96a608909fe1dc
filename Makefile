# One command per task. The first command you run builds .venv with the tested versions.
PYTHON ?= python3
DETECTRON2_SOURCE ?= wheel

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXPERIMENTS := $(PY) -m experiments
CONSTRAINTS := requirements/constraints.txt
# Tests of one group (tests/conftest.py) stay in one process.
PYTEST := $(PY) -m pytest -q --maxprocesses 8 --durations=10
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PIP := $(PY) -m pip --disable-pip-version-check install -c $(CONSTRAINTS)

# Settings of the user's pip that do not work inside .venv.
export PIP_USER := 0
unexport PIP_BUILD_CONSTRAINT

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast mutants lint format clean

fail = { printf '\nerror: %s\n' "$(1)" >&2; exit 1; }
NO_PYTHON = '$(PYTHON)' does not run; expected Python 3.10 or newer. Install it (Debian and \
Ubuntu: apt-get install python3 python3-venv) or name another one: make PYTHON=/path/to/python3
OLD_PYTHON = '$(PYTHON)' is older than 3.10. Name a newer one: make PYTHON=/path/to/python3
NO_VENV = '$(PYTHON)' cannot make virtual environments (module venv or ensurepip is missing). \
Debian and Ubuntu: apt-get install python3-venv; then run make again.
VENV_FAILED = could not create $(VENV); see the lines above. Check that the folder is writable and the \
disk has space, then run make again.
PIP_FAILED = pip could not install a package; see its output above. Expected a package index with \
the versions in $(CONSTRAINTS) and about 8 GB of free disk. Check the network, the proxy \
(HTTPS_PROXY), the index (pip config list) and the disk (df -h .), then run make again.
D2_FAILED = could not install Detectron2; the message above says why. Fix it, then run make again.
DEMO_FAILED = the demo did not finish; see above. To see the logs of failed runs: \
$(EXPERIMENTS) logs demo. To continue where it stopped: make demo.
TEST_FAILED = tests failed; see above. To run one test again: $(PY) -m pytest <file>::<test>
MUTANTS_FAILED = too few planted faults were caught, or one no longer fits the code; see above. To run \
some again: $(PY) -m tests.mutants.run -k <word>
FORMAT_FAILED = some files are not formatted. Run make format and review the diff.
CHECK_FAILED = ruff found problems; see above. make format fixes some of them.
TYPES_FAILED = mypy found type errors; see above.

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  Variables: PYTHON=$(PYTHON) (3.10 or newer),"
	@echo "  DETECTRON2_SOURCE=$(DETECTRON2_SOURCE) (wheel, or upstream: GitHub source with compiled operators)"

demo: $(STAMP)  ## train three models on generated images, compare them, draw a picture
	@$(EXPERIMENTS) submit demo --cluster local || $(call fail,$(DEMO_FAILED))
	@$(EXPERIMENTS) retry demo --cluster local >/dev/null || $(call fail,$(DEMO_FAILED))
	@$(EXPERIMENTS) report demo || $(call fail,$(DEMO_FAILED))
	@$(PY) -m yolof_d2.visualize runs/sweeps/demo/YOLOF --output runs/sweeps/demo/predictions.png \
		|| $(call fail,$(DEMO_FAILED))

test: $(STAMP)  ## run all tests, and name the slowest
	@# One process more than there are cores: that of the SLURM tests waits most of the time.
	@$(PYTEST) -n $$(($(CORES) + 1)) tests || $(call fail,$(TEST_FAILED))

test-fast: $(STAMP)  ## run the tests for work at the desk: no training, no processes
	@$(PYTEST) -n $(CORES) -m "not slow" tests || $(call fail,$(TEST_FAILED))

mutants: $(STAMP)  ## plant faults in the code and show which of them the tests catch (minutes)
	@nice $(PY) -m tests.mutants.run || $(call fail,$(MUTANTS_FAILED))

lint: $(STAMP)  ## check format, style and types; change nothing
	@$(PY) -m ruff format --check . || $(call fail,$(FORMAT_FAILED))
	@$(PY) -m ruff check . || $(call fail,$(CHECK_FAILED))
	@$(PY) -m mypy || $(call fail,$(TYPES_FAILED))

format: $(STAMP)  ## format all files and fix what ruff can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean:  ## remove .venv and caches; keep output/ and runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.py $(CONSTRAINTS) requirements/install_detectron2.py
	@rm -f $@
	@$(PYTHON) -c '' 2>/dev/null || $(call fail,$(NO_PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || $(call fail,$(OLD_PYTHON))
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call fail,$(NO_VENV))
	@# Keep a working environment of the same Python and only update it.
	@v='import sys, pip; print(sys.version_info[:3])'; \
	new=$$($(PYTHON) -c 'import sys; print(sys.version_info[:3])'); \
	if [ "$$($(PY) -c "$$v" 2>/dev/null)" != "$$new" ]; then \
		echo "[1/4] creating $(VENV)"; \
		$(PYTHON) -m venv --clear $(VENV) || $(call fail,$(VENV_FAILED)); \
	fi
	@$(PIP) -q --upgrade pip setuptools wheel || $(call fail,$(PIP_FAILED))
	@echo "[2/4] installing PyTorch (about 3 GB the first time: some minutes)"
	@$(PIP) torch torchvision || $(call fail,$(PIP_FAILED))
	@echo "[3/4] installing Detectron2 ($(DETECTRON2_SOURCE))"
	@$(PY) requirements/install_detectron2.py --source $(DETECTRON2_SOURCE) \
		|| $(call fail,$(D2_FAILED))
	@echo "[4/4] installing yolof_d2 and its tools"
	@PYTHONWARNINGS=ignore $(PIP) -q --no-build-isolation -e '.[dev]' || $(call fail,$(PIP_FAILED))
	@touch $@
	@echo "Ready: $(VENV)"
