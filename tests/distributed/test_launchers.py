"""The command line on two processes, as users start it."""

import pytest
import torch

import cli
from tests.cli.running import CONFIGS, DATA, FLOW, QUIET
from tests.distributed.processes import ROOT, run_launcher, run_ranks

SMALL = [
    f"{FLOW}.vector_field.init_args.hidden=[4]",
    f"{DATA}.n_train=21",
    f"{DATA}.n_val=13",
    f"{DATA}.n_test=13",
    f"{DATA}.batch_size=4",
    f"{DATA}.eval_batch_size=2",
]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def arguments(command: str, *more: str) -> list[str]:
    config = f"--config={CONFIGS / 'cnf/toy2d.yaml'}"
    return [command, config, "--steer.b=0.5", *QUIET, *SMALL, *more]


def test_a_rank_that_fails_ends_the_others_and_is_shown(tmp_path):
    code = (
        "import os, sys, time; r = int(os.environ['RANK']); print('rank', r, flush=True); "
        "time.sleep(60 * (1 - r)); sys.exit(3)"
    )
    with pytest.raises(RuntimeError, match=r"(?s)exit codes \[None, 3\].*rank 0\n\n---\nrank 1"):
        run_ranks(["-c", code], tmp_path)


def test_ranks_that_hang_are_killed(tmp_path):
    with pytest.raises(RuntimeError, match=r"within 1 s, but got exit codes \[None, None\]"):
        run_ranks(["-c", "import time; time.sleep(60)"], tmp_path, limit_s=1)


def test_hanging_launchers_are_killed_and_shown(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)got None \(None: killed\):\nhere"):
        run_launcher(
            ["-c", "import time; print('here', flush=True); time.sleep(60)"], tmp_path, limit_s=1
        )


@pytest.mark.slow
def test_torchrun_trains_and_lightning_itself_tests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(ROOT / "cli.py")
    fit = arguments("fit", *TWO, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")
    printed = run_launcher([*torchrun, script, *fit], tmp_path)
    assert "Starting with 2 processes" in printed
    assert printed.count("STEER moves these end times in training:") == 1
    run = tmp_path / "logs/cnf/toy2d_steer/version_0"
    assert len(list(run.glob("events.*"))) == 1
    assert (run / "config.yaml").is_file()
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3  # 21 samples, four on each rank

    path = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    printed = run_launcher([script, *arguments("test", *TWO, path)], tmp_path)
    assert "Starting with 2 processes" in printed
    assert printed.count("Test metric") == 1
    plots = tmp_path / "logs/cnf/toy2d_steer/version_1/plots"
    assert len(list(plots.iterdir())) == 3
    assert sorted(p.name for p in run.parent.iterdir()) == ["version_0", "version_1"]

    monkeypatch.setattr("sys.argv", ["cli.py"])
    alone = cli.main(arguments("test", path)).trainer.callback_metrics["test/nll"].item()
    shown = next(line for line in printed.splitlines() if "test/nll" in line)
    (together,) = [float(word) for word in shown.split() if word.replace(".", "").isdigit()]
    assert together == pytest.approx(alone, abs=1e-4)  # the steps of dopri5 depend on the batch
