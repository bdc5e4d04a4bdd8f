# One command each. The environment (.venv) is built, or repaired, when it is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
# recovery and elastic kill runs for a quarter of an hour and more, and compare weights, not speed.
BENCHMARKS := $(filter-out __init__ recovery elastic,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))) serve_load serving.scaling
GPU_VERBS := parity step resume draw encode
DATA_BENCHMARKS := data.throughput data.first_batch data.resume data.memory $(filter data_cache,$(BENCHMARKS))

.DEFAULT_GOAL := help
.PHONY: help demo demo-full demo-cluster serve test test-fast lint docs package bench bench-data gpu lmms clean
.DELETE_ON_ERROR:

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1\t/' | expand -t 18

demo: $(STAMP)  ## data, training, evaluation and a served model on this computer; results in runs/demo
	$(BIN)/blip3o demo

demo-full: $(STAMP)  ## the same with half an hour to learn; results in runs/demo-full
	$(BIN)/blip3o demo --full

demo-cluster: $(STAMP)  ## training on an autoscaling cluster of processes, of which one is killed; results in runs/demo-cluster
	$(BIN)/blip3o demo-cluster

serve: $(STAMP)  ## the demo's model over HTTP with a web page, from its store, until Ctrl-C
	$(BIN)/blip3o serve --demo

# A file's tests stay together: they share what the first of them made. In UTF-8 whatever the locale, for names of files.
test: $(STAMP)  ## the test suite, in two processes
	PYTHONUTF8=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

# What starts processes is left out, by a rule: see tests/fast.py.
test-fast: $(STAMP)  ## the tests that start no process: no Ray, store or server; 2 minutes, for the inner loop
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -p tests.fast tests

lint: docs  ## ruff, the import contracts, mypy, and the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# Not --quiet: it hides warnings from --strict, too.
docs: $(STAMP)  ## the documentation as a searchable site in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

package: $(STAMP)  ## a wheel and a source distribution in dist/
	$(BIN)/python -m build --no-isolation

bench: $(STAMP)  ## every benchmark; results in benchmarks/results
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-data: $(BENCH_STAMP)  ## the data engine against other loaders; tables in docs/data.md
	@for name in $(DATA_BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# Every verb runs, whatever becomes of those before it. On a machine without network: docs/gpu.md.
gpu: $(STAMP)  ## the proof on one GPU; GPU_ARGS="--device cpu --size nano" for a dry run on the CPU
	@failed=; for verb in $(GPU_VERBS); do echo "== $$verb"; \
	  $(BIN)/python -m benchmarks.gpu $$verb $(GPU_ARGS) || failed="$$failed $$verb"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

lmms: .venv-lmms/.installed  ## an environment of lmms-eval, for `.venv-lmms/bin/python -m jobs.lmms`

clean:  ## removes the environment, caches and what the demos wrote
	rm -rf .venv .venv-lmms .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build dist site runs/demo runs/demo-full runs/demo-cluster
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and removed first: without it, what is in .venv may be half made and is made again; with it, a
# changed list of dependencies is only installed on top.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is not Python 3.11 or later; name one that is: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@if [ -e $@ ] && $(BIN)/pip --version >/dev/null 2>&1; then rm $@; else $(PYTHON) -m venv --clear .venv; fi
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# mosaicml-streaming comes without its dependencies: its pins are old (numpy 1, and the clients of five clouds), and would
# put other versions in the place of ours. What it needs to read from S3 is in the extra.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps mosaicml-streaming
	@touch $@

# lmms-eval comes without its dependencies (see the extra) and reaches into filelock 3.
.venv-lmms/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[lmms]'
	.venv-lmms/bin/pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3 'filelock<4'
	@touch $@
