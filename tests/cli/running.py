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


def of(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def toy_config(**changes):
    field = of("steer_lightning.nn.ConcatSquashField", dim=2, hidden=[8])
    flow = of("steer_lightning.nn.CNF", event_shape=[2], vector_field=field)
    sizes = {"n_train": 16, "n_val": 8, "n_test": 8, "batch_size": 8}
    return {
        "trainer": {"max_epochs": 2, "callbacks": [of("steer_lightning.callbacks.NFEMonitor")]},
        "steer": {"b": 0.5},
        "checkpoint": {"monitor": "val/nll"},
        "model": of("steer_lightning.modules.CNFModule", flow=flow),
        "data": of("datamodules.ToyDensityDataModule", **sizes),
        **changes,
    }


def mnist_config():
    field = of("steer_lightning.nn.ConvField", channels=1, filters=2)
    head = of("torch.nn.Linear", in_features=784, out_features=10)
    node = of("steer_lightning.nn.ODEBlock", vector_field=field)
    return toy_config(
        checkpoint={},
        model=of("ClassifierModule", block=node, head=head),
        data=of("MNISTDataModule", data_dir="mnist"),
    )


def callbacks(main, kind):
    """Those of a kind that a run of the command line has."""
    return [callback for callback in main.trainer.callbacks if isinstance(callback, kind)]


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
