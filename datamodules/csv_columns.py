"""Columns of comma-separated files, read by pandas, with errors that name file and line."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_AGAIN = "Get the file from its official source again."


class CSVColumns:
    r"""Columns of one or more files of lines with the same fields between commas.

    There is no quoting. Empty lines at the end of a file are left out.

    Args:
        files: Content of each file, by its name for messages.
        columns: Name of each column.
        has_header: Whether the first line of each file has to be the columns' names.

    Raises:
        ValueError: If a header or a line is not as expected.

    Example:
        >>> table = CSVColumns({"a": b"Time,Value\n00:00,1.5\n"}, ["Time", "Value"])
        >>> len(table), table.text("Time").tolist(), table.numbers("Value")
        (1, ['00:00'], array([1.5]))
    """

    def __init__(
        self, files: Mapping[str, bytes], columns: Sequence[str], has_header: bool = True
    ) -> None:
        self._sources = list(files)
        self._first_line = 2 if has_header else 1
        lines: list[str] = []
        counts = []
        for source, content in files.items():
            new = content.decode(errors="replace").replace("\r\n", "\n").rstrip("\n").split("\n")
            if has_header and new[0] != ",".join(columns):
                raise ValueError(
                    f"Expected {source} to start with the line {','.join(columns)!r}, but got "
                    f"{new[0][:80]!r}. {_AGAIN}"
                )
            body = [] if new == [""] else new[self._first_line - 1 :]
            lines += body
            counts.append(len(body))
        self.counts = np.array(counts)
        # By hand, as pandas fills short lines up and, at the first line, takes more fields.
        commas = len(columns) - 1
        for i, line in enumerate(lines):
            if line.count(",") != commas:
                raise self.error(f"{len(columns)} fields between commas", i, line)
        text = "\n".join(lines)
        broken = text.find("\ufffd")
        if broken >= 0:
            i = text.count("\n", 0, broken)
            raise self.error("UTF-8 text", i, lines[i])
        self._frame = pd.read_csv(
            StringIO(text),
            names=list(columns),
            dtype=str,
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            lineterminator="\n",
        )

    def __len__(self) -> int:
        return len(self._frame)

    def text(self, column: str) -> NDArray[np.object_]:
        """Return a column as it stands in the files."""
        fields: NDArray[np.object_] = self._frame[column].to_numpy(dtype=object)
        return fields

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Read a column of finite numbers.

        Raises:
            ValueError: If a field is no number, or not finite.
        """
        fields = self.text(column)
        try:
            values = fields.astype(np.float64)
        except ValueError:
            values = pd.to_numeric(self._frame[column], errors="coerce").to_numpy(np.float64)
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise self.error(f"a finite number as {column}", broken[0], fields[broken[0]])
        return values

    def codes(self, column: str, code_of: Mapping[str, int], what: str) -> NDArray[np.int64]:
        """Read a column of names as numbers.

        Args:
            column: Which column.
            code_of: Number of each name.
            what: What the names are, for the message.

        Raises:
            ValueError: If a field is none of the names.
        """
        places = pd.Index(list(code_of), dtype=object).get_indexer(self.text(column))
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            raise self.error(what, unknown[0], self.text(column)[unknown[0]])
        codes: NDArray[np.int64] = np.array(list(code_of.values()), dtype=np.int64)[places]
        return codes

    def error(self, what: str, row: int, got: str) -> ValueError:
        """Make an error about a row: what was expected there, and what is."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, row, side="right"))
        line = self._first_line + row - (int(ends[file - 1]) if file else 0)
        return ValueError(
            f"Expected {what} in line {line} of {self._sources[file]}, but got {got[:80]!r}. "
            f"{_AGAIN}"
        )
