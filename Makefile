# Every target builds the environment first when it is missing; it lives outside the clone, one per
# requirements.lock, so that several clones share it. HIPGEN_PYTHON=/path/to/python uses your own instead.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help env demo ruler film-ruler lab-ruler measure test endurance lint format lock status benchmark gpu-check

PYTHON_OF_ENV = $$(bash sbatch/environment.sh)

help: ## this text
	@echo "hpc_hipgen: hip radiographs on demand, and a report of how far the drawn angles are from those asked for."
	echo
	echo "  make demo                  everything: environment, phantoms, training, samples, report (on a Slurm, where one answers)"
	echo "  make demo ARGS='--dry-run' what would run, and where; ARGS also takes settings: ARGS='--run mine data.train=64'"
	echo "  make ruler FILMS=folder    measure the Norberg angles of real films (landmarks.csv beside them)"
	echo "                             RULER=results/llcm/ruler/export takes that ruler and trains none"
	echo "  make film-ruler            trains the ruler for whole films, which needs no landmarks"
	echo "  make lab-ruler FILMS=folder  goes on from it with films of your own (landmarks.csv beside them)"
	echo "  make measure FILMS=folder  angles of whole films, found and measured by it, as CSV, JSON and pictures"
	echo "  make status                what is done, what runs, how fast"
	echo "  make benchmark             how fast everything is on this machine, into results/benchmarks/"
	echo "  make gpu-check             attention, the full-size step and the benchmark on one GPU (8 minutes); none: says so"
	echo "  make test | make lint      the tests | formatting, linting, types, shell scripts"
	echo "  make endurance             a pipeline on a real Slurm, stopped 24 times at random (long; not among the tests)"
	echo "  make env                   only the environment (python 3.11 or 3.12, about 8 GB, a few minutes)"
	echo "  make format | make lock    rewrite the code's layout | resolve pyproject.toml into requirements.lock"
	echo
	echo "On a cluster: sbatch sbatch/llcm.sh (after \`make env\` on the login node). The same script, the same run folder."

env: ## the environment of requirements.lock (the other targets build it too)
	@bash sbatch/environment.sh

demo: ## the whole main job
	@bash sbatch/llcm.sh $(ARGS)

ruler: ## ingest real films and measure them
	@FILMS="$(FILMS)" RULER="$(RULER)" bash sbatch/ruler.sh $(ARGS)

benchmark: ## how fast everything is here
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m jobs.benchmark $(ARGS)

gpu-check: ## what can only be tried on a GPU, in one report
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m jobs.gpu_check $(ARGS)

film-ruler: ## networks that find and measure hips in whole films
	@bash sbatch/film_ruler.sh $(ARGS)

lab-ruler: ## the same networks on films of your own, cross-validated by dog
	@FILMS="$(FILMS)" RULER="$(RULER)" bash sbatch/lab_ruler.sh $(ARGS)

measure: ## angles of whole films
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m jobs.measure $(if $(FILMS),"$(FILMS)") $(ARGS)

status: ## stages, images seen, speed
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m jobs.status $(ARGS)

test: lint ## lint and every test
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

endurance: ## a pipeline on a real Slurm, stopped 24 times at random
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m pytest -m endurance --capture=no $(ARGS)

lint: ## layout, linter, types, shell scripts
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m ruff check .
	"$$python" -m ruff format --check .
	"$$python" -m mypy
	"$$(dirname "$$python")/shellcheck" --external-sources sbatch/*.sh .ci/run

format:
	@python="$(PYTHON_OF_ENV)"
	"$$python" -m ruff check --fix .
	"$$python" -m ruff format .

lock: ## resolve pyproject.toml again (needs uv on the path)
	@uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	    --output-file requirements.lock pyproject.toml
