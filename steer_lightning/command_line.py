"""LightningCLI whose saved configs say which version wrote them."""

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

from steer_lightning import __version__

_HEADER = re.compile(r"^# steer_lightning==(\S+)$", re.MULTILINE)


class VersionedCLI(LightningCLI):
    """A LightningCLI that writes this library's version into the configs it saves.

    Where arguments do not parse and a config among them was written by another version, it says
    so.
    """

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that begins saved configs with two versions."""
        header = [
            f"steer_lightning=={__version__}",
            f"pytorch_lightning=={version('pytorch-lightning')}",
        ]
        return super().init_parser(**{"dump_header": header, **kwargs})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; if that fails, look whether it may be for the version of a config."""
        try:
            super().parse_arguments(parser, args)
        except SystemExit as done:
            given = sys.argv[1:] if args is None else args
            if done.code not in (None, 0) and isinstance(given, Sequence):
                for path, other in configs_of_other_versions(given):
                    sys.stderr.write(
                        f"note: {path} was written by steer_lightning {other}, and this is "
                        f"{__version__}: options may have been renamed or removed. CHANGELOG.md "
                        f"says which; --print_config shows those of this version.\n"
                    )
            raise


def configs_of_other_versions(arguments: Sequence[str]) -> list[tuple[Path, str]]:
    """Config files among command-line arguments that say another version wrote them.

    Args:
        arguments: What stands behind the program's name.

    Returns:
        Path and version of each.

    Example:
        >>> configs_of_other_versions(["fit", "--config", "nothing.yaml"])
        []
    """
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, _, value = argument.partition("=")
        path = Path(argument if before in ("--config", "-c") else value)
        if (before in ("--config", "-c") or option in ("--config", "-c")) and path.is_file():
            header = _HEADER.search(path.read_text(encoding="utf-8", errors="replace"))
            if header is not None and header[1] != __version__:
                found.append((path, header[1]))
    return found
