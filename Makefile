# Two commands do it all: `make demo` and `make test`. Each sets up .venv first.
# pip takes torch from where it is configured to look; for the small CPU build set TORCH_INDEX (see README).

OUT ?= demo_out
PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet -c constraints.txt
TORCH = torch==2.13.0

.PHONY: demo test test-fast lint lock container-test clean

demo: .venv/ready
	.venv/bin/python run.py demo $(OUT) participant
	@echo
	@echo "Reports: $(abspath $(OUT))/sub-07.html and sub-26.html"

test: lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadscope  # a process for each core

test-fast: .venv/ready-to-test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadscope -m 'not slow'

lint: .venv/ready-to-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy
	.venv/bin/codespell

# After a change of pyproject.toml or constraints.txt: the image's locks and the table of licences (Python 3.11, x86-64).
lock:
	$(PYTHON) container/lock.py
	$(MAKE) .venv/ready-to-test
	.venv/bin/python container/licenses.py

# Builds the image and runs it, without Docker; as root on Debian 12, see container/test.
container-test: .venv/ready
	container/test

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP_INSTALL) --editable '.[all]'
	touch $@

.venv/ready-to-test: .venv/ready
	$(PIP_INSTALL) --editable '.[test,docs]'
	touch $@

clean:
	rm -rf .venv demo_out build *.egg-info
