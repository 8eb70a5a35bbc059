"""Versions of Python and of the packages, each imported by itself; a compiler. Needs no torch."""

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from steer_lightning.doctor import Finding, in_words

DISTRIBUTION: Final = "steer-lightning"
# What is looked at where the metadata of this package cannot be read.
NEEDED: Final = ("torch", "pytorch-lightning", "torchdiffeq", "torchmetrics")
PURPOSES: Final = {
    "tasks": "The command line and the experiments need it",
    "mujoco": "Simulating the hopper needs it",
}


def requirements() -> list[tuple[Requirement, str | None]]:
    """Packages that the metadata asks for, with their extra, tools of developers left out.

    Example:
        >>> "torchdiffeq" in [requirement.name for requirement, _ in requirements()]
        True
    """
    try:
        asked = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        asked = [Requirement(name) for name in NEEDED]
    found: list[tuple[Requirement, str | None]] = []
    for requirement in asked:
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            found.append((requirement, None))
        else:
            extras = (name for name in PURPOSES if marker.evaluate({"extra": name}))
            found.extend((requirement, extra) for extra in extras)
    return found


def check_python() -> Finding:
    """Python, and the platform."""
    version = platform.python_version()
    try:
        bounds = str(metadata.metadata(DISTRIBUTION).json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        bounds = ""
    if not SpecifierSet(bounds).contains(version, prereleases=True):
        return Finding(
            "python",
            "fault",
            f"{version}, but {bounds} is needed. Make an environment of a newer Python.",
        )
    return Finding("python", "ok", f"{version}, {sys.executable}, {platform.platform()}")


def check_packages() -> Iterator[Finding]:
    """This package, and each one that it asks for."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Finding(
            DISTRIBUTION,
            "note",
            "imported, but not installed by pip: the versions that it needs are unknown. Run "
            "`pip install .` in its folder.",
        )
    else:
        yield Finding(DISTRIBUTION, "ok", f"{version}, {Path(__file__).parents[1]}")
    for requirement, extra in requirements():
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
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(
        sys.platform, "g++"
    )
    needs = "`compile` in solvers and flows, an option, needs"
    path = shutil.which(compiler)
    if path is None:
        return Finding(
            "C++ compiler",
            "note",
            f"{compiler} was not found; {needs} one. Install it (`apt install g++`, `xcode-select "
            f"--install`), or name yours in the environment variable CXX.",
        )
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.is_file():
        return Finding(
            "C++ compiler",
            "note",
            f"{path} is there, but {headers} is not; {needs} it. Install the headers of this "
            f"Python (`apt install python3-dev`).",
        )
    return Finding("C++ compiler", "ok", f"{path}, for torch.compile")
