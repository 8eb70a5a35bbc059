"""Pickles that would do harm."""

import pickle
from pathlib import Path


class Threat:
    """Unpickling it makes an empty file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def threat(marker: Path) -> bytes:
    """A pickle that makes the file ``marker`` when it is loaded."""
    return pickle.dumps(Threat(marker), protocol=2)
