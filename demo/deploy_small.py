"""Needs neither root nor sudo: everything happens in the home of the machine's user.

    pyinfra @orbstack demo/deploy_small.py
"""

import io
from pathlib import Path

from pyinfra import host, logger
from pyinfra.facts.files import FindInFile
from pyinfra.facts.server import Home, User
from pyinfra.operations import files, server

home = host.get_fact(Home)
logger.info(f"{host.name}: {host.get_fact(User)} in {home}")

files.directory(name="A folder", path=f"{home}/demo", mode="755")
files.template(
    name="A file from a template",
    src=str(Path(__file__).resolve().parent / "templates" / "demo.conf.j2"),
    dest=f"{home}/demo/demo.conf",
    greeting=host.data.get("greeting", "Hello"),
    workers=1,
)
files.put(name="A file from memory", src=io.BytesIO(bytes(range(256))), dest=f"{home}/demo/bytes")
files.line(name="A line in a file", path=f"{home}/demo/notes", line="made by the demo")
files.link(name="A link", path=f"{home}/demo/latest", target=f"{home}/demo/demo.conf")
server.shell(name="A pipe", commands=[f"wc -c <{home}/demo/bytes | tr -d ' ' >{home}/demo/count"])
server.shell(name="Input", commands=[f"cat >{home}/demo/input"], _stdin=["one", "two"])

if host.get_fact(FindInFile, path=f"{home}/demo/notes", pattern="made by the demo"):
    logger.info(f"{host.name}: the demo has been here before")
