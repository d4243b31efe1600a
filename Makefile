# `make demo` and `make test` are the only two commands a fresh clone needs; both create .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo hospital test test-slow check docs wheel bench clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/unary demo --out demo

# A PACS (Debian's orthanc), a node and its review page for a try on phantoms, until Ctrl-C: docs/hospital.md.
hospital: .venv/.installed
	$(BIN)/python deploy/hospital.py

TESTS = $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: .venv/.installed
	$(TESTS) -m "not slow"

# What runs whole programs end to end: tutorials, a hospital with its PACS, Ray, kills at random moments.
test-slow: .venv/.installed
	$(TESTS) -m slow

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The wheel, and a fresh environment with nothing but it: `unary` finds something in a synthetic mammogram there.
wheel: .venv/.installed
	rm -rf build/wheel
	$(BIN)/python -m build --quiet --wheel --outdir build/wheel .
	$(BIN)/twine check --strict build/wheel/*.whl
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/python ../../tests/installed.py
# The documentation as a site, build/docs/index.html, without network; its notebooks run anew only where they have changed.
docs: .venv/.installed
	$(BIN)/python -m sphinx -b html -W --keep-going -n docs build/docs
	@echo build/docs/index.html

# Everything that is timed, each part with a table and a line of JSON: some one and a half hours on two cores. Any part runs by
# itself as well; benchmarks/export.py and benchmarks/tracking.py take a model of yours. A million patches out of core: benchmarks/out_of_core.py --patches 1000000 (33 GB on disk).
bench: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/out_of_core.py --patches 10000 100000 --rounds 1
	$(BIN)/python benchmarks/laplacian.py
	$(BIN)/python benchmarks/whole_image.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/small_images_speed.py
	$(BIN)/python benchmarks/archive.py

clean:
	rm -rf .venv build demo hospital .pytest_cache .mypy_cache .ruff_cache
