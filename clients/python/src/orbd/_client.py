"""The client, with what the generated methods cannot do: local files, streamed input, and the caller's environment."""

from __future__ import annotations

import os
from os import fspath

from . import errors
from ._base_client import INLINE_MAX, input_params, models, pieces_of, without_unset
from ._methods import Methods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from os import PathLike
    from typing import Any

    from typing_extensions import Unpack

    from ._methods import JobOptions

ORBENV = "ORBENV"
"""The variable that lists, separated by colons, the variables that ``orbctl run`` passes to the guest."""

READ_BY_ORBCTL = (
    ORBENV,
    "TERM",
    "DISPLAY",
    *(name for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (proxy, proxy.upper())),
)
"""Variables that ``orbctl run`` reads, or passes by default. The daemon rejects others unless ``ORBENV`` lists them."""


class Client(Methods):
    """Client of one daemon, for any number of greenlets or threads.

    All methods that create a job accept ``detach``, which returns immediately with the job's id, and ``queue_timeout_ms`` and
    ``run_timeout_ms``, which limit waiting and running. The daemon's defaults apply to those that are not given.
    """

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
        **job: Unpack[JobOptions],
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
            params = {"name": name, "distro": distro, **without_unset(version=version), **options}
            return models.Change.from_wire(self.call("machine.create", params))
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
        channel: str | None = None,
        **job: Unpack[JobOptions],
    ) -> Generator[models.JobEvent, None, None]:
        """Runs a command and yields its events as they happen; closing the iterator early stops the command.

        The last event is :class:`~orbd.models.Ended`. If the command exited by itself, with any exit code, nothing is raised.
        Otherwise the iterator then raises the exception that :meth:`machine_run` would have raised.

        ``stdin`` that is large or an iterable is sent while the command runs, over a second connection, as fast as the command
        reads it. It is sent while the caller waits for the next event. ``pass_through`` is for large output that is read as it
        arrives: the daemon does not keep output that was yielded. ``channel`` is that of :meth:`machine_run`.
        """
        params: dict[str, Any] = {"machine": machine, "command": list(command)}
        params |= without_unset(
            user=user, workdir=workdir, try_workdir=try_workdir, pass_through=pass_through, channel=channel, **job
        )
        params |= without_unset(env=env or None, caller_env=caller_env or None)
        pieces: Iterator[bytes] | None = None
        if isinstance(stdin, bytes) and len(stdin) <= INLINE_MAX:
            params |= input_params("stdin_", stdin)
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

    def _ctl(self, args: Sequence[str]) -> Any:
        # Imported on demand: most callers open no files.
        from . import _ctl

        return _ctl.run(self.path, args)

    def _client_action(self, args: Sequence[str]) -> models.Job | None:
        answer = self._ctl(args)
        return None if answer is None else models.JobAnswer.from_wire(answer).job

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
