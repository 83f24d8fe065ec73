.PHONY: format check test test-all docs

format:  ## Rewrite the code in the project's format
	ruff format .
	ruff check --fix .

check:  ## Format, lint and types, as CI sees them
	ruff format --check .
	ruff check .
	mypy dinomix_monai

test:  ## All tests that need neither a GPU nor more than a few minutes
	python -m pytest -q -m "not gpu"

test-all:  ## Everything
	python -m pytest -q

docs:  ## The documentation as a site in site/, with an error for each dead link
	mkdocs build --strict
