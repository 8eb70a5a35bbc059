"""What makes one run differ from another, for every logger."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from steer_lightning.callbacks.counted import plain
from steer_lightning.callbacks.penalty import PenaltyCallback
from steer_lightning.callbacks.steer import SteerCallback
from steer_lightning.solvers import Solver
from steer_lightning.steering.targets import plain_path
from steer_lightning.utils.lightning import is_lightning
from steer_lightning.utils.representation import Shown
from steer_lightning.utils.schedule import Schedule


class HyperparameterLog(Shown, Callback):
    """Log the settings of STEER, penalties, solvers and data as hyperparameters, by every logger.

    Those of the Trainer's callbacks and of the model's blocks are kept in checkpoints too. Plain
    arguments of a datamodule are logged as ``data/...``, unless it saves hyperparameters itself.
    A run without STEER has ``b = 0``, which is the same training. A schedule has its two ends,
    ``b`` and ``b_end``.

    TensorBoard's table has them beside the model's hyperparameters, and all that is logged as
    metrics: each column sorts. For that its logger must not write a table itself, with
    a metric that nothing sets: ``TensorBoardLogger(..., default_hp_metric=False)``.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callbacks = [SteerCallback(b=0.5), HyperparameterLog()]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settings = settings_of(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        logged = {**self.settings, **data_settings(data)}
        for logger in trainer.loggers:
            logger.log_hyperparams(logged)
            in_table = is_lightning(logger, "loggers", "TensorBoardLogger")
            if in_table and trainer.is_global_zero:
                others = {**pl_module.hparams_initial, **getattr(data, "hparams_initial", {})}
                shown = {k: v for k, v in others.items() if not k.startswith("_")}  # Lightning's
                _start_session(logger, {**shown, **logged})

    def state_dict(self) -> dict[str, Any]:
        return self.settings


def settings_of(trainer: Trainer, model: nn.Module) -> dict[str, Any]:
    """Settings of STEER, penalties and solvers, as plain values, nested by what they belong to."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    steered = [c for c in callbacks if isinstance(c, SteerCallback)]
    settings: dict[str, Any] = {} if steered else {"steer": {"b": 0.0, "b_end": 0.0}}
    for i, callback in enumerate(steered):
        given = {k: v for k, v in plain(callback.settings).items() if v is not None}
        chosen = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        chosen |= _ends("b", callback.b)
        settings["steer" if len(steered) == 1 else f"steer_{i}"] = chosen
    for penalizing in callbacks:
        if isinstance(penalizing, PenaltyCallback):
            for penalty in penalizing.penalties:
                settings.setdefault("penalties", {}).update(_ends(penalty.name, penalty.weight))
    solvers = {
        ".".join(filter(None, (plain_path(path), name))): repr(solver)
        for path, module in model.named_modules()
        for name, solver in vars(module).items()
        if isinstance(solver, Solver)
    }
    return {**settings, "solvers": solvers}


def data_settings(data: LightningDataModule | None) -> dict[str, Any]:
    """Plain arguments of data, as ``data``, unless they save hyperparameters themselves."""
    if data is None or data.hparams_initial:
        return {}
    made = [vars(cls)["__init__"] for cls in type(data).__mro__ if "__init__" in vars(cls)]
    names = {name for init in made[:-1] for name in signature(init).parameters}
    given = {name: vars(data)[name] for name in sorted(names & vars(data).keys())}
    return {"data": {k: x for k, x in given.items() if isinstance(x, int | float | str)}}


def _ends(name: str, value: Any) -> dict[str, Any]:
    """A number at the start of training and at its end."""
    first, last = (value.start, value.end) if isinstance(value, Schedule) else (value, value)
    return {name: first, f"{name}_end": last}


def _start_session(logger: Any, settings: Mapping[str, Any]) -> None:
    """Give TensorBoard the row of a run; it finds the columns itself, over all runs.

    With an ``Experiment``, as :meth:`SummaryWriter.add_hparams` writes one for each run, it shows
    the columns of one of them alone.
    """
    package = "torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX"
    summary = import_module(f"{package}.summary")  # late: it needs one of them
    _, start, _ = summary.hparams(dict(_flat(settings)), {})
    logger.experiment.file_writer.add_summary(start)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by path, ``steer/b``; what is no number becomes text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            plain_value = value if isinstance(value, int | float | None) else str(value)
            yield f"{prefix}{name}", plain_value
