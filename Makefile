# make help lists the targets. PRESET=smoke|default|gpu sets the sizes (mmlib/presets.py).
PRESET ?= default
PYTHON ?= python3
BIN := .venv/bin
DATA := $(abspath $(or $(MMLIB_DATA),data))
export MMLIB_DATA := $(DATA)
STAMPS := $(DATA)/stamps/$(PRESET)
READY := .venv/ready
SUBMAKE := $(MAKE) --no-print-directory PRESET=$(PRESET)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# glibc gives freed memory back at once, and every training step faults it in again, in the backward pass's own heap too. Kept in one heap, in large
# pages, steps are faster, with the same bits.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592

# The main line of notebooks, the applications of what it trains, and the studies.
MAIN := 01_extract_activations 02_fit_baselines 03_train_meta_model 04_compare_losses 05_sample_quality 07_density 08_lm_loss \
        09_claims 31_figures
APPLICATIONS := 11_steer 12_meta_neurons 13_off_manifold
STUDIES := 06_scaling 21_recipes 22_benchmarks 23_robustness 24_replication 25_steering_study

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: reproduce main applications all_applications studies all_studies due test figures pages lab publish clean help

reproduce: $(READY) ## run what is due of the main line: text to verdict and figures
	@$(SUBMAKE) due LINE=main

applications: $(READY) ## run what is due of the applications: steering, meta-neurons, typicality
	@$(SUBMAKE) due LINE=all_applications

studies: $(READY) ## run what is due of the studies: scaling, recipes, benchmarks, robustness, replication, steering
	@$(SUBMAKE) due LINE=all_studies

due:
	@commands="$$($(SUBMAKE) --dry-run $(LINE))" || exit 1; \
	due="$$(echo "$$commands" | sed -n 's/.*mmlib.runs.pipeline run [^ ]* \([^ ]*\) .*/\1/p' | xargs)"; \
	if [ -z "$$due" ]; then echo "preset $(PRESET): nothing has changed since the last run, nothing to do"; exit 0; fi; \
	$(BIN)/python -m mmlib.runs.pipeline plan $(PRESET) $$due && \
	$(SUBMAKE) $(LINE) && \
	$(BIN)/python -m mmlib.runs.pipeline summary $(PRESET) $$due

test: $(READY) ## the main line at the smoke preset, then all other tests: unit tests beside the other notebooks
	$(BIN)/python -m pytest tests/test_reproduction.py
	@echo "unit tests and notebooks, side by side:"
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests --ignore=tests/test_reproduction.py > $(DATA)/unit_tests.log 2>&1 & units=$$!; \
	PRESET=smoke HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider \
	  $(patsubst %,notebooks/%.ipynb,$(APPLICATIONS) $(STUDIES) 09_claims 31_figures); notebooks=$$?; \
	wait $$units; units=$$?; cat $(DATA)/unit_tests.log; exit $$((notebooks + units))

figures: $(READY) ## redraw figures/ from results/ alone
	@mkdir -p $(STAMPS)
	@$(BIN)/python -m mmlib.runs.pipeline run $(PRESET) 31_figures $(STAMPS)/figures_alone

pages: $(READY) ## render README.md, results/README.md and figures/README.md from results/ by key
	@$(BIN)/python -m mmlib.runs.pages

lab: $(READY) ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

publish: $(READY) ## put the executed notebooks of a complete default run in place of those in git
	@$(SUBMAKE) --question main PRESET=default || { echo "not everything is up to date: make reproduce first"; exit 1; }
	@lines=main; names="$(MAIN)"; \
	if $(SUBMAKE) --question all_applications PRESET=default; then lines="$$lines all_applications"; names="$$names $(APPLICATIONS)"; \
	else echo "applications are not up to date and not published: make applications first"; fi; \
	if $(SUBMAKE) --question all_studies PRESET=default; then lines="$$lines all_studies"; names="$$names $(STUDIES)"; \
	else echo "studies are not up to date and not published: make studies first"; fi; \
	$(BIN)/python -m mmlib.runs.pipeline publish $$names && $(SUBMAKE) --touch $$lines PRESET=default

clean: ## forget all runs; keeps .venv and the converted language model
	rm -rf $(DATA)/runs $(DATA)/executed $(DATA)/stamps

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(READY): requirements.txt pyproject.toml notebooks/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"$(PYTHON) is Python {v[0]}.{v[1]}: expected 3.11 to 3.13, such as PYTHON=python3.12")'
	@echo "installing the pinned packages into .venv: about two minutes and 3 GB"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e . -e notebooks
	@touch $@

# Make's own tracking: a notebook is due when it, a file of mmlib that it imports, or a notebook whose outputs it reads is newer
# than its stamp.
main: $(addprefix $(STAMPS)/,$(MAIN))
all_applications: $(addprefix $(STAMPS)/,$(APPLICATIONS))
all_studies: $(addprefix $(STAMPS)/,$(STUDIES))

$(STAMPS)/%: requirements.txt | $(READY)
	@mkdir -p $(@D)
	@$(BIN)/python -m mmlib.runs.pipeline run $(PRESET) $* $@

$(STAMPS)/02_fit_baselines: $(STAMPS)/01_extract_activations
$(STAMPS)/03_train_meta_model: $(STAMPS)/02_fit_baselines
$(STAMPS)/04_compare_losses: $(STAMPS)/03_train_meta_model
$(STAMPS)/05_sample_quality: $(STAMPS)/03_train_meta_model
$(STAMPS)/07_density: $(STAMPS)/03_train_meta_model
$(STAMPS)/08_lm_loss: $(STAMPS)/03_train_meta_model
$(STAMPS)/09_claims: $(STAMPS)/04_compare_losses $(STAMPS)/05_sample_quality $(STAMPS)/07_density $(STAMPS)/08_lm_loss
# The ledger also tells what applications and studies found, where they ran.
$(STAMPS)/09_claims: $(wildcard $(addprefix results/$(PRESET)/,$(addsuffix .json,scaling steering probing typicality robustness replication steering_study)))
$(STAMPS)/06_scaling: $(STAMPS)/03_train_meta_model
$(STAMPS)/11_steer $(STAMPS)/12_meta_neurons $(STAMPS)/13_off_manifold: $(STAMPS)/03_train_meta_model
$(STAMPS)/21_recipes: $(STAMPS)/02_fit_baselines
$(STAMPS)/22_benchmarks: $(STAMPS)/03_train_meta_model
$(STAMPS)/23_robustness: $(STAMPS)/03_train_meta_model
$(STAMPS)/24_replication: $(STAMPS)/04_compare_losses
$(STAMPS)/25_steering_study: $(STAMPS)/03_train_meta_model
$(STAMPS)/31_figures: $(STAMPS)/09_claims

$(DATA)/stamps/dependencies.mk: mmlib/runs/dependencies.py $(wildcard notebooks/*.ipynb mmlib/*.py mmlib/*/*.py notebooks/studies/*.py notebooks/studies/*/*.py)
	@mkdir -p $(@D)
	@$(PYTHON) mmlib/runs/dependencies.py > $@
include $(DATA)/stamps/dependencies.mk
