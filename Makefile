# The verbs of this project. CI calls only these.
#
#   make demo     a real PyInfra deploy through orbd, from a bare checkout (ORBCTL=real on a Mac uses OrbStack)
#   make test     every test of every language
#   make test-unit  the part of it that needs no daemon
#   make check    formatting, lints, documentation
#   make deny     licences, sources and known faults of what orbd is built of (needs cargo-deny and the network)
#   make soak     a thousand deaths of the daemon under load (CYCLES=n for another number); prints its figures
#   make bench    benches, each figure as a ratio beside its bar
#   make bless    rewrites proto/openrpc.json, the golden examples and the reference in docs/cli.md from the code
#   make dist     the archive of a release for this system, or for TARGET=...
#   make formula  the Homebrew formula of a release (VERSION=... SHA256=...)
#   make clean    removes what the above made

CARGO  ?= cargo
PYTHON ?= python3
VENV   := .venv
PACKAGE := clients/pyinfra-orbd
ORBCTL ?= sim
CYCLES ?= 1000

.PHONY: demo test test-unit test-rust test-python test-python-oldest check deny soak bench bless dist formula clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(CARGO) build --release --bins --features sim
	VENV=$(CURDIR)/$(VENV) BIN=$(CURDIR)/target/release ORBCTL=$(ORBCTL) demo/run.sh

test: test-rust test-python test-python-oldest

test-unit: $(VENV)/ready
	$(CARGO) test --features sim --lib --bins
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/python -m pytest -m "not needs_daemon"

test-rust:
	$(CARGO) test --features sim

test-python: $(VENV)/ready $(VENV)-predecessor/ready
	$(CARGO) build --bins --features sim
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/python -m pytest

# The connector with the oldest PyInfra that it promises to run with.
test-python-oldest: $(VENV)-oldest/ready
	cd $(PACKAGE) && $(CURDIR)/$(VENV)-oldest/bin/python -m pytest -m "not needs_daemon" tests/test_connector.py tests/test_cli.py

check: $(VENV)/ready
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features sim -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --features sim
	cd $(PACKAGE) && $(CURDIR)/$(VENV)/bin/ruff format --check . && $(CURDIR)/$(VENV)/bin/ruff check . && $(CURDIR)/$(VENV)/bin/mypy

deny:
	$(CARGO) deny check

soak:
	ORBD_SOAK_CYCLES=$(CYCLES) $(CARGO) test --features sim --test suite -- --nocapture under_load_and_many_deaths

bench:
	$(CARGO) bench --features sim

bless:
	ORBD_BLESS=1 $(CARGO) test --features sim --test suite -- golden published
	ORBD_BLESS=1 $(CARGO) test --features sim --bin orbd-ctl -- reference

dist:
	TARGET=$(TARGET) .ci/dist

formula:
	VERSION=$(VERSION) SHA256=$(SHA256) .ci/formula

$(VENV)/ready: $(PACKAGE)/requirements-dev.txt $(PACKAGE)/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(PACKAGE)/requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable $(PACKAGE)
	touch $@

$(VENV)-oldest/ready: $(PACKAGE)/requirements-oldest.txt $(PACKAGE)/pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r $(PACKAGE)/requirements-oldest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable $(PACKAGE)
	touch $@

# What the drop-in is proved with; its package and ours cannot be in one environment.
$(VENV)-predecessor/ready: $(PACKAGE)/requirements-predecessor.txt
	$(PYTHON) -m venv $(VENV)-predecessor
	$(VENV)-predecessor/bin/python -m pip install --quiet --disable-pip-version-check -r $(PACKAGE)/requirements-predecessor.txt
	touch $@

clean:
	$(CARGO) clean
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-predecessor
