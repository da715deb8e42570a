"""The scripts in ``.ci`` on which a release depends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def script(root: Path, name: str, *words: str, code: int = 0, **variables: str) -> str:
    """Runs a script of the project; returns what it printed."""
    env = {**os.environ, **variables}
    done = subprocess.run([root / ".ci" / name, *words], cwd=root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that name the version, and of everything else that cargo reads of the workspace."""
    root = tmp_path / "project"
    ignored = shutil.ignore_patterns("target", ".*", "dist", "__pycache__", "node_modules")
    shutil.copytree(ROOT, root, ignore=ignored)
    for folder in (".ci", ".github"):
        shutil.copytree(ROOT / folder, root / folder)
    return root


def test_every_place_names_the_same_version() -> None:
    script(ROOT, "version")


def test_one_command_sets_the_version_in_every_place(project: Path) -> None:
    """A pre-release, which Python writes differently; afterwards the lock file is current."""
    old = script(project, "version")
    script(project, "version", "17.0.0-rc.1")
    assert script(project, "version") == "17.0.0-rc.1"
    assert script(project, "version", "--python") == "17.0.0rc1"
    assert '"orbd==17.0.0rc1"' in (project / "clients/pyinfra-orbd/pyproject.toml").read_text()
    if cargo := shutil.which("cargo"):
        words = [cargo, "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]
        packages: list[dict[str, Any]] = json.loads(subprocess.check_output(words, cwd=project))["packages"]
        assert {package["version"] for package in packages} == {"17.0.0-rc.1"}
    script(project, "version", old)
    for path in ("Cargo.toml", "Cargo.lock", "clients/python/pyproject.toml", "clients/pyinfra-orbd/pyproject.toml", "README.md"):
        assert (project / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.parametrize("path", ["Cargo.lock", "clients/python/pyproject.toml", "clients/pyinfra-orbd/pyproject.toml"])
def test_place_with_another_version_is_named(project: Path, path: str) -> None:
    version = script(project, "version")
    text = (project / path).read_text()
    mark = 'name = "orbd"\nversion = "'
    assert mark in text or path != "Cargo.lock"
    start = text.index(mark) + len(mark) if mark in text else text.index('version = "') + len('version = "')
    (project / path).write_text(text[:start] + "99" + text[start:])
    assert f"{path} has version 99{version}" in script(project, "version", code=1)


def test_tag_must_be_the_version_and_be_in_the_changelog(project: Path) -> None:
    script(project, "version", "17.0.0")
    assert "CHANGELOG.md has no section '## [17.0.0]'" in script(project, "version", "--tag", "v17.0.0", code=1)
    with (project / "CHANGELOG.md").open("a") as file:
        file.write("\n## [17.0.0] - 2030-01-01\n")
    script(project, "version", "--tag", "v17.0.0")
    assert "the version is 17.0.0" in script(project, "version", "--tag", "v17.0.1", code=1)
    script(project, "version", "17.1.0-beta.2")
    script(project, "version", "--tag", "v17.1.0-beta.2")


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", "1.2.3-dev", "1.2.3-rc", "--set"])
def test_other_forms_of_a_version_are_refused(version: str) -> None:
    assert "A version is as in 1.2.0 or 1.2.0-rc.1" in script(ROOT, "version", version, code=1)


def test_formula_is_made_from_the_source_archive_of_a_release(project: Path) -> None:
    source, digest = "https://example.org/someone/orbd/archive/refs/tags/v17.0.0.tar.gz", "0123456789abcdef" * 4
    script(project, "version", "17.0.0")
    script(project, "formula", URL=source, SHA256=digest)
    lines = (project / "dist/orbd.rb").read_text().splitlines()
    assert lines[0] == "# Made by the release of v17.0.0."
    for name, value in {
        "homepage": "https://example.org/someone/orbd",
        "url": source,
        "version": "17.0.0",
        "sha256": digest,
    }.items():
        assert f'  {name} "{value}"' in lines
    for wrong in ({"URL": ""}, {"URL": 'x"; system "y'}, {"SHA256": digest[1:]}):
        done = subprocess.run(
            [project / ".ci/formula"],
            env={**os.environ, "URL": source, "SHA256": digest, **wrong},
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0


@pytest.mark.skipif(shutil.which("cargo") is None, reason="needs `cargo`")
def test_sbom_and_licences_name_the_crates_of_the_programs_alone() -> None:
    """Not those that only tests, build scripts or another system use; the same on each run."""
    targets = ("aarch64-apple-darwin", "x86_64-unknown-linux-gnu")
    bills = {target: script(ROOT, "dependencies", "sbom", target) for target in targets}
    for target, text in bills.items():
        bill = json.loads(text)
        components = {one["name"]: one for one in bill["components"]}
        assert bill["metadata"]["component"]["name"] == "orbd"
        assert {"orbd-ctl", "tokio", "sled", "clap", "serde_derive"} <= components.keys()
        assert not {"divan", "proptest", "orbd-tests", "orbctl-sim", "windows-sys"} & components.keys()
        assert len(components["tokio"]["hashes"][0]["content"]) == 64
        references = {one["bom-ref"] for one in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
        assert {one["ref"] for one in bill["dependencies"]} == references
        licences = script(ROOT, "dependencies", "licences", target)
        for name, one in components.items():
            assert (f"\n{name} {one['version']}: " in licences) == ("hashes" in one)
        assert "Permission is hereby granted, free of charge" in licences
    assert bills[targets[0]] == script(ROOT, "dependencies", "sbom", targets[0])
    assert bills[targets[0]] != bills[targets[1]]
