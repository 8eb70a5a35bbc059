"""One rank of the runs in test_resume.py: killed in the third batch, or whole and then resumed."""

import os
import signal
import sys
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DDPStrategy

from tests.modules.cases import CASES
from tests.test_resume import run_task

RANK = os.environ.get("RANK", "0")


class Kill(Callback):
    """What a machine does that is switched off."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, ckpt_path=None, *callbacks):
    strategy = DDPStrategy(process_group_backend="gloo")
    case = CASES["image flow"]
    return run_task(case, folder, ckpt_path, *callbacks, devices=2, strategy=strategy)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, job = Path(sys.argv[1]), sys.argv[2]
    if job == "killed":
        run(folder / "killed", None, Kill())
    found = {
        "whole": run(folder / "whole"),
        "resumed": run(folder / "resumed", folder / "killed" / "last.ckpt"),
    }
    torch.save(found, folder / f"rank{RANK}.pt")
