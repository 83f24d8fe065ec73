.PHONY: format check test test-all docs

# A process for each core, up to four, each with one thread. A file's tests share what is costly, so they stay together.
PYTEST = OMP_NUM_THREADS=1 python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

format:  ## Rewrite the code in the project's format
	ruff format .
	ruff check --fix .

check:  ## Format, lint and types, as CI sees them
	ruff format --check .
	ruff check .
	mypy dinomix_monai

test:  ## All tests that need neither a GPU nor more than a few minutes
	$(PYTEST) -m "not gpu"

test-all:  ## Everything
	$(PYTEST)

docs:  ## The documentation as a site in site/, with an error for each dead link
	mkdocs build --strict
