"""A small application in the home of the machine's user: directories, a program, its configuration, and its first start.

It needs neither root nor sudo, so it runs on real machines and on those of the stand-in.

    pyinfra @orbstack/web demo/deploy.py
"""

from pathlib import Path

from pyinfra.operations import files, server

FILES = Path(__file__).resolve().parent / "files"

for folder in ("app/conf", "app/logs"):
    files.directory(name=f"Create {folder}", path=folder, mode="755")

files.put(name="Upload the program", src=str(FILES / "app"), dest="app/run", mode="755")
files.put(name="Upload the configuration", src=str(FILES / "app.conf"), dest="app/conf/app.conf", mode="644")
files.line(name="Set the number of workers", path="app/conf/app.conf", line="workers=4")
files.link(name="Select the configuration", path="app/current.conf", target="conf/app.conf")
server.shell(name="Start the program once", commands=["app/run >app/logs/first"])
