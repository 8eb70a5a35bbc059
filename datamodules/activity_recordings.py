"""The recordings of Localization Data for Person Activity (UCI): file to tensors."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datamodules.csv_columns import CSVColumns
from datamodules.files import download, read_file

URL = "https://archive.ics.uci.edu/static/public/196/localization+data+for+person+activity.zip"
FILE_NAME = "ConfLongDemo_JSI.txt"
N_ROWS = 164_860

# Left ankle, right ankle, chest, belt: three coordinates each.
TAGS = ("010-000-024-033", "010-000-030-096", "020-000-033-111", "020-000-032-221")
CLASSES = {
    "walking": ("walking",),
    "falling": ("falling",),
    "lying": ("lying", "lying down"),
    "sitting": ("sitting", "sitting down"),
    "standing up": (
        "standing up from lying",
        "standing up from sitting",
        "standing up from sitting on the ground",
        "standing up from sit on grnd",
    ),
    "on all fours": ("on all fours",),
    "sitting on the ground": ("sitting on the ground",),
}
SECONDS_PER_STEP = 0.01

_COLUMNS = ("recording", "tag", "ticks", "date", "x", "y", "z", "label")
_TAG_CODES = {tag: code for code, tag in enumerate(TAGS)}
_LABEL_CODES = {label: code for code, labels in enumerate(CLASSES.values()) for label in labels}
_TICKS_PER_STEP = 100_000
_LARGEST_TICK = 1e18
_LARGEST_FILE = 2**27


class Recording(NamedTuple):
    r"""One recording, its rows merged to points in time.

    Shapes: ``steps`` is ``(T,)``, int64, increasing, in units of 10 ms; ``values`` and ``mask``
    are ``(T, 12)``, float32 and bool; ``labels`` is ``(T,)``, int64.
    """

    steps: Tensor
    values: Tensor
    mask: Tensor
    labels: Tensor


def find_file(data_dir: str | Path, file_name: str | None) -> Path:
    """Find the file, see :class:`~datamodules.activity.HumanActivityDataModule`.

    ``FileNotFoundError`` if there is none, ``ValueError`` if several could be meant.
    """
    path = Path(data_dir, file_name or FILE_NAME)
    if path.exists():
        return path
    found = [] if file_name else sorted(path.parent.glob("ConfLongDemo_JSI*.txt"))
    if len(found) > 1:
        raise ValueError(
            f"Expected one file ConfLongDemo_JSI*.txt in {data_dir}, but got "
            f"{', '.join(file.name for file in found)}. Set `--data.file_name` to one of them."
        )
    if not found:
        raise FileNotFoundError(
            f"Expected the file {path}, but it does not exist. Set `--data.download true`, or "
            "`--data.data_dir` to the folder that holds it, and `--data.file_name` if it has "
            "another name."
        )
    return found[0]


def read_rows(path: Path) -> CSVColumns:
    """Read the rows of the file; ``ValueError`` if there are none or a line has not 8 fields."""
    return _rows(read_file(path, _LARGEST_FILE), path)


def _rows(content: bytes, path: Path) -> CSVColumns:
    table = CSVColumns({str(path): content}, _COLUMNS, has_header=False)
    if not len(table):
        raise ValueError(f"Expected rows in {path}, but it is empty. Get the file again.")
    return table


def merge_rows(table: CSVColumns) -> dict[str, Recording]:
    r"""Merge the rows that are at one time once it is rounded to 10 ms.

    Times count from the first row of a recording. Of several positions of one tag at one time the
    mean is taken, and of several labels that of the last row.

    Args:
        table: Rows of :func:`read_rows`, in any order; ``ValueError`` if a time or position is no
            number, or a tag or label is unknown.

    Returns:
        Each recording by its name, in the order of the names.
    """
    rows = pd.DataFrame(
        {
            "recording": table.text("recording"),
            # As floats, ticks lose their last two digits, far below what is rounded away.
            "ticks": table.numbers("ticks", _LARGEST_TICK),
            "tag": table.codes("tag", _TAG_CODES, f"one of the tags {', '.join(TAGS)}"),
            **{axis: table.numbers(axis) for axis in "xyz"},
            "label": table.codes(
                "label", _LABEL_CODES, f"one of the labels {', '.join(_LABEL_CODES)}"
            ),
        }
    ).sort_values("ticks", kind="stable")
    ticks = rows["ticks"] - rows.groupby("recording")["ticks"].transform("min")
    rows["step"] = np.rint(ticks / _TICKS_PER_STEP).astype(np.int64)
    return {str(name): _merge(group) for name, group in rows.groupby("recording")}


def _merge(rows: pd.DataFrame) -> Recording:
    means = rows.groupby(["step", "tag"])[["x", "y", "z"]].mean().unstack("tag")
    columns = [(axis, tag) for tag in range(len(TAGS)) for axis in "xyz"]
    values = torch.tensor(means.reindex(columns=columns).to_numpy())
    return Recording(
        steps=torch.tensor(means.index.to_numpy()),
        values=values.nan_to_num(0.0).float(),
        mask=~values.isnan(),
        labels=torch.tensor(rows.groupby("step")["label"].last().to_numpy()),
    )


def download_activity(path: Path) -> None:
    """Download the zip archive and keep the text in it as ``path``, if all its rows are there."""

    def take(archive: Path) -> dict[str, bytes]:
        content = _unzip(archive)
        table = _rows(content, archive)
        if len(table) != N_ROWS:
            raise ValueError(
                f"Expected {N_ROWS} rows in the downloaded {FILE_NAME}, but got {len(table)}. Try "
                "again, or get the file by hand."
            )
        merge_rows(table)
        return {path.name: content}

    download(URL, path.parent, take)


def _unzip(archive: Path) -> bytes:
    """Read the one text file of the data set in a zip archive; nothing is extracted."""
    try:
        with zipfile.ZipFile(archive) as members:
            found = [m for m in members.infolist() if Path(m.filename).name == FILE_NAME]
            if len(found) != 1 or found[0].file_size > _LARGEST_FILE:
                raise ValueError(
                    f"Expected {archive} to hold one {FILE_NAME} of at most {_LARGEST_FILE} "
                    f"bytes, but got {[member.filename for member in members.infolist()][:5]}. "
                    "Get the file by hand."
                )
            return members.read(found[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(
            f"Expected {archive} to be a zip archive, but got: {error}. Try again."
        ) from error
