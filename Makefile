# make help lists the targets. PRESET=smoke|default|gpu sets the sizes, MMLIB_DATA=FOLDER where a run's files go.
# Which notebooks there are, what they need and what is due: python -m mmlib plan --help.
PRESET ?= default
PYTHON ?= python3
READY := .venv/ready
# by relative paths alone, so that the repository's folder may have any name
PY := .venv/bin/python
RUN := $(PY) -m mmlib run --preset "$(PRESET)"
NBVAL := -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider
# what runs side by side: half of the cores each; equal results ask for equal numbers of threads
HALF := HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive OMP_NUM_THREADS=$$((($$(getconf _NPROCESSORS_ONLN) + 1) / 2))
UNIT := $(PY) -m pytest -m "not notebooks"
TOOK = seconds=$$(($$(date +%s) - began)); echo "make $@ took $$((seconds / 60)) minutes; to have the pages say so:"; \
	  echo "  $(PY) -m mmlib_studies.pages --took $@ $$seconds"
export PIP_DISABLE_PIP_VERSION_CHECK := 1
$(if $(findstring command,$(origin MMLIB_DATA)),$(if $(findstring $$,$(value MMLIB_DATA)),$(error MMLIB_DATA has a dollar: write it before make)))
.DEFAULT_GOAL := help
.NOTPARALLEL .DELETE_ON_ERROR:
.PHONY: help reproduce applications studies plan test test-unit test-newest figures pages lab publish clean

reproduce: $(READY) ## run what is due of the main line: text to verdict and figures
	@$(RUN) main --compare

applications: $(READY) ## run what is due of the applications: steering, meta-neurons, typicality
	@$(RUN) applications

studies: $(READY) ## run what is due of the studies: scaling, recipes, benchmarks, robustness, replication
	@$(RUN) studies

plan: $(READY) ## what is due of all of these, why, and for how long on this machine
	@$(PY) -m mmlib plan --preset "$(PRESET)" all

# The notebooks are run from the root of the file system: they need no folder to be the present one.
test: $(READY) ## every test: unit tests beside all notebooks at the smoke preset
	@began=$$(date +%s); data="$${MMLIB_DATA:-data}"; rm -rf "$$data/test"; mkdir -p "$$data/models" "$$data/test"; \
	ls "$$data"/models/gemma3-* > /dev/null 2>&1 || $(PY) -c "from mmlib.activations import lm; from mmlib.runs.run import DATA; \
	  lm.count_blocks(lm.EMBEDDED, DATA / 'models')" || exit 1; \
	ln -s ../models "$$data/test/models"; export MMLIB_DATA="$$data/test" $(HALF); \
	MMLIB_NBVAL="$$MMLIB_DATA" $(PY) -m pytest tests > "$$MMLIB_DATA/unit_tests.log" 2>&1 & units=$$!; \
	export PRESET=smoke; here="$$PWD"; cd /; "$$here/$(PY)" -m mmlib plan all --paths | { \
	  while IFS= read -r path; do set -- "$$@" "$$path"; done; \
	  test $$# -gt 0 && "$$here/$(PY)" $(NBVAL) "$$@"; }; notebooks=$$?; cd "$$here"; \
	wait $$units; units=$$?; cat "$$MMLIB_DATA/unit_tests.log"; $(TOOK); exit $$((notebooks + units))

test-unit: $(READY) ## the tests that run no notebook
	@began=$$(date +%s); export $(HALF); log="$$(mktemp)"; \
	$(UNIT) tests/studies tests/denoisers > "$$log" 2>&1 & some=$$!; \
	$(UNIT) tests --ignore=tests/studies --ignore=tests/denoisers; others=$$?; \
	wait $$some; some=$$?; cat "$$log"; rm "$$log"; $(TOOK); exit $$((some + others))

test-newest: $(READY) ## the unit tests with the newest releases of what mmlib asks for, torch excepted
	@$(PY) -m venv --clear .venv-newest && .venv-newest/bin/python -m pip install --quiet "$$(grep ^torch== requirements.txt)" \
	  -e ".[test]" -e notebooks && HF_HUB_OFFLINE=1 .venv-newest/bin/python -m pytest -m "not notebooks" \
	  --deselect tests/test_repository.py::test_every_requirement_is_pinned_once_and_installed_so tests

figures: $(READY) ## redraw figures/ from results/ alone
	@MMLIB_PUBLISHED=1 $(RUN) 31_figures --only

pages: $(READY) ## render README.md, results/README.md and figures/README.md from results/ by key
	@$(PY) -m mmlib_studies.pages

lab: $(READY) ## JupyterLab on the notebooks; make lab PRESET=smoke opens them at the sizes of a first try
	@PRESET="$(PRESET)" $(PY) -m jupyterlab notebooks

publish: $(READY) ## put a finished default run in place of the notebooks, results and figures in git
	@$(RUN) --publish && $(PY) -m mmlib_studies.pages

clean: ## forget all runs; keeps .venv and the converted language model
	@cd "$${MMLIB_DATA:-data}" && rm -rf runs executed stamps results figures test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# The check runs on any Python. A folder is the lock, where file locks miss too; who gets it looks whether another make was faster.
$(READY): requirements.txt pyproject.toml notebooks/pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "no $(PYTHON): expected Python 3.11 to 3.13, such as make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import os, sys; v = sys.version_info[:2]; at = os.getcwd(); \
	  sys.exit("$(PYTHON) is Python %d.%d: expected 3.11 to 3.13, such as make PYTHON=python3.12" % v if not (3, 11) <= v <= (3, 13) else \
	    "%s has a dollar or a colon in its path, which pip cannot install from: move it" % at if "$$" in at or ":" in at else None)'
	@if mkdir .venv.lock 2> /dev/null; then \
	  trap 'rmdir .venv.lock' EXIT; trap 'exit 1' HUP INT TERM; \
	  test -e $@ && test -z "$$(find $^ -newer $@)" && exit; \
	  echo "installing the pinned packages into .venv: about two minutes and 3 GB"; \
	  rm -f $@ && "$(PYTHON)" -m venv --clear .venv && $(PY) -m pip install --quiet -r requirements.txt && \
	  $(PY) -m pip install --quiet --no-deps -e . -e notebooks && touch $@; \
	else \
	  echo "another make is installing .venv: waiting for it (if none is: rmdir .venv.lock)"; \
	  while [ -d .venv.lock ]; do sleep 1; done; \
	  test -e $@ || { echo "that installation did not end well: run make again"; exit 1; }; \
	fi
