"""Looks at everything, prints it, and says whether something is wrong."""

import argparse
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from steer_lightning.doctor import Finding, in_words
from steer_lightning.doctor.installation import check_compiler, check_packages

# The check of data sets: a plug-in and no dependency, as the wheel does not hold it.
PLUG_IN = "datamodules.intact"


def diagnose(data_dir: Path) -> Iterator[Finding]:
    """Look at everything; what raises becomes a finding itself."""
    yield from guarded("packages", check_packages)
    # Imported only there, as torch may be what is broken.
    yield from guarded(
        "devices", lambda: import_module("steer_lightning.doctor.devices").check_devices()
    )
    yield from guarded("C++ compiler", lambda: [check_compiler()])
    yield from guarded("data", partial(check_data, data_dir))


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check, and its own failure as one more."""
    try:
        yield from check()
    except Exception as error:  # to go on, whatever is broken
        yield Finding(name, "fault", f"could not be looked at ({in_words(error)}).")


def check_data(data_dir: Path) -> Iterable[Finding]:
    """Findings about the data sets in a folder, where their modules, not in the wheel, are."""
    try:
        found: Iterable[Finding] = import_module(PLUG_IN).check_data(data_dir)
    except ModuleNotFoundError as error:
        if error.name not in (PLUG_IN, PLUG_IN.partition(".")[0]):  # nor has a namesake it
            raise
        sentence = (
            "not looked at: the data sets' modules are part of the repository and not of the "
            "installed package. There, run `python -m steer_lightning doctor`."
        )
        return [Finding("data", "note", sentence)]
    return found


def report(finding: Finding) -> str:
    """A finding as lines of text."""
    state = finding.state.upper() if finding.state == "fault" else finding.state
    head = f"{state:6} {finding.name:18} "
    return textwrap.fill(
        head + finding.sentence, 100, subsequent_indent=" " * 26,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the doctor's options."""
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path(os.environ.get("STEER_DATA_DIR", "data")),
        help="folder of the data sets; the environment variable STEER_DATA_DIR, else ./data",
    )


def diagnose_and_report(data_dir: Path) -> int:
    """Print all findings; the exit status."""
    states = []
    for finding in diagnose(data_dir):
        states.append(finding.state)
        print(report(finding), flush=True)
    print(f"\nfaults: {states.count('fault')}, notes: {states.count('note')}")
    return 1 if "fault" in states else 0
