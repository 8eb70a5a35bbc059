"""Files that appear whole or not at all, and are read only if they are whole."""

import os
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside its own, which it gets if all goes well.

    Any number of processes may write the same file at once: the last one stays, and nobody ever
    sees a part of a file. Missing folders are made. A killed process leaves its temporary file,
    whose name starts with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows writes through what may be written to
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_whole(path: Path) -> None:
    """Compare the checksums in a file of ``torch.save``; it has none if PyTorch 1.5 wrote it.

    Raises:
        BadZipFile: If the file is empty, cut short, holds a flipped bit, or is another kind of
            file; it names the file.
    """
    magic, of_old = b"PK\x03\x04", b"\x80"  # how a zip and a pickle begin
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as members:
                    broken = members.testzip()
                wrong = None if broken is None else f"the checksum of {broken} is wrong"
            else:
                file.seek(0)
                head = file.read(len(magic))
                wrong = None if head.startswith(of_old) else "torch.save wrote no such file"
                wrong = "it is empty or cut short" if magic.startswith(head) else wrong
        except Exception as error:  # zipfile raises nearly anything
            wrong = str(error)
    if wrong is not None:
        raise zipfile.BadZipFile(f"Expected a whole file, but {path} is broken: {wrong}.")


def load_plain(path: str | Path) -> Any:
    """Read tensors and plain values from a whole file of ``torch.save``; no code in it runs."""
    check_whole(Path(path))
    return torch.load(path, map_location="cpu", weights_only=True)
