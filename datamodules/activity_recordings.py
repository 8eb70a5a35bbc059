"""The recordings of Localization Data for Person Activity (UCI): file to tensors."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.csv_columns import CSVColumns
from datamodules.downloads import download

# The archive's present form, and the one it had before.
URLS = (
    "https://archive.ics.uci.edu/static/public/196/localization+data+for+person+activity.zip",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/00196/ConfLongDemo_JSI.txt",
)
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

_COLUMNS = ("recording", "tag", "ticks", "date", "x", "y", "z", "label")
_TAG_CODES = {tag: code for code, tag in enumerate(TAGS)}
_LABEL_CODES = {label: code for code, labels in enumerate(CLASSES.values()) for label in labels}
_ROUND_TO_TICKS = 100_000
_TICKS_PER_SECOND = 10_000_000
SECONDS_PER_STEP = _ROUND_TO_TICKS / _TICKS_PER_SECOND
_LARGEST_MEMBER = 2**27


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
    """Find the file of the data set, see :class:`~datamodules.activity.HumanActivityDataModule`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If several could be meant.
    """
    path = Path(data_dir, file_name or FILE_NAME)
    if path.is_file():
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
    return _rows(path.read_bytes(), path)


def _rows(content: bytes, path: Path) -> CSVColumns:
    table = CSVColumns({str(path): content}, _COLUMNS, has_header=False)
    if not len(table):
        raise ValueError(f"Expected rows in {path}, but it is empty. Get the file again.")
    return table


def merge_rows(table: CSVColumns) -> dict[str, Recording]:
    r"""Merge the rows that are at one time once it is rounded to 10 ms.

    Times count from the first row of a recording. Rows are sorted by time. Of several positions
    of one tag at one time the mean is taken, and of several labels that of the last row.

    Args:
        table: Rows of :func:`read_rows`.

    Returns:
        Each recording by its name, in the order of the names.

    Raises:
        ValueError: If a time or position is no number, or a tag or label is unknown.
    """
    labels = table.codes("label", _LABEL_CODES, f"one of the labels {', '.join(_LABEL_CODES)}")
    tags = table.codes("tag", _TAG_CODES, f"one of the tags {', '.join(TAGS)}")
    # As floats, ticks lose their last two digits, far below what is rounded away.
    ticks = table.numbers("ticks")
    points = np.stack([table.numbers(axis) for axis in "xyz"], axis=1)
    names, recording = np.unique(table.text("recording"), return_inverse=True)
    return {
        str(name): _merge(*(part[recording == i] for part in (ticks, tags, points, labels)))
        for i, name in enumerate(names)
    }


def _merge(
    ticks: NDArray[np.float64],
    tags: NDArray[np.int64],
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> Recording:
    order = np.argsort(ticks, kind="stable")
    ticks, tags, points, labels = ticks[order], tags[order], points[order], labels[order]
    rounded = np.rint((ticks - ticks[0]) / _ROUND_TO_TICKS).astype(np.int64)
    steps, row = np.unique(rounded, return_inverse=True)
    total = np.zeros((len(steps), len(TAGS), 3))
    count = np.zeros((len(steps), len(TAGS), 1))
    np.add.at(total, (row, tags), points)
    np.add.at(count, (row, tags), 1)
    last = np.flatnonzero(np.diff(row, append=len(steps)))
    return Recording(
        steps=torch.from_numpy(steps),
        values=torch.from_numpy(total / np.maximum(count, 1)).float().flatten(1),
        mask=torch.from_numpy(np.repeat(count > 0, 3, axis=2)).flatten(1),
        labels=torch.from_numpy(labels[last]),
    )


def _check_complete(content: bytes, path: Path) -> None:
    table = _rows(content, path)
    if len(table) != N_ROWS:
        raise ValueError(
            f"Expected {N_ROWS} rows in the downloaded {FILE_NAME}, but got {len(table)}. Try "
            "again, or get the file by hand."
        )
    merge_rows(table)


def download_activity(path: Path) -> None:
    """Download the file, from a zip archive or as it is; ``OSError`` if no address gives it."""

    def take(file: Path) -> dict[str, bytes]:
        content = _unzip(file) if file.suffix == ".zip" else file.read_bytes()
        _check_complete(content, file)
        return {path.name: content}

    failures = []
    for url in URLS:
        try:
            download(url, path.parent, take)
            return
        except (OSError, ValueError) as error:
            failures.append(str(error))
    raise OSError(
        f"Expected to download {path.name} from one of {len(URLS)} addresses, but got: "
        f"{' '.join(failures)}"
    )


def _unzip(archive: Path) -> bytes:
    """Read the one text file of the data set in a zip archive; nothing is extracted."""
    try:
        with zipfile.ZipFile(archive) as members:
            found = [m for m in members.infolist() if Path(m.filename).name == FILE_NAME]
            if len(found) != 1 or found[0].file_size > _LARGEST_MEMBER:
                raise ValueError(
                    f"Expected {archive} to hold one {FILE_NAME} of at most {_LARGEST_MEMBER} "
                    f"bytes, but got {[member.filename for member in members.infolist()][:5]}. "
                    "Get the file by hand."
                )
            return members.read(found[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(
            f"Expected {archive} to be a zip archive, but got: {error}. Try again."
        ) from error
