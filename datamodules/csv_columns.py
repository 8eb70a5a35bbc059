"""Columns of comma-separated files, read by pandas, with errors that name file and line."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray


class CSVColumns:
    r"""Columns of one or more files of lines with the same fields between commas, not quoted.

    Args:
        files: Content of each file, by its name for messages; empty lines at the end are left out.
        columns: Name of each column.
        has_header: Whether the first line of each file has to be the columns' names.

    Raises:
        ValueError: If a header, a line or, when it is read, a field is not as expected.

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
                    f"{new[0][:80]!r}. Get the file from its official source again."
                )
            body = [] if new == [""] else new[self._first_line - 1 :]
            lines += body
            counts.append(len(body))
        self.counts = np.array(counts)
        # By hand, as pandas fills short lines up and, at the first line, takes more fields.
        for row, line in enumerate(lines):
            if line.count(",") != len(columns) - 1 or "\ufffd" in line:
                raise self.error(f"{len(columns)} fields of UTF-8 between commas", row, line)
        self._frame = pd.read_csv(
            StringIO("\n".join(lines)),
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
        return self._frame[column].to_numpy(dtype=object)

    def numbers(
        self, column: str, largest: float = float(np.finfo(np.float32).max)
    ) -> NDArray[np.float64]:
        """Read a column of numbers from ``-largest`` to ``largest``."""
        # Pandas tells what is no number, numpy keeps every digit but takes 7_3 for 73.
        valid = pd.to_numeric(self._frame[column], errors="coerce").abs() <= largest
        for row in np.flatnonzero(~valid)[:1]:
            what = f"a finite number of size up to {largest:.3g} as {column}"
            raise self.error(what, row, self.text(column)[row])
        return self.text(column).astype(np.float64)

    def codes(self, column: str, code_of: Mapping[str, int], what: str) -> NDArray[np.int64]:
        """Read a column of names as numbers; ``what`` says in messages what the names are."""
        places = pd.Index(list(code_of), dtype=object).get_indexer(self.text(column))
        for row in np.flatnonzero(places < 0)[:1]:
            raise self.error(what, row, self.text(column)[row])
        return np.array(list(code_of.values()), dtype=np.int64)[places]

    def error(self, what: str, row: int, got: str) -> ValueError:
        """Make an error about a row: what was expected there, and what is."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, row, side="right"))
        line = self._first_line + row - (int(ends[file - 1]) if file else 0)
        return ValueError(
            f"Expected {what} in line {line} of {self._sources[file]}, but got {got[:80]!r}. "
            "Get the file from its official source again."
        )
