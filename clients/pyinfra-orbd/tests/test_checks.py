"""The scripts of the checks that run inside a machine: programs that they call, output and failures."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from play import forget_clients, play
from pyinfra_orbd.operations import vm_dns_lookup, vm_test_connectivity
from pyinfra_orbd.operations.checks import connectivity_script, host_and_port, lookup_script
from real_daemon import RealDaemon


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """A directory of programs that is the script's whole PATH."""
    return Box(tmp_path)


class Box:
    """Runs scripts with only the programs that it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for tool in ("sh", "sed", "sort", "cat"):
            real = subprocess.run(["sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True).stdout.strip()
            (folder / tool).symlink_to(real)

    def has(self, tool: str, script: str) -> None:
        """Adds a program."""
        file = self.folder / tool
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def run(self, script: str, *words: str) -> tuple[int, str, str]:
        """Runs a script; returns exit code, stdout and stderr."""
        done = subprocess.run(
            ["/bin/sh", "-c", script, "orbd-check", *words], env={"PATH": str(self.folder)}, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    def look_up(self, lookup_type: str = "A", name: str = "db.orb.local") -> tuple[int, str, str]:
        """Resolves a name."""
        return self.run(*lookup_script(name, lookup_type, 5))


class TestLookup:
    """Name resolution with each program; the output has one answer per line."""

    @pytest.mark.parametrize(
        ("tool", "lookup_type", "prints", "answers"),
        [
            ("dig", "A", "192.168.139.3", "192.168.139.3\n"),
            ("dig", "MX", "10 a.example.com.\\n20 b.example.com.", "10 a.example.com.\n20 b.example.com.\n"),
            ("host", "A", "db.orb.local has address 192.168.139.3", "192.168.139.3\n"),
            ("host", "AAAA", "db.orb.local has IPv6 address fd07::3", "fd07::3\n"),
            ("host", "MX", "example.com mail is handled by 10 a.example.com.", "10 a.example.com.\n"),
            ("host", "CNAME", "www.example.com is an alias for example.com.", "example.com.\n"),
            (
                "nslookup",
                "A",
                "Server:\\t1.1.1.1\\nAddress:\\t1.1.1.1#53\\n\\nName:\\tdb\\nAddress: 192.168.139.3",
                "192.168.139.3\n",
            ),
            ("nslookup", "MX", "Server:\\t1.1.1.1\\n\\nexample.com\\tmail exchanger = 10 a.", "10 a.\n"),
            ("nslookup", "CNAME", "Server:\\t1.1.1.1\\n\\nwww\\tcanonical name = example.com.", "example.com.\n"),
            ("getent", "A", "192.168.139.3   STREAM db\\n192.168.139.3   DGRAM", "192.168.139.3\n"),
            ("getent", "AAAA", "fd07::3   STREAM db\\nfd07::3   RAW", "fd07::3\n"),
        ],
    )
    def test_lookup_parses_the_output_of_each_program(
        self, box: Box, tool: str, lookup_type: str, prints: str, answers: str
    ) -> None:
        box.has(tool, f"printf '{prints}\\n'")
        assert box.look_up(lookup_type) == (0, answers, "")

    @pytest.mark.parametrize("tool", ["dig", "getent"])
    def test_lookup_without_an_answer_fails(self, box: Box, tool: str) -> None:
        """Whether the program exits with 0 or not."""
        box.has(tool, "exit 0" if tool == "dig" else "exit 2")
        assert box.look_up() == (1, "", "no A record of db.orb.local\n")

    @pytest.mark.parametrize("tool", ["dig", "host", "nslookup"])
    def test_lookup_prints_the_output_of_a_failed_program(self, box: Box, tool: str) -> None:
        box.has(tool, "echo 'connection timed out'; exit 9")
        assert box.look_up() == (1, "", "connection timed out\n")

    def test_lookup_without_a_program_names_the_packages(self, box: Box) -> None:
        """``getent`` does not support MX records."""
        code, _, stderr = box.look_up("MX")
        assert code == 127
        assert "dig is not installed here (package bind9-dnsutils" in stderr

    def test_lookup_does_not_interpret_the_name_as_shell_or_flag(self, box: Box) -> None:
        box.has("dig", 'for word; do echo "[$word]"; done')
        assert "[; rm -rf / $(id)]" in box.look_up(name="; rm -rf / $(id)")[1]
        assert box.look_up(name="-f/etc/passwd") == (2, "", "'-f/etc/passwd' is not a host name\n")


class TestConnectivity:
    """Each connectivity method."""

    def reach(self, box: Box, target: str, method: str, count: int = 3) -> tuple[int, str, str]:
        return box.run(*connectivity_script(target, method, count, 5))

    def test_ping_gets_count_and_timeout(self, box: Box) -> None:
        box.has("ping", 'echo "$@"')
        assert self.reach(box, "db.orb.local", "ping", 2) == (0, "-c 2 -W 5 -- db.orb.local\n", "")

    def test_curl_prints_the_http_status(self, box: Box) -> None:
        box.has("curl", "printf '204\\n'")
        assert self.reach(box, "http://db.orb.local:8080/?a=b&c", "curl") == (0, "204\n", "")

    def test_nc_gets_host_and_port(self, box: Box) -> None:
        box.has("nc", '[ "$*" = "-z -w 5 db.orb.local 5432" ]')
        assert self.reach(box, "db.orb.local:5432", "nc") == (0, "connected to db.orb.local port 5432\n", "")
        assert self.reach(box, "db.orb.local", "nc") == (1, "", "no connection to db.orb.local port 22\n")

    @pytest.mark.parametrize("method", ["ping", "curl", "nc"])
    def test_connectivity_without_a_program_names_the_package(self, box: Box, method: str) -> None:
        code, _, stderr = self.reach(box, "db", method)
        assert code == 127
        assert f"{method} is not installed here (package " in stderr

    @pytest.mark.parametrize(
        ("target", "parts"),
        [
            ("db", ("db", "22")),
            ("db:80", ("db", "80")),
            ("db:", ("db", "22")),
            ("::1", ("::1", "22")),
            ("[::1]", ("::1", "22")),
            ("[::1]:80", ("::1", "80")),
        ],
    )
    def test_host_and_port_accepts_ipv6_addresses(self, target: str, parts: tuple[str, str]) -> None:
        assert host_and_port(target) == parts


@pytest.fixture
def port() -> Iterator[int]:
    """An HTTP server on this computer, whose network the simulator's machines share."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(418)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Discards the log."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.needs_daemon
class TestInMachines:
    """The checks through PyInfra, in a machine; their result is the operation's output."""

    @pytest.fixture(autouse=True)
    def _real(self, real: RealDaemon) -> Iterator[None]:
        yield
        forget_clients()

    def check(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return play(operation, *args, entry="@orbstack/web", **kwargs)

    def test_curl_accepts_any_http_status(self, port: int) -> None:
        played = self.check(vm_test_connectivity, f"http://127.0.0.1:{port}/", method="curl")
        assert played.meta.stdout_lines == ["418"], played.said

    def test_nc_succeeds_only_if_the_port_is_open(self, port: int) -> None:
        played = self.check(vm_test_connectivity, f"127.0.0.1:{port}", method="nc")
        assert played.meta.stdout_lines == [f"connected to 127.0.0.1 port {port}"], played.said
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            free = unused.getsockname()[1]
            played = self.check(vm_test_connectivity, f"127.0.0.1:{free}", method="nc")
        assert played.failed
        assert f"no connection to 127.0.0.1 port {free}" in played.meta.stderr

    def test_lookup_resolves_localhost_and_fails_for_unknown_names(self) -> None:
        played = self.check(vm_dns_lookup, "localhost")
        assert played.meta.stdout_lines == ["127.0.0.1"], played.said
        assert self.check(vm_dns_lookup, hostname="missing.invalid", lookup_type="a").failed

    def test_unknown_method_or_type_is_rejected_before_anything_runs(self) -> None:
        with pytest.raises(Exception, match="unknown method 'telepathy'; use ping, curl, nc"):
            self.check(vm_test_connectivity, "db", "telepathy")
        with pytest.raises(Exception, match="unknown lookup_type 'X'"):
            self.check(vm_dns_lookup, "db", "X")
