"""Connections to the daemon: JSON lines over its Unix socket.

Owns sockets, framing, the pool and the daemon's start on demand. Knows no method but ``daemon.hello``, keeps no answer and never
retries a call that the daemon read. When an upgraded daemon closes a connection (``daemon.closing``) before it read the request,
the connection reconnects and sends the request again.

A connection carries one call at a time. It goes back to the pool only when the call was answered to its end; one whose call was
cut short by an exception (``gevent.Timeout``, ``KeyboardInterrupt``, a broken pipe) is closed, which also tells the daemon to
stop the work. A connection closes its socket when it is dropped, and a pool drops its connections when it is dropped itself, so
no way of forgetting a client leaves a socket open.

Sockets are gevent's wherever a hub runs, patched or not, so a waiting greenlet never holds up the others; a pooled socket is only
ever used by the hub that made it, and never by a forked child.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from weakref import WeakKeyDictionary

from . import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from io import BufferedReader
    from types import TracebackType
    from typing import Any, NoReturn

PROTOCOL_VERSION = 1
"""Version of the protocol that this package speaks."""

CONNECT_TIMEOUT = 10.0
"""Seconds for connecting and for the daemon's hello. Calls themselves have no limit here: the daemon keeps theirs."""

START_TIMEOUT = 20.0
"""Seconds for ``orbd-ctl daemon start``."""

WAIT_INTERVAL = 2.0
"""Seconds without an answer after which a caller that asked for it learns that it waits, and again after as long."""

IDLE_MAX = 64
"""Connections kept for later; more are closed when their call is over."""

NO = ("0", "false", "no", "off")
"""What the daemon's own configuration reads as no."""

RESENDS_MAX = 3
"""How often one request is sent again. Each time takes an upgrade of the daemon, so more than one is rare."""

LINE_MAX = 64 << 20
"""Bytes of the longest line accepted, so that a daemon gone wrong cannot fill our memory."""

# Made once: `json.dumps` and `json.loads` make an encoder, or guess an encoding, for each message.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def socket_path() -> str:
    """Returns where the daemon listens: ``$ORBD_SOCKET``, else ``~/.orbd/orbd.sock``."""
    return os.environ.get("ORBD_SOCKET") or os.path.join(os.path.expanduser("~"), ".orbd", "orbd.sock")


def hub() -> Any:
    """Returns gevent's hub of this thread, or None where there is none."""
    # Looked up, not imported: without gevent in the process there is nothing to be cooperative with.
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def _socket_module() -> Any:
    if hub() is None:
        return socket
    import gevent.socket

    return gevent.socket


def sleep(seconds: float) -> None:
    """Sleeps and lets other greenlets run where a hub does."""
    if hub() is None:
        time.sleep(seconds)
        return
    import gevent

    gevent.sleep(seconds)


def wait(connections: Sequence[Connection], seconds: float | None = None) -> None:
    """Waits until one of the connections has something to read or room for what it has to send, or so long."""
    module: Any = select
    if hub() is not None:
        import gevent.select

        module = gevent.select
    # Not `select`, which knows no file descriptor above 1023.
    poll = module.poll()
    for connection in connections:
        poll.register(connection.fileno(), module.POLLIN | (module.POLLOUT if connection.is_sending else 0))
    poll.poll(None if seconds is None else seconds * 1000)


def is_of_others(error: OSError) -> bool:
    """Says whether a timeout is not the socket's own, nor the system's.

    ``gevent.Timeout(5, TimeoutError)``, which is how PyInfra sets limits, throws it into whatever call is under way. Those of
    sockets say "timed out", those of the system have a number.
    """
    return isinstance(error, TimeoutError) and error.errno is None and error.args != ("timed out",)


def _package() -> str:
    """Names this package and its version, for messages alone: finding it out takes longer than a call."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"pyinfra-orbd {version('pyinfra-orbd')}"
    except PackageNotFoundError:
        return "pyinfra-orbd"


def _mismatch(version: str, protocol: int | None) -> errors.ProtocolMismatch:
    """Says who speaks which protocol, and what brings both to one."""
    if protocol is not None and protocol > PROTOCOL_VERSION:
        mend = "this package is the older: `pip install --upgrade pyinfra-orbd`"
    else:
        mend = "orbd is the older: once the new one is installed, run `orbd-ctl daemon restart`"
    return errors.ProtocolMismatch(
        f"orbd {version} speaks protocol {protocol}, this {_package()} speaks protocol {PROTOCOL_VERSION}; {mend}",
        kind="protocol_mismatch",
    )


class Connection:
    """One connection, carrying one call at a time."""

    def __init__(self, path: str, client: str) -> None:
        """Connects to ``path`` and says hello as ``client``."""
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
        # How many requests were sent on this socket.
        self._requests = 0
        module = _socket_module()
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
            answer = self.call("daemon.hello", {"client": client, "protocol": PROTOCOL_VERSION})
        except errors.MethodNotFound as error:
            raise errors.ProtocolMismatch(
                f"orbd does not know the hello of this {_package()}, which is of protocol {PROTOCOL_VERSION} ({error}): "
                "upgrade the older of the two, then run `orbd-ctl daemon restart`",
                kind="protocol_mismatch",
            ) from error
        except errors.ProtocolMismatch as error:
            # `daemon.info` is the same in every protocol so far; without it the daemon's own words have to do.
            try:
                answer = self.call("daemon.info", {})
            except errors.RequestFailed:
                raise error from None
        protocol = answer.get("protocol") if isinstance(answer, dict) else None
        if protocol != PROTOCOL_VERSION:
            version = answer.get("version", "?") if isinstance(answer, dict) else "?"
            raise _mismatch(version, protocol)

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
            # If the daemon closed the connection, what it sent before tells whether it read the request.
            if error.errno != errno.EPIPE:
                self._fail(error)

    def begin(self, method: str, params: Mapping[str, Any]) -> int:
        """Takes a request and returns its id like :meth:`send`, but :meth:`push` sends it."""
        request_id, line = self._request(method, params)
        self._is_pushed = True
        self._unsent = memoryview(line)
        return request_id

    @property
    def is_sending(self) -> bool:
        """Whether a part of the request is not sent yet."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """Returns the socket's file descriptor."""
        return int(self._socket.fileno())

    def push(self) -> bool:
        """Sends as much of what is not sent yet as goes without waiting; says whether that was anything."""
        if not self._unsent:
            return False
        self._socket.settimeout(0.0)
        try:
            count = self._socket.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # macOS's word for the same.
                return False
            if error.errno != errno.EPIPE:
                self._fail(error)
            # As above: what the daemon sent before is to be read.
            count = len(self._unsent)
        finally:
            self._socket.settimeout(None)
        self._unsent = self._unsent[count:]
        return True

    def has_arrived(self) -> bool:
        """Says whether :meth:`receive` would find the beginning of a message, or the end of the connection."""
        assert self._reader is not None
        self._socket.settimeout(0.0)
        try:
            # Takes what is there into the buffer. Nothing taken is either nothing there or the end, which `recv` tells apart.
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
            # A lone surrogate: bytes that Python could not decode, in a file name for instance. JSON has no place for them.
            self.done()
            raise errors.InvalidParams(f"{method}: not valid Unicode: {error.reason}", kind="invalid_params") from error
        self._line = line
        if method != "daemon.hello":
            # A hello is part of sending another request again, and counts for that one.
            self._resends = 0
        self._requests += 1
        return request_id, line

    def receive(self) -> dict[str, Any]:
        """Reads one message: an answer or a notification."""
        while True:
            message = self._message()
            if message.get("method") != "daemon.closing":
                return message
            params = message.get("params") or {}
            # What the daemon read is answered before the connection ends, and never sent again.
            if self.in_call and self._requests > params.get("requests_read", self._requests):
                self._send_again()

    def _send_again(self) -> None:
        """Reconnects to the upgraded daemon and sends the request that the old one did not read."""
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
                raise errors.ProtocolViolation(f"a line of the daemon is longer than {LINE_MAX} bytes")
            raise self._gone(None)
        try:
            message = _decode(line.decode())
        except ValueError as error:
            raise errors.ProtocolViolation(f"the daemon sent a line that is not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise errors.ProtocolViolation(f"the daemon sent a line that is no message: {line[:80]!r}")
        return message

    def answer(self, request_id: int) -> Any:
        """Reads on to the answer of ``request_id`` and returns its result."""
        while True:
            message = self.receive()
            if "method" in message:
                continue
            # An error without an id answers a request that the daemon could not read: ours, as there is only one.
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
        while on_wait is not None and not self.has_arrived():
            wait((self,), WAIT_INTERVAL)
            if not self.has_arrived():
                on_wait()
        try:
            result = self.answer(request_id)
        except errors.RequestFailed:
            # An error is an answer too: the connection is as good as before.
            self.done()
            raise
        self.done()
        return result

    def done(self) -> None:
        """Says that the call was answered to its end."""
        self.in_call = False

    def is_usable(self) -> bool:
        """Says whether the connection is between calls and still open on the daemon's side."""
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
        # Closed, or bytes that nobody asked for.
        return False

    def close(self) -> None:
        """Closes the connection; the daemon stops what it was doing for it."""
        if self._reader is not None:
            self._reader.close()
        if self._socket is not None:
            self._socket.close()

    # Ours, because the module's own names may be gone by then.
    _is_finalizing = staticmethod(sys.is_finalizing)

    def __del__(self) -> None:
        """Closes a connection that nobody has any more."""
        try:
            self.close()
        except Exception:
            # At the interpreter's end gevent may have been taken apart before us; the system closes what is left.
            if not self._is_finalizing():
                raise

    def _fail(self, error: OSError) -> NoReturn:
        """Tells what became of the connection; whoever's time is over beside it is told so in their own words."""
        if is_of_others(error):
            raise error
        raise self._gone(error) from error

    @staticmethod
    def _gone(error: OSError | None) -> errors.OrbdError:
        if isinstance(error, TimeoutError):
            # Only while saying hello: afterwards the socket has no timeout.
            return errors.DaemonGone(f"orbd did not answer within {CONNECT_TIMEOUT:.0f} s; see `orbd-ctl doctor`")
        cause = f": {error.strerror or error}" if error is not None else ""
        return errors.DaemonGone(
            f"orbd closed the connection before the answer was complete{cause}; what it was asked may have been done in part"
        )


class Borrowed:
    """A connection taken from the pool for one call, as a context manager."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        """Takes nothing yet."""
        self._pool = pool
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        """Takes a connection, or opens one."""
        self._connection = self._pool.take()
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives it back between calls, and closes it within one."""
        assert self._connection is not None
        self._pool.give(self._connection)


class Pool:
    """Connections to one socket; the one used last is used next."""

    def __init__(self, path: str, client: str) -> None:
        """Opens nothing yet."""
        self.path = path
        self._client = client
        self._pid = os.getpid()
        self._is_closed = False
        # Keyed by hub: a gevent socket is bound to the hub, and so to the thread, that made it. Plain sockets have the pool as
        # key.
        self._idle: WeakKeyDictionary[Any, list[Connection]] = WeakKeyDictionary()
        self._starter = Starter(path)

    def borrow(self) -> Borrowed:
        """Returns a context manager around a connection."""
        return Borrowed(self)

    def take(self) -> Connection:
        """Takes the connection used last that is still open, or opens one."""
        idle = self._idle_here()
        while True:
            try:
                # Not asked before whether there is one: another thread may take it between the question and the answer.
                connection = idle.pop()
            except IndexError:
                return self._open()
            if connection.is_usable():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Takes a connection back."""
        idle = self._idle_here()
        # One that came along through a fork is our parent's conversation still.
        is_ours = connection.pid == self._pid
        if connection.in_call or not is_ours or self._is_closed or len(idle) >= IDLE_MAX:
            connection.close()
        else:
            idle.append(connection)

    def close(self) -> None:
        """Closes what is not in use now, and the rest as it comes back: no connection is kept any more."""
        self._is_closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Closes what is not in use; the next call opens a new connection."""
        # Plain sockets, under our own key, can be closed from anywhere; those of another thread's hub cannot.
        for idle in (self._idle_here(), self._idle.get(self, [])):
            while True:
                try:
                    connection = idle.pop()
                except IndexError:
                    break
                connection.close()

    def _idle_here(self) -> list[Connection]:
        if self._pid != os.getpid():
            # We are a forked child: these sockets are our parent's conversation.
            self._pid = os.getpid()
            self._idle = WeakKeyDictionary()
            # Whoever was starting the daemon at that moment did not come along.
            self._starter = Starter(self.path)
        here = hub()
        # Not `hub or self`: a hub that has not switched yet is false.
        return self._idle.setdefault(self if here is None else here, [])

    def _open(self) -> Connection:
        try:
            return self._connect()
        except errors.DaemonNotRunning as refusal:
            self._starter.start(refusal)
        return self._connect()

    def _connect(self) -> Connection:
        try:
            return Connection(self.path, self._client)
        except errors.OrbdError:
            raise
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise errors.DaemonNotRunning(
                f"orbd is not running (nobody listens on {self.path}); start it with `orbd-ctl daemon start`"
            ) from error
        except TimeoutError as error:
            if is_of_others(error):
                raise
            raise errors.DaemonGone(f"orbd did not accept a connection on {self.path}; see `orbd-ctl doctor`") from error
        except OSError as error:
            # Among them a path that is too long, which has neither errno nor a name of its own.
            reason = error.strerror or str(error)
            raise errors.DaemonUnavailable(f"cannot connect to orbd on {self.path}: {reason}") from error


class Starter:
    """Starts the daemon on demand through ``orbd-ctl daemon start``, which knows about services and locks."""

    def __init__(self, path: str) -> None:
        """Starts nothing yet."""
        self._path = path
        self._is_starting = False

    def start(self, refusal: errors.DaemonNotRunning) -> None:
        """Starts the daemon, or waits for another greenlet that does; raises ``DaemonNotRunning`` where it cannot."""
        if os.environ.get("ORBD_AUTOSTART", "").lower() in NO:
            raise errors.DaemonNotRunning(f"{refusal} (ORBD_AUTOSTART forbids to start it here)") from refusal
        has_waited = False
        while self._is_starting:
            sleep(0.01)
            has_waited = True
        if has_waited:
            return
        self._is_starting = True
        try:
            # Loaded when it is needed: few processes find no daemon.
            from . import _ctl

            trouble = _ctl.start_daemon(self._path, START_TIMEOUT)
        finally:
            self._is_starting = False
        if trouble is not None:
            raise errors.DaemonNotRunning(f"{refusal}; {trouble}") from refusal
