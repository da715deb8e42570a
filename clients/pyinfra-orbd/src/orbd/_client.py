"""A typed method for each method of the daemon.

Owns names and parameters on the wire, nothing else: the daemon queues, caches and keeps time.
"""

from __future__ import annotations

import time
from base64 import b64encode
from os import fspath

from . import errors
from ._transport import Connection, Pool, socket_path, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from os import PathLike
    from typing import Any

    from typing_extensions import Self

    from . import models
else:

    class _Models:
        """Loads the models when the first answer arrives: making dataclasses costs more than all the rest of the import."""

        def __getattr__(self, name):
            from . import models

            globals()["models"] = models
            return getattr(models, name)

    models = _Models()

INLINE_MAX = 1 << 20
"""Bytes of input that go along with the request; more is sent in pieces while the command runs."""

PIECE = 256 << 10
"""Bytes of one piece of input."""

FEED_GRACE = 1.0
"""Seconds that the last answer to input may come after the command's end; then its connection is closed instead of kept."""


def _given(**params: Any) -> dict[str, Any]:
    """Leaves out what the caller did not say, so that the daemon's defaults hold."""
    return {name: value for name, value in params.items() if value is not None and value is not False}


def _input(data: bytes) -> dict[str, str]:
    """Puts bytes into a message: as text where they are text, which is a quarter shorter and costs no encoding."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode("ascii")}


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


class Client:
    """Calls to one daemon, from any number of greenlets or threads.

    Parameters that every job takes: ``detach`` answers at once with the job's id,
    ``queue_timeout_ms`` and ``run_timeout_ms`` limit waiting and running. Left out, the daemon's defaults hold.
    """

    def __init__(self, path: str | None = None, *, name: str = "pyinfra") -> None:
        """Connects to nothing yet; ``path`` is the daemon's socket, ``name`` is what the daemon calls us."""
        self._pool = Pool(path or socket_path(), name)

    @property
    def path(self) -> str:
        """The daemon's socket."""
        return self._pool.path

    def __enter__(self) -> Self:
        """Returns itself; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes connections that are not in use, and each of the others when its call is over.

        A client that is dropped without it closes them too. A call made afterwards opens a connection for itself.
        """
        self._pool.close()

    def close_idle(self) -> None:
        """Closes connections that are not in use; the next call opens a new one."""
        self._pool.close_idle()

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Calls a method by its name on the wire and returns the result as it came."""
        with self._pool.borrow() as connection:
            return connection.call(method, params or {})

    # daemon

    def daemon_info(self) -> models.DaemonInfo:
        """Tells version, instance, limits and where orbctl is."""
        return models.DaemonInfo.from_wire(self.call("daemon.info"))

    def daemon_reload(self) -> models.Reload:
        """Makes the daemon read its own configuration again, and tells what is in force and what needs a restart."""
        return models.Reload.from_wire(self.call("daemon.reload"))

    def daemon_stop(self) -> None:
        """Stops the daemon in order."""
        self.call("daemon.stop")

    # machine

    def machine_list(self, *, max_age_ms: int | None = None) -> models.MachineList:
        """Lists every machine; ``max_age_ms`` 0 asks orbctl now."""
        return models.MachineList.from_wire(self.call("machine.list", _given(max_age_ms=max_age_ms)))

    def machine_info(self, machine: str, *, max_age_ms: int | None = None) -> models.MachineInfo:
        """Tells one machine with its addresses and size."""
        return models.MachineInfo.from_wire(self.call("machine.info", _given(machine=machine, max_age_ms=max_age_ms)))

    def machine_create(
        self,
        name: str,
        distro: str,
        *,
        version: str | None = None,
        arch: str | None = None,
        user: str | None = None,
        cpus: int | None = None,
        memory: str | None = None,
        disk: str | None = None,
        isolated: bool = False,
        isolate_network: bool = False,
        mounts: Sequence[str] = (),
        forward_ssh_agent: bool = False,
        user_data: str | PathLike[str] | None = None,
        **job: Any,
    ) -> models.Change:
        """Makes a machine and boots it.

        ``user_data`` names a file of cloud-init's on this computer. The daemon opens no file of ours, so such a machine is made
        by ``orbd-ctl`` in a place of the queue, and cannot be made with ``detach``.
        """
        options = _given(
            arch=arch,
            user=user,
            cpus=cpus,
            memory=memory,
            disk=disk,
            isolated=isolated,
            isolate_network=isolate_network,
            mounts=list(mounts) or None,
            forward_ssh_agent=forward_ssh_agent,
            **job,
        )
        if user_data is None:
            return self._change("machine.create", name=name, distro=distro, version=version, **options)
        if options.pop("detach", None):
            raise TypeError("a machine with user data is made by a process of ours: it cannot be detached")
        words = ["create", *_flags({**options, "user_data": fspath(user_data)})]
        image = distro if version is None else f"{distro}:{version}"
        answer = self._ctl([*words, "--", image, name])
        job_wire = answer.get("job") if isinstance(answer, dict) else None
        if job_wire is None:
            return models.Change.from_wire(answer)
        made = models.Job.from_wire(job_wire)
        changed, warning = (None, None) if made.outcome is None else (made.outcome.changed, made.outcome.warning)
        return models.Change(
            job_id=made.job_id,
            state=made.state,
            changed=changed,
            warning=warning,
            wait_us=made.wait_us,
            run_us=made.run_us,
        )

    def machine_start(self, machine: str, **job: Any) -> models.Change:
        """Boots a machine; a running one is left as it is."""
        return self._change("machine.start", machine=machine, **job)

    def machine_stop(self, machine: str, *, force: bool = False, **job: Any) -> models.Change:
        """Shuts a machine down; a stopped one is left as it is."""
        return self._change("machine.stop", machine=machine, force=force, **job)

    def machine_restart(self, machine: str, **job: Any) -> models.Change:
        """Shuts a machine down and boots it."""
        return self._change("machine.restart", machine=machine, **job)

    def machine_delete(self, machine: str, **job: Any) -> models.Change:
        """Destroys a machine with everything on it."""
        return self._change("machine.delete", machine=machine, **job)

    def machine_rename(self, machine: str, new_name: str, **job: Any) -> models.Change:
        """Gives a machine another name."""
        return self._change("machine.rename", machine=machine, new_name=new_name, **job)

    def machine_clone(self, machine: str, new_name: str, **job: Any) -> models.Change:
        """Copies a machine; the copy is stopped."""
        return self._change("machine.clone", machine=machine, new_name=new_name, **job)

    def machine_start_all(self, **job: Any) -> models.Change:
        """Starts every machine."""
        return self._change("machine.start_all", **job)

    def machine_stop_all(self, *, force: bool = False, **job: Any) -> models.Change:
        """Stops every machine."""
        return self._change("machine.stop_all", force=force, **job)

    def machine_default(self, *, max_age_ms: int | None = None) -> models.DefaultMachine:
        """Tells the default machine."""
        return models.DefaultMachine.from_wire(self.call("machine.default", _given(max_age_ms=max_age_ms)))

    def machine_set_default(self, machine: str | None, **job: Any) -> models.Change:
        """Sets the default machine, or clears it with None."""
        wire = self.call("machine.set_default", {"machine": machine, **_given(**job)})
        return models.Change.from_wire(wire)

    def machine_logs(self, machine: str, *, all: bool = False) -> str:
        """Tells a machine's log so far."""
        return models.Text.from_wire(self.call("machine.logs", _given(machine=machine, all=all))).text

    def machine_ssh(self) -> str:
        """Tells how to reach machines over SSH."""
        return models.Text.from_wire(self.call("machine.ssh")).text

    def machine_run(
        self,
        machine: str,
        command: Sequence[str],
        *,
        user: str | None = None,
        workdir: str | None = None,
        try_workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        caller_env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        pass_through: bool = False,
        **job: Any,
    ) -> models.Run:
        """Runs a command and answers with its exit code and output; ``stdin`` goes along whole.

        ``try_workdir`` is where it starts if the machine has that folder, and else in the home; ``workdir`` has to exist.
        ``caller_env`` is what the caller's own environment gives the guest, from :func:`~orbd.caller_environment`.
        ``pass_through`` keeps only the end of what followers have read, so that much output costs the daemon no file.
        """
        params = _given(machine=machine, user=user, workdir=workdir, try_workdir=try_workdir, pass_through=pass_through, **job)
        params.update(_given(env=env or None, caller_env=caller_env or None))
        params["command"] = list(command)
        if stdin is not None:
            params.update({f"stdin_{form}": value for form, value in _input(stdin).items()})
        return models.Run.from_wire(self.call("machine.run", params))

    def machine_run_follow(
        self,
        machine: str,
        command: Sequence[str],
        *,
        user: str | None = None,
        workdir: str | None = None,
        try_workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        caller_env: Mapping[str, str] | None = None,
        stdin: bytes | Iterable[bytes] | None = None,
        pass_through: bool = False,
        **job: Any,
    ) -> Generator[models.JobEvent, None, None]:
        """Runs a command and yields what happens as it happens; closing the iterator early stops the command.

        The last event is :class:`~orbd.models.Ended`. A command that did not come to a regular end raises after it what
        :meth:`machine_run` would have raised; one that ended by itself, with whatever exit code, raises nothing.

        Much ``stdin``, or one that comes in pieces, is sent while the command runs, as fast as the command takes it, over a
        second connection, whenever the next event is asked for. ``pass_through`` is for much output that is read as it comes:
        what was yielded is not kept.
        """
        params = _given(machine=machine, user=user, workdir=workdir, try_workdir=try_workdir, pass_through=pass_through, **job)
        params.update(_given(env=env or None, caller_env=caller_env or None))
        params["command"] = list(command)
        pieces: Iterator[bytes] | None = None
        if isinstance(stdin, bytes) and len(stdin) <= INLINE_MAX:
            params.update({f"stdin_{form}": value for form, value in _input(stdin).items()})
        elif stdin is not None:
            params["stdin_stream"] = True
            pieces = _pieces(stdin) if isinstance(stdin, bytes) else iter(stdin)
        return self._run_follow(params, pieces)

    # files of this computer

    def export_machine(
        self, machine: str, path: str | PathLike[str], *, queue_timeout_ms: int | None = None
    ) -> models.Job | None:
        """Writes a machine to an archive, and tells the job; None where it was done but the daemon could not be told.

        Like the three below, it has ``orbd-ctl`` wait for a place in the queue and open the files itself, as this user, from this
        process's directory. A caller that is interrupted meanwhile (Ctrl-C, ``gevent.Timeout``) interrupts that.
        """
        return self._leased(["export", *_flags({"queue_timeout_ms": queue_timeout_ms}), "--", machine, fspath(path)])

    def import_machine(self, path: str | PathLike[str], name: str, *, queue_timeout_ms: int | None = None) -> models.Job | None:
        """Makes a machine of an archive, like :meth:`export_machine`."""
        return self._leased(["import", *_flags({"name": name, "queue_timeout_ms": queue_timeout_ms}), "--", fspath(path)])

    def push_files(
        self,
        machine: str,
        paths: Sequence[str | PathLike[str]],
        target: str | None = None,
        *,
        queue_timeout_ms: int | None = None,
    ) -> models.Job | None:
        """Copies files and folders into a machine, into the user's home or to ``target``, like :meth:`export_machine`."""
        words = [*(fspath(path) for path in paths), *([] if target is None else [target])]
        return self._leased(["push", *_flags({"machine": machine, "queue_timeout_ms": queue_timeout_ms}), "--", *words])

    def pull_files(
        self,
        machine: str,
        paths: Sequence[str],
        target: str | PathLike[str] | None = None,
        *,
        queue_timeout_ms: int | None = None,
    ) -> models.Job | None:
        """Copies files and folders out of a machine, into this directory or to ``target``, like :meth:`export_machine`."""
        words = [*paths, *([] if target is None else [fspath(target)])]
        return self._leased(["pull", *_flags({"machine": machine, "queue_timeout_ms": queue_timeout_ms}), "--", *words])

    # orbstack and its configuration

    def orbstack_status(self, *, max_age_ms: int | None = None) -> models.Status:
        """Tells whether OrbStack runs, without waking it."""
        return models.Status.from_wire(self.call("orbstack.status", _given(max_age_ms=max_age_ms)))

    def orbstack_version(self, *, max_age_ms: int | None = None) -> models.Version:
        """Tells the version of orbctl."""
        return models.Version.from_wire(self.call("orbstack.version", _given(max_age_ms=max_age_ms)))

    def orbstack_start(self, *, force: bool = False, **job: Any) -> models.Change:
        """Starts OrbStack itself."""
        return self._change("orbstack.start", force=force, **job)

    def orbstack_stop(self, *, force: bool = False, **job: Any) -> models.Change:
        """Stops OrbStack itself and with it every machine."""
        return self._change("orbstack.stop", force=force, **job)

    def config_show(self, *, max_age_ms: int | None = None) -> models.Config:
        """Tells OrbStack's whole configuration."""
        return models.Config.from_wire(self.call("config.show", _given(max_age_ms=max_age_ms)))

    def config_get(self, key: str, *, max_age_ms: int | None = None) -> models.ConfigValue:
        """Tells one key of OrbStack's configuration."""
        return models.ConfigValue.from_wire(self.call("config.get", _given(key=key, max_age_ms=max_age_ms)))

    def config_set(self, key: str, value: str, **job: Any) -> models.Change:
        """Sets one key of OrbStack's configuration."""
        return self._change("config.set", key=key, value=value, **job)

    def config_reset(self, **job: Any) -> models.Change:
        """Puts OrbStack's whole configuration back to its defaults."""
        return self._change("config.reset", **job)

    # job

    def job_get(self, job_id: int) -> models.Job:
        """Tells one job."""
        return models.JobAnswer.from_wire(self.call("job.get", {"job_id": job_id})).job

    def job_list(
        self,
        *,
        state: str | None = None,
        machine: str | None = None,
        operation: str | None = None,
        limit: int | None = None,
    ) -> models.JobList:
        """Lists jobs that wait, run, or ended a while ago."""
        params = _given(state=state, machine=machine, operation=operation, limit=limit)
        return models.JobList.from_wire(self.call("job.list", params))

    def job_wait(self, job_id: int, *, timeout_ms: int | None = None) -> models.Job:
        """Waits for a job's end, or so long, and tells it."""
        wire = self.call("job.wait", _given(job_id=job_id, timeout_ms=timeout_ms))
        return models.JobAnswer.from_wire(wire).job

    def job_output(self, job_id: int, *, offset: int = 0, bytes_max: int | None = None, wait_ms: int = 0) -> models.JobOutput:
        """Reads what a job wrote, from any byte on, also while it runs."""
        params = {"job_id": job_id, "offset": offset, "wait_ms": wait_ms, **_given(bytes_max=bytes_max)}
        return models.JobOutput.from_wire(self.call("job.output", params))

    def job_input(self, job_id: int, data: bytes = b"", *, eof: bool = False) -> models.JobInput:
        """Gives input to a command that was started with ``stdin_stream``."""
        return models.JobInput.from_wire(self.call("job.input", _job_input(job_id, data, eof=eof)))

    def job_cancel(self, job_id: int) -> models.JobCancel:
        """Cancels a job: a waiting one never starts, a running one is terminated."""
        return models.JobCancel.from_wire(self.call("job.cancel", {"job_id": job_id}))

    def job_follow(self, job_id: int, *, offset: int = 0) -> Generator[models.JobEvent, None, None]:
        """Yields a job's output and end as they come; closing the iterator early does not stop the job.

        Like :meth:`job_wait` it tells how the job ended, in ``job.outcome``, and raises nothing for it.
        """
        yield from self._follow("job.follow", {"job_id": job_id, "offset": offset}, None)

    # queue and cache

    def queue_status(self) -> models.QueueStatus:
        """Tells how many jobs wait and run and what is paused."""
        return models.QueueStatus.from_wire(self.call("queue.status"))

    def queue_pause(self, machine: str | None = None) -> models.QueueStatus:
        """Starts nothing more, or nothing more on one machine."""
        return models.QueueStatus.from_wire(self.call("queue.pause", _given(machine=machine)))

    def queue_resume(self, machine: str | None = None) -> models.QueueStatus:
        """Ends a pause or a drain."""
        return models.QueueStatus.from_wire(self.call("queue.resume", _given(machine=machine)))

    def queue_drain(self, machine: str | None = None) -> models.QueueStatus:
        """Refuses new work and returns when everything accepted has ended."""
        return models.QueueStatus.from_wire(self.call("queue.drain", _given(machine=machine)))

    def cache_status(self) -> models.CacheStatus:
        """Tells what is known and how old it is."""
        return models.CacheStatus.from_wire(self.call("cache.status"))

    def cache_invalidate(self, machine: str | None = None) -> models.CacheInvalidate:
        """Forgets what is known, so that the next reads ask orbctl."""
        return models.CacheInvalidate.from_wire(self.call("cache.invalidate", _given(machine=machine)))

    # metrics

    def metrics_summary(
        self,
        *,
        window_ms: int | None = None,
        operation: str | None = None,
        machine: str | None = None,
        group_by: str | None = None,
    ) -> models.MetricsSummary:
        """Counts, error rates and percentiles of waiting and running."""
        params = _given(window_ms=window_ms, operation=operation, machine=machine, group_by=group_by)
        return models.MetricsSummary.from_wire(self.call("metrics.summary", params))

    def metrics_history(
        self,
        *,
        operation: str | None = None,
        machine: str | None = None,
        outcome: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> models.MetricsHistory:
        """Lists recorded operations, newest first."""
        params = _given(operation=operation, machine=machine, outcome=outcome, limit=limit, cursor=cursor)
        return models.MetricsHistory.from_wire(self.call("metrics.history", params))

    def metrics_counters(self) -> models.Counters:
        """Counts cache hits, joins, refusals and the like since the daemon's start."""
        return models.Counters.from_wire(self.call("metrics.counters"))

    # events

    def events_subscribe(
        self, *, kinds: Iterable[str] = (), since: int | None = None, instance: str | None = None
    ) -> Generator[models.Event, None, None]:
        """Yields what happens, until the iterator is closed or the daemon goes.

        The first event is :class:`~orbd.models.State`, everything as it is. Whoever remembers ``sequence`` and ``instance`` of
        the last event, and gives them as ``since`` and ``instance``, is told what came after it instead; where that is no longer
        kept, :class:`~orbd.models.Missed` and then the state. ``kinds`` leaves out others. Each iterator has a connection of its
        own.
        """
        params = _given(kinds=list(kinds) or None, since=since, instance=instance)
        with self._pool.borrow() as connection:
            subscription = _subscribed(connection, "events.subscribe", params)
            while True:
                told = connection.receive().get("params") or {}
                if told.get("subscription") == subscription:
                    event = models.happening_from_wire(told.get("result"))
                    if event is not None:
                        yield event

    # session

    def lease_acquire(
        self,
        operation: str,
        machine: str | None = None,
        *,
        pid: int,
        machine_names: Sequence[str] = (),
        new_name: str | None = None,
        force: bool = False,
        read: Mapping[str, Any] | None = None,
        unknown_form: Mapping[str, Any] | None = None,
        **job: Any,
    ) -> models.Lease:
        """Waits for a place in the queue that the process ``pid`` uses itself, for an operation such as ``push`` or ``shell``.

        ``machine_names`` stands instead of ``machine`` where an operation takes several, ``new_name`` goes with ``rename`` and
        ``clone``, and ``force`` ends or cancels what is in the way. The operation ``read`` needs a ``read`` as in
        :meth:`lease_read`. ``unknown_form`` describes a command line that the caller does not understand in full: its
        ``operands`` are the words that may name machines, and ``whole_fleet`` says that it may mean all of them.
        """
        params = _given(
            operation=operation,
            machine=machine,
            machine_names=list(machine_names) or None,
            new_name=new_name,
            force=force,
            read=read,
            unknown_form=unknown_form,
            pid=pid,
            **job,
        )
        return models.Lease.from_wire(self.call("lease.acquire", params))

    def lease_read(self, read: Mapping[str, Any], *, max_age_ms: int | None = None) -> models.RawOutput:
        """Tells what ``orbctl`` prints for a read, byte for byte, and how it ends; a read that it refuses is answered too.

        ``read`` has a ``command`` such as ``list`` or ``config_get``, and what belongs to it: ``machine``, ``key``, ``format``,
        ``quiet``, ``running``, ``all``.
        """
        return models.RawOutput.from_wire(self.call("lease.read", _given(read=read, max_age_ms=max_age_ms)))

    def lease_release(self, job_id: int, *, exit_code: int | None = None, signal: int | None = None) -> models.Release:
        """Says how the process of a lease ended and waits until it is gone."""
        wire = self.call("lease.release", _given(job_id=job_id, exit_code=exit_code, signal=signal))
        return models.Release.from_wire(wire)

    def _ctl(self, words: Sequence[str]) -> Any:
        # Loaded when it is needed: most callers open no files.
        from . import _ctl

        return _ctl.carry_out(self.path, words)

    def _leased(self, words: Sequence[str]) -> models.Job | None:
        answer = self._ctl(words)
        return None if answer is None else models.JobAnswer.from_wire(answer).job

    def _change(self, method: str, **params: Any) -> models.Change:
        return models.Change.from_wire(self.call(method, _given(**params)))

    def _run_follow(self, params: Mapping[str, Any], pieces: Iterator[bytes] | None) -> Generator[models.JobEvent, None, None]:
        outcome = (yield from self._follow("machine.run_follow", params, pieces)).job.outcome
        if outcome is not None and outcome.error is not None:
            raise errors.error_from_wire(outcome.error)

    def _follow(
        self, method: str, params: Mapping[str, Any], pieces: Iterator[bytes] | None
    ) -> Generator[models.JobEvent, None, models.Ended]:
        if pieces is None:
            with self._pool.borrow() as connection:
                ended = yield from self._events(connection, method, params, None)
        else:
            # Input has a connection of its own: the daemon stops reading from one whose events nobody takes, so whoever sent
            # input there could wait for the daemon while the daemon waits for them.
            with self._pool.borrow() as connection, self._pool.borrow() as second:
                feed = Feed(second, pieces)
                ended = yield from self._events(connection, method, params, feed)
                feed.finish()
        yield ended
        return ended

    @staticmethod
    def _events(
        connection: Connection, method: str, params: Mapping[str, Any], feed: Feed | None
    ) -> Generator[models.JobEvent, None, models.Ended]:
        """Yields all but the last event, which it returns: until then the connection is in its call."""
        subscription = _subscribed(connection, method, params)
        while True:
            if feed is not None:
                feed.send_until(connection)
            told = connection.receive().get("params") or {}
            if told.get("subscription") != subscription:
                continue
            event = models.event_from_wire(told.get("result"))
            if isinstance(event, models.Ended):
                connection.done()
                return event
            if event is not None:
                if feed is not None and isinstance(event, models.Accepted):
                    feed.begin(event.job_id)
                yield event


def _subscribed(connection: Connection, method: str, params: Mapping[str, Any]) -> Any:
    """Subscribes and returns what names the subscription. The connection is in its call until that ends."""
    try:
        return connection.answer(connection.send(method, params))
    except errors.RequestFailed:
        connection.done()
        raise


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Says options as ``orbd-ctl`` reads them. Each is one word: a value never becomes a flag of its own."""
    for name, value in _given(**options).items():
        if name == "mounts":
            yield from (f"--mount={mount}" for mount in value)
        elif value is True:
            yield f"--{name.replace('_', '-')}"
        elif name in ("queue_timeout_ms", "run_timeout_ms"):
            yield f"--{'queue-timeout' if name == 'queue_timeout_ms' else 'timeout'}={value}ms"
        else:
            yield f"--{name.replace('_', '-')}={value}"


def _job_input(job_id: int, data: bytes, *, eof: bool) -> dict[str, Any]:
    params: dict[str, Any] = {"job_id": job_id}
    if data:
        params.update(_input(data))
    if eof:
        params["eof"] = True
    return params


class Feed:
    """Input sent piece by piece on a connection of its own, beside the events of the command that reads it.

    One piece is under way at a time; the daemon answers it when the command's end has room, so a slow reader holds us back.
    There is neither thread nor greenlet in it: whoever waits for the next event sends meanwhile, and waits for both connections.
    """

    def __init__(self, connection: Connection, pieces: Iterator[bytes]) -> None:
        """Sends nothing yet."""
        self._connection = connection
        self._pieces = pieces
        self._job_id = 0
        self._request_id: int | None = None
        self._is_over = False

    def begin(self, job_id: int) -> None:
        """Sends the first piece to the job."""
        self._job_id = job_id
        self._next()

    def send_until(self, events: Connection) -> None:
        """Sends until there is something to read on ``events``, or until no more is wanted."""
        while self._request_id is not None:
            # Before looking at the events: a command that never stops writing must not keep its input waiting.
            has_moved = self._step()
            if events.has_arrived():
                return
            if not has_moved:
                wait((events, self._connection))

    def finish(self) -> None:
        """Takes the answer to the last piece after the command's end, so that the connection can be kept."""
        self._is_over = True
        deadline = time.monotonic() + FEED_GRACE
        try:
            while self._request_id is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                if not self._step():
                    wait((self._connection,), left)
        except errors.OrbdError:
            # The command's end is told already, and input that it did not read is nobody's loss. The connection is within its
            # call, so it is closed.
            pass

    def _step(self) -> bool:
        """Does what can be done without waiting; says whether that was anything."""
        has_moved = self._connection.push()
        if not self._connection.has_arrived():
            return has_moved
        message = self._connection.receive()
        is_unreadable = message.get("id") is None and "error" in message
        if "method" not in message and (message.get("id") == self._request_id or is_unreadable):
            self._answered(message)
        return True

    def _answered(self, message: Mapping[str, Any]) -> None:
        answer = None
        try:
            answer = self._connection.result(message)
        except errors.JobNotFound:
            # The job is over and forgotten; its end, which is on its way, says how that came about.
            self._is_over = True
        self._request_id = None
        self._connection.done()
        if isinstance(answer, dict) and answer.get("open") is False:
            self._is_over = True
        if not self._is_over:
            self._next()

    def _next(self) -> None:
        piece = next((piece for piece in self._pieces if piece), None)
        self._is_over = piece is None
        params = _job_input(self._job_id, piece or b"", eof=self._is_over)
        self._request_id = self._connection.begin("job.input", params)
