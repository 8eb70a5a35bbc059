"""Short forms of options, and refusals in one line with near names."""

import difflib
import inspect
import os
import re
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn
from zipfile import BadZipFile

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import callbacks, loggers
from pytorch_lightning.cli import LightningArgumentParser

# Imported so that short class names resolve on the command line.
import datamodules
import steer_lightning.callbacks.plots.end_time_sweep
import steer_lightning.callbacks.plots.features
import steer_lightning.callbacks.plots.flow
import steer_lightning.callbacks.plots.samples
import steer_lightning.callbacks.plots.series
import steer_lightning.callbacks.plots.stiff
import steer_lightning.modules
from steer_lightning.solvers import SolverError

# Lines of jsonargparse's messages that say nothing about what is wrong.
IDLE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type"
    r"|Given value: (\W|Name|Nested)|Not a valid sub|Subclass types|a (class|dict) "
    r"|Expected a path but"
)
MISSPELT = re.compile(
    r"(?:[Oo]ption|no attribute|invalid choice:) '([\w.]+)'|unrecognized arguments: --([\w.]+)"
    r"|(?:import path string|Got value): ([\w.]+)"
)
# What is left of a message about a value that is of no use at all.
BARE = re.compile(r'(Parser key "[\w.]+":)( Given value: .*)?')
# Who refuses a wrong argument in words: this project and the parser; others by a ValueError.
OURS = "steer_lightning.", "datamodules.", "jsonargparse."
THEIRS = "pytorch_lightning.", "lightning_fabric.", "torch.optim."
# Where classes are that may be given by a short name.
PLACES = (
    datamodules, steer_lightning.modules, steer_lightning.callbacks,
    callbacks, loggers, torch.optim,
)  # fmt: skip
# A penalty's weight, and STEER's b, in short, in arguments with NUL between them.
WEIGHT = re.compile(r"(?<![^\0])(--penalties\.\w+)(?=[=\0][-+]?\.?\d)")
B = re.compile(r"(?<![^\0])--steer(?=[=\0]([-+]?\.?\d|auto))")


class OneLineParser(LightningArgumentParser):
    """Refuses in one line, with near names; with ``STEER_DEBUG=1`` by a traceback."""

    def parse_args(self, args: Any = None, **settings: Any) -> Any:  # type: ignore[override]
        """Parse, with penalties' weights and STEER's b in short."""
        given = sys.argv[1:] if args is None else args
        text = B.sub("--steer.b", WEIGHT.sub(r"\1.weight", "\0".join(given)))
        return super().parse_args(text.split("\0") if given else given, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse tries a class's arguments by a parser that does not exit.
        if debugging() or not self.exit_on_error:
            self.exit_on_error = False
            super().error(message, ex)
        said = one_line(message)
        if bare := BARE.fullmatch(said):
            said = f"{bare[1]} expected settings by name, which --help lists{bare[2] or ''}"
        near = near_names(said, getattr(ex, "subcommand_parser", None) or self)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"error: {said}{hint}\n")


def debugging() -> bool:
    """Whether a user asked for tracebacks."""
    return os.environ.get("STEER_DEBUG") == "1"


def one_line(message: str) -> str:
    """A message without the lines that say nothing, or the same again."""
    lines = dict.fromkeys(line.strip().removeprefix("- ") for line in message.splitlines())
    return " ".join(line for line in lines if line and not IDLE.match(line))


def near_names(message: str, parser: LightningArgumentParser) -> list[str]:
    """Names that are like the one a message of the parser complains of."""
    if (found := MISSPELT.search(message)) is None:
        return []
    word = next(filter(None, found.groups()))
    known = {action.dest for action in parser._actions if not action.dest.endswith("help")}
    known |= {name.partition(".")[0] for name in known}
    for module_path, name in re.findall(r"class_path '([\w.]+)\.(\w+)'", message)[-1:]:
        module = import_module(module_path)
        cls = getattr(module, name, None)
        known = set(inspect.signature(cls).parameters if cls else vars(module))
    if "import path string" in message:
        known = {name for place in PLACES for name in dir(place) if name[0].isupper()}
    known |= set(re.findall(r"'(\w+)'", message)) - {word}  # choices
    matches = (difflib.get_close_matches(w, known, 2) for w in (word, word.partition(".")[0]))
    return next(filter(None, matches), [])


def is_refusal(error: Exception) -> bool:
    """Whether an error says itself what to change, so that its traceback is of no use."""
    said = ModuleNotFoundError, BadZipFile, MisconfigurationException, SolverError
    if isinstance(error, said) or (isinstance(error, OSError) and error.filename):
        return True
    if not isinstance(error, ValueError | TypeError | OSError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    checked = OURS + THEIRS if isinstance(error, ValueError) else OURS
    return f"{frame.f_globals.get('__name__')}.".startswith(checked)
