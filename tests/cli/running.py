"""Arguments and expectations that the tests of the command line share."""

from pathlib import Path

import pytest
import yaml

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


def toy_config(**changes):
    return {
        "trainer": {
            "max_epochs": 2,
            "callbacks": [{"class_path": "steer_lightning.callbacks.NFEMonitor"}],
        },
        "steer": {"b": 0.5},
        "checkpoint": {"monitor": "val/nll"},
        "model": {
            "class_path": "steer_lightning.modules.CNFModule",
            "init_args": {
                "flow": {
                    "class_path": "steer_lightning.nn.CNF",
                    "init_args": {
                        "event_shape": [2],
                        "vector_field": {
                            "class_path": "steer_lightning.nn.ConcatSquashField",
                            "init_args": {"dim": 2, "hidden": [8]},
                        },
                    },
                }
            },
        },
        "data": {
            "class_path": "datamodules.ToyDensityDataModule",
            "init_args": {"n_train": 16, "n_val": 8, "n_test": 8, "batch_size": 8},
        },
        **changes,
    }


def mnist_config():
    node = {
        "class_path": "steer_lightning.nn.ODEBlock",
        "init_args": {
            "vector_field": {
                "class_path": "steer_lightning.nn.ConvField",
                "init_args": {"channels": 1, "filters": 2},
            }
        },
    }
    head = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": 784, "out_features": 10},
    }
    return toy_config(
        checkpoint={},
        model={"class_path": "ClassifierModule", "init_args": {"block": node, "head": head}},
        data={"class_path": "MNISTDataModule", "init_args": {"data_dir": "mnist"}},
    )


def write(config, name="config.yaml"):
    Path(name).write_text(yaml.safe_dump(config))
    return name


def refuse(arguments, capsys):
    """Run what must end with an error of the parser; returns what the user sees."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as done:
        cli.main([*arguments, *QUIET])
    assert done.value.code == 2
    assert sorted(Path.cwd().rglob("*")) == before  # nothing is left behind
    return capsys.readouterr().err
