# `make pretrain`, `make finetune` and `make test` are all that a newcomer needs; each can be repeated.
.PHONY: pretrain finetune test test-distribution test-oldest test-oldest-triton test-peer test-robustness test-sanitizers \
	docs dist lint bench throughput gpu-proof clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRANSFORMERS := $(shell sed -n 's/^transformers==//p' constraints.txt)
MODEL ?= checkpoints/glyphcrm-tiny
BIN := .venv/bin
# A test process a core, each with one thread; tests of a file stay together, as they share what is dear to make.
PYTEST := -m pytest -n logical --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

pretrain: .venv/installed
	$(BIN)/python pretrain.py $(ARGS)

# Both task families on texts that a pip package brings along: sentiment of reviews, names in the news.
finetune: .venv/installed
	$(BIN)/python finetune.py recipes/demo_sentiment.yaml --model $(MODEL) $(ARGS)
	$(BIN)/python finetune.py recipes/demo_ner.yaml --model $(MODEL) $(ARGS)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow"

# The kernels on the Triton that torch 2.13's CUDA build requires; `test` has the newest, where torch requires none.
test-oldest-triton: .venv/triton-3.7.1
	PYTHONPATH=.venv/triton-3.7.1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) tests/kernels -m "not slow"

.venv/triton-3.7.1: .venv/installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ triton==3.7.1
	touch $@

# The oldest versions that are supported. From plain PyPI their torch brings 7 GB of CUDA packages.
test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python $(PYTEST) -m "not slow" $(OLDEST_TESTS) $(addprefix --deselect ,$(DESELECTED))

# Every line of the ecosystem's table but transformers' own tests, which are those of one version; and what else calls parts
# of torch and transformers that have changed.
OLDEST_TESTS ?= $(shell grep -o 'tests/[a-z_/]*[.]py::[a-z_]*' docs/ecosystem.md | grep -v tests/peer) \
    $(addprefix tests/modeling/test_,backend.py::test_autocast backend.py::test_kernels_and_reference_agree attention.py bert.py \
        drop_in.py export.py layer_calls.py model.py packed_rows.py pipelines.py transformers_training.py) \
    tests/test_tokenization.py tests/data/test_remote_text.py tests/data/test_text_files.py \
    tests/training/test_recipe_file.py tests/kernels/addnorm tests/finetuning/test_metrics.py tests/finetuning/test_charts.py \
    tests/test_shipped_checkpoint.py
# With torch 2.9 and dropout, the loss of a compiled graph differs from the plain one by 2e-4 (docs/proof.md); its compiler
# takes no distinct characters that it has to find itself, and describes convolutions on "meta" in another memory order.
# The masks of transformers 5.4 cannot be traced.
DESELECTED := "tests/modeling/test_attention.py::test_the_same_masks_under[compiled]" \
    tests/modeling/test_export.py::test_a_compiled_graph_takes_batches_of_any_shape \
    tests/modeling/test_export.py::test_a_traced_graph_takes_batches_of_any_shape \
    "tests/modeling/test_export.py::test_an_embedding_of_pictures_in_a_graph[compiled]" \
    tests/modeling/test_packed_rows.py::test_no_graph_break_around_flash_attention

.venv-oldest/installed: pyproject.toml setup.py constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt \
	    --editable ".[pretrain,finetune,demo]" accelerate aiohttp datasets peft sentence-transformers pytest \
	    pytest-benchmark pytest-xdist hypothesis
	touch $@

# The C functions under gcc's address and undefined-behaviour sanitizers, and as clang builds them.
test-sanitizers: .venv/installed
	$(BIN)/python -m pytest tests/kernels/test_compilers.py

# transformers' own tests of a model, on ours: they are in its source distribution, which its wheel is without.
test-peer: .venv/transformers-$(TRANSFORMERS)/tests/__init__.py
	$(BIN)/python -m pytest tests/peer

.venv/transformers-$(TRANSFORMERS)/tests/__init__.py: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt parameterized
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest .venv \
	    transformers==$(TRANSFORMERS)
	tar -xzf .venv/transformers-$(TRANSFORMERS).tar.gz -C .venv
	touch $@

# Malformed inputs through every public surface, runs killed at any moment, a whole reproduction too, two runs in one
# directory: totals in under twenty minutes. A short part of it is in `make test`. GLYPHCRM_KILLS=1000 kills so often.
test-robustness: .venv/installed
	$(BIN)/python -m pytest tests/robustness tests/reproduce/test_reproduce.py

# What pip installs, built and installed into empty environments: the whole, and the kernels alone.
test-distribution: .venv/installed
	$(BIN)/python -m pytest tests/test_distribution.py tests/kernels/test_install.py

# The documentation as a site, in site/; a dead link or a page that is in no menu is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheels of both distributions, the whole and the kernels alone, in dist/.
dist: .venv/installed
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./kernels

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pytest bench/ --benchmark --benchmark-json=bench-results.json -k "not throughput"

# GlyphCRM beside BERT: tokens a second, memory, data, start-up. Minutes even where nothing else runs.
throughput: .venv/installed
	$(BIN)/python -m pytest bench/ --benchmark -k throughput $(ARGS)

# On a machine with a GPU: everything that only a GPU can prove, into gpu-proof/report.md.
gpu-proof: .venv/installed
	$(BIN)/python -m bench.gpu_proof $(ARGS)

# torch comes first and by its exact version: later, a range might bring another build.
.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[pretrain,finetune,demo,reproduce,onnx,web,docs,test]"
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist site *.egg-info
