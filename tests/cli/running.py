"""Arguments and expectations that the tests of the command line share."""

from pathlib import Path

import pytest

import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODEL, DATA = "--model.init_args", "--data.init_args"
FLOW = f"{MODEL}.flow.init_args"
NETWORK = f"{MODEL}.network.init_args"
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def refuse(arguments, capsys):
    """Run what must end with an error of the parser; returns what the user sees."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as done:
        cli.main([*arguments, *QUIET])
    assert done.value.code == 2
    assert sorted(Path.cwd().rglob("*")) == before  # nothing is left behind
    return capsys.readouterr().err
