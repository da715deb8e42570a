"""What a caller wants a machine to be, against what it is.

Pure: it knows OrbStack's words for images, sizes and settings, and asks nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orbd import models

MIB = 1 << 20

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

# What `create` is told, and what the inventory then says.
_DISTROS = {"void": "voidlinux", "nix": "nixos"}
_ARCHES = {"aarch64": "arm64", "x86_64": "amd64"}


class Unreadable(ValueError):
    """A value that OrbStack has no use for."""


def image_words(image: str) -> tuple[str, str | None]:
    """Splits ``ubuntu:24.04`` into distribution and version."""
    distro, separator, version = image.partition(":")
    if not distro or (separator and not version):
        raise Unreadable(f"{image!r} is no image: write it as in ubuntu or ubuntu:24.04")
    return distro, version or None


def size_bytes(size: str) -> int:
    """Reads ``4G``, ``2048M`` or a number of bytes, in powers of 1024."""
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise Unreadable(f"{size!r} is no size: write it as in 4G or 2048M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def other_image(machine: models.Machine, distro: str, arch: str | None) -> str | None:
    """Says what a machine is that it should not be, or None. What it was made from stays with it.

    Versions are not compared: OrbStack is told numbers and answers with code names.
    """
    if machine.image.distro != _DISTROS.get(distro, distro):
        return f"is {machine.image.distro}, not {distro}"
    if arch is not None and machine.image.arch != _ARCHES.get(arch, arch):
        return f"is {machine.image.arch}, not {arch}"
    return None


def settings(
    *,
    user: str | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    isolated: bool = False,
) -> dict[str, str]:
    """Says what was given in the words of a machine's settings."""
    wanted: dict[str, str] = {}
    if user is not None:
        wanted["username"] = user
    if cpus is not None:
        wanted["cpu"] = str(cpus)
    if memory is not None:
        wanted["memory_mib"] = str(size_bytes(memory) // MIB)
    if disk is not None:
        wanted["disk_bytes"] = str(size_bytes(disk))
    if isolated:
        wanted["isolated"] = "true"
    return wanted


def differing(name: str, wanted: Mapping[str, str], config: Mapping[str, str]) -> dict[str, str]:
    """Returns the keys of the configuration that are not as wanted; those that the installed OrbStack lacks are left alone."""
    keys = {f"machine.{name}.{setting}": value for setting, value in wanted.items()}
    return {key: value for key, value in keys.items() if key in config and config[key] != value}


def config_text(value: object) -> str:
    """Says a value as OrbStack's configuration has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
