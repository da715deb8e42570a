"""Compares the desired state of a machine with its actual state.

All functions are pure. They know OrbStack's notation of images, sizes and settings, and make no calls.
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

# Names that `orbctl create` accepts, and the different names that the machine list then reports.
_DISTROS = {"void": "voidlinux", "nix": "nixos"}
_ARCHES = {"aarch64": "arm64", "x86_64": "amd64"}


class InvalidSetting(ValueError):
    """The value of a parameter is invalid."""


def split_image(image: str) -> tuple[str, str | None]:
    """Splits ``ubuntu:24.04`` into distribution and version."""
    distro, separator, version = image.partition(":")
    if not distro or (separator and not version):
        raise InvalidSetting(f"{image!r} is not an image: use a form such as ubuntu or ubuntu:24.04")
    return distro, version or None


def size_bytes(size: str) -> int:
    """Parses ``4G``, ``2048M`` or a number of bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise InvalidSetting(f"{size!r} is not a size: use a form such as 4G or 2048M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def image_mismatch(machine: models.Machine, distro: str, arch: str | None) -> str | None:
    """Describes how a machine's distribution or architecture differs from the desired one; None if they match.

    Neither can be changed later. Versions are not compared: OrbStack accepts numbers and reports code names.
    """
    if machine.image.distro != _DISTROS.get(distro, distro):
        return f"is {machine.image.distro}, not {distro}"
    if arch is not None and machine.image.arch != _ARCHES.get(arch, arch):
        return f"is {machine.image.arch}, not {arch}"
    return None


def desired_settings(
    *,
    user: str | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    isolated: bool = False,
) -> dict[str, str]:
    """Returns the given parameters as keys and values of a machine's settings."""
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


def differences(name: str, wanted: Mapping[str, str], config: Mapping[str, str]) -> dict[str, str]:
    """Returns the keys whose desired value differs from ``config``, without keys that the installed OrbStack lacks."""
    keys = {f"machine.{name}.{setting}": value for setting, value in wanted.items()}
    return {key: value for key, value in keys.items() if key in config and config[key] != value}


def config_text(value: object) -> str:
    """Returns a value as text in the form of OrbStack's configuration."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
