"""What is seen while a run goes on."""

import re
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from steer_lightning.utils.representation import Shown


class SolverProgressBar(Shown, RichProgressBar):
    """Lightning's progress bar with the solvers' evaluations and STEER's end time.

    ``NFE`` is the number of evaluations of the last training batch, forwards and, if there were
    some, backwards, which :class:`~steer_lightning.callbacks.NFEMonitor` counts; ``T`` its end
    time (``stretch`` of a grid's intervals), which
    :class:`~steer_lightning.callbacks.SteerCallback` draws. Each metric has a line of its own,
    so that its name is never cut.

    Args:
        refresh_rate: Times a second at which it is drawn; 0 for never.
        leave: Leave the bar of each epoch.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[SolverProgressBar()], logger=False, accelerator="cpu")
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = False) -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter="\n", metrics_format=".4g")
        super().__init__(refresh_rate, leave, theme)
        self.leave = leave

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's, with a bar that leaves room for the metrics."""
        columns: list[Any] = super().configure_columns(trainer)
        for column in columns:
            if hasattr(column, "bar_width"):
                column.bar_width = 12
        return columns

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        counts = [logged.get(f"train/nfe_{phase}", 0.0) for phase in ("forward", "backward")]
        if any(counts):
            metrics["NFE"] = " + ".join(f"{count:g}" for count in counts if count)
        for quantity, label in (("end_time", "T"), ("stretch", "stretch")):
            drawn = [v for k, v in logged.items() if re.fullmatch(f"steer/.*/{quantity}", k)]
            if drawn:
                metrics[label] = ", ".join(f"{value:.4g}" for value in drawn)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts to `max_epochs - 1` also where it is -1, for no limit.
        description: str = super()._get_train_description(current_epoch)
        return description.replace("/-2", "").ljust(len(self.validation_description))
