# Everything runs in the virtual environment .venv, which the first target that needs it builds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# These two train the networks that the other lessons find.
TRAINING := notebooks/02_train_five_folds.ipynb notebooks/03_grad_cam.ipynb
# Two OpenMP threads that spin while they wait can be many times slower than one.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install notebooks test lab update benchmark lock clean

help: ## print this list
	@grep -E '^[a-z]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

install: $(READY) ## build the virtual environment .venv (about 6.5 GB on Linux, once)

notebooks: $(READY) ## run every notebook into results/quick/notebooks/, with HTML and a summary
	$(BIN)/python -m helpers.run

test: $(READY) ## check the code, the notebooks and everything they print
	$(BIN)/ruff check
	$(BIN)/python -m pytest $(TRAINING)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(TRAINING)) -n logical --maxprocesses 4 --dist loadfile

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

update: $(READY) ## run every notebook and store what it printed in notebooks/
	$(BIN)/python -m helpers.run --update

benchmark: $(READY) ## measure speed and memory beside grad-cam and captum, into README.md (about an hour)
	$(BIN)/python benchmarks/explain.py

lock: ## resolve the dependencies afresh and write their versions to constraints.txt
	@$(call check_python)
	rm -rf .lock
	$(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --disable-pip-version-check --editable .
	.lock/bin/python -m pip freeze --all --exclude-editable > .lock/freeze.txt
	grep -E '^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$$' .lock/freeze.txt | grep -v "^pip==" > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	rm -rf .lock

clean: ## remove results/ and .venv
	rm -rf results .venv .lock .pytest_cache .ruff_cache *.egg-info build

$(READY): pyproject.toml constraints.txt
	@$(call check_python)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $(READY)

define check_python
$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
"Python 3.11 or later is needed, but $(PYTHON) is %d.%d. Name a later one: make PYTHON=python3.12 ..." % v[:2])' \
|| { echo "Is Python 3.11 or later installed? See README.md."; exit 1; }
endef
