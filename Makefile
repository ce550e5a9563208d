# Every target is one plain command that can be typed without make.
PYTHON ?= python3
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c
export PYTHONSAFEPATH = 1
# what a process compiles, the next ones need not: pip leaves it to them, as most modules are never imported
unexport PYTHONDONTWRITEBYTECODE
# folders of tests that have long runs; the record of each lies in benchmarks/results/test_long
LONG = cli demo formats generate kernels library project prompts runtime sources train

# folders of tests that are quick, whatever is changed
QUICK = formats prompts registry

# documents of which the program writes a part
GENERATED = README.md docs/architecture.md docs/cli.md docs/comfyui.md docs/initialisations.md

.PHONY: demo test check browser test-long lint style types types-package types-tests build/typecheck generated format docs dist train-demo bench clean

demo: .venv/installed          ## index, convert and draw with the bundled library; leaves demo-output/grid.png
	.venv/bin/hnetkit demo --overwrite

test: .venv/installed .venv/triton-3.6.0 ## the whole suite, about a quarter of an hour on 2 cores
	.venv/bin/python -m pytest -n 2 -rs

browser:                       ## Debian's Chromium, in which the tests of the gallery look at its pages
	apt-get install -y --no-install-recommends chromium

check: lint                    ## lint, and the tests that need no model, no site and no other process: a minute or two
	.venv/bin/python -m pytest -q -n 2 $(QUICK:%=tests/%)

test-long: $(LONG:%=test-long-%) ## seeded runs of many minutes: fuzzing, killed scans and trainings, full disks, the demo model's full factorial

test-long-%: .venv/installed .venv/triton-3.6.0
	.venv/bin/python -m pytest -m long --timeout 7200 --durations 0 -v --no-header --disable-warnings tests/$* | tee benchmarks/results/test_long/$*.txt

lint: style types generated    ## ruff, mypy (strict for the package), and generated docs up to date

style: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: types-package types-tests

# as pip installs it: a package that is not named in pyproject.toml is not found
build/typecheck: .venv/installed
	rm -rf build && .venv/bin/pip install -q --no-deps --no-build-isolation --target build/typecheck .

types-package: build/typecheck
	cd build/typecheck && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p hnetkit

types-tests: build/typecheck
	cd build/typecheck && ../../.venv/bin/mypy --config-file ../../tests/mypy.ini --cache-dir ../../.mypy_cache/tests ../../tests ../../tools ../../benchmarks

generated: .venv/installed
	.venv/bin/cog --check $(GENERATED)

bench: .venv/installed         ## every benchmark of benchmarks/, about half an hour on 2 cores
	PYTHONSAFEPATH= .venv/bin/python benchmarks/read.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/library.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/real_size.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/strengths.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/other_models.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/initialisations.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/training.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/sync.py
	PYTHONSAFEPATH= .venv/bin/python benchmarks/gallery.py

train-demo: .venv/installed    ## the bundled model and its hypernetworks from nothing, about two hours on 2 cores
	PYTHONPATH=tools .venv/bin/python -m demo_training.train --work demo-work --out hnetkit/demo

format: .venv/installed        ## ruff's own formatting and safe fixes
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: .venv/installed          ## regenerate what documents take from the program: references, tables, transcripts
	.venv/bin/cog -r $(GENERATED)

dist: .venv/installed          ## the wheel and the sources of a release in dist/, checked, installed afresh and run
	.venv/bin/python -m pip install -q -c constraints.txt --group release
	.venv/bin/python tools/release.py

clean:
	rm -rf .venv build dist demo-output demo-work

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --upgrade "pip>=25.1"
	.venv/bin/python -m pip install -q --no-compile -c constraints.txt -e ".[all]" --group dev
	touch .venv/installed

# the oldest Triton that kernels are compiled with, beside the environment's own
.venv/triton-3.6.0: .venv/installed
	.venv/bin/python -m pip install -q --no-compile --no-deps --target .venv/triton-3.6.0 triton==3.6.0
	touch .venv/triton-3.6.0
