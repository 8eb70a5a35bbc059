"""Image sets that torchvision downloads, with a published checksum of each file."""

from abc import abstractmethod
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
        download: Download missing or broken files with torchvision.
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

    @property
    @abstractmethod
    def leftovers(self) -> str:
        """What to delete before another download, for messages."""

    @abstractmethod
    def checksums(self) -> dict[str, str]:
        """Official MD5 checksum of each file, by name."""

    @abstractmethod
    def fetch(self) -> None:
        """Let torchvision complete the files, or raise a ``RuntimeError``."""

    def prepare_data(self) -> None:
        """Download what is missing or broken, if ``download`` is true; one process on each node.

        Files are checked here too, before a run makes its folders.

        Raises:
            ValueError: If a file is broken, or stays so after the download.
            FileNotFoundError: If a file is missing.
        """
        if self.download:
            try:
                self.check_files()
            except (FileNotFoundError, ValueError):
                self._download()
        super().prepare_data()

    def _download(self) -> None:
        try:
            self.fetch()
        except RuntimeError as error:
            raise ValueError(
                f"Expected torchvision to complete the {self.title} files in {self.folder}, but "
                f"got: {error} Delete {self.leftovers} and try again."
            ) from error

    def check_files(self) -> None:
        for name, expected in self.checksums().items():
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(
                    f"Expected the {self.title} file {path}, but it does not exist. Set "
                    f"`--data.download true`, or `--data.data_dir` to the folder that holds "
                    f"{self.layout}."
                )
            md5 = calculate_md5(path)
            if md5 != expected:
                raise ValueError(
                    f"Expected {path} to have the MD5 checksum {expected} of {self.title}'s own "
                    f"file, but got {md5}; it was not opened. Delete {self.leftovers} and set "
                    f"`--data.download true`, or set `--data.data_dir` to a folder with complete "
                    f"files."
                )
