"""Where a run of the command line leaves its logs and its config."""

import os
import re
from itertools import count
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from steer_lightning.callbacks.folders import run_folder


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run's folder, beside those that are there and differ.

    That of ``fit`` is ``config.yaml``, that of a test ``config_test.yaml``, then with a number.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = run_folder(trainer)  # asked for on every rank
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.parser.dump(self.config, skip_none=False)
            stem = "config" if stage == "fit" else f"config_{TrainerFn(stage).value}"
            paths = (folder / f"{stem}{f'_{n}' * (n > 0)}.yaml" for n in count())
            path = next(p for p in paths if not p.exists() or p.read_text() == text)
            path.write_text(text)


def choose_folder(config: Any, subcommand: str | None) -> None:
    """A Slurm job's own, that of the checkpoint which is evaluated, or a free one."""
    checkpoint, trainer = config.get("ckpt_path"), config.trainer
    if subcommand != "fit" and checkpoint and Path(checkpoint).is_file():
        write_beside(Path(checkpoint), trainer, subcommand)
    elif subcommand == "fit" and (job := slurm_job()):
        # Lightning leaves what a requeued job goes on from there, and so would others' be.
        folder = Path(trainer.default_root_dir or "logs/slurm", job)
        trainer.default_root_dir = str(folder)
        if checkpoint and any(folder.glob("hpc_ckpt_*.ckpt")):
            config.ckpt_path = "hpc"  # the job has gone on from the other one already
    elif trainer.logger is False:
        root = Path(trainer.default_root_dir or "logs/run")
        folders = (root / f"version_{n}" for n in count())
        trainer.default_root_dir = str(next(f for f in folders if not f.exists()))


def write_beside(checkpoint: Path, trainer: Any, subcommand: str | None) -> None:
    """Let validation, test and prediction go on in the folder and the log of the training run."""
    folder = checkpoint.parent if checkpoint.parent.name else checkpoint.parent.absolute()
    run = folder.parent if folder.name == "checkpoints" else folder
    trainer.default_root_dir = str(run)
    trainer.enable_autolog_hparams = False  # they are the training run's
    for logger in as_list(trainer.logger):
        kind = getattr(logger, "class_path", "").rpartition(".")[2]
        if kind == "TensorBoardLogger":
            place = {"save_dir": str(run.parent), "name": "", "version": run.name}
        elif kind == "CSVLogger":  # which deletes the metrics that it finds in its folder
            names = (f"{subcommand}{f'_{n}' * (n > 0)}" for n in count())
            free = next(name for name in names if not (run / name).exists())
            place = {"save_dir": str(run), "name": "", "version": free}
        # Others keep a run under its identity, in a folder of their own.
        elif kind == "WandbLogger" and run.parent.name == logger.init_args.project:
            place = {"save_dir": str(run.parents[1]), "id": run.name}
        elif kind == "MLFlowLogger" and re.fullmatch("[0-9a-f]{32}", run.name):
            place = {"save_dir": str(run.parents[1]), "run_id": run.name}
            trainer.default_root_dir = str(run.parents[1])  # if it tracks in a database
        else:
            continue
        for name, value in place.items():
            logger.init_args[name] = value


def slurm_job() -> str:
    """The number of the Slurm job that this is, the same once it is requeued; empty elsewhere."""
    if not SLURMEnvironment.detect():
        return ""
    array, place = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{place}" if array else os.environ.get("SLURM_JOB_ID", "")


@rank_zero_only
def keep_metrics(logger: Any) -> None:
    """Move away the metrics that a CSVLogger would delete, of a run that goes on in its folder."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    path = Path(logger.save_dir, logger.name or "", version, "metrics.csv")
    if path.is_file():
        others = (path.with_name(f"metrics_{n}.csv") for n in count(1))
        path.rename(next(other for other in others if not other.exists()))


def as_list(items: Any) -> list[Any]:
    """Make a list of one thing, several or nothing."""
    return items if isinstance(items, list) else [items] if items else []
