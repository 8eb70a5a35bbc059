"""One message for every unknown name."""

import difflib
from collections.abc import Iterable


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Check that a name is one of those known, and list the near ones if it is not.

    Args:
        what: What the name stands for, as the user calls it.
        value: The name given.
        choices: The names known.

    Raises:
        ValueError: If ``value`` is not among ``choices``.

    Example:
        >>> check_choice("method", "rk5", ["rk4"])
        Traceback (most recent call last):
        ...
        ValueError: Expected `method` to be one of ['rk4'], but got 'rk5'. Did you mean 'rk4'?
    """
    known = list(choices)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"Expected `{what}` to be one of {known}, but got {value!r}.{hint}")
