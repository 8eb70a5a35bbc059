"""A trainer that logs to TensorBoard, and what it left there."""

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def make_trainer(tmp_path, *callbacks, **arguments):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": TensorBoardLogger(tmp_path, name="run", version="v"),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
            **arguments,
        },
        callbacks=list(callbacks),
    )


def images(tmp_path):
    """Steps at which each picture was drawn, by tag, as TensorBoard reads them."""
    events = EventAccumulator(str(tmp_path / "run" / "v"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def pictures(tmp_path):
    folder = tmp_path / "run" / "v" / "pictures"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class CountBatches(Callback):
    def __init__(self):
        self.n = 0

    def on_train_batch_start(self, *_):
        self.n += 1

    on_test_batch_start = on_train_batch_start
