"""Localization Data for Person Activity (UCI) as a LightningDataModule."""

from pathlib import Path
from typing import Literal

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.activity_recordings import (
    CLASSES,
    FILE_NAME,
    N_ROWS,
    SECONDS_PER_STEP,
    TAGS,
    download_activity,
    find_file,
    merge_rows,
    read_rows,
)
from datamodules.base import check_at_least
from datamodules.series import SeriesDataModule, full_series
from steer_lightning.nn.series import SeriesBatch
from steer_lightning.utils.checks import check_choice


class HumanActivityDataModule(SeriesDataModule):
    r"""Positions of four tags on a moving person, and at each time one of seven activities.

    A sample is a window of a recording, with a label at each time. Its 12 values are the
    coordinates x, y, z, in metres and not scaled, of the tags at the left ankle, the right ankle,
    the chest and the belt; nearly always one tag alone is observed. What is observed is also to be
    predicted: ``target_mask`` equals ``mask``.

    Times are rounded to 10 ms, count from the start of a window, and are divided by the duration
    of the longest training window, so that others may end past 1. The eleven labels of the file
    are merged to seven classes, ``datamodules.activity_recordings.CLASSES``. Points after the
    last whole window of a recording are left out.

    With ``split="window"``, which is what published results use, windows are split at random.
    **They overlap by half, so test windows share points with training windows**, and the accuracy
    is that of filling in known recordings. ``split="recording"`` splits whole recordings, so that
    it tests on new ones (of people seen in training: there are five people, five recordings
    each).

    The file is only written to when ``download`` is true and it is missing. We know of no official
    checksum, so a download is checked by its structure: 164,860 readable rows.

    Args:
        data_dir: Folder of the file.
        file_name: Name of the file; ``None`` means ``ConfLongDemo_JSI.txt``, or else the only
            file of a name ``ConfLongDemo_JSI*.txt``. That a file is partial is printed.
        split: ``"window"`` splits windows at random, ``"recording"`` whole recordings.
        window: Points in a window.
        stride: Points between the starts of two windows.
        val_size: Windows to validate on; with ``split="recording"`` as many recordings as give so
            many windows.
        download: Download the file if it is missing.

    Raises:
        ValueError: If an argument is outside its range, or the file is broken.
        FileNotFoundError: If the file is missing.
        OSError: If the download fails.

    References:
        Kaluza et al., *An agent-based approach to care in independent living*, AmI 2010.
        Rubanova et al., *Latent ODEs for irregularly-sampled time series*, NeurIPS 2019,
        arXiv:1907.03907.

    Example:
        >>> data = HumanActivityDataModule("data/person_activity", split="recording")
        >>> data.n_features, data.num_classes
        (12, 7)
    """

    n_features = 3 * len(TAGS)
    num_classes = len(CLASSES)

    def __init__(
        self,
        data_dir: str = "data/person_activity",
        file_name: str | None = None,
        split: Literal["window", "recording"] = "window",
        window: int = 50,
        stride: int = 25,
        batch_size: int = 50,
        eval_batch_size: int | None = 200,
        val_size: int = 150,
        limit_train: int | None = None,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, limit_train, num_workers, seed)
        check_choice("split", split, ("window", "recording"))
        check_at_least(2, window=window)
        check_at_least(1, stride=stride)
        self.data_dir = data_dir
        self.file_name = file_name
        self.split = split
        self.window = window
        self.stride = stride
        self.download = download

    def prepare_data(self) -> None:
        path = Path(self.data_dir, self.file_name or FILE_NAME)
        if self.download and not path.exists():
            download_activity(path)
        merge_rows(read_rows(find_file(self.data_dir, self.file_name)))

    def load(self) -> tuple[SeriesBatch, Tensor | None]:
        path = find_file(self.data_dir, self.file_name)
        table = read_rows(path)
        if len(table) < N_ROWS:
            rank_zero_info(
                f"Person activity: {path.name} is partial, {len(table)} of {N_ROWS} rows. "
                "Results are not comparable with published ones."
            )
        recordings = merge_rows(table)
        long_enough = [part for part in recordings.values() if len(part.steps) >= self.window]
        if not long_enough:
            raise ValueError(
                f"Expected a recording of {self.window} points or more in {path}, but the longest "
                f"has {max(len(part.steps) for part in recordings.values())}. Lower `window`."
            )
        # From (T_all, ...) to (N, ..., window).
        windows = [
            [tensor.unfold(0, self.window, self.stride) for tensor in part] for part in long_enough
        ]
        steps, values, mask, labels = (torch.cat(parts) for parts in zip(*windows, strict=True))
        mask = mask.transpose(1, 2).contiguous()
        times = (steps - steps[:, :1]) * SECONDS_PER_STEP
        series = full_series(times, values.transpose(1, 2).contiguous(), mask, mask, labels)
        if self.split == "window":
            return series, None
        counts = torch.tensor([len(part[0]) for part in windows])
        return series, torch.arange(len(windows)).repeat_interleave(counts)

    def scale(self, series: SeriesBatch, train: Tensor) -> SeriesBatch:
        return series._replace(times=series.times / series.times[train].max())
