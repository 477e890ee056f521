# Everything runs in .venv, which is made on first use. Set VENV to use another environment.
VENV ?= .venv
PY := $(VENV)/bin/python
SAE := $(VENV)/bin/sae
PYTHON ?= python3
WORKERS ?= 2
# the runs that SAELens can open
RUNS = $(patsubst %/cfg.json,%,$(wildcard runs/*/cfg.json runs/*/*/cfg.json))

.PHONY: demo test check bench bench-peers bench-losses bench-gpu bench-memory bench-seeds bench-checkpoints gpu-kernels dashboard sweep kill-test edit-test ranks accessibility journeys saelens-check saelens-import saebench-check saedashboard-times circuit-demo circuit-agreement circuit-tracer-check clean fuzz

demo: $(VENV)/.done            ## train, measure, index and label the quickstart SAE of SmolLM2-135M, followed in the browser
	$(SAE) demo

# one thread a worker; tests that share a server, a trained run or an index stay in one worker; the longest begin first (tests/conftest.py)
test: $(VENV)/.done            ## the whole quick test suite
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

check: $(VENV)/.done           ## lint and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(VENV)/.done           ## harvest, cache, index and end-to-end benchmarks
	mkdir -p benchmarks
	$(SAE) bench harvest --out benchmarks/harvest.json
	$(SAE) bench cache --out benchmarks/cache.json
	$(SAE) bench index --out benchmarks/index.json
	$(SAE) bench e2e --out benchmarks/e2e.json

dashboard: $(VENV)/.done       ## browse the runs: http://localhost:8501
	$(SAE) dashboard

sweep: $(VENV)/.done           ## six SAEs on one stream, then each alone: equality and time
	$(PY) -m tests.e2e.sweep_times

kill-test: $(VENV)/.done       ## kill -9 at 20 random moments, resume, compare bytes
	$(PY) -m tests.e2e.kills --kills 20

.PHONY: kill-many-test store-test
kill-many-test: $(VENV)/.done  ## four processes make a cache, then an index; kill -9 one at 10 random moments, compare bytes
	OMP_NUM_THREADS=1 $(PY) -m tests.e2e.many_processes --kills 10

store-test: $(VENV)/.done      ## a cache in an S3 server on loopback: several processes fill it, and tokens/s beside the disk
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow tests/training/storage
	OMP_NUM_THREADS=1 $(PY) -m tests.e2e.store_times

edit-test: $(VENV)/.done       ## two browsers edit one run 200 times at random: nothing is lost, every conflict is shown
	$(PY) -m tests.dashboard.two_editors --actions 200

fuzz: $(VENV)/.done            ## ten thousand and more damaged configs, manifests and files: no traceback, nothing that is not meant
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) tests/fuzz --hypothesis-profile=many

accessibility: $(VENV)/.done   ## what axe finds on every page, light and dark, wide and narrow
	$(PY) -m tests.dashboard.accessibility

journeys: $(VENV)/.done        ## the ways through the dashboard in a real browser, which `make test` walks too
	$(PY) -m pytest --durations=10 $(wildcard tests/dashboard/test_*journeys.py)

circuit-demo: $(VENV)/.done    ## a first circuit: five small SAEs, then subject-verb agreement as a tested graph (minutes)
	$(SAE) train configs/circuits/demo-saes.yaml --resume
	$(SAE) circuit configs/circuits/demo.yaml
	$(SAE) circuit show circuits/demo --html circuits/demo.html
	@echo "look at it: circuits/demo.html, or analysis/notebooks"

circuit-agreement: $(VENV)/.done  ## the circuit of docs/results: thirteen SAEs, 128 pairs, all baselines (under 90 minutes)
	$(SAE) train configs/circuits/smollm2-saes.yaml --resume
	$(SAE) circuit configs/circuits/agreement.yaml
	$(SAE) circuit show circuits/agreement --tables docs/results --html circuits/agreement.html

reproduce-%: $(VENV)/.done     ## an experiment's jobs and tables: docs/results/NAME.csv; goes on where it was stopped
	$(SAE) reproduce $*

bench-peers: $(VENV)/.done .peers/saelens/.done     ## training steps beside SAELens and dictionary_learning
	.peers/saelens/bin/pip install --quiet --no-deps dictionary-learning==0.1.0
	.peers/saelens/bin/pip install --quiet einops
	$(SAE) bench kernels --peers .peers/saelens/bin/python --out benchmarks

bench-losses: $(VENV)/.done .peers/saelens/.done    ## losses after the same 200 steps as SAELens and dictionary_learning take
	$(SAE) bench kernels --shape 2048,768,16384,32 --dead 0 --variants topk --no-compile --no-memory --loss-steps 200 \
		--peers .peers/saelens/bin/python --out benchmarks/kernel-losses.json

bench-gpu: $(VENV)/.done .peers/saelens/.done       ## the same on a CUDA device, with sparsify, and the kernels' tests there
	.peers/saelens/bin/pip install --quiet --no-deps dictionary-learning==0.1.0 eai-sparsify==1.3.3 natsort schedulefree
	.peers/saelens/bin/pip install --quiet einops
	$(PY) -m pytest -m gpu tests/sae/kernels/test_gpu.py tests/training/bench/test_kernels.py
	$(SAE) bench kernels --device cuda --peers .peers/saelens/bin/python --out benchmarks

gpu-kernels: $(VENV)/.done     ## compile every Triton kernel ahead of time for sm_80 too (make test: sm_90)
	$(PY) -m pytest -m slow tests/sae/kernels/test_gpu_ahead_of_time.py

bench-memory: $(VENV)/.done    ## the peak memory of a step with 262,144 features
	$(PY) -m pytest -s -m slow tests/training/bench/test_kernels.py

bench-seeds: $(VENV)/.done     ## the quickstart through each kernel backend, from three seeds: equal ends
	$(PY) -m tests.e2e.kernel_seeds --out benchmarks/kernel-seeds.json

ranks: $(VENV)/.done           ## trainings by 1, 2 and 4 processes that share rows and features: equality, memory, kills (30 minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow tests/training/distributed
	$(PY) -m tests.e2e.ranks --out docs/results/ranks.csv
	$(PY) -m tests.e2e.ranks --double --out docs/results/ranks-fp64.csv
	$(PY) -m tests.e2e.rank_memory --out docs/results/rank-memory.csv
	$(PY) -m tests.e2e.rank_kills --kills 10

bench-checkpoints: $(VENV)/.done  ## a training with a checkpoint every minute beside the same one without (20 minutes)
	$(PY) -m tests.e2e.checkpoint_times --out benchmarks/checkpoints.json

saedashboard-times: $(VENV)/.done .peers/saedashboard/.done     ## sae index beside SAEDashboard, from one cache
	$(PY) -m tests.peers.saedashboard_times runs/quickstart --python .peers/saedashboard/bin/python \
		--out benchmarks/saedashboard.json

saelens-check: $(VENV)/.done .peers/saelens/.done   ## open the runs in SAELens, and SAELens' SAEs here
	$(PY) -m tests.peers.rows $(firstword $(RUNS)) .peers/rows.safetensors
	$(PY) -m tests.peers.saelens_check --saelens .peers/saelens/bin/python --rows .peers/rows.safetensors $(RUNS)

saelens-import: $(VENV)/.done .peers/saelens/.done  ## an SAE that SAELens trains, imported: its own figures, and its pages
	$(PY) -m tests.peers.saelens_import --saelens .peers/saelens/bin/python

saebench-check: $(VENV)/.done .peers/saebench/.done  ## core, absorption and probes beside SAEBench's own; its known errors by hand
	$(PY) -m tests.peers.saebench_check --saebench .peers/saebench/bin/python --out benchmarks/saebench.json
	$(PY) -m tests.peers.saebench_features --saebench .peers/saebench/bin/python

# CIRCUIT_TRACER=CHECKOUT of decoderesearch/circuit-tracer at 0.4.1, and if you like NEURONPEDIA_SCHEMA=graph-schema.json,
# GRAPHS="FILE ..." of theirs and CIRCUITS="circuits/NAME ..." of ours
circuit-tracer-check: $(VENV)/.done                 ## our graphs under circuit-tracer's own models, theirs opened here
	$(PY) -m tests.peers.circuit_tracer_check --circuit-tracer "$(CIRCUIT_TRACER)" \
		$(if $(NEURONPEDIA_SCHEMA),--neuronpedia-schema "$(NEURONPEDIA_SCHEMA)") $(addprefix --graph ,$(GRAPHS)) $(CIRCUITS)

.peers/saelens/.done:
	$(PYTHON) -m venv .peers/saelens
	.peers/saelens/bin/pip install --quiet torch==2.13.0
	.peers/saelens/bin/pip install --quiet torch==2.13.0 sae-lens==6.54.12
	touch $@

.peers/saebench/.done:
	$(PYTHON) -m venv .peers/saebench
	.peers/saebench/bin/pip install --quiet torch==2.13.0
	@# loguru: SAEBench imports it and does not ask for it
	.peers/saebench/bin/pip install --quiet torch==2.13.0 sae-bench==0.6.0 sae-lens==6.54.12 loguru
	@# it is built for another torch than a CPU's own, transformers fails beside one that does not load, and nothing needs it
	.peers/saebench/bin/pip uninstall --quiet --yes torchvision
	touch $@

.peers/saedashboard/.done:
	$(PYTHON) -m venv .peers/saedashboard
	.peers/saedashboard/bin/pip install --quiet torch==2.13.0
	.peers/saedashboard/bin/pip install --quiet torch==2.13.0 sae-dashboard==0.8.0
	@# a newer pyarrow refuses the NumPy that SAEDashboard asks for
	.peers/saedashboard/bin/pip install --quiet 'pyarrow<22'
	touch $@

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	@# torch first and by its pinned version: a range would bring gigabytes of CUDA packages to a machine without a GPU
	$(PY) -m pip install -qq -c constraints.txt torch
	$(PY) -m pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

clean:                         ## remove the environment and everything trained here
	rm -rf $(VENV) .peers runs cache
