"""``python -m steer_lightning doctor`` says in words what is wrong with an installation.

Only the entry point imports it.
"""

from typing import Literal, NamedTuple

State = Literal["ok", "note", "fault"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Args:
        name: What it is.
        state: ``"fault"`` if something is wrong, ``"note"`` if something is absent that only some
            need.
        sentence: What was found, and what to do about it.
    """

    name: str
    state: State
    sentence: str


def in_words(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
