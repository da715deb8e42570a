"""A typical deploy on three machines at once, run twice: packages, users, files, templates, a service.

It needs machines with their own root file systems, which ``orbctl-sim`` only creates as root. The package comes from a repository
in the machine, so no network is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = [
    pytest.mark.needs_daemon,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines are directories without root, in which packages cannot be installed"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="machines use this computer's files, which have no apt"),
]

MACHINES = ("web", "api", "db")

DEPLOY = """
    import io

    from pyinfra import host
    from pyinfra.operations import apt, files, server, sysvinit

    from pyinfra_orbd.facts import VmIp, VmList

    files.sync(name="Packages", src="repository", dest="/srv/repository")
    files.put(
        name="Repository",
        src=io.StringIO("deb [trusted=yes] file:/srv/repository ./\\n"),
        dest="/etc/apt/sources.list.d/own.list",
    )
    apt.update(
        name="Package lists",
        cache_time=3600,
    )
    apt.packages(name="Package", packages=["orbd-greeter"])

    server.group(name="Group", group="greeter", system=True)
    server.user(name="User", user="greeter", group="greeter", home="/srv/greeter", shell="/bin/sh", create_home=True)
    files.directory(name="Folder", path="/etc/greeter", user="root", group="greeter", mode="750")
    files.template(
        name="Configuration",
        src="greeter.conf.j2",
        dest="/etc/greeter/greeter.conf",
        user="root",
        group="greeter",
        mode="640",
        neighbours={m["name"]: host.get_fact(VmIp, machine=m["name"]) for m in host.get_fact(VmList)},
    )
    files.put(name="Bytes", src=io.BytesIO(bytes(range(256)) * 4096), dest="/srv/greeter/bytes", user="greeter", mode="600")
    files.line(name="Environment variable", path="/etc/environment", line="GREETER=1")
    files.link(name="Link", path="/srv/greeter/conf", target="/etc/greeter/greeter.conf")
    files.put(name="Init script", src="greeter.init", dest="/etc/init.d/greeter", mode="755")
    sysvinit.service(name="Service", service="greeter", running=True)
"""

TEMPLATE = """\
name = {{ host.name }}
{% for name, address in neighbours | dictsort %}
{{ name }} = {{ address }}
{% endfor %}
"""

INIT = """\
#!/bin/sh
### BEGIN INIT INFO
# Provides: greeter
### END INIT INFO
pid=/run/greeter.pid
is_running() { [ -s $pid ] && kill -0 "$(cat $pid)" 2>/dev/null; }
case $1 in
    start) is_running || { setsid orbd-greeter </dev/null >/dev/null 2>&1 & echo $! >$pid; } ;;
    stop) is_running && kill "$(cat $pid)"; rm -f $pid ;;
    restart) $0 stop; $0 start ;;
    status) is_running || exit 3 ;;
    *) exit 2 ;;
esac
"""

OPERATIONS = 13


def make_repository(folder: Path) -> None:
    """Builds a package and the index of its repository."""
    tree = folder.parent / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    control = (
        "Package: orbd-greeter\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: greets\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    program = tree / "usr/bin/orbd-greeter"
    program.write_text("#!/bin/sh\n. /etc/environment\nexec sleep 100000\n")
    program.chmod(0o755)
    folder.mkdir()
    package = folder / "orbd-greeter.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True, capture_output=True)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    index = f"{control}Filename: ./orbd-greeter.deb\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (folder / "Packages").write_text(index)


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A daemon with three machines in which commands run as root."""
    with temporary_daemon() as daemon:
        daemon.create(*MACHINES)
        yield daemon


def test_deploy_changes_everything_once_and_nothing_on_the_second_run(daemon: RealDaemon, tmp_path: Path) -> None:
    make_repository(tmp_path / "repository")
    (tmp_path / "deploy.py").write_text(textwrap.dedent(DEPLOY))
    (tmp_path / "greeter.conf.j2").write_text(TEMPLATE)
    (tmp_path / "greeter.init").write_text(INIT)
    target = Target({**daemon.environment}, lambda command: "", tmp_path)

    said = target.pyinfra("@orbstack", "--data", "orbstack_user=root", "deploy.py")
    assert said.count("Success\n") == 3 * OPERATIONS, said

    for name in MACHINES:

        def inside(*words: str, name: str = name) -> str:
            return daemon.sim("run", "-m", name, "-u", "root", *words)

        assert "install ok installed" in inside("dpkg-query", "-s", "orbd-greeter")
        assert inside("stat", "-c", "%U %G %a", "/etc/greeter/greeter.conf").split() == ["root", "greeter", "640"]
        assert inside("stat", "-c", "%U %a %s", "/srv/greeter/bytes").split() == ["greeter", "600", str(256 * 4096)]
        assert inside("id", "-gn", "greeter").strip() == "greeter"
        assert inside("readlink", "/srv/greeter/conf").strip() == "/etc/greeter/greeter.conf"
        assert inside("/etc/init.d/greeter", "status") == ""
        conf = inside("cat", "/etc/greeter/greeter.conf")
        assert conf.startswith(f"name = {name}\n")
        assert all(f"\n{other} = 192.168." in conf for other in MACHINES)
    # This computer is unchanged.
    assert not Path("/etc/greeter").exists()
    assert not Path("/usr/bin/orbd-greeter").exists()

    said = target.pyinfra("@orbstack", "--data", "orbstack_user=root", "deploy.py")
    assert said.count("No changes\n") == 3 * OPERATIONS, said
    assert "Success\n" not in said.partition("Results:")[0]
