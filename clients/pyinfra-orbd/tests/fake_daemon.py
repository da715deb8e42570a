"""A fake daemon on a real Unix socket.

``FakeDaemon`` answers from a table of handlers and records every request. ``ShellMachines`` adds handlers for machines that are
directories of this host and run commands in a real shell, so that tests cover scripts, quoting and bytes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

Handler = Callable[["Peer", dict[str, Any]], Any]

HELLO = {"protocol": 1, "version": "0.0.0-fake", "instance": "fake"}


class Failure(Exception):
    """Makes a handler answer with an error object."""

    def __init__(self, kind: str, message: str, code: int = 1, **data: Any) -> None:
        """Builds the error object."""
        super().__init__(message)
        self.wire = {"code": code, "message": message, "data": {"kind": kind, "retryable": False, **data}}


class Hangup(Exception):
    """Makes the daemon close the connection without an answer."""


class Peer:
    """One connection from a client."""

    def __init__(self, daemon: FakeDaemon, connection: socket.socket) -> None:
        """The client's name is unknown until its hello."""
        self.daemon = daemon
        self.connection = connection
        self.name = ""
        self.is_open = True
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message as one line."""
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, line: bytes) -> None:
        """Sends bytes."""
        with self._lock:
            try:
                self.connection.sendall(line)
            except OSError:
                self.is_open = False

    def hang_up(self) -> None:
        """Closes the connection in both directions."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def serve(self) -> None:
        """Reads requests until the client disconnects; answers each on its own thread."""
        reader = self.connection.makefile("rb")
        try:
            for line in reader:
                request = json.loads(line)
                self.daemon.requests.append((request["method"], request["params"]))
                threading.Thread(target=self._answer, args=(request,), daemon=True).start()
        except OSError:
            pass
        finally:
            self.is_open = False
            reader.close()
            self.connection.close()
            self.daemon.gone(self)

    def _answer(self, request: dict[str, Any]) -> None:
        handler = self.daemon.handlers.get(request["method"])
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            if handler is None:
                raise Failure("method_not_found", "no such method", -32601)
            result = handler(self, request["params"])
        except Hangup:
            self.hang_up()
            return
        except Failure as failure:
            self.send({**answer, "error": failure.wire})
            return
        if isinstance(result, Iterator):
            self._send_events(answer, request["method"], result)
        else:
            self.send({**answer, "result": result})

    def _send_events(self, answer: dict[str, Any], method: str, events: Iterator[Any]) -> None:
        subscription = self.daemon.number()
        self.send({**answer, "result": subscription})
        notification = {
            "machine.run_follow": "machine.run_event",
            "job.follow": "job.event",
            "events.subscribe": "events.event",
        }[method]
        for event in events:
            params = {"subscription": subscription, "result": event}
            self.send({"jsonrpc": "2.0", "method": notification, "params": params})


class FakeDaemon:
    """Listens on ``path`` and answers from ``handlers``."""

    def __init__(self, path: Path) -> None:
        """Starts to listen."""
        self.path = path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.peers: list[Peer] = []
        self.accepted = 0
        self.handlers: dict[str, Handler] = {"daemon.hello": self._hello}
        self.on_gone: Callable[[Peer], None] = lambda peer: None
        self._number = 0
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def number(self) -> int:
        """Returns a new number."""
        with self._lock:
            self._number += 1
            return self._number

    def methods(self) -> list[str]:
        """Returns the called methods except ``daemon.hello``."""
        return [method for method, _ in self.requests if method != "daemon.hello"]

    def gone(self, peer: Peer) -> None:
        """Removes a disconnected client."""
        with self._lock:
            self.peers.remove(peer)
        self.on_gone(peer)

    def hang_up(self) -> None:
        """Closes every connection."""
        with self._lock:
            peers = list(self.peers)
        for peer in peers:
            peer.hang_up()

    def close(self) -> None:
        """Stops listening and closes every connection."""
        if self._listener.fileno() == -1:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        self.hang_up()
        self._thread.join()

    def _hello(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        peer.name = params["client"]
        return HELLO

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(self, connection)
            with self._lock:
                self.peers.append(peer)
                self.accepted += 1
            threading.Thread(target=peer.serve, daemon=True).start()


def machine(name: str, state: str = "running", distro: str = "ubuntu", arch: str = "arm64") -> dict[str, Any]:
    """Returns a machine in its wire format."""
    return {
        "id": f"01{name.upper()}",
        "name": name,
        "state": state,
        "image": {"distro": distro, "version": "noble", "arch": arch, "variant": "default"},
        "config": {"isolated": False, "default_username": "mark"},
        "builtin": False,
    }


class ShellMachines:
    """Machines that are directories; commands run in a real shell, as the user that runs the tests."""

    inline_max = 1 << 20

    def __init__(self, daemon: FakeDaemon, folder: Path, *names: str) -> None:
        """Adds the machines' methods to ``daemon``."""
        self.daemon = daemon
        self.folder = folder
        self.machines = [machine(name) for name in names]
        self.outputs: dict[int, list[dict[str, Any]]] = {}
        self.fresh_lists = 0
        self.created: list[dict[str, Any]] = []
        # Machines that another client is creating, so that no list contains them yet.
        self.hidden: set[str] = set()
        self._running: dict[int, tuple[Peer, subprocess.Popen[bytes]]] = {}
        for item in self.machines:
            (folder / item["name"]).mkdir(parents=True)
        daemon.handlers.update(
            {
                "machine.list": self._list,
                "machine.create": self._create,
                "machine.start": self._start,
                "machine.run": self._run,
                "machine.run_follow": self._follow,
                "job.input": self._input,
                "job.output": self._output,
            }
        )
        daemon.on_gone = self._gone

    def home(self, name: str) -> Path:
        """Returns the directory in which a machine's commands start."""
        return self.folder / name

    def set_state(self, name: str, state: str) -> None:
        """Changes a machine's state."""
        self._find(name)["state"] = state

    def running(self) -> int:
        """Returns the number of running commands."""
        return len(self._running)

    def _find(self, name: str) -> dict[str, Any]:
        for item in self.machines:
            if name in (item["name"], item["id"]):
                return item
        raise Failure("machine_not_found", f"machine not found: '{name}'", 2001, machine=name)

    def _list(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        self.fresh_lists += params.get("max_age_ms") == 0
        seen = {"generation": 1, "observed_at": "2026-11-20T00:00:00.000Z", "source": "list", "stale": False, "age_ms": 1}
        shown = [item for item in self.machines if item["name"] not in self.hidden]
        return {"machines": shown, **seen}

    def _create(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        name = params["name"]
        self.hidden.discard(name)
        if any(item["name"] == name for item in self.machines):
            raise Failure("machine_exists", f"machine already exists: '{name}'", 2002, machine=name)
        self.created.append(params)
        self.machines.append(machine(name, distro=params["distro"]))
        self.home(name).mkdir()
        return {"job_id": self.daemon.number(), "state": "ended", "changed": True}

    def _start(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        item = self._find(params["machine"])
        changed = item["state"] != "running"
        item["state"] = "running"
        return {"job_id": self.daemon.number(), "state": "ended", "changed": changed}

    def _spawn(self, peer: Peer, params: dict[str, Any]) -> tuple[int, subprocess.Popen[bytes]]:
        home = self.home(self._find(params["machine"])["name"])
        child = subprocess.Popen(
            params["command"],
            cwd=params.get("workdir") or home,
            env={"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": "/tmp", **params.get("env", {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        job_id = self.daemon.number()
        self._running[job_id] = (peer, child)
        return job_id, child

    def _gone(self, peer: Peer) -> None:
        for owner, child in list(self._running.values()):
            if owner is peer and child.poll() is None:
                # Its own thread may have waited for it since.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)

    @staticmethod
    def _stdin(params: dict[str, Any]) -> bytes:
        if "stdin_base64" in params:
            return base64.b64decode(params["stdin_base64"])
        text: str = params.get("stdin_text", "")
        return text.encode()

    def _read(self, params: dict[str, Any], job_id: int, child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        """Yields output chunks; raises ``Failure`` if the run timeout passes."""
        stdin = self._stdin(params)
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        is_stream = bool(params.get("stdin_stream"))
        if not is_stream:
            # The thread owns the pipe from here: a command that reads nothing may end before the thread has begun.
            threading.Thread(target=_feed, args=(child.stdin, stdin), daemon=True).start()
        names = {child.stdout: "stdout", child.stderr: "stderr"}
        offset = 0
        limit = params.get("run_timeout_ms")
        deadline = time.monotonic() + limit / 1000 if limit else None
        is_late = False
        while names:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(names), [], [], left)
            if not ready:
                os.killpg(child.pid, signal.SIGKILL)
                is_late = True
                deadline = None
                continue
            for stream in ready:
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    stream.close()
                    del names[stream]
                    continue
                try:
                    form = {"text": data.decode()}
                except UnicodeDecodeError:
                    form = {"base64": base64.b64encode(data).decode()}
                yield {"stream": names[stream], "offset": offset, "at_us": 1, **form}
                offset += len(data)
        child.wait()
        if is_stream:
            with contextlib.suppress(OSError):
                child.stdin.close()
        del self._running[job_id]
        if is_late:
            raise Failure("deadline_exceeded", f"job {job_id} ran longer than {limit} ms", 3003, phase="running", job_id=job_id)

    def _run(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        job_id, child = self._spawn(peer, params)
        chunks = list(self._read(params, job_id, child))
        self.outputs[job_id] = chunks
        inline: list[dict[str, Any]] = []
        kept = 0
        total = sum(_length(chunk) for chunk in chunks)
        for chunk in chunks:
            if kept + _length(chunk) > self.inline_max:
                break
            inline.append(chunk)
            kept += _length(chunk)
        return {
            "job_id": job_id,
            "state": "ended",
            "exit_code": child.returncode,
            "output": inline,
            "next_offset": kept,
            "output_bytes": total,
            "a_future_field": {"ignore": "me"},
        }

    def _follow(self, peer: Peer, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._find(params["machine"])
        return self._events(peer, params)

    def _events(self, peer: Peer, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        job_id, child = self._spawn(peer, params)
        yield {"type": "accepted", "job_id": job_id}
        yield {"type": "a_future_event"}
        yield {"type": "started"}
        outcome: dict[str, Any]
        try:
            for chunk in self._read(params, job_id, child):
                yield {"type": "output", **chunk}
            outcome = {"kind": "succeeded" if child.returncode == 0 else "failed", "exit_code": child.returncode}
        except Failure as failure:
            outcome = {"kind": "expired", "error": failure.wire}
        yield {"type": "ended", "job": _job(job_id, outcome)}

    def _input(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        entry = self._running.get(params["job_id"])
        if entry is None:
            raise Failure("job_not_found", "no such job", 3001)
        stdin = entry[1].stdin
        assert stdin is not None
        data = base64.b64decode(params["base64"]) if "base64" in params else params.get("text", "").encode()
        try:
            stdin.write(data)
            stdin.flush()
            if params.get("eof"):
                stdin.close()
        except (OSError, ValueError):
            return {"open": False}
        return {"open": not params.get("eof", False)}

    def _output(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        chunks = self.outputs[params["job_id"]]
        wanted = [chunk for chunk in chunks if chunk["offset"] >= params["offset"]][:4]
        end = wanted[-1]["offset"] + _length(wanted[-1]) if wanted else params["offset"]
        return {"output": wanted, "next_offset": end, "eof": wanted[-1:] == chunks[-1:]}


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Writes and closes; a reader that has gone is no error."""
    with contextlib.suppress(OSError), pipe:
        pipe.write(data)


def _length(chunk: dict[str, Any]) -> int:
    return len(chunk["text"].encode()) if "text" in chunk else len(base64.b64decode(chunk["base64"]))


def _job(job_id: int, outcome: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "operation": "run",
        "job_class": "exec",
        "client": {"name": "pyinfra", "uid": os.getuid()},
        "detached": False,
        "state": "ended",
        "accepted_at": "2026-11-20T00:00:00.000Z",
        "wait_us": 1,
        "outcome": outcome,
        "output_bytes": 0,
        "joined_callers": 0,
    }
