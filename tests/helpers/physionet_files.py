"""Tiny files of the PhysioNet 2012 challenge in their official formats."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from datamodules import physionet_records

FIRST_ID = 132539
HEADER = "Time,Parameter,Value"
OUTCOMES_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"


def record_text(number: int, lines: Sequence[str] = ()) -> bytes:
    """Encode one record; ``lines`` follow those of admission, an age of 40 to 79 and no height."""
    admission = [f"RecordID,{number}", f"Age,{40 + number % 40}", "Gender,1", "Height,-1"]
    first = [f"00:00,{part}" for part in [*admission, "ICUType,2", "Weight,-1"]]
    return "\n".join([HEADER, *first, *lines, ""]).encode()


def tiny_records(n: int) -> dict[int, bytes]:
    """Records of 2 to 6 different times, by number; the heart rate at the last one is i."""
    return {
        FIRST_ID + i: record_text(
            FIRST_ID + i,
            [f"{3 * t:02d}:07,Temp,{36 + 0.1 * t:.1f}" for t in range(1 + i % 4)]
            + [f"47:{i % 60:02d},HR,{i}"],
        )
        for i in range(n)
    }


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """Pack files into a gzipped tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def outcomes_bytes(deaths: Mapping[int, int]) -> bytes:
    """Encode the file of outcomes."""
    lines = [f"{number},6,1,5,-1,{death}" for number, death in deaths.items()]
    return "\n".join([OUTCOMES_HEADER, *lines, ""]).encode()


def write_physionet(
    data_dir: Path,
    records: Mapping[int, bytes] | int = 40,
    form: Literal["archive", "folder"] = "archive",
) -> None:
    """Write records, and outcomes of which every other is a death, into ``data_dir``."""
    if isinstance(records, int):
        records = tiny_records(records)
    (data_dir if form == "archive" else data_dir / "set-a").mkdir(parents=True, exist_ok=True)
    files = {f"set-a/{number}.txt": content for number, content in records.items()}
    if form == "archive":
        (data_dir / "set-a.tar.gz").write_bytes(tar_bytes(files))
    else:
        for name, content in files.items():
            (data_dir / name).write_bytes(content)
    deaths = {number: number % 2 for number in records}
    (data_dir / "Outcomes-a.txt").write_bytes(outcomes_bytes(deaths))


def accept_physionet(monkeypatch: pytest.MonkeyPatch, n: int = 40) -> None:
    """Make this the number of records that the data set has to have."""
    monkeypatch.setattr(physionet_records, "N_RECORDS", n)
