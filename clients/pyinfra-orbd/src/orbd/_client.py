"""One typed method for each method of the daemon.

This module only knows the names and parameters on the wire. The daemon queues, caches and enforces limits.
"""

from __future__ import annotations

import os
from os import fspath

from . import errors
from ._base_client import INLINE_MAX, BaseClient, input_params, job_input_params, models, pieces_of, subscribed, without_unset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from os import PathLike
    from typing import Any


ORBENV = "ORBENV"
"""The variable that lists, separated by colons, the variables that ``orbctl run`` passes to the guest."""

READ_BY_ORBCTL = (
    ORBENV,
    "TERM",
    "DISPLAY",
    *(name for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (proxy, proxy.upper())),
)
"""Variables that ``orbctl run`` reads, or passes by default. The daemon rejects others unless ``ORBENV`` lists them."""


class Client(BaseClient):
    """Client of one daemon, for any number of greenlets or threads.

    All methods that create a job accept ``detach``, which returns immediately with the job's id, and ``queue_timeout_ms`` and
    ``run_timeout_ms``, which limit waiting and running. The daemon's defaults apply to those that are not given.
    """

    # daemon

    def daemon_info(self) -> models.DaemonInfo:
        """Returns version, instance, limits and the path of orbctl."""
        return models.DaemonInfo.from_wire(self.call("daemon.info"))

    def daemon_reload(self) -> models.Reload:
        """Makes the daemon re-read its configuration; returns the values that it applied and those that need a restart."""
        return models.Reload.from_wire(self.call("daemon.reload"))

    def daemon_stop(self) -> None:
        """Shuts the daemon down gracefully."""
        self.call("daemon.stop")

    # machine

    def machine_list(self, *, max_age_ms: int | None = None) -> models.MachineList:
        """Returns all machines. ``max_age_ms=0`` asks orbctl now, here and in the other methods that take it."""
        return models.MachineList.from_wire(self.call("machine.list", without_unset(max_age_ms=max_age_ms)))

    def machine_info(self, machine: str, *, max_age_ms: int | None = None) -> models.MachineInfo:
        """Returns one machine with its addresses and disk size."""
        return models.MachineInfo.from_wire(self.call("machine.info", without_unset(machine=machine, max_age_ms=max_age_ms)))

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
        """Creates a machine and boots it.

        ``user_data`` is the path of a cloud-init file on this computer. The daemon does not open local files, so ``orbd-ctl``
        creates such a machine while it holds a lease. ``detach`` is not possible then.
        """
        options = without_unset(
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
            raise TypeError("machine_create: detach cannot be used with user_data, because a local process reads the file")
        args = ["create", *_flags({**options, "user_data": fspath(user_data)})]
        image = distro if version is None else f"{distro}:{version}"
        answer = self._ctl([*args, "--", image, name])
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
        """Boots a machine; does nothing if it is running."""
        return self._change("machine.start", machine=machine, **job)

    def machine_stop(self, machine: str, *, force: bool = False, **job: Any) -> models.Change:
        """Shuts a machine down; does nothing if it is stopped."""
        return self._change("machine.stop", machine=machine, force=force, **job)

    def machine_restart(self, machine: str, **job: Any) -> models.Change:
        """Shuts a machine down and boots it."""
        return self._change("machine.restart", machine=machine, **job)

    def machine_delete(self, machine: str, **job: Any) -> models.Change:
        """Deletes a machine with all its data."""
        return self._change("machine.delete", machine=machine, **job)

    def machine_rename(self, machine: str, new_name: str, **job: Any) -> models.Change:
        """Renames a machine."""
        return self._change("machine.rename", machine=machine, new_name=new_name, **job)

    def machine_clone(self, machine: str, new_name: str, **job: Any) -> models.Change:
        """Clones a machine; the clone is stopped."""
        return self._change("machine.clone", machine=machine, new_name=new_name, **job)

    def machine_start_all(self, **job: Any) -> models.Change:
        """Starts every machine."""
        return self._change("machine.start_all", **job)

    def machine_stop_all(self, *, force: bool = False, **job: Any) -> models.Change:
        """Stops every machine."""
        return self._change("machine.stop_all", force=force, **job)

    def machine_default(self, *, max_age_ms: int | None = None) -> models.DefaultMachine:
        """Returns the default machine."""
        return models.DefaultMachine.from_wire(self.call("machine.default", without_unset(max_age_ms=max_age_ms)))

    def machine_set_default(self, machine: str | None, **job: Any) -> models.Change:
        """Sets the default machine, or clears it with None."""
        wire = self.call("machine.set_default", {"machine": machine, **without_unset(**job)})
        return models.Change.from_wire(wire)

    def machine_logs(self, machine: str, *, all: bool = False) -> str:
        """Returns a machine's log up to now."""
        return models.Text.from_wire(self.call("machine.logs", without_unset(machine=machine, all=all))).text

    def machine_ssh(self) -> str:
        """Returns the output of ``orbctl ssh``, which explains how to reach machines over SSH."""
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
        """Runs a command and returns its exit code and output; the request contains all of ``stdin``.

        ``workdir`` has to exist in the machine. The command starts in ``try_workdir`` if that exists, else in the user's home.
        ``caller_env`` is the result of :func:`~orbd.caller_environment`: variables of the caller that the command gets.
        With ``pass_through`` the daemon discards output that followers have read, except its end, so large output needs no file.
        """
        params = without_unset(
            machine=machine, user=user, workdir=workdir, try_workdir=try_workdir, pass_through=pass_through, **job
        )
        params.update(without_unset(env=env or None, caller_env=caller_env or None))
        params["command"] = list(command)
        if stdin is not None:
            params.update({f"stdin_{form}": value for form, value in input_params(stdin).items()})
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
        """Runs a command and yields its events as they happen; closing the iterator early stops the command.

        The last event is :class:`~orbd.models.Ended`. If the command exited by itself, with any exit code, nothing is raised.
        Otherwise the iterator then raises the exception that :meth:`machine_run` would have raised.

        ``stdin`` that is large or an iterable is sent while the command runs, over a second connection, as fast as the command
        reads it. It is sent while the caller waits for the next event. ``pass_through`` is for large output that is read as it
        arrives: the daemon does not keep output that was yielded.
        """
        params = without_unset(
            machine=machine, user=user, workdir=workdir, try_workdir=try_workdir, pass_through=pass_through, **job
        )
        params.update(without_unset(env=env or None, caller_env=caller_env or None))
        params["command"] = list(command)
        pieces: Iterator[bytes] | None = None
        if isinstance(stdin, bytes) and len(stdin) <= INLINE_MAX:
            params.update({f"stdin_{form}": value for form, value in input_params(stdin).items()})
        elif stdin is not None:
            params["stdin_stream"] = True
            pieces = pieces_of(stdin) if isinstance(stdin, bytes) else iter(stdin)
        return self._run_follow(params, pieces)

    # local files

    def export_machine(
        self, machine: str, path: str | PathLike[str], *, queue_timeout_ms: int | None = None
    ) -> models.Job | None:
        """Writes a machine to an archive and returns the job; None if it succeeded but could not be reported to the daemon.

        This method and the next three run ``orbd-ctl``, which waits for a lease and then opens the files as this user, relative
        to this process's working directory. An exception in the caller (Ctrl-C, ``gevent.Timeout``) interrupts ``orbd-ctl``.
        """
        return self._client_action(["export", *_flags({"queue_timeout_ms": queue_timeout_ms}), "--", machine, fspath(path)])

    def import_machine(self, path: str | PathLike[str], name: str, *, queue_timeout_ms: int | None = None) -> models.Job | None:
        """Creates a machine from an archive, like :meth:`export_machine`."""
        return self._client_action(["import", *_flags({"name": name, "queue_timeout_ms": queue_timeout_ms}), "--", fspath(path)])

    def push_files(
        self,
        machine: str,
        paths: Sequence[str | PathLike[str]],
        target: str | None = None,
        *,
        queue_timeout_ms: int | None = None,
    ) -> models.Job | None:
        """Copies files and directories into a machine, to the user's home or to ``target``, like :meth:`export_machine`."""
        args = [*(fspath(path) for path in paths), *([] if target is None else [target])]
        return self._client_action(["push", *_flags({"machine": machine, "queue_timeout_ms": queue_timeout_ms}), "--", *args])

    def pull_files(
        self,
        machine: str,
        paths: Sequence[str],
        target: str | PathLike[str] | None = None,
        *,
        queue_timeout_ms: int | None = None,
    ) -> models.Job | None:
        """Copies files and directories from a machine, to the working directory or to ``target``, like :meth:`export_machine`."""
        args = [*paths, *([] if target is None else [fspath(target)])]
        return self._client_action(["pull", *_flags({"machine": machine, "queue_timeout_ms": queue_timeout_ms}), "--", *args])

    # orbstack and its configuration

    def orbstack_status(self, *, max_age_ms: int | None = None) -> models.Status:
        """Returns the status of OrbStack without starting it."""
        return models.Status.from_wire(self.call("orbstack.status", without_unset(max_age_ms=max_age_ms)))

    def orbstack_version(self, *, max_age_ms: int | None = None) -> models.Version:
        """Returns the version of orbctl."""
        return models.Version.from_wire(self.call("orbstack.version", without_unset(max_age_ms=max_age_ms)))

    def orbstack_start(self, *, force: bool = False, **job: Any) -> models.Change:
        """Starts OrbStack."""
        return self._change("orbstack.start", force=force, **job)

    def orbstack_stop(self, *, force: bool = False, **job: Any) -> models.Change:
        """Stops OrbStack and all machines."""
        return self._change("orbstack.stop", force=force, **job)

    def config_show(self, *, max_age_ms: int | None = None) -> models.Config:
        """Returns OrbStack's whole configuration."""
        return models.Config.from_wire(self.call("config.show", without_unset(max_age_ms=max_age_ms)))

    def config_get(self, key: str, *, max_age_ms: int | None = None) -> models.ConfigValue:
        """Returns one key of OrbStack's configuration."""
        return models.ConfigValue.from_wire(self.call("config.get", without_unset(key=key, max_age_ms=max_age_ms)))

    def config_set(self, key: str, value: str, **job: Any) -> models.Change:
        """Sets one key of OrbStack's configuration."""
        return self._change("config.set", key=key, value=value, **job)

    def config_reset(self, **job: Any) -> models.Change:
        """Resets OrbStack's whole configuration to its defaults."""
        return self._change("config.reset", **job)

    # job

    def job_get(self, job_id: int) -> models.Job:
        """Returns one job."""
        return models.JobAnswer.from_wire(self.call("job.get", {"job_id": job_id})).job

    def job_list(
        self,
        *,
        state: str | None = None,
        machine: str | None = None,
        operation: str | None = None,
        limit: int | None = None,
    ) -> models.JobList:
        """Returns jobs that wait, run, or ended recently."""
        params = without_unset(state=state, machine=machine, operation=operation, limit=limit)
        return models.JobList.from_wire(self.call("job.list", params))

    def job_wait(self, job_id: int, *, timeout_ms: int | None = None) -> models.Job:
        """Waits until the job ends, at most ``timeout_ms``, and returns it."""
        wire = self.call("job.wait", without_unset(job_id=job_id, timeout_ms=timeout_ms))
        return models.JobAnswer.from_wire(wire).job

    def job_output(self, job_id: int, *, offset: int = 0, bytes_max: int | None = None, wait_ms: int = 0) -> models.JobOutput:
        """Returns output of a job from byte ``offset`` on, also while it runs; waits up to ``wait_ms`` for more."""
        params = {"job_id": job_id, "offset": offset, "wait_ms": wait_ms, **without_unset(bytes_max=bytes_max)}
        return models.JobOutput.from_wire(self.call("job.output", params))

    def job_input(self, job_id: int, data: bytes = b"", *, eof: bool = False) -> models.JobInput:
        """Sends input to a command that was started with ``stdin_stream``."""
        return models.JobInput.from_wire(self.call("job.input", job_input_params(job_id, data, eof=eof)))

    def job_cancel(self, job_id: int) -> models.JobCancel:
        """Cancels a job: a waiting one never starts, a running one is terminated."""
        return models.JobCancel.from_wire(self.call("job.cancel", {"job_id": job_id}))

    def job_follow(self, job_id: int, *, offset: int = 0) -> Generator[models.JobEvent, None, None]:
        """Yields a job's output and end as they arrive; closing the iterator early does not stop the job.

        Like :meth:`job_wait` it only reports how the job ended, in ``job.outcome``, and raises no exception for it.
        """
        yield from self._follow("job.follow", {"job_id": job_id, "offset": offset}, None)

    # queue and cache

    def queue_status(self) -> models.QueueStatus:
        """Returns the number of waiting and running jobs, and what is paused or draining."""
        return models.QueueStatus.from_wire(self.call("queue.status"))

    def queue_pause(self, machine: str | None = None) -> models.QueueStatus:
        """Pauses the queue, or the queue of one machine: no further jobs start."""
        return models.QueueStatus.from_wire(self.call("queue.pause", without_unset(machine=machine)))

    def queue_resume(self, machine: str | None = None) -> models.QueueStatus:
        """Ends a pause or a drain."""
        return models.QueueStatus.from_wire(self.call("queue.resume", without_unset(machine=machine)))

    def queue_drain(self, machine: str | None = None) -> models.QueueStatus:
        """Refuses new jobs and returns when all accepted jobs have ended."""
        return models.QueueStatus.from_wire(self.call("queue.drain", without_unset(machine=machine)))

    def cache_status(self) -> models.CacheStatus:
        """Returns the cached observations and their age."""
        return models.CacheStatus.from_wire(self.call("cache.status"))

    def cache_invalidate(self, machine: str | None = None) -> models.CacheInvalidate:
        """Discards cached observations, so that the next reads ask orbctl."""
        return models.CacheInvalidate.from_wire(self.call("cache.invalidate", without_unset(machine=machine)))

    # metrics

    def metrics_summary(
        self,
        *,
        window_ms: int | None = None,
        operation: str | None = None,
        machine: str | None = None,
        group_by: str | None = None,
    ) -> models.MetricsSummary:
        """Returns counts, error rates, and percentiles of wait and run times."""
        params = without_unset(window_ms=window_ms, operation=operation, machine=machine, group_by=group_by)
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
        """Returns recorded operations, newest first."""
        params = without_unset(operation=operation, machine=machine, outcome=outcome, limit=limit, cursor=cursor)
        return models.MetricsHistory.from_wire(self.call("metrics.history", params))

    def metrics_counters(self) -> models.Counters:
        """Returns counters since the daemon's start, such as cache hits, joins and refusals."""
        return models.Counters.from_wire(self.call("metrics.counters"))

    # events

    def events_subscribe(
        self, *, kinds: Iterable[str] = (), since: int | None = None, instance: str | None = None
    ) -> Generator[models.Event, None, None]:
        """Yields events until the iterator is closed or the connection ends.

        The first event is :class:`~orbd.models.State`, the full state. To resume instead, pass the last event's ``sequence`` as
        ``since`` and its ``instance``: then the first events are those after it. If the daemon no longer has them, it sends
        :class:`~orbd.models.Missed` and then the state. ``kinds`` limits the events to these kinds. Each iterator has its own
        connection.
        """
        params = without_unset(kinds=list(kinds) or None, since=since, instance=instance)
        with self._pool.borrow() as connection:
            subscription = subscribed(connection, "events.subscribe", params)
            while True:
                notification = connection.receive().get("params") or {}
                if notification.get("subscription") == subscription:
                    event = models.happening_from_wire(notification.get("result"))
                    if event is not None:
                        yield event

    # leases

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
        """Waits in the queue for a lease, with which the process ``pid`` runs an operation itself, such as ``push`` or ``shell``.

        An operation on several machines takes ``machine_names`` instead of ``machine``; ``rename`` and ``clone`` take
        ``new_name``. ``force`` stops or cancels the jobs that block the operation. The operation ``read`` needs a ``read`` as in
        :meth:`lease_read`. ``unknown_form`` describes a command line that the caller could not fully parse: its ``operands`` are
        the args that may name machines, and ``whole_fleet`` means that it may affect all machines.
        """
        params = without_unset(
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
        """Returns the unmodified output of ``orbctl`` for a read and how it exited, also if ``orbctl`` rejects the read.

        ``read`` has a ``command``, such as ``list`` or ``config_get``, and that command's parameters: ``machine``, ``key``,
        ``format``, ``quiet``, ``running``, ``all``.
        """
        return models.RawOutput.from_wire(self.call("lease.read", without_unset(read=read, max_age_ms=max_age_ms)))

    def lease_release(self, job_id: int, *, exit_code: int | None = None, signal: int | None = None) -> models.Release:
        """Reports how the process of a lease exited, and waits until it is gone."""
        wire = self.call("lease.release", without_unset(job_id=job_id, exit_code=exit_code, signal=signal))
        return models.Release.from_wire(wire)

    def _ctl(self, args: Sequence[str]) -> Any:
        # Imported on demand: most callers open no files.
        from . import _ctl

        return _ctl.run(self.path, args)

    def _client_action(self, args: Sequence[str]) -> models.Job | None:
        answer = self._ctl(args)
        return None if answer is None else models.JobAnswer.from_wire(answer).job

    def _change(self, method: str, **params: Any) -> models.Change:
        return models.Change.from_wire(self.call(method, without_unset(**params)))

    def _run_follow(self, params: Mapping[str, Any], pieces: Iterator[bytes] | None) -> Generator[models.JobEvent, None, None]:
        outcome = (yield from self._follow("machine.run_follow", params, pieces)).job.outcome
        if outcome is not None and outcome.error is not None:
            raise errors.error_from_wire(outcome.error)


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Yields options as flags of ``orbd-ctl``. Each is one arg, ``--name=value``, so a value is never parsed as a flag."""
    for name, value in without_unset(**options).items():
        if name == "mounts":
            yield from (f"--mount={mount}" for mount in value)
        elif value is True:
            yield f"--{name.replace('_', '-')}"
        elif name in ("queue_timeout_ms", "run_timeout_ms"):
            yield f"--{'queue-timeout' if name == 'queue_timeout_ms' else 'timeout'}={value}ms"
        else:
            yield f"--{name.replace('_', '-')}={value}"


def caller_environment() -> dict[str, str]:
    """Returns those of ``ORBENV``, the variables that it lists, ``TERM``, ``DISPLAY`` and the proxy variables that are set.

    The result is for ``caller_env`` of :meth:`~orbd.Client.machine_run`. The daemon passes it only to that call's ``orbctl``.
    """
    entries = os.environ.get(ORBENV, "").split(":")
    # An entry can have flags after a slash.
    listed = [name for name in (entry.partition("/")[0] for entry in entries) if _is_name(name)]
    return {name: os.environ[name] for name in (*READ_BY_ORBCTL, *listed) if name in os.environ}


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not text.startswith("ORBD_")
