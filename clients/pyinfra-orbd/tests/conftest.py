"""Fixtures: short socket paths, the fake and the real daemon, and PyInfra hosts.

With ``ORBD_REQUIRE_ALL`` set, as in CI, a skipped test is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.api.host import Host

from fake_daemon import FakeDaemon, ShellMachines
from orbd import Client, _find_ctl
from pyinfra_orbd import _client
from real_daemon import RealDaemon, temporary_daemon


def pytest_report_header() -> str:
    """Names the version of PyInfra, because ``make test-python-oldest`` selects another one with ``PYTHONPATH``."""
    return f"pyinfra: {version('pyinfra')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves tests that run deploys in this process to the end.

    They start gevent's loop, which from then on reaps all children of this process, also those that other tests wait for.
    """
    items.sort(
        key=lambda item: hasattr(getattr(item, "module", None), "playing") or hasattr(getattr(item, "module", None), "play")
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure if ``ORBD_REQUIRE_ALL`` is set."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("ORBD_REQUIRE_ALL"):
        report.outcome = "failed"
        report.longrepr = f"ORBD_REQUIRE_ALL is set, and {item.nodeid} was skipped: {call.excinfo}"
    return report


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="orbd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def no_ctl(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory on PATH, and no ``orbd-ctl`` anywhere."""
    monkeypatch.delenv("ORBD_CTL", raising=False)
    monkeypatch.setenv("PATH", str(short_folder))
    monkeypatch.setattr(_find_ctl, "_places", lambda: iter(["/nonexistent/bin/orbd-ctl"]))
    return short_folder


@pytest.fixture
def daemon(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A fake daemon, at the socket that the environment names."""
    path = short_folder / "orbd.sock"
    monkeypatch.setenv("ORBD_SOCKET", str(path))
    monkeypatch.setenv("ORBD_AUTOSTART", "0")
    daemon = FakeDaemon(path)
    yield daemon
    for client in _client._clients.values():
        client.close_idle()
    _client._clients.clear()
    daemon.close()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    """A client of the fake daemon."""
    client = Client(str(daemon.path), name="test")
    yield client
    client.close_idle()


@pytest.fixture
def machines(daemon: FakeDaemon, tmp_path: Path) -> ShellMachines:
    """Two fake machines that run commands in a real shell."""
    return ShellMachines(daemon, tmp_path / "machines", "web", "db")


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(machines: ShellMachines) -> MakeHost:
    """Returns a function that creates a connected host from an inventory entry, in API mode."""

    def make(entry: Any = "@orbstack/web", *, connect: bool = True, **override: Any) -> Host:
        inventory = Inventory(([entry], {}), override_data=override)
        State(inventory, Config())
        host = next(iter(inventory))
        if connect:
            host.connect(raise_exceptions=True)
        return host

    return make


@pytest.fixture
def host(make_host: MakeHost) -> Host:
    """The connected host of the machine ``web``."""
    return make_host()


@pytest.fixture(scope="session")
def real_daemon() -> Iterator[RealDaemon]:
    """A real daemon with the machines ``web`` and ``db``, shared by all tests that need one."""
    with temporary_daemon() as real:
        real.create("web", "db")
        yield real


@pytest.fixture
def real(real_daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The real daemon, at the socket that the environment names."""
    monkeypatch.setenv("ORBD_SOCKET", str(real_daemon.socket))
    monkeypatch.setenv("ORBD_CTL", str(real_daemon.ctl))
    monkeypatch.setenv("ORBD_AUTOSTART", "0")
    yield real_daemon
    for client in _client._clients.values():
        client.close_idle()
    _client._clients.clear()
