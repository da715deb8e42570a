"""Connections to the daemon: JSON lines over its Unix socket.

This module owns the sockets, the framing, the connection pool and the daemon's start on demand. It knows only the methods
``daemon.hello`` and ``daemon.info``, caches no answers and never retries a call that the daemon has read. If an upgraded daemon
closes a connection (``daemon.closing``) before it read the request, the connection reconnects and sends the request again.

A connection carries one call at a time. It returns to the pool only when the call is complete. If an exception interrupts the
call (``gevent.Timeout``, ``KeyboardInterrupt``, a broken pipe), the connection is closed, and the daemon stops the work. A
connection closes its socket when it is garbage-collected, and so do the connections of a collected pool: a dropped client leaks
no sockets.

A pooled socket is only used by the gevent hub that created it, and never by a forked child.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from weakref import WeakKeyDictionary

from . import errors
from ._gevent import WAIT_INTERVAL, hub, select_module, sleep, socket_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from io import BufferedReader
    from types import TracebackType
    from typing import Any, NoReturn

PROTOCOL_VERSION = 1
"""Newest protocol version that this package speaks."""

PROTOCOL_MIN = 1
"""Oldest protocol version that this package speaks."""

CONNECT_TIMEOUT = 10.0
"""Seconds for connecting and for ``daemon.hello``. Calls have no timeout here; the daemon enforces their limits."""

SWITCH_TIMEOUT = 2.0
"""Seconds to wait, without a common protocol, for a daemon that is about to execute its new program."""

START_TIMEOUT = 20.0
"""Seconds that ``orbd-ctl daemon start`` may take."""

IDLE_MAX = 64
"""Maximum number of idle connections; further ones are closed at the end of their call."""

FALSE_VALUES = ("0", "false", "no", "off")
"""Values that mean false, as in the daemon's own configuration."""

RESENDS_MAX = 3
"""How often one request is sent again. Each time requires an upgrade of the daemon, so more than once is rare."""

LINE_MAX = 64 << 20
"""Maximum length of a received line in bytes, so that a faulty daemon cannot exhaust the memory of this process."""

# Created once: `json.dumps` with options creates an encoder for each message, and `json.loads` detects an encoding.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def socket_path() -> str:
    """Returns the path of the daemon's socket: ``$ORBD_SOCKET``, by default ``~/.orbd/orbd.sock``.

    A relative ``$ORBD_SOCKET`` is an error, because it would name another daemon in each folder.
    """
    path = os.environ.get("ORBD_SOCKET") or os.path.join(os.path.expanduser("~"), ".orbd", "orbd.sock")
    if not os.path.isabs(path):
        raise errors.DaemonUnavailable(f"ORBD_SOCKET must be an absolute path, but is {path}")
    return path


def wait(connections: Sequence[Connection], seconds: float | None = None) -> None:
    """Waits until a connection is readable, or writable if it has unsent data, or until ``seconds`` have passed."""
    module = select_module()
    # Not `select`, which does not support file descriptors above 1023.
    poll = module.poll()
    for connection in connections:
        poll.register(connection.fileno(), module.POLLIN | (module.POLLOUT if connection.is_sending else 0))
    poll.poll(None if seconds is None else seconds * 1000)


def is_foreign_timeout(error: OSError) -> bool:
    """Returns whether a ``TimeoutError`` comes neither from the socket nor from the operating system.

    PyInfra sets limits with ``gevent.Timeout(5, TimeoutError)``, which raises the exception in the current call. The
    ``TimeoutError`` of a socket has the message "timed out", that of the operating system has an errno.
    """
    return isinstance(error, TimeoutError) and error.errno is None and error.args != ("timed out",)


def _package() -> str:
    """Returns this package's name and version. Only for error messages: reading the metadata takes longer than a call."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"Python package orbd {version('orbd')}"
    except PackageNotFoundError:
        return "Python package orbd"


def _range(lowest: Any, newest: Any) -> str:
    """Returns a range of protocol versions as text."""
    return f"protocol {newest}" if lowest in (newest, None) else f"protocols {lowest} to {newest}"


def _mismatch(info: dict[str, Any]) -> errors.ProtocolMismatch:
    """Returns an error that names both ranges of protocol versions and how to upgrade the older side."""
    newest = info.get("protocol")
    lowest = info.get("protocol_min", newest)
    upgrade = info.get("upgrade")
    is_switching = isinstance(upgrade, dict) and upgrade.get("state") in ("checking", "pending")
    if is_switching:
        fix = "a new orbd is installed and starts when orbd is idle; `orbd-ctl daemon restart` does not wait"
    elif isinstance(lowest, int) and lowest > PROTOCOL_VERSION:
        fix = "this package is older: upgrade it in its environment, for example with `pip install --upgrade pyinfra-orbd`"
    else:
        fix = "orbd is older: upgrade it; `orbd-ctl doctor` names the command"
    return errors.ProtocolMismatch(
        f"orbd {info.get('version', '?')} speaks {_range(lowest, newest)}, "
        f"{_package()} speaks {_range(PROTOCOL_MIN, PROTOCOL_VERSION)}; {fix}",
        kind="protocol_mismatch",
        data={"is_switching": is_switching},
    )


class Connection:
    """One connection, carrying one call at a time."""

    def __init__(self, path: str, client: str) -> None:
        """Connects to ``path`` and sends ``daemon.hello`` with the name ``client``."""
        self._path = path
        self._client = client
        self._next_id = 1
        self.in_call = True
        self.pid = os.getpid()
        self._socket: Any = None
        self._reader: BufferedReader | None = None
        self._unsent = memoryview(b"")
        self._line = b""
        self._is_pushed = False
        self._resends = 0
        self._connect()

    def _connect(self) -> None:
        # Number of requests sent on this socket.
        self._requests = 0
        module = socket_module()
        self._socket = module.socket(module.AF_UNIX, module.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_TIMEOUT)
            self._socket.connect(self._path)
            self._reader = self._socket.makefile("rb", buffering=1 << 16)
            self._hello(self._client)
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def _hello(self, client: str) -> None:
        try:
            params = {"client": client, "protocol": PROTOCOL_VERSION, "protocol_min": PROTOCOL_MIN}
            answer = self.call("daemon.hello", params)
        except errors.MethodNotFound as error:
            raise errors.ProtocolMismatch(
                f"orbd does not support daemon.hello of {_package()}, which speaks "
                f"{_range(PROTOCOL_MIN, PROTOCOL_VERSION)} ({error}); upgrade the older of the two",
                kind="protocol_mismatch",
            ) from error
        except errors.ProtocolMismatch as error:
            # `daemon.info` is the same in every protocol. If it fails, raise the daemon's own error.
            try:
                info = self.call("daemon.info", {})
            except errors.RequestFailed:
                raise error from None
            raise _mismatch(info if isinstance(info, dict) else {}) from None
        protocol = answer.get("protocol") if isinstance(answer, dict) else None
        if not isinstance(protocol, int) or not PROTOCOL_MIN <= protocol <= PROTOCOL_VERSION:
            raise _mismatch(answer if isinstance(answer, dict) else {})

    def send(self, method: str, params: Mapping[str, Any]) -> int:
        """Sends a request and returns its id. The call is open until :meth:`done`."""
        request_id, line = self._request(method, params)
        self._is_pushed = False
        self._transmit(line)
        return request_id

    def _transmit(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except OSError as error:
            # After EPIPE the caller reads on: `daemon.closing` tells whether the daemon read the request.
            if error.errno != errno.EPIPE:
                self._fail(error)

    def begin(self, method: str, params: Mapping[str, Any]) -> int:
        """Queues a request for :meth:`push` and returns its id; otherwise like :meth:`send`."""
        request_id, line = self._request(method, params)
        self._is_pushed = True
        self._unsent = memoryview(line)
        return request_id

    @property
    def is_sending(self) -> bool:
        """Whether a part of the request is still unsent."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """Returns the socket's file descriptor."""
        return int(self._socket.fileno())

    def push(self) -> bool:
        """Sends as much unsent data as possible without blocking; returns whether that was more than nothing."""
        if not self._unsent:
            return False
        self._socket.settimeout(0.0)
        try:
            count = self._socket.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # macOS reports a full buffer like this.
                return False
            if error.errno != errno.EPIPE:
                self._fail(error)
            # As in `_transmit`: read what the daemon sent before it closed the connection.
            count = len(self._unsent)
        finally:
            self._socket.settimeout(None)
        self._unsent = self._unsent[count:]
        return True

    def is_readable(self) -> bool:
        """Returns whether :meth:`receive` would find the beginning of a message, or the end of the connection."""
        assert self._reader is not None
        self._socket.settimeout(0.0)
        try:
            # `peek` fills the buffer. If it returns nothing, `recv` distinguishes "no data yet" from the end of the connection.
            if not self._reader.peek(1):
                self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(error)
        finally:
            self._socket.settimeout(None)
        return True

    def _request(self, method: str, params: Mapping[str, Any]) -> tuple[int, bytes]:
        self.in_call = True
        request_id = self._next_id
        self._next_id += 1
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        try:
            line = _encode(request).encode() + b"\n"
        except UnicodeEncodeError as error:
            # A lone surrogate, from bytes that Python could not decode, such as in a file name. JSON cannot carry it.
            self.done()
            raise errors.InvalidParams(f"{method}: not valid Unicode: {error.reason}", kind="invalid_params") from error
        self._line = line
        if method != "daemon.hello":
            # Sending a request again includes a hello, which must not reset that request's counter.
            self._resends = 0
        self._requests += 1
        return request_id, line

    def receive(self) -> dict[str, Any]:
        """Returns the next message: an answer or a notification."""
        while True:
            message = self._message()
            if message.get("method") != "daemon.closing":
                return message
            params = message.get("params") or {}
            # The daemon answers every request that it read before it closes the connection; those are never sent again.
            if self.in_call and self._requests > params.get("requests_read", self._requests):
                self._send_again()

    def _send_again(self) -> None:
        """Reconnects to the upgraded daemon and sends the request that the old process did not read."""
        line, is_pushed, resends = self._line, self._is_pushed, self._resends + 1
        if resends > RESENDS_MAX:
            raise self._gone(None)
        self.close()
        try:
            self._connect()
        except OSError as error:
            self._fail(error)
        self.in_call = True
        self._line, self._is_pushed, self._resends = line, is_pushed, resends
        self._requests += 1
        if is_pushed:
            self._unsent = memoryview(line)
        else:
            self._transmit(line)

    def _message(self) -> dict[str, Any]:
        assert self._reader is not None
        try:
            line = self._reader.readline(LINE_MAX)
        except OSError as error:
            self._fail(error)
        if not line.endswith(b"\n"):
            if len(line) >= LINE_MAX:
                raise errors.ProtocolViolation(f"the daemon sent a line longer than {LINE_MAX} bytes")
            raise self._gone(None)
        try:
            message = _decode(line.decode())
        except ValueError as error:
            raise errors.ProtocolViolation(f"the daemon sent a line that is not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise errors.ProtocolViolation(f"the daemon sent a line that is not a JSON object: {line[:80]!r}")
        return message

    def answer(self, request_id: int) -> Any:
        """Reads until the answer to ``request_id`` and returns its result; discards notifications."""
        while True:
            message = self.receive()
            if "method" in message:
                continue
            # An error without an id answers a request that the daemon could not parse, which is the only one on this connection.
            if message.get("id") == request_id or (message.get("id") is None and "error" in message):
                return self.result(message)

    @staticmethod
    def result(message: Mapping[str, Any]) -> Any:
        """Returns an answer's result, or raises its error."""
        if "error" in message and message["error"] is not None:
            raise errors.error_from_wire(message["error"])
        return message.get("result")

    def call(self, method: str, params: Mapping[str, Any], on_wait: Callable[[], None] | None = None) -> Any:
        """Makes one call and returns its result. While there is none, calls ``on_wait`` every :data:`WAIT_INTERVAL` seconds."""
        request_id = self.send(method, params)
        while on_wait is not None and not self.is_readable():
            wait((self,), WAIT_INTERVAL)
            if not self.is_readable():
                on_wait()
        try:
            result = self.answer(request_id)
        except errors.RequestFailed:
            # An error answer completes the call, so the connection can be used again.
            self.done()
            raise
        self.done()
        return result

    def done(self) -> None:
        """Marks the call as complete."""
        self.in_call = False

    def is_usable(self) -> bool:
        """Returns whether the connection is between calls and still open on the daemon's side."""
        if self.in_call:
            return False
        try:
            self._socket.settimeout(0.0)
            try:
                self._socket.recv(1, socket.MSG_PEEK)
            finally:
                self._socket.settimeout(None)
        except BlockingIOError:
            return True
        except OSError:
            return False
        # Closed, or unexpected bytes.
        return False

    def close(self) -> None:
        """Closes the connection; the daemon then stops the work of an unfinished call."""
        if self._reader is not None:
            self._reader.close()
        if self._socket is not None:
            self._socket.close()

    # A class attribute, because module globals may already be cleared when `__del__` runs.
    _is_finalizing = staticmethod(sys.is_finalizing)

    def __del__(self) -> None:
        """Closes the socket of a connection without references."""
        try:
            self.close()
        except Exception:
            # At interpreter shutdown gevent may be gone already. The operating system closes the socket.
            if not self._is_finalizing():
                raise

    def _fail(self, error: OSError) -> NoReturn:
        """Raises ``DaemonGone`` for a broken connection, but re-raises a ``TimeoutError`` that the caller's own limit threw."""
        if is_foreign_timeout(error):
            raise error
        raise self._gone(error) from error

    @staticmethod
    def _gone(error: OSError | None) -> errors.OrbdError:
        if isinstance(error, TimeoutError):
            # Only during `daemon.hello`; afterwards the socket has no timeout.
            return errors.DaemonGone(f"orbd did not answer within {CONNECT_TIMEOUT:.0f} s; see `orbd-ctl doctor`")
        cause = f": {error.strerror or error}" if error is not None else ""
        return errors.DaemonGone(
            f"orbd closed the connection before the answer was complete{cause}; the operation may have taken effect in part"
        )


class BorrowedConnection:
    """Context manager around a connection that is taken from the pool for one call."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        """Does not take a connection yet."""
        self._pool = pool
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        """Takes a connection from the pool, or opens one."""
        self._connection = self._pool.take()
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Returns the connection to the pool, which closes it if its call is not complete."""
        assert self._connection is not None
        self._pool.give(self._connection)


class Pool:
    """Connections to one socket; the most recently used one is used next."""

    def __init__(self, path: str, client: str) -> None:
        """Opens no connection yet."""
        self.path = path
        self._client = client
        self._pid = os.getpid()
        self._is_closed = False
        # Keyed by hub: a gevent socket is bound to the hub, and so to the thread, that created it. The key of plain sockets is
        # the pool itself.
        self._idle: WeakKeyDictionary[Any, list[Connection]] = WeakKeyDictionary()
        self._starter = Starter(path)

    def borrow(self) -> BorrowedConnection:
        """Returns a context manager around a connection."""
        return BorrowedConnection(self)

    def take(self) -> Connection:
        """Returns the most recently used connection that is still open, or a new one."""
        idle = self._idle_here()
        while True:
            try:
                # No check beforehand: another thread could take the connection between check and `pop`.
                connection = idle.pop()
            except IndexError:
                return self._open()
            if connection.is_usable():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Keeps a connection for the next call, or closes it."""
        idle = self._idle_here()
        # After a fork, an inherited connection still belongs to the parent.
        is_ours = connection.pid == self._pid
        if connection.in_call or not is_ours or self._is_closed or len(idle) >= IDLE_MAX:
            connection.close()
        else:
            idle.append(connection)

    def close(self) -> None:
        """Closes idle connections now, and each of the others at the end of its call."""
        self._is_closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Closes idle connections; the next call opens a new one."""
        # Plain sockets, whose key is the pool, can be closed from any thread; those of another thread's hub cannot.
        for idle in (self._idle_here(), self._idle.get(self, [])):
            while True:
                try:
                    connection = idle.pop()
                except IndexError:
                    break
                connection.close()

    def _idle_here(self) -> list[Connection]:
        if self._pid != os.getpid():
            # This is a forked child: the inherited sockets belong to the parent.
            self._pid = os.getpid()
            self._idle = WeakKeyDictionary()
            # A thread that was starting the daemon does not exist in the child.
            self._starter = Starter(self.path)
        here = hub()
        # Not `here or self`: a hub that has not switched yet is falsy.
        return self._idle.setdefault(self if here is None else here, [])

    def _open(self) -> Connection:
        try:
            return self._connect()
        except errors.DaemonNotRunning as refusal:
            self._starter.start(refusal)
        return self._connect()

    def _connect(self) -> Connection:
        """Connects; without a common protocol, waits for a daemon that is about to execute its new program."""
        deadline: float | None = None
        while True:
            try:
                return self._connect_once()
            except errors.ProtocolMismatch as mismatch:
                deadline = deadline or time.monotonic() + SWITCH_TIMEOUT
                if not mismatch.data.get("is_switching") or time.monotonic() >= deadline:
                    raise
            except errors.DaemonGone:
                # While it switches, the daemon closes connections.
                if deadline is None or time.monotonic() >= deadline:
                    raise
            sleep(0.05)

    def _connect_once(self) -> Connection:
        try:
            return Connection(self.path, self._client)
        except errors.OrbdError:
            raise
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise errors.DaemonNotRunning(
                f"orbd is not running (nothing listens on {self.path}); start it with `orbd-ctl daemon start`"
            ) from error
        except TimeoutError as error:
            if is_foreign_timeout(error):
                raise
            raise errors.DaemonGone(f"orbd did not accept a connection on {self.path}; see `orbd-ctl doctor`") from error
        except OSError as error:
            # This includes a path that is too long, which has no errno.
            reason = error.strerror or str(error)
            raise errors.DaemonUnavailable(f"cannot connect to orbd on {self.path}: {reason}") from error


class Starter:
    """Starts the daemon on demand with ``orbd-ctl daemon start``, which handles services and locks."""

    def __init__(self, path: str) -> None:
        """Does not start the daemon yet."""
        self._path = path
        self._is_starting = False

    def start(self, refusal: errors.DaemonNotRunning) -> None:
        """Starts the daemon, or waits for another thread or greenlet that does; raises ``DaemonNotRunning`` if that fails."""
        if os.environ.get("ORBD_AUTOSTART", "").lower() in FALSE_VALUES:
            raise errors.DaemonNotRunning(f"{refusal} (ORBD_AUTOSTART turns starting on demand off)") from refusal
        has_waited = False
        while self._is_starting:
            sleep(0.01)
            has_waited = True
        if has_waited:
            return
        self._is_starting = True
        try:
            # Imported on demand: few processes have to start the daemon.
            from . import _ctl

            problem = _ctl.start_daemon(self._path, START_TIMEOUT)
        finally:
            self._is_starting = False
        if problem is not None:
            raise errors.DaemonNotRunning(f"{refusal}; {problem}") from refusal
