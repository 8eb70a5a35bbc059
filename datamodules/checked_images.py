"""Image sets with a published checksum of each file."""

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from torchvision.datasets.utils import calculate_md5

from datamodules.images import ImageDataModule


class CheckedImageDataModule(ImageDataModule):
    """Base of image sets whose files have published MD5 checksums.

    Each file's checksum is compared before any is opened. A subclass names its files, and sets
    ``download`` after the base's ``__init__``; the base's arguments are those of
    :class:`ImageDataModule`.

    Attributes:
        title: Name of the data set, for messages.
        download: Download missing or broken files.
    """

    title: ClassVar[str]
    download: bool = False

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder of the files."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """What ``data_dir`` has to hold, for messages."""

    @abstractmethod
    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each file, by name."""

    @abstractmethod
    def fetch(self, names: Collection[str]) -> None:
        """Download files into the folder; each appears whole and checked, or not at all.

        Args:
            names: The files, of those in :meth:`checksums`.

        Raises:
            OSError: If a download fails or a file cannot be written.
            ValueError: If what was downloaded is broken.
        """

    def prepare_data(self) -> None:
        """Download what is missing or broken, if ``download`` is true; one process on each node.

        Files are checked here too, before a run makes its folders.

        Raises:
            ValueError: If a file is broken, or a download is.
            FileNotFoundError: If a file is missing.
            OSError: If a download fails or a file cannot be written.
        """
        if self.download:
            broken = [name for name, md5 in self.checksums().items() if self._lacks(name, md5)]
            if broken:
                self.fetch(broken)
        super().prepare_data()

    def _lacks(self, name: str, md5: str) -> bool:
        try:
            self.check_file(self.folder / name, md5)
        except (FileNotFoundError, ValueError):
            return True
        return False

    def check_files(self) -> None:
        for name, md5 in self.checksums().items():
            self.check_file(self.folder / name, md5)

    def check_file(self, path: Path, md5: str) -> None:
        """Raise unless a file is there and whole.

        Args:
            path: The file.
            md5: Its official checksum.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If it is broken.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected the {self.title} file {path}, but it does not exist. Set "
                f"`--data.download true`, or `--data.data_dir` to the folder that holds "
                f"{self.layout}."
            )
        remedy = (
            "Set `--data.download true` to replace it, or set `--data.data_dir` to a folder with "
            "complete files."
        )
        self._check_md5(path, md5, remedy)

    def check_download(self, path: Path, md5: str) -> None:
        """Raise unless a download is whole.

        Args:
            path: The temporary file.
            md5: The official checksum.

        Raises:
            ValueError: If it is broken.
        """
        self._check_md5(path, md5, "Try again, or get the files by hand.")

    def _check_md5(self, path: Path, expected: str, remedy: str) -> None:
        md5 = calculate_md5(path)
        if md5 != expected:
            raise ValueError(
                f"Expected {path} to have the MD5 checksum {expected} of {self.title}'s own file, "
                f"but got {md5}; it was not opened. {remedy}"
            )
