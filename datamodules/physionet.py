"""The records of the PhysioNet 2012 challenge as a LightningDataModule."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import Split
from datamodules.files import download, whole
from datamodules.physionet_records import (
    ARCHIVE_NAME,
    FOLDER_NAME,
    HOURS,
    OUTCOMES_NAME,
    PARAMETERS,
    read_archive,
    read_outcomes,
    read_records,
)
from datamodules.scaling import NormaliseBy, min_max
from datamodules.series import SeriesData, SeriesDataModule
from steer_lightning.nn.series import SeriesBatch, make_series
from steer_lightning.utils.checks import check_choice

URL = "https://physionet.org/files/challenge-2012/1.0.0/"


def _take(check: Callable[[Path], object], path: Path) -> dict[str, bytes]:
    check(path)
    return whole(path)


class PhysioNetDataModule(SeriesDataModule):
    r"""Intensive care, 48 hours of 4,000 patients: 41 parameters, and who died in hospital.

    Each patient has a label, 1 for a death in hospital (13.85 %). What is observed is also to be
    predicted: ``target_mask`` equals ``mask``. Times are in [0, 1], 1 being 48 hours.

    Parameters are the 4 of admission (age, sex, height, type of the unit), observed at time 0, and
    37 that are measured on the way, weight among them; their order is
    ``datamodules.physionet_records.PARAMETERS``. Times are rounded to bins, and values of one
    parameter in one bin are averaged. The value -1 of weight and of those of admission means
    unknown and is left out, unless ``keep_unknown`` is true. Nothing else is cleaned:
    temperatures below zero and a pH of 735 are in the data. A record with no observation is
    dropped with a warning.

    The files are read anew by each run, in seconds, and only written to when ``download`` is true
    and one is missing. We know of no official checksum, so they are checked by their structure:
    4,000 readable records and as many outcomes.

    Args:
        data_dir: Folder that holds ``set-a.tar.gz``, or the unpacked folder ``set-a``, and
            ``Outcomes-a.txt``.
        time_bin: Width of a time bin in hours. Times in the files are whole minutes, and 0.016
            keeps them apart.
        normalise_by: Whose range scales values: that of the training samples, of all, or as
            released, see :func:`~datamodules.scaling.min_max`.
        keep_unknown: Take -1 for a value like any other, as the public code of latent ODEs does.
        download: Download missing files.

    Raises:
        ValueError: If an argument is outside its range, or a file is broken.
        FileNotFoundError: If a file is missing.
        OSError: If a download fails.

    References:
        Silva et al., *Predicting in-hospital mortality of ICU patients: The PhysioNet/Computing
        in Cardiology Challenge 2012*, 2012.
        Rubanova et al., *Latent ODEs for irregularly-sampled time series*, NeurIPS 2019,
        arXiv:1907.03907.

    Example:
        >>> data = PhysioNetDataModule("data/physionet2012", time_bin=1.0)
        >>> data.n_features, data.num_classes
        (41, 2)
    """

    n_features = len(PARAMETERS)
    num_classes = 2

    def __init__(
        self,
        data_dir: str = "data/physionet2012",
        time_bin: float = 0.016,
        normalise_by: NormaliseBy = "train",
        keep_unknown: bool = False,
        batch_size: int = 50,
        eval_batch_size: int | None = 200,
        val_size: int = 320,
        limit_train: int | None = None,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, limit_train, num_workers, seed)
        if not 0.0 < time_bin <= HOURS:
            raise ValueError(
                f"Expected `time_bin` to be positive and at most {HOURS} hours, but got "
                f"{time_bin}. The paper's setting is 0.016, about a minute."
            )
        check_choice("normalise_by", normalise_by, ("train", "all", "released"))
        self.data_dir = data_dir
        self.time_bin = time_bin
        self.normalise_by: NormaliseBy = normalise_by
        self.keep_unknown = keep_unknown
        self.download = download
        self._tensors: dict[str, Tensor] | None = None

    def prepare_data(self) -> None:
        folder = Path(self.data_dir)
        checks = {ARCHIVE_NAME: read_archive, OUTCOMES_NAME: read_outcomes}
        for name, check in checks.items() if self.download else ():
            unpacked = name == ARCHIVE_NAME and (folder / FOLDER_NAME).exists()
            if not unpacked and not (folder / name).exists():
                download(URL + name, folder, partial(_take, check))
        if self._store is None:
            self._tensors = self._read()

    def _read(self) -> dict[str, Tensor]:
        return read_records(self.data_dir, self.time_bin, self.keep_unknown)

    def load(self) -> tuple[SeriesBatch, None]:
        tensors = self._tensors or self._read()
        self._tensors = None
        dropped = tensors["dropped"].tolist()
        if dropped:
            rank_zero_warn(
                f"Expected observations in every record, but {len(dropped)} of "
                f"{len(dropped) + len(tensors['lengths'])} have none and are left out: "
                f"{', '.join(map(str, dropped))}."
            )
        lengths = tensors["lengths"].tolist()
        times, values, mask = (
            torch.split(tensors[name], lengths) for name in ("times", "values", "mask")
        )
        series = make_series(times, values, mask, labels=list(tensors["labels"]))
        seen = series.mask.bool()
        return series._replace(mask=seen, target_mask=seen), None

    def scale(self, series: SeriesBatch, train: Tensor) -> SeriesBatch:
        values = min_max(series.values, series.mask, train, self.normalise_by)
        return series._replace(values=values)

    def build(self, split: Split) -> SeriesData:
        data = super().build(split)
        labels = data.tensors.labels[data.chosen]
        if bool((labels == labels[0]).all()):
            rank_zero_warn(
                f"Expected both labels in the {split} set, but all {len(labels)} are "
                f"{int(labels[0])}: the area under the curve is not defined there. Use more "
                "patients, or another `seed`."
            )
        return data
