# `make` prints the targets. CI runs `make ci`.

CARGO  ?= cargo
PYTHON ?= python3
VENV   := .venv
PACKAGE := clients/pyinfra-orbd
CLIENT := clients/python
SCRIPTS := .ci/dependencies .ci/release-check .ci/version
ORBCTL ?= sim
CYCLES ?= 1000
COMMANDS ?= 100000

.PHONY: help demo docs test test-unit test-rust test-python test-python-oldest test-answers test-wheel fmt fix check check-format check-rust \
	check-python check-spelling conformance coverage-rust hooks ci deny soak soak-channels bench bless dist wheels formula version package release-check clean
.DELETE_ON_ERROR:

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

demo: $(VENV)/ready $(VENV)-predecessor/ready ## show in half a minute what orbd is for (ORBCTL=real on a Mac uses OrbStack)
	$(CARGO) build --profile demo --locked --bins -p orbd -p orbd-ctl -p orbctl-sim
	@VENV=$(CURDIR)/$(VENV) VENV_PREDECESSOR=$(CURDIR)/$(VENV)-predecessor BIN=$(CURDIR)/target/demo ORBCTL=$(ORBCTL) demo/run.sh

test: test-rust test-python test-python-oldest ## run every test of every language

test-unit: $(VENV)/ready ## run the tests that need no daemon
	$(CARGO) test --lib --bins
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/python -m pytest -m "not needs_daemon"

test-rust: ## run all Rust tests
	$(CARGO) test --workspace --exclude orbd-tests
	# More threads than a small computer has cores: the end-to-end tests mostly wait for processes.
	$(CARGO) test -p orbd-tests -- --test-threads=4

test-python: $(VENV)/ready $(VENV)-predecessor/ready ## run all Python tests, and measure which lines they cover
	$(CARGO) build --bins
	cd $(PACKAGE) && rm -f .coverage* && $(CURDIR)/$(VENV)/bin/python -m coverage run -m pytest
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/python -m coverage combine --quiet && $(CURDIR)/$(VENV)/bin/python -m coverage report

test-python-oldest: $(VENV)/oldest/ready ## run the connector's tests with the oldest supported PyInfra
	cd $(PACKAGE) && PYTHONPATH=$(CURDIR)/$(VENV)/oldest $(CURDIR)/$(VENV)/bin/python -m pytest -m "not needs_daemon" \
		tests/test_connector.py tests/test_cli.py

test-wheel: $(VENV)/ready $(VENV)/wheelhouse/ready ## install the wheels as users do, and use them: pip, uv, pipx, upgrades
	$(CARGO) build --bins
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/python -m pytest wheel_tests

fmt: ## format Rust, and Python if its environment exists
	$(CARGO) fmt --all
	! [ -x $(VENV)/bin/ruff ] || (cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/ruff format . $(CURDIR)/$(CLIENT))

fix: $(VENV)/ready ## apply the fixes that clippy and ruff suggest, then format
	$(CARGO) clippy --workspace --fix --allow-dirty --allow-staged --all-targets
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/ruff check --fix . $(CURDIR)/$(CLIENT)
	$(MAKE) fmt

check: check-format check-spelling check-rust check-python ## check format, spelling, lints, types and documentation

check-format: $(VENV)/ready ## check the format of Rust and Python
	$(CARGO) fmt --all --check
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/ruff format --check . $(CURDIR)/$(CLIENT)
	$(VENV)/bin/ruff format --check --line-length 130 $(SCRIPTS)

check-spelling: $(VENV)/ready ## check the spelling of everything; .typos.toml lists the exceptions
	$(VENV)/bin/typos

check-rust: ## the Rust part of check; needs no network once the crates are there
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

check-python: $(VENV)/ready ## the Python part of check
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/ruff check . $(CURDIR)/$(CLIENT) && $(CURDIR)/$(VENV)/bin/mypy
	$(VENV)/bin/ruff check --select B,E,F,I,PERF,RUF,SIM,UP --line-length 130 $(SCRIPTS)
	$(VENV)/bin/python $(CLIENT)/tools/generate.py --check

docs: $(VENV)/docs ## build the documentation in build/docs; warnings, such as dead links, are errors
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --builder html --conf-dir docs . build/docs
	@echo "open build/docs/index.html"

coverage-rust: ## measure which lines the Rust unit tests reach (needs cargo-tarpaulin; see CONTRIBUTING.md)
	$(CARGO) tarpaulin --engine ptrace --workspace --exclude orbd-conformance --exclude orbd-tests --exclude orbctl-sim --lib --bins --target-dir target/coverage \
		--exclude-files 'tests/*' --exclude-files '*/tests.rs' -- --test-threads 1

hooks: $(VENV)/ready ## install git hooks that run the checks of CI before each commit and push
	$(VENV)/bin/pre-commit install

ci: ## everything that CI runs on Linux; installs Debian packages if run as root
	.ci/run

deny: ## check licences, sources and advisories of dependencies (needs cargo-deny and the network)
	$(CARGO) deny check

test-answers: $(VENV)/ready ## run tests with the other answer to each open claim about orbctl, and print what breaks (ARGS=CLAIM)
	$(CARGO) build --quiet --bins
	$(CARGO) test --quiet -p orbd-tests --test suite --no-run
	target/debug/orbd-answers $(ARGS)

conformance: ## check what orbd assumes about orbctl: the stand-in, or OrbStack (ORBCTL=real, or a path; ARGS=--create with machines)
	$(CARGO) build --quiet -p orbctl-sim -p orbd-conformance
	target/debug/orbd-conformance --orbctl $(ORBCTL) $(ARGS)

soak: ## kill the daemon under load 1000 times (CYCLES=n) and print the figures
	ORBD_SOAK_CYCLES=$(CYCLES) $(CARGO) test -p orbd-tests --test suite -- --nocapture under_load_and_many_deaths

bench: ## run the benchmarks, each figure as a ratio beside its limit
	$(CARGO) bench

soak-channels: ## run 100,000 commands (COMMANDS=n) through channels while their processes are killed, then every combination of shells
	ORBD_SOAK_CYCLES=1 ORBD_SOAK_COMMANDS=$(COMMANDS) $(CARGO) test -p orbd-tests --test suite -- --nocapture channel_soak
	ORBD_SOAK_CYCLES=1 $(CARGO) test -p orbd-tests --test suite -- --ignored every_combination_of_shells

bless: $(VENV)/ready ## rewrite proto/openrpc.json, what is generated from it, the golden examples, docs/claims.md and the reference in docs/cli.md
	ORBD_BLESS=1 $(CARGO) test -p orbd-tests --test suite -- claims golden published
	ORBD_BLESS=1 $(CARGO) test -p orbd-ctl -- reference
	$(VENV)/bin/python $(CLIENT)/tools/generate.py

dist: ## build the release archive for this system, or for TARGET=...
	TARGET=$(TARGET) .ci/dist

wheels: $(VENV)-release/ready ## build both Python distributions into dist, with the programs that `make dist` has built
	PYTHON=$(CURDIR)/$(VENV)-release/bin/python TARGET=$(TARGET) .ci/wheels

formula: ## write the Homebrew formula of a release to dist (URL=... SHA256=... of the source archive)
	URL=$(URL) SHA256=$(SHA256) .ci/formula

version: ## print the version, or set it in every place (VERSION=1.2.0-rc.1)
	.ci/version $(VERSION)

package: ## build the crates from their packages, as `cargo install` does
	$(CARGO) package --locked $(foreach crate,orbd-proto orbd-client orbd-host orbd orbd-ctl,-p $(crate))

release-check: $(VENV)-release/ready ## build and check everything that a release publishes for this system
	$(VENV)-release/bin/python .ci/release-check

$(VENV)/ready: $(PACKAGE)/requirements-dev.txt $(PACKAGE)/pyproject.toml $(CLIENT)/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(PACKAGE)/requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable $(CLIENT) --editable $(PACKAGE)
	touch $@

$(VENV)-release/ready: .ci/requirements-release.txt
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --disable-pip-version-check -r .ci/requirements-release.txt
	touch $@

# Wheels of what ours need, so that installing them needs no network.
$(VENV)/wheelhouse/ready: $(PACKAGE)/requirements-dev.txt $(VENV)/ready
	rm -rf $(VENV)/wheelhouse
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir $(VENV)/wheelhouse \
		$$(grep -E '^(hatchling|pyinfra)==' $(PACKAGE)/requirements-dev.txt)
	touch $@

$(VENV)/docs: docs/requirements.txt $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

# A folder that hides the newer PyInfra of the same environment. `pip check` fails if the two ever need different dependencies.
$(VENV)/oldest/ready: $(PACKAGE)/requirements-oldest.txt $(VENV)/ready
	rm -rf $(VENV)/oldest
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/oldest -r $(PACKAGE)/requirements-oldest.txt
	PYTHONPATH=$(VENV)/oldest $(VENV)/bin/python -m pip check
	touch $@

# The predecessor's connector, which tests run through the drop-in. It has the package name `pyinfra_orbstack` and the entry point
# `orbstack`, as this package does, so they cannot be in one environment.
$(VENV)-predecessor/ready: $(PACKAGE)/requirements-predecessor.txt
	$(PYTHON) -m venv $(VENV)-predecessor
	$(VENV)-predecessor/bin/python -m pip install --quiet --disable-pip-version-check -r $(PACKAGE)/requirements-predecessor.txt
	touch $@

clean: ## remove build output and virtual environments
	$(CARGO) clean
	rm -rf $(VENV) $(VENV)-predecessor $(VENV)-release dist
