"""Versions of Python and of the packages, each imported by itself; a compiler. Needs no torch."""

import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Final, NamedTuple

from steer_lightning.doctor import Finding, in_words

DISTRIBUTION: Final = "steer-lightning"
# What is looked at where the metadata of this package cannot be read.
NEEDED: Final = ("torch", "pytorch-lightning", "torchdiffeq", "torchmetrics")
PURPOSES: Final = {
    "tasks": "The command line and the experiments need it",
    "mujoco": "Simulating the hopper needs it",
}
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[[^]]*\])?\s*(?P<bounds>[^;]*?)\s*"
    r"(;.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"].*)?$"
)


class Requirement(NamedTuple):
    """A distribution that this package asks for, always or in one of its extras."""

    name: str
    bounds: str = ""
    extra: str | None = None


def requirements() -> list[Requirement]:
    """What the metadata of this package asks for, tools of its developers left out.

    Example:
        >>> "torchdiffeq" in [requirement.name for requirement in requirements()]
        True
    """
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [Requirement(name) for name in NEEDED]
    found = [match for line in lines if (match := _REQUIREMENT.match(line))]
    asked = [Requirement(m["name"], m["bounds"], m["extra"]) for m in found]
    return [r for r in asked if r.extra is None or r.extra in PURPOSES]


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version is within lower bounds and pins; other bounds are not looked at.

    Example:
        >>> satisfies("2.15.0+cpu", ">=2.11"), satisfies("2.9.1", ">=2.11")
        (True, False)
        >>> satisfies("4.0.0", "==3.17.0"), satisfies("3.17", "==3.17.0")
        (False, True)
    """
    at_least = [_release(bound) for bound in re.findall(r">=\s*([^,\s]+)", bounds)]
    exactly = [_release(bound) for bound in re.findall(r"==\s*([^,\s]+)", bounds)]
    release = _release(version)
    return all(release >= bound for bound in at_least) and all(release == b for b in exactly)


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def check_python() -> Finding:
    """Python, and the platform."""
    version = platform.python_version()
    try:
        bounds = str(metadata.metadata(DISTRIBUTION).json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        bounds = ""
    if not satisfies(version, bounds):
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
    for requirement in requirements():
        yield check_package(requirement)


def check_package(requirement: Requirement) -> Finding:
    """Whether one package is there, new enough, and can be imported."""
    name, bounds, extra = requirement
    install = f"`pip install '{name}{bounds}'`"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra is None:
            sentence = f"not installed, but steer_lightning does not work without it: {install}."
            return Finding(name, "fault", sentence)
        return Finding(name, "note", f"not installed. {PURPOSES[extra]}: {install}.")
    if not satisfies(version, bounds):
        return Finding(name, "fault", f"{version}, but {bounds} is needed: {install}.")
    try:
        import_module(name.replace("-", "_"))
    except Exception as error:  # a broken build may raise anything
        return Finding(name, "fault", f"{version}, {_why_not_imported(name, error)}")
    return Finding(name, "ok", f"{version} (needs {bounds})" if bounds else version)


def _why_not_imported(name: str, error: Exception) -> str:
    if "operator torchvision::" in str(error):
        versions = []
        for other in ("torch", "torchvision"):
            try:
                versions.append(f"{other} {metadata.version(other)}")
            except metadata.PackageNotFoundError:
                versions.append(f"{other} (not installed)")
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
