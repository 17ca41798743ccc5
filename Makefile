# One vocabulary for a person, a hook and a CI. `make` alone lists it.
#
# Two virtual environments: .venv (everything) and .venv-airflow (Airflow alone). A target installs
# what it needs by itself: each environment has a stamp, named after its lock's content and the
# checkout's place, so that nothing happens while both are the same.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

stamp = $(1)/.lock-$(shell { pwd; cat $(2); } | git hash-object --stdin)
ML_READY := $(call stamp,.venv,requirements/ml.txt)
AIRFLOW_READY := $(call stamp,.venv-airflow,requirements/airflow.txt)

# Jobs find the ML environment's dvc and python first, as the stages in dvc.yaml expect.
IN_ML := PATH="$$PWD/.venv/bin:$$PATH"
ML := $(IN_ML) .venv/bin/python -m

# Variables of a job, each handed on only when it has a value. The shell reads them from the
# environment, so that values with spaces or quotes arrive as they are.
export DATA SITES LEGS REGISTRY MODEL FILE OUT PORT HISTORY VERSION MODE BY WHY
option = $${$(2):+--$(1) "$$$(2)"}

# Nothing here reports to anybody.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false

# Test processes side by side: three keep two cores busy, as many tests wait for a server. Of the
# service only where it is given. Files are handed out in their order, for tests/behaviour has the
# long ones: by number of tests, a training of minutes would come last and run alone.
WORKERS ?= 3
chosen = $(if $(TRAILWATCH_FULL),,-m "not full")

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(ML_READY) $(AIRFLOW_READY) ## install both environments (needs Python 3.11, git, make)
	@echo "Both environments match their locks."

$(ML_READY):
	@scripts/setup.sh .venv requirements/ml.txt $@

# Airflow's environment is installed by the ML environment's uv.
$(AIRFLOW_READY): | $(ML_READY)
	@scripts/setup.sh .venv-airflow requirements/airflow.txt $@

.PHONY: run
run: $(ML_READY) ## train, evaluate, register [DATA= SITES= LEGS= REGISTRY= MODEL=]
	@$(ML) pipelines.run $(call option,data,DATA) $(call option,sites,SITES) \
		$(call option,legs,LEGS) $(call option,registry,REGISTRY) $(call option,model,MODEL)

.PHONY: data
data: $(ML_READY) ## make the default world again; DVC confirms its hash
	@$(ML) pipelines.data

.PHONY: score
score: $(ML_READY) ## score a file with the champion: FILE= OUT= [MODEL= SITES= REGISTRY=]
	@if [ -z "$${FILE:-}" ] || [ -z "$${OUT:-}" ]; then \
		echo "Say what to score and where to write: make score FILE=scans.csv OUT=verdicts.csv" >&2; \
		echo "FILE is a CSV, TSV or Parquet file or a folder of them; OUT ends in .csv or .parquet." >&2; \
		exit 2; \
	fi
	@$(ML) pipelines.score $(call option,file,FILE) $(call option,out,OUT) \
		$(call option,model,MODEL) $(call option,sites,SITES) $(call option,registry,REGISTRY)

.PHONY: serve
serve: $(ML_READY) ## answer over HTTP [PORT= MODEL= SITES= REGISTRY= HISTORY= WORKERS=]
	@exec env $(IN_ML) .venv/bin/python -m serving $(call option,port,PORT) \
		$(call option,model,MODEL) $(call option,sites,SITES) \
		$(call option,registry,REGISTRY) $(call option,history,HISTORY) \
		$(if $(filter-out file,$(origin WORKERS)),--workers $(WORKERS))

.PHONY: promote
promote: $(ML_READY) ## may the challenger be champion? [MODEL= VERSION= MODE= BY= WHY=]
	@$(ML) pipelines.promote $(call option,model,MODEL) $(call option,version,VERSION) \
		$(call option,mode,MODE) $(call option,by,BY) $(call option,why,WHY)

.PHONY: rollback
rollback: $(ML_READY) ## back to the champion before [MODEL= BY= WHY=]
	@$(ML) pipelines.promote --rollback $(call option,model,MODEL) \
		$(call option,by,BY) $(call option,why,WHY)

.PHONY: up
up: $(ML_READY) $(AIRFLOW_READY) ## bring up the platform: Airflow, MLflow, serving, monitor
	@$(ML) deploy up

.PHONY: status
status: $(ML_READY) ## show the platform's services and how they are
	@$(ML) deploy status

.PHONY: down
down: $(ML_READY) ## stop the platform
	@$(ML) deploy down

.PHONY: demo
demo: $(ML_READY) $(AIRFLOW_READY) ## watch the closed loop: drift, retraining, a new champion
	@$(ML) bench.demo

.PHONY: test
test: lint $(AIRFLOW_READY) ## lint, then the tests of both environments
	@$(ML) pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=40 --ignore=tests/dags $(chosen) tests
	@if [ -d tests/dags ]; then \
		AIRFLOW_HOME="$$PWD/.airflow-test" AIRFLOW__CORE__LOAD_EXAMPLES=false \
		.venv-airflow/bin/python -m pytest $(chosen) tests/dags; \
	fi

.PHONY: test-full
test-full: export TRAILWATCH_FULL = 1
test-full: test ## the same, with the long tests

.PHONY: lint
lint: $(ML_READY) ## style, types, and who may import whom
	@$(ML) ruff check
	@$(ML) ruff format --check
	@$(ML) mypy
	@.venv/bin/lint-imports --no-logo

.PHONY: bench
bench: $(ML_READY) ## measure; every benchmark prints ratios within one run
	@$(ML) bench

.PHONY: benchmark-card
benchmark-card: $(ML_READY) ## every model in every held-out world, into docs/benchmark-card.md (an hour)
	@$(ML) bench.card

.PHONY: lock
lock: $(ML_READY) ## compile requirements/*.in into the locks
	@scripts/lock.sh

.PHONY: clean
clean: ## remove caches and both environments; data, models and registry stay
	rm -rf .venv .venv-airflow .airflow-test .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
