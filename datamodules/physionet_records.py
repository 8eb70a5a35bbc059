"""The records of the PhysioNet 2012 challenge: files to tensors."""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.csv_columns import CSVColumns
from datamodules.files import read_file

N_RECORDS = 4000
HOURS = 48

# Known at admission, -1 where unknown; Weight is measured again later.
DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")
PARAMETERS = (
    *DESCRIPTORS,
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine"),
    *("DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP"),
    *("MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets"),
    *("RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "pH"),
)

ARCHIVE_NAME = "set-a.tar.gz"
FOLDER_NAME = "set-a"
OUTCOMES_NAME = "Outcomes-a.txt"

_RECORD_ID = -1
_CODES = {name: code for code, name in enumerate(PARAMETERS)} | {"RecordID": _RECORD_ID}
_MINUTES = {f"{m // 60:02d}:{m % 60:02d}": m for m in range(60 * HOURS + 1)}
_OUTCOMES = ("RecordID", "SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")
_MEMBER = re.compile(r"(?:\./)?set-a/([0-9]{1,9})\.txt")
_LARGEST_RECORD = 2**20
_LARGEST_ARCHIVE = 2**28
_AGAIN = "Delete it and set `--data.download true`, or get the file from physionet.org again."


def find_records(data_dir: str | Path) -> tuple[Path, Path]:
    """Find ``set-a.tar.gz`` or else ``set-a``, and ``Outcomes-a.txt``; raise if one is missing."""
    archive, folder, outcomes = (
        Path(data_dir, name) for name in (ARCHIVE_NAME, FOLDER_NAME, OUTCOMES_NAME)
    )
    records = archive if archive.exists() or not folder.is_dir() else folder
    for path, other in ((records, f", nor a folder {folder}"), (outcomes, "")):
        if not path.exists():
            raise FileNotFoundError(
                f"Expected the PhysioNet 2012 file {path}, but it does not exist{other}. Set "
                "`--data.download true`, or `--data.data_dir` to the folder that holds it."
            )
    return records, outcomes


def read_archive(path: Path) -> dict[int, bytes]:
    r"""Read each record of ``set-a.tar.gz``, by its number, in memory; nothing is extracted.

    Raises:
        ValueError: If the archive is broken or truncated, does not hold 4,000 records, or holds
            more than the folder ``set-a`` and files ``set-a/<RecordID>.txt`` in it: a name that
            leads elsewhere, a link or a device is refused.
    """
    contents: dict[int, bytes] = {}
    try:
        with gzip.open(io.BytesIO(read_file(path))) as packed:
            # To the end, so that the checksum there is compared; tarfile stops before it.
            content = packed.read(_LARGEST_ARCHIVE)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.isdir() and member.name in (".", "./set-a", "set-a"):
                    continue
                match = _MEMBER.fullmatch(member.name)
                file = archive.extractfile(member) if match and member.isfile() else None
                if match is None or file is None or member.size > _LARGEST_RECORD:
                    raise ValueError(
                        f"Expected {path} to hold small files set-a/<RecordID>.txt alone, but got "
                        f"{member.name!r} ({member.size} bytes); nothing was extracted. {_AGAIN}"
                    )
                contents[int(match[1])] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"Expected {path} to be a complete gzipped tar archive, but got: {error}. {_AGAIN}"
        ) from error
    return _counted(contents, path)


def read_folder(path: Path) -> dict[int, bytes]:
    """Read the unpacked folder ``set-a``; files not named ``<RecordID>.txt`` are left alone."""
    files = [file for file in path.iterdir() if re.fullmatch(r"[0-9]{1,9}\.txt", file.name)]
    return _counted({int(file.stem): read_file(file, _LARGEST_RECORD) for file in files}, path)


def _counted(contents: dict[int, bytes], path: Path) -> dict[int, bytes]:
    if len(contents) != N_RECORDS:
        raise ValueError(
            f"Expected {N_RECORDS} records in {path}, but got {len(contents)}. {_AGAIN}"
        )
    return dict(sorted(contents.items()))


def read_outcomes(path: Path) -> dict[int, int]:
    """Read ``Outcomes-a.txt``: 1 for a death in hospital, else 0, by number of the record.

    ``ValueError`` if the file is broken, or does not hold 4,000 different records.
    """
    table = CSVColumns({str(path): read_file(path)}, _OUTCOMES)
    ids = table.numbers("RecordID", largest=1e9).astype(np.int64).tolist()
    deaths = table.codes("In-hospital_death", {"0": 0, "1": 1}, "0 or 1 as In-hospital_death")
    outcomes = dict(zip(ids, deaths.tolist(), strict=True))
    if len(outcomes) != N_RECORDS or len(ids) != N_RECORDS:
        raise ValueError(
            f"Expected the outcomes of {N_RECORDS} different records in {path}, but got "
            f"{len(ids)} lines for {len(outcomes)} records. {_AGAIN}"
        )
    return outcomes


def read_records(
    data_dir: str | Path, time_bin: float, keep_unknown: bool = False
) -> dict[str, Tensor]:
    """Find and read all records and their outcomes into the tensors of :func:`bin_records`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken, or records and outcomes are not of the same patients.
    """
    records, outcomes = find_records(data_dir)
    contents = read_folder(records) if records.is_dir() else read_archive(records)
    deaths = read_outcomes(outcomes)
    unmatched = sorted(contents.keys() ^ deaths.keys())
    if unmatched:
        raise ValueError(
            f"Expected {records} and {outcomes} to be of the same records, but {len(unmatched)} "
            f"are in one only, such as {unmatched[0]}. {_AGAIN}"
        )
    return bin_records(contents, deaths, time_bin, str(records), keep_unknown)


def bin_records(
    contents: Mapping[int, bytes],
    deaths: Mapping[int, int],
    time_bin: float,
    source: str,
    keep_unknown: bool = False,
) -> dict[str, Tensor]:
    r"""Round times to bins of ``time_bin`` hours and average what falls into one.

    A bin or a record in which nothing is observed is left out. The value -1 of a descriptor means
    that it is unknown.

    Args:
        contents: Content of each record's file, by number.
        deaths: Whether the patient died, by number.
        time_bin: Width of a time bin in hours.
        source: Where the files are, for messages.
        keep_unknown: Take -1 for a value like any other.

    Returns:
        ``times``, shape ``(M,)``, in [0, 1], 1 being 48 hours; ``values`` and ``mask``, shape
        ``(M, 41)``, for the records one after the other; ``lengths`` and ``labels``, shape
        ``(N,)``; ``dropped``, the numbers of records with no observation.
    """
    numbers = np.array(list(contents))
    files = {f"{source}: {number}.txt": content for number, content in contents.items()}
    table = CSVColumns(files, ("Time", "Parameter", "Value"))
    record = np.repeat(np.arange(len(files)), table.counts)
    minutes = table.codes("Time", _MINUTES, "a time from 00:00 to 48:00")
    codes = table.codes("Parameter", _CODES, "one of the 41 parameters or RecordID")
    values = table.numbers("Value")
    is_id = codes == _RECORD_ID
    for row in np.flatnonzero(is_id & (values != numbers[record]))[:1]:
        raise table.error(f"RecordID {numbers[record[row]]}", row, f"{values[row]:g}")
    unknown = (codes < len(DESCRIPTORS)) & (values == -1)
    known = ~is_id if keep_unknown else ~(is_id | unknown)
    record, minutes, codes, values = (part[known] for part in (record, minutes, codes, values))
    bins = np.rint(minutes / 60 / time_bin).astype(np.int64)
    n_bins = int(bins.max(initial=0)) + 1
    rows, row = np.unique(record * n_bins + bins, return_inverse=True)
    cells, shape = row * len(PARAMETERS) + codes, (len(rows), len(PARAMETERS))
    count = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cells, values, minlength=shape[0] * shape[1]).reshape(shape)
    lengths = np.bincount(rows // n_bins, minlength=len(numbers))
    # Half a bin may lie past the end.
    hours = np.minimum(rows % n_bins * time_bin, HOURS)
    labels = np.array([deaths[number] for number in contents], dtype=np.int64)
    return {
        "times": torch.from_numpy(hours / HOURS).float(),
        "values": torch.from_numpy(total / np.maximum(count, 1)).float(),
        "mask": torch.from_numpy(count > 0),
        "lengths": torch.from_numpy(lengths[lengths > 0]),
        "labels": torch.from_numpy(labels[lengths > 0]),
        "dropped": torch.from_numpy(numbers[lengths == 0]),
    }
