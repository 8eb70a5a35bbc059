"""``steer-lightning`` and ``python -m steer_lightning``: the doctor, versions, what lies where."""

import argparse
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import steer_lightning
from steer_lightning.doctor.installation import requirements
from steer_lightning.doctor.report import add_options, diagnose_and_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status."""
    parser = argparse.ArgumentParser(
        prog="steer-lightning", description=steer_lightning.__doc__, epilog=command_line()
    )
    parser.add_argument("--version", action="version", version=steer_lightning.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor_help = "look at packages, devices and data sets, and say what is wrong"
    add_options(commands.add_parser("doctor", help=doctor_help, description=doctor_help))
    commands.add_parser("version", help="print the versions that a report of a fault needs")
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return diagnose_and_report(options.data_dir)
    print("\n".join(versions()))
    return 0


def versions() -> list[str]:
    """Name and version of this package, of what it needs and of Python; where it all lies."""
    needed = []
    with suppress(metadata.PackageNotFoundError):  # of a clone that is not installed
        needed = [requirement.name for requirement, extra in requirements() if extra is None]
    installed = {d.name: d.version for d in metadata.distributions()}
    found = {"steer-lightning": steer_lightning.__version__, "python": platform.python_version()}
    found |= {name: installed.get(name, "not installed") for name in needed}
    lines = [f"{name:17} {version}" for name, version in found.items()]
    return [*lines, "", f"Package: {Path(__file__).parent}", command_line()]


def command_line() -> str:
    """Where training by configuration is: the repository has it and the package does not."""
    cli = Path(__file__).resolve().parents[1] / "cli.py"
    if cli.is_file():
        return f"Training by configuration files, and the data sets: python {cli} --help"
    return (
        "Training by configuration files (cli.py, configs/) and the data sets (datamodules/) are "
        "in the repository and not in the installed package: clone it, run `python cli.py --help`."
    )


if __name__ == "__main__":
    sys.exit(main())
