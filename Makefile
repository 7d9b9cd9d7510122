##  make train      prepares CIFAR-10 and trains the recipe `quick`; says what came out and what to type next
##                    RECIPE=resnet18                    another recipe
##                    DATA=../shared/data/cifar10.npz    a local copy of the data instead of a download
##                    NAME=first                         the run's name: its folder under runs/
##                    ARGS="--optim.lr 0.2"              anything else that jobs/train.py takes
##  make test       runs the tests          ARGS="-k curves", ARGS="-m slow", ...
##  make chaos      tries every fault of docs/reliability.md on real runs, and writes that page (three quarters of an hour)
##  make lint       checks style and types
##  make setup      only the set-up, which every target does when it is due
##                    PYTHON=python3.12                  for another Python than the system's
##  make lock       writes requirements.lock from pyproject.toml          ARGS=--upgrade
##
##  Nothing has to be activated: everything is in .venv, beside this file.

RECIPE := quick
DATA :=
NAME :=
ARGS :=
python := .venv/bin/python
ready := .venv/ready

.PHONY: help setup train test chaos lint lock
help:
	@sed -n 's/^## \?//p' Makefile

setup: $(ready)

$(ready): requirements.lock pyproject.toml
	@bash .ci/setup

# A .venv that was copied or moved here belongs to another folder: .ci/setup makes it anew.
ifneq ($(shell cat $(ready) 2>/dev/null),$(CURDIR))
.PHONY: $(ready)
endif

train: $(ready)
	$(python) jobs/train.py $(RECIPE) $(if $(DATA),--source "$(DATA)") $(if $(NAME),--name "$(NAME)") $(ARGS)

test: $(ready)
	$(python) -m pytest $(ARGS)

chaos: $(ready)
	$(python) -m pytest tests/chaos --chaos all --reliability docs/reliability.md -m "slow or not slow" $(ARGS)

lint: $(ready)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

lock: $(ready)
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --group dev pyproject.toml --output-file requirements.lock $(ARGS)
