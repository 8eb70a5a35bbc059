"""Versions of the packages, each imported by itself; a compiler. Needs no torch."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from steer_lightning.doctor import Finding, in_words

PURPOSES: Final = {
    "tasks": "The command line and the experiments need it",
    "mujoco": "Simulating the hopper needs it",
}


def requirements() -> list[tuple[Requirement, str | None]]:
    """Packages that the metadata asks for, with their extra, tools of developers left out."""
    found: list[tuple[Requirement, str | None]] = []
    for requirement in map(Requirement, metadata.requires("steer-lightning") or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            found.append((requirement, None))
        else:
            extras = (name for name in PURPOSES if marker.evaluate({"extra": name}))
            found.extend((requirement, extra) for extra in extras)
    return found


def check_packages() -> Iterator[Finding]:
    """Each package that this one asks for."""
    try:
        asked = requirements()
    except metadata.PackageNotFoundError:
        sentence = (
            "not installed by pip. Run `pip install .` in its folder, to know what it needs."
        )
        yield Finding("steer-lightning", "fault", sentence)
        return
    for requirement, extra in asked:
        yield check_package(requirement, extra)


def check_package(requirement: Requirement, extra: str | None = None) -> Finding:
    """Whether one package is there, new enough, and can be imported."""
    name, bounds = requirement.name, str(requirement.specifier)
    install = f"`pip install '{name}{bounds}'`"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra is None:
            sentence = f"not installed, but steer_lightning does not work without it: {install}."
            return Finding(name, "fault", sentence)
        return Finding(name, "note", f"not installed. {PURPOSES[extra]}: {install}.")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "fault", f"{version}, but {bounds} is needed: {install}.")
    try:
        import_module(name.replace("-", "_"))
    except Exception as error:  # a broken build may raise anything
        return Finding(name, "fault", f"{version}, {_why_not_imported(name, error)}")
    return Finding(name, "ok", f"{version} (needs {bounds})" if bounds else version)


def _why_not_imported(name: str, error: Exception) -> str:
    if "operator torchvision::" in str(error):
        found = {d.name: d.version for d in metadata.distributions()}
        versions = [f"{p} {found.get(p, '(not installed)')}" for p in ("torch", "torchvision")]
        return (
            f"cannot be imported ({in_words(error)}): {' and '.join(versions)} are builds that do "
            f"not fit each other, such as one for CPUs beside one for CUDA. Install both in one "
            f"command and from one index: `pip install --force-reinstall torch torchvision`."
        )
    return (
        f"cannot be imported ({in_words(error)}). Install it again: "
        f"`pip install --force-reinstall {name}`."
    )


def check_compiler() -> Finding:
    """A C++ compiler and Python's headers, for ``torch.compile``."""
    standard = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or standard
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        missing, remedy = compiler, "`apt install g++`, `xcode-select --install`), or set CXX"
    elif not headers.is_file():
        missing, remedy = str(headers), "`apt install python3-dev`)"
    else:
        return Finding("C++ compiler", "ok", f"{compiler}, for torch.compile")
    return Finding(
        "C++ compiler",
        "note",
        f"{missing} was not found; `compile` in solvers and flows, an option, needs it. Install "
        f"it ({remedy}.",
    )
