"""PyInfra's connector for OrbStack machines.

Maps PyInfra's calls to calls of the daemon: one ``machine.list`` for the inventory, one ``machine.run`` or ``machine.run_follow``
for each command. The connector does not fork, retry or cache.

::

    make_names_data ── machine.list (from the daemon's cache; warns if that is out of date)
    connect ────────── machine.list (from the daemon's cache, one for all hosts); machine.create or machine.start if allowed
    run_shell_command  machine.run, or machine.run_follow if the output is printed as it arrives
    put_file, get_file machine.run or machine.run_follow of a small script that reads stdin or writes stdout
    rsync ──────────── rsync, whose remote end is also a command in the machine
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pyinfra import logger
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import ConnectError, InventoryError
from pyinfra.api.output import echo, format_text
from pyinfra.connectors.base import BaseConnector, DataMeta
from pyinfra.connectors.util import (
    CommandOutput,
    OutputLine,
    execute_command_with_sudo_retry,
    extract_control_arguments,
    make_unix_command_for_host,
)
from typing_extensions import TypedDict, Unpack, override

from orbd import caller_environment, models
from orbd._base_client import INLINE_MAX, PIECE
from orbd.errors import DaemonUnavailable, MachineExists, OrbdError, ProtocolViolation

from . import _predecessor, _rsync
from ._client import StalenessWarningClient, WaitNotice, client, find_machine, machine_cache
from ._facts import PrecomputedCommand
from ._files import (
    COPY_SCRIPT,
    GET_MARK,
    GET_SCRIPT,
    NOT_FOUND,
    PUT_SCRIPT,
    Progress,
    Sink,
    Source,
    escape_for_sudo_login,
    with_args,
)
from ._lines import Lines
from ._predecessor import Legacy, without_legacy

if TYPE_CHECKING:
    from pyinfra.api.arguments import ConnectorArguments

# Runs a command with a terminal. The daemon cannot provide one yet, so `script` creates it in the machine. `script` is part of
# the base system of every distribution except Alpine's. A `script` that has `--echo` does not copy the command's input to its
# output.
PTY_SCRIPT = """\
command -v script >/dev/null 2>&1 || {
    echo "pyinfra-orbd: _get_pty needs script(1) in the machine (package util-linux, bsdutils or util-linux-misc)" >&2
    exit 127
}
script --help 2>&1 | grep -q -e --echo && set -- "$1" -E never
command=$1
shift
exec script "$@" -qefc "$command" /dev/null
"""

# Keeps line ends of the output, which a terminal would convert to \r\n.
PTY_SETTING = "stty -onlcr 2>/dev/null; "


class ConnectorData(TypedDict):
    """Host data that this connector reads."""

    vm_name: str | None
    orbstack_user: str | None
    orbstack_autostart: bool | None
    orbstack_channel: bool | None
    orbstack_image: str | None
    orbstack_arch: str | None
    orbstack_default_user: str | None
    orbstack_cpus: int | None
    orbstack_memory: str | None
    orbstack_disk: str | None
    orbstack_isolated: bool | None
    orbstack_user_data: str | None
    orbstack_named: bool


connector_data_meta: dict[str, DataMeta] = {
    "vm_name": DataMeta("Name or id of the machine; default: the host's name"),
    "orbstack_user": DataMeta("User in the machine; default: the machine's default user"),
    "orbstack_autostart": DataMeta(
        "Whether connecting starts a stopped machine; default: yes for ``@orbstack/NAME``, no for ``@orbstack``"
    ),
    "orbstack_channel": DataMeta(
        "Whether commands may run through a resident channel of orbd, without an ``orbctl`` of their own; default: yes"
    ),
    "orbstack_image": DataMeta(
        "Image from which connecting creates a missing machine, such as ``ubuntu:noble``; default: it is not created"
    ),
    "orbstack_arch": DataMeta("Architecture of a new machine, ``arm64`` or ``amd64``; default: the Mac's"),
    "orbstack_default_user": DataMeta("Default user of a new machine; default: the Mac user's name"),
    "orbstack_cpus": DataMeta("Processor limit of a new machine (OrbStack 2.2)"),
    "orbstack_memory": DataMeta("Memory limit of a new machine, such as ``4G`` (OrbStack 2.2)"),
    "orbstack_disk": DataMeta("Disk limit of a new machine, such as ``40G`` (OrbStack 2.2)"),
    "orbstack_isolated": DataMeta("Whether a new machine has no access to the Mac (OrbStack 2.1)"),
    "orbstack_user_data": DataMeta("cloud-init file for a new machine, on the Mac"),
    "orbstack_named": DataMeta("Set by the connector: whether the inventory names the machine (``@orbstack/NAME``)", False),
}

# PyInfra loads the connectors of all packages, so this warns whichever one it then uses.
_predecessor.warn()


class OrbStackConnector(BaseConnector):
    """
    The ``@orbstack`` connector runs commands and copies files in OrbStack machines on this Mac, through ``orbd``. ``@orbd`` is an
    alias.

    .. code:: shell

        # Every machine
        pyinfra @orbstack ...

        # One machine, or several
        pyinfra @orbstack/web ...
        pyinfra @orbstack/web,@orbstack/db ...

    ``@orbstack/NAME`` starts a stopped machine. ``@orbstack`` alone starts none: stopped machines stay in the inventory, in the
    group ``orbstack_stopped``, and fail to connect. The host data ``orbstack_autostart`` overrides both.
    """

    __examples_doc__ = """
    An inventory file (``inventory.py``) with two machines; ``db`` runs commands as root and is not started:

    .. code:: python

        hosts = [
            "@orbstack/web",
            ("@orbstack/db", {"orbstack_user": "root", "orbstack_autostart": False}),
        ]

    A machine that is created if it does not exist, so that one run creates and deploys:

    .. code:: python

        hosts = [("@orbstack/new", {"orbstack_image": "ubuntu:noble", "orbstack_cpus": 2, "orbstack_memory": "4G"})]

    Machines by their groups (``orbstack_running``, ``orbstack_stopped``, ``orbstack_arm64``, ``orbstack_amd64``,
    ``orbstack_<distro>``):

    .. code:: shell

        pyinfra @orbstack --limit orbstack_running deploy.py
    """

    handles_execution = True

    data_cls = ConnectorData
    data_meta = connector_data_meta
    data: ConnectorData

    @override
    @staticmethod
    def make_names_data(name: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """
        Yields all machines, or the one with the name or id ``name``.

        A name that does not exist is yielded too. Its host then fails to connect, while an empty inventory would look like
        success.
        """
        try:
            machines = client().machine_list().machines
        except DaemonUnavailable as error:
            raise InventoryError(f"{error}") from error
        except OrbdError as error:
            raise InventoryError(f"orbd cannot list the machines: {error}") from error
        if not name:
            for machine in machines:
                yield _name_data(machine, is_named=False)
            return
        found = find_machine(machines, name)
        if found is None:
            yield name, {"orbstack_vm": True, "vm_name": name, "orbstack_named": True}, ["orbstack"]
        else:
            yield _name_data(found, is_named=True)

    @property
    def machine(self) -> str:
        """Name or id of the machine."""
        name = self.data["vm_name"]
        return str(self.host.name) if name is None else name

    @override
    def connect(self) -> None:
        """
        Checks that the machine exists and runs, and creates or starts it if that is allowed. The commands open connections to the
        daemon themselves.
        """
        try:
            self._connect()
        except OrbdError as error:
            raise ConnectError(f"machine '{self.machine}': {error}") from error

    def _connect(self) -> None:
        name = self.machine
        machine = machine_cache().machines().get(name)
        autostart = self.data["orbstack_autostart"]
        if autostart is None:
            autostart = self.data["orbstack_named"]
        if machine is None or (machine.state == "stopped" and not autostart):
            # Refuse and create only based on fresh data: changes made outside the daemon are not in its cache yet.
            machine = machine_cache().machines(is_fresh=True).get(name)
        if machine is None:
            self._create(name)
            return
        if machine.state != "stopped":
            # In any other state, the first command waits until the machine runs.
            return
        if not autostart:
            raise ConnectError(
                f"machine '{name}' is stopped; start it with `orbctl start {name}`, or use `@orbstack/{name}` "
                "or orbstack_autostart, which start it on connect"
            )
        self._client().machine_start(name)

    def _create(self, name: str) -> None:
        """Creates the missing machine if the host's data has an image."""
        image = self.data["orbstack_image"]
        if image is None:
            raise ConnectError(
                f"OrbStack has no machine '{name}'; check `orbctl list`, or set orbstack_image to create it on connect"
            )
        distro, _, version = image.partition(":")
        self._notify(f"creating machine '{name}' from {image}")
        try:
            self._client().machine_create(
                name,
                distro,
                version=version or None,
                arch=self.data["orbstack_arch"],
                user=self.data["orbstack_default_user"],
                cpus=self.data["orbstack_cpus"],
                memory=self.data["orbstack_memory"],
                disk=self.data["orbstack_disk"],
                isolated=bool(self.data["orbstack_isolated"]),
                user_data=self.data["orbstack_user_data"],
            )
        except MachineExists:
            # Another client created it first: use that machine.
            machine = machine_cache().machines(is_fresh=True).get(name)
            if machine is None:
                raise
            if machine.state == "stopped":
                self._client().machine_start(name)

    @override
    def disconnect(self) -> None:
        """
        Closes idle connections. PyInfra may run another command afterwards, which opens a new one.
        """
        client().close_idle()

    @override
    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Unpack[ConnectorArguments],
    ) -> tuple[bool, CommandOutput]:
        r"""
        Runs a command in the machine.

        Lines end only at ``\n`` and are in the order of their completion. Bytes that are not UTF-8 are replaced.
        """
        if isinstance(command, PrecomputedCommand):
            # A fact that the daemon has already answered, so there is nothing to run in the machine.
            return command.outcome()
        arguments, legacy = without_legacy(arguments)
        control = extract_control_arguments(arguments)
        options = self._options(control, legacy)
        # Read only once: PyInfra may run the command again with a sudo password, and a stream cannot be read twice.
        stdin = _stdin_bytes(control.get("_stdin"))

        def execute() -> tuple[int, CommandOutput]:
            shell_command = self._shell_command(command, arguments)
            if print_input:
                echo(f"{self.host.print_prefix}>>> {shell_command}", err=True)
            logger.debug("Running command on %s: %s", self.host.name, shell_command)
            if control.get("_get_pty"):
                # `script` passes its command to the user's shell; this form works in every shell.
                raw = shell_command.get_raw_value()
                args = ["sh", "-c", PTY_SCRIPT, "pty", f"exec sh -c {shlex.quote(PTY_SETTING + raw)}"]
            else:
                args = _args(shell_command)
            lines = Lines(self._print_line if print_output else None)
            code = self._run(args, stdin, lines, options, is_live=print_output)
            return code, CommandOutput(lines.finish())

        code, output = execute_command_with_sudo_retry(self.host, arguments, execute)
        return code in (control.get("_success_exit_codes") or (0,)), output

    @override
    def put_file(
        self,
        filename_or_io: Any,
        remote_filename: str,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Unpack[ConnectorArguments],
    ) -> bool:
        """
        Writes a file or file object into the machine.

        The bytes go to a private temporary file, which replaces the target once it is complete. A replaced file keeps its owner,
        mode and links; a new one gets the mode of the user's umask. Raises ``OSError`` if it fails.
        """
        arguments, legacy = without_legacy(arguments)
        options = self._options(extract_control_arguments(arguments), legacy)
        if print_input:
            echo(f"{self.host.print_prefix}>>> upload {remote_filename}", err=True)
        with Source(filename_or_io) as source:
            if arguments.get("_su_password"):
                self._put_for_su(source, remote_filename, arguments, options)
            else:
                self._put(source, remote_filename, arguments, options)
        if legacy.mode:
            script = with_args('chmod "$1" "$2"', legacy.mode, remote_filename)
            self._run_step(_script(script, arguments), arguments, options)
        if print_output:
            echo(f"{self.host.print_prefix}file uploaded: {remote_filename}", err=True)
        return True

    @override
    def get_file(
        self,
        remote_filename: str,
        filename_or_io: Any,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Unpack[ConnectorArguments],
    ) -> bool:
        """
        Reads a file of the machine into a file or file object.

        The user that may read the file writes it to stdout, so there is no copy inside the machine. A local file is replaced once
        the download is complete. Raises ``OSError`` if it fails, ``FileNotFoundError`` if the remote file does not exist.
        """
        arguments, legacy = without_legacy(arguments)
        options = self._options(extract_control_arguments(arguments), legacy)
        if print_input:
            echo(f"{self.host.print_prefix}>>> download {remote_filename}", err=True)

        def execute(sink: Sink) -> tuple[int, CommandOutput]:
            sink.restart()
            progress = Progress(f"download of {remote_filename}", None, self._notify)
            lines = Lines(None)

            def take(chunk: models.Chunk) -> None:
                if chunk.stream == "stdout":
                    sink.write(chunk.data)
                    progress.add(len(chunk.data))
                else:
                    lines.feed(chunk)

            script = _script(with_args(GET_SCRIPT, remote_filename), arguments)
            args = _args(self._shell_command(script, arguments))
            code = self._follow(args, None, take, sink.lost, options)
            return code, CommandOutput(lines.finish())

        with Sink(filename_or_io, GET_MARK) as sink:
            code, output = execute_command_with_sudo_retry(self.host, arguments, lambda: execute(sink))
            if code == NOT_FOUND:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), remote_filename)
            self._check(code, output, f"download of {remote_filename}")
            sink.commit()
        if print_output:
            echo(f"{self.host.print_prefix}file downloaded: {remote_filename}", err=True)
        return True

    @override
    def check_can_rsync(self) -> None:
        """
        Raises ``NotImplementedError`` if ``rsync`` is not on PATH, or ``orbd-ctl`` is not found.
        """
        _rsync.check()

    @override
    def rsync(
        self,
        src: str,
        dest: str,
        flags: Iterable[str],
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Unpack[ConnectorArguments],
    ) -> bool:
        """
        Copies a directory into the machine with ``rsync``, which has to be installed on both ends.

        To change the user, it supports only ``_sudo`` and ``_sudo_user``. Raises ``OSError`` if it fails.
        """
        command = _rsync.command_line(self.machine, src, dest, flags, arguments)
        if print_input:
            echo(f"{self.host.print_prefix}>>> {shlex.join(command)}", err=True)
        output = _rsync.run(command, socket=client().path, user=self.data["orbstack_user"], timeout=arguments.get("_timeout"))
        if print_output:
            for line in output.splitlines():
                echo(f"{self.host.print_prefix}{line}", err=True)
        return True

    # Not part of PyInfra's connector interface.

    def _shell_command(self, command: StringCommand | str, arguments: ConnectorArguments) -> StringCommand:
        return make_unix_command_for_host(self.state, self.host, command, **arguments)  # type: ignore[arg-type]

    def _temp_dir(self, arguments: ConnectorArguments) -> str:
        return arguments.get("_temp_dir") or self.host.get_temp_dir_config()  # type: ignore[no-untyped-call]

    def _client(self) -> StalenessWarningClient:
        """Returns the shared client, which prints this host's name in its notices about waiting calls."""
        return client().with_notices(self._notify)

    def _notify(self, text: str) -> None:
        """Prints a notice about a long wait or transfer, at every verbosity."""
        logger.info("%s%s", self.host.print_prefix, text)

    def _print_line(self, line: OutputLine) -> None:
        text = format_text(line.line, "red") if line.buffer_name == "stderr" else line.line
        echo(f"{self.host.print_prefix}{text}", err=True)

    def _run(
        self,
        args: list[str],
        stdin: bytes | None,
        lines: Lines,
        options: dict[str, Any],
        *,
        is_live: bool,
    ) -> int:
        """Runs ``args`` and returns the exit code; streams the output only if it is printed live or the input is large."""
        if is_live or (stdin is not None and len(stdin) > INLINE_MAX):
            return self._follow(args, stdin, lines.feed, lines.lost, options)
        run = self._client().machine_run(self.machine, args, caller_env=caller_environment(), stdin=stdin, **options)
        offset = _feed(lines, run.output, 0, run.next_offset)
        while offset < run.output_bytes:
            more = client().job_output(run.job_id, offset=offset)
            if more.next_offset <= offset:
                raise ProtocolViolation(f"job {run.job_id}: output ends at {offset} of {run.output_bytes} bytes")
            offset = _feed(lines, more.output, offset, more.next_offset)
        if run.exit_code is None:
            raise ProtocolViolation(f"job {run.job_id} ended without an exit code")
        return run.exit_code

    def _follow(
        self,
        args: list[str],
        stdin: bytes | Iterator[bytes] | None,
        take: Callable[[models.Chunk], None],
        lost: Callable[[int], None],
        options: dict[str, Any],
    ) -> int:
        """Runs ``args``, passes its output on as it arrives, and returns the exit code."""
        events = client().machine_run_follow(self.machine, args, caller_env=caller_environment(), stdin=stdin, **options)
        notice = WaitNotice(self._notify)
        job = None
        # If `take` raises, closing the events closes the connection, which stops the command.
        with closing(events):
            for event in events:
                if isinstance(event, models.Chunk):
                    take(event)
                elif isinstance(event, models.Gap):
                    lost(event.next_offset - event.offset)
                elif isinstance(event, models.Waiting):
                    notice.waiting(event.waiting_for)
                elif isinstance(event, models.Ended):
                    job = event.job
        if job is None or job.outcome is None or job.outcome.exit_code is None:
            raise ProtocolViolation("the command's events ended without its exit code")
        return job.outcome.exit_code

    def _options(self, control: ConnectorArguments, legacy: Legacy) -> dict[str, Any]:
        """Returns the parameters of the call other than the command: user, channel and run timeout."""
        # PyInfra runs many commands on a host, so the first one may open a channel.
        channel = "off" if self.data["orbstack_channel"] is False else "open"
        options: dict[str, Any] = {"user": legacy.user or self.data["orbstack_user"], "channel": channel}
        timeout = control.get("_timeout")
        if timeout:
            options["run_timeout_ms"] = max(1, int(timeout * 1000))
        return options

    def _put(self, source: Source, target: str, arguments: ConnectorArguments, options: dict[str, Any]) -> None:
        """Streams ``source`` to a script that runs as the target user."""
        fallback = self._temp_dir(arguments)
        script = _script(with_args(PUT_SCRIPT, target, str(source.size), fallback), arguments)

        def execute() -> tuple[int, CommandOutput]:
            args = _args(self._shell_command(script, arguments))
            lines = Lines(None)
            if source.size <= INLINE_MAX:
                code = self._run(args, source.read_all(), lines, options, is_live=False)
            else:
                progress = Progress(f"upload of {target}", source.size, self._notify)
                code = self._follow(args, progress.track(source.pieces(PIECE)), lines.feed, lines.lost, options)
            return code, CommandOutput(lines.finish())

        code, output = execute_command_with_sudo_retry(self.host, arguments, execute)
        self._check(code, output, f"upload of {target}")

    def _put_for_su(self, source: Source, target: str, arguments: ConnectorArguments, options: dict[str, Any]) -> None:
        """Uploads a file if ``su`` needs a password. ``su`` reads the password from stdin, so stdin cannot carry the file."""
        plain = _without_authority(arguments)
        folder = self._temp_dir(arguments)
        template = f"{folder}/pyinfra-orbd.XXXXXXXXXX"
        temporary = self._run_step(StringCommand("mktemp", QuoteString(template)), plain, options)
        try:
            self._put(source, temporary, plain, options)
            user = arguments.get("_su_user")
            if user and user != "root":
                acl = StringCommand("setfacl", "-m", QuoteString(f"u:{user}:r"), QuoteString(temporary))
                self._run_step(acl, plain, options)
            self._run_step(_script(with_args(COPY_SCRIPT, temporary, target), arguments), arguments, options)
        finally:
            self._run_step(StringCommand("rm", "-f", QuoteString(temporary)), plain, options)

    def _run_step(self, command: StringCommand, arguments: ConnectorArguments, options: dict[str, Any]) -> str:
        """Runs one step of an upload and returns its stdout."""
        lines = Lines(None)
        args = _args(self._shell_command(command, arguments))
        code = self._run(args, None, lines, options, is_live=False)
        output = CommandOutput(lines.finish())
        self._check(code, output, str(command))
        return str(output.stdout)

    def _check(self, code: int, output: CommandOutput, what: str) -> None:
        if code != 0:
            reason = output.output.strip() or f"exit code {code}"
            raise OSError(f"{what} failed: {reason}")


def _feed(lines: Lines, chunks: tuple[models.Chunk, ...], offset: int, end: int) -> int:
    """Adds the output from ``offset`` to ``end`` to the lines, reports gaps between chunks as lost, and returns ``end``."""
    for chunk in chunks:
        if chunk.offset > offset:
            lines.lost(chunk.offset - offset)
        lines.feed(chunk)
        offset = chunk.offset + len(chunk.data)
    if end > offset:
        lines.lost(end - offset)
    return end


def _name_data(machine: models.Machine, *, is_named: bool) -> tuple[str, dict[str, Any], list[str]]:
    data = {
        "orbstack_vm": True,
        "orbstack_named": is_named,
        "vm_name": machine.name,
        "vm_id": machine.id,
        "vm_status": machine.state,
        "vm_distro": machine.image.distro,
        "vm_version": machine.image.version,
        "vm_arch": machine.image.arch,
        "vm_username": machine.config.default_username or "",
    }
    groups = ["orbstack"]
    if machine.state in ("running", "stopped"):
        groups.append(f"orbstack_{machine.state}")
    if machine.image.arch in ("arm64", "amd64"):
        groups.append(f"orbstack_{machine.image.arch}")
    if machine.image.distro:
        groups.append(f"orbstack_{machine.image.distro}")
    return machine.name, data, groups


def _stdin_bytes(stdin: Any) -> bytes | None:
    """Returns the bytes that PyInfra's other connectors write for ``_stdin``: lines, each with a newline."""
    if not stdin:
        return None
    if isinstance(stdin, (str, bytes)):
        parts: list[Any] = [stdin]
    elif hasattr(stdin, "readlines"):
        parts = stdin.readlines()
    else:
        parts = list(stdin)
    data = bytearray()
    for part in parts:
        line = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        data += line
        if not line.endswith(b"\n"):
            data += b"\n"
    return bytes(data)


def _without_authority(arguments: ConnectorArguments) -> ConnectorArguments:
    kept = ("_shell_executable", "_temp_dir")
    return {key: value for key, value in arguments.items() if key in kept}  # type: ignore[return-value]


def _args(command: StringCommand) -> list[str]:
    """Returns the args that run ``command``, whose text is for a shell.

    PyInfra's text is often ``sh -c COMMAND``. A shell that only starts that one is left out: each costs about a millisecond.
    """
    bits = command.bits
    if len(bits) == 3 and bits[:2] == ("sh", "-c") and isinstance(bits[2], QuoteString):
        command = StringCommand(bits[2].obj)
    return ["sh", "-c", command.get_raw_value()]


def _script(script: str, arguments: ConnectorArguments) -> StringCommand:
    """Wraps a script so that it works the same in any shell and with any way to change the user."""
    # One command, so that `cd DIR && ...` applies to all of it.
    text = escape_for_sudo_login(script) if arguments.get("_use_sudo_login") else f"{{ {script}\n}}"
    if arguments.get("_shell_executable", "sh") == "sh":
        return StringCommand(text)
    return StringCommand("sh", "-c", QuoteString(text))
