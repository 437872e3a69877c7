PYTHON ?= python3
.venv/stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[test,dev]'
	touch $@
.PHONY: test
test: .venv/stamp
	.venv/bin/python -m pytest -q tests
