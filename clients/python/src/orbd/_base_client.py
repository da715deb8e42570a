"""Calls and subscriptions, without knowledge of single methods."""

from __future__ import annotations

import time
from base64 import b64encode

from . import errors
from ._transport import Connection, Pool, socket_path, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from typing import Any, TypeVar

    from typing_extensions import Self

    from . import models as models

    EventT = TypeVar("EventT")
else:

    class LazyModels:
        """Imports the models when the first answer arrives, because that takes longer than the rest of the import."""

        def __getattr__(self, name):
            from . import models

            # From now on, access to this name does not come here.
            vars(self)[name] = getattr(models, name)
            return vars(self)[name]

    models = LazyModels()

INLINE_MAX = 1 << 20
"""Maximum bytes of input in the request itself; more is sent in pieces while the command runs."""

PIECE = 256 << 10
"""Size of one piece of input in bytes."""

FEED_GRACE = 1.0
"""Seconds to wait for the last answer to input after the command's end; after that the connection is closed, not reused."""


def without_unset(**params: Any) -> dict[str, Any]:
    """Returns the parameters without those that are None or False, so that the daemon's defaults apply."""
    return {name: value for name, value in params.items() if value is not None and value is not False}


def input_params(prefix: str, data: bytes | None) -> dict[str, str]:
    """Returns bytes as ``PREFIXtext`` if they are UTF-8, which is shorter, else as ``PREFIXbase64``; nothing for None."""
    if data is None:
        return {}
    try:
        return {f"{prefix}text": data.decode()}
    except UnicodeDecodeError:
        return {f"{prefix}base64": b64encode(data).decode("ascii")}


def pieces_of(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


class BaseClient:
    """Client without typed methods, for any number of greenlets or threads."""

    def __init__(self, path: str | None = None, *, name: str = "pyinfra") -> None:
        """Does not connect yet. ``path`` is the daemon's socket, ``name`` the client's name in the daemon's job list and log."""
        self._pool = Pool(path or socket_path(), name)

    @property
    def path(self) -> str:
        """Path of the daemon's socket."""
        return self._pool.path

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the client."""
        self.close()

    def close(self) -> None:
        """Closes idle connections now, and each of the others at the end of its call.

        Garbage collection of the client closes them too. A later call opens a connection for itself.
        """
        self._pool.close()

    def close_idle(self) -> None:
        """Closes idle connections; the next call opens a new one."""
        self._pool.close_idle()

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Calls a method by its name on the wire and returns the decoded result."""
        with self._pool.borrow() as connection:
            return connection.call(method, params or {})

    def _follow(
        self, method: str, params: Mapping[str, Any], pieces: Iterator[bytes] | None = None
    ) -> Generator[models.JobEvent, None, models.Ended]:
        """Yields the events of one job, while ``pieces`` are sent as its input; also returns the last event."""
        if pieces is None:
            with self._pool.borrow() as connection:
                ended = yield from self._events(connection, method, params, None)
        else:
            # Input needs its own connection: the daemon stops reading from a connection whose events are not consumed. On a
            # shared connection, client and daemon could wait for each other.
            with self._pool.borrow() as connection, self._pool.borrow() as second:
                feed = InputFeed(second, pieces)
                ended = yield from self._events(connection, method, params, feed)
                feed.finish()
        yield ended
        return ended

    def _subscribe(
        self, read: Callable[[Any], EventT | None], method: str, params: Mapping[str, Any]
    ) -> Generator[EventT, None, None]:
        """Yields events on a connection of their own until the iterator is closed or the connection ends."""
        with self._pool.borrow() as connection:
            subscription = _subscribed(connection, method, params)
            while True:
                notification = connection.receive().get("params") or {}
                if notification.get("subscription") == subscription:
                    event = read(notification.get("result"))
                    if event is not None:
                        yield event

    @staticmethod
    def _events(
        connection: Connection, method: str, params: Mapping[str, Any], feed: InputFeed | None
    ) -> Generator[models.JobEvent, None, models.Ended]:
        """Yields all events except the last one, which it returns. The connection is reserved for this call until then."""
        subscription = _subscribed(connection, method, params)
        while True:
            if feed is not None:
                feed.send_until(connection)
            notification = connection.receive().get("params") or {}
            if notification.get("subscription") != subscription:
                continue
            event = models.event_from_wire(notification.get("result"))
            if isinstance(event, models.Ended):
                connection.done()
                return event
            if event is not None:
                if feed is not None and isinstance(event, models.Accepted):
                    feed.begin(event.job_id)
                yield event


def _subscribed(connection: Connection, method: str, params: Mapping[str, Any]) -> Any:
    """Subscribes and returns the subscription's id. The connection stays in its call until the subscription ends."""
    try:
        return connection.answer(connection.send(method, params))
    except errors.RequestFailed:
        connection.done()
        raise


class InputFeed:
    """Sends input piece by piece on a second connection while the first one delivers the command's events.

    One piece is in flight at a time. The daemon answers it when the command has room for more, which gives backpressure. No
    thread or greenlet is involved: the caller that waits for the next event sends input meanwhile, and polls both connections.
    """

    def __init__(self, connection: Connection, pieces: Iterator[bytes]) -> None:
        """Sends nothing yet."""
        self._connection = connection
        self._pieces = pieces
        self._job_id = 0
        self._request_id: int | None = None
        self._is_finished = False

    def begin(self, job_id: int) -> None:
        """Sends the first piece to the job."""
        self._job_id = job_id
        self._next()

    def send_until(self, events: Connection) -> None:
        """Sends input until ``events`` is readable or no more input is needed."""
        while self._request_id is not None:
            # Before the check for events, so that a command that writes without pause still gets its input.
            made_progress = self._step()
            if events.is_readable():
                return
            if not made_progress:
                wait((events, self._connection))

    def finish(self) -> None:
        """Reads the answer to the last piece after the command's end, so that the connection can be reused."""
        self._is_finished = True
        deadline = time.monotonic() + FEED_GRACE
        try:
            while self._request_id is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                if not self._step():
                    wait((self._connection,), left)
        except errors.OrbdError:
            # The command has ended, so input that it did not read does not matter. The pool closes the connection, because its
            # call is not complete.
            pass

    def _step(self) -> bool:
        """Sends and receives as much as possible without blocking; returns whether there was any progress."""
        made_progress = self._connection.push()
        if not self._connection.is_readable():
            return made_progress
        message = self._connection.receive()
        is_unreadable = message.get("id") is None and "error" in message
        if "method" not in message and (message.get("id") == self._request_id or is_unreadable):
            self._on_answer(message)
        return True

    def _on_answer(self, message: Mapping[str, Any]) -> None:
        answer = None
        try:
            answer = self._connection.result(message)
        except errors.JobNotFound:
            # The job has ended and expired. Its `Ended` event, which is still to come, has the outcome.
            self._is_finished = True
        self._request_id = None
        self._connection.done()
        if isinstance(answer, dict) and answer.get("open") is False:
            self._is_finished = True
        if not self._is_finished:
            self._next()

    def _next(self) -> None:
        piece = next((piece for piece in self._pieces if piece), None)
        self._is_finished = piece is None
        params = {"job_id": self._job_id, **input_params("", piece), **without_unset(eof=self._is_finished)}
        self._request_id = self._connection.begin("job.input", params)
