"""Tiny files of Localization Data for Person Activity in their official format."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.activity_recordings import CLASSES, TAGS

FIRST_TICK = 633790226051280329
LABELS = [label for labels in CLASSES.values() for label in labels]


def row(
    recording: str = "A01",
    tag: str = TAGS[0],
    ticks: int = 0,
    position: Sequence[float] = (1.0, 2.0, 0.5),
    label: str = "walking",
) -> str:
    """Encode one row; ``ticks`` of 100 ns count from some time in 2009."""
    x, y, z = position
    date = "27.05.2009 14:03:25:127"
    return f"{recording},{tag},{FIRST_TICK + ticks},{date},{x},{y},{z},{label}"


def tiny_rows(n_recordings: int = 5, n_rows: int = 120) -> list[str]:
    """Rows 30 ms apart, the tags in turn; x tells the recording and y the row."""
    return [
        row(
            f"{'ABCDE'[number // 5]}{number % 5 + 1:02d}",
            TAGS[i % 4],
            300_000 * i,
            (number, i, 0.25),
            LABELS[(number + i // 10) % len(LABELS)],
        )
        for number in range(n_recordings)
        for i in range(n_rows)
    ]


def write_activity(
    data_dir: Path, rows: Sequence[str] | None = None, name: str = "ConfLongDemo_JSI.txt"
) -> Path:
    """Write rows, by default those of 5 recordings, into ``data_dir``."""
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / name
    path.write_text("\n".join(tiny_rows() if rows is None else rows) + "\n")
    return path
