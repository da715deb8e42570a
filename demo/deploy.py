"""A small server, as one would really set it up: packages, a user, configuration from a template, a check at the end.

It needs root in the machines: as their user root, or through sudo where they have it.

    pyinfra @orbstack --data orbstack_user=root demo/deploy.py
    pyinfra @orbstack --sudo demo/deploy.py
    pyinfra @orbstack --data orbstack_user=root --data packages=no demo/deploy.py      without the network
"""

import io
from pathlib import Path

from pyinfra import host, logger
from pyinfra.api import HiddenValue
from pyinfra.facts.files import File
from pyinfra.facts.server import Hostname, LinuxName, Which
from pyinfra.operations import apt, files, python, server

TEMPLATES = Path(__file__).resolve().parent / "templates"

logger.info(f"{host.name} is {host.get_fact(Hostname)}, {host.get_fact(LinuxName)}")

if host.data.get("packages", True) not in (False, "no") and host.get_fact(Which, command="apt-get"):
    apt.packages(name="Install hello", packages=["hello"], update=True, cache_time=3600)

server.group(name="Create the group of the service", group="demo")
server.user(
    name="Create the user of the service",
    user="demo",
    group="demo",
    home="/srv/demo",
    shell="/bin/sh",
    create_home=True,
    comment="Demo service",
)

files.directory(name="Create the configuration directory", path="/etc/demo", user="root", group="demo", mode="750")
files.template(
    name="Install the configuration",
    src=str(TEMPLATES / "demo.conf.j2"),
    dest="/etc/demo/demo.conf",
    user="root",
    group="demo",
    mode="640",
    greeting=host.data.get("greeting", "Hello"),
    workers=2,
)
files.put(
    name="Install the program",
    src=io.StringIO("#!/bin/sh\n. /etc/demo/demo.conf\necho \"$greeting, $workers workers, as $(id -un)\"\n"),
    dest="/usr/local/bin/demo",
    mode="755",
)
files.line(name="Set a line in a file", path="/etc/environment", line="DEMO=1")
files.link(name="Create a link", path="/srv/demo/conf", target="/etc/demo/demo.conf")

said = server.shell(
    name="Run the program as its user",
    commands=["su -s /bin/sh demo -c demo", 'test -n "$TOKEN" && echo "a secret of ${#TOKEN} letters came along"'],
    _env={"TOKEN": HiddenValue("correct horse battery staple")},
)


def check() -> None:
    """Looks at what was made, once all of it is there."""
    conf = host.get_fact(File, path="/etc/demo/demo.conf")
    assert conf, "the configuration is missing"
    assert (conf["group"], conf["mode"]) == ("demo", 640), conf
    for line in said.stdout_lines:
        logger.info(f"{host.name}: {line}")


python.call(name="Check the output", function=check)
