"""Comma-separated text, read fast and with errors that name the file and the line."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_AGAIN = "Get the file from its official source again."


class TextTable:
    r"""Columns of a text of lines with a fixed number of fields between commas.

    There is no quoting. Empty lines at the end are left out. Bytes that are no UTF-8 are an error,
    wherever they are.

    Args:
        content: The text.
        columns: Name of each column.
        source: Name of the file, for messages.
        has_header: Whether the first line has to be the columns' names.

    Raises:
        ValueError: If the header or a line is not as expected.

    Example:
        >>> table = TextTable(b"Time,Value\n00:00,1.5\n00:07,2\n", ["Time", "Value"], "a.txt")
        >>> len(table), table.text("Time"), table.numbers("Value")
        (2, ['00:00', '00:07'], array([1.5, 2. ]))
    """

    def __init__(
        self, content: bytes, columns: Sequence[str], source: str, has_header: bool = True
    ) -> None:
        text = content.decode(errors="replace").replace("\r\n", "\n").rstrip("\n")
        self.source = source
        self.first_line = 1
        if has_header:
            header, _, text = text.partition("\n")
            self.first_line = 2
            if header != ",".join(columns):
                raise ValueError(
                    f"Expected {source} to start with the line {','.join(columns)!r}, but got "
                    f"{header[:80]!r}. {_AGAIN}"
                )
        broken = text.find("\ufffd")
        if broken >= 0:
            i = text.count("\n", 0, broken)
            raise self._error("UTF-8 text", i, text.split("\n")[i])
        self._fields = dict(zip(columns, self._split(text, len(columns)), strict=True))
        self._length = len(self._fields[columns[0]])

    def __len__(self) -> int:
        return self._length

    def _split(self, text: str, n_columns: int) -> list[list[str]]:
        if not text:
            return [[] for _ in range(n_columns)]
        # One split for all lines is fast; the line ends become a column of their own, which
        # shows whether every line has as many fields as it should.
        fields = text.replace("\n", ",\n,").split(",")
        n_lines = text.count("\n") + 1
        ends = fields[n_columns :: n_columns + 1]
        if len(fields) != n_lines * (n_columns + 1) - 1 or ends.count("\n") != n_lines - 1:
            lines = text.split("\n")
            i = next(i for i, line in enumerate(lines) if line.count(",") != n_columns - 1)
            raise self._error(f"{n_columns} fields between commas", i, lines[i])
        return [fields[i :: n_columns + 1] for i in range(n_columns)]

    def text(self, column: str) -> list[str]:
        """Return a column as it stands in the file."""
        return self._fields[column]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Read a column of finite numbers.

        Raises:
            ValueError: If a field is no number, or not finite.
        """
        fields = self._fields[column]
        try:
            values = np.array(list(map(float, fields)), dtype=np.float64)
        except ValueError:
            values = np.array([_number(field) for field in fields])
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise self._error(f"a finite number as {column}", broken[0], fields[broken[0]])
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
        fields = self._fields[column]
        codes = list(map(code_of.get, fields))
        if None in codes:
            i = codes.index(None)
            raise self._error(what, i, fields[i])
        return np.array(codes, dtype=np.int64)

    def _error(self, what: str, i: int, got: str) -> ValueError:
        return ValueError(
            f"Expected {what} in line {self.first_line + i} of {self.source}, but got "
            f"{got[:80]!r}. {_AGAIN}"
        )


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return float("nan")
