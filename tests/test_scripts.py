from pathlib import Path

import pytest
import torch
import yaml

import cli
from scripts.import_released import import_weights
from tests.helpers.mnist_files import write_mnist
from tests.helpers.released_model import ReleasedModel, released_weights

ROOT = Path(__file__).resolve().parents[1]


def small_config():
    """The config of the small MNIST flow with two channels, and Euler steps in evaluation."""
    config = yaml.safe_load((ROOT / "configs/cnf/mnist_small_rnode.yaml").read_text())
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    flow = config["model"]["init_args"]["flow"]["init_args"]
    flow["vector_field"]["init_args"]["hidden"] = [2]
    flow["eval_solver"] = flow["solver"]
    config["data"]["init_args"] |= {"data_dir": "mnist", "val_size": 10, "eval_batch_size": 4}
    return config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    Path("config.yaml").write_text(yaml.safe_dump(small_config()))
    return tmp_path


def test_imported_weights_can_be_tested(folder):
    torch.manual_seed(0)
    model = ReleasedModel((1, 14, 14), (2,), regularized=True)
    torch.save({"state_dict": released_weights(model, parallel=True)}, "weights.pth")
    import_weights("config.yaml", Path("weights.pth"), Path("imported.ckpt"))
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "weights.pth",
        "imported.ckpt",
    }

    write_mnist(folder / "mnist", n_test=4)
    tested = cli.main(["test", "--config", "config.yaml", "--ckpt_path", "imported.ckpt"])
    weights = [p for block in tested.model.flow.blocks for p in block.vector_field.parameters()]
    for ours, theirs in zip(weights, model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    tested.datamodule.setup("test")
    ((grey, _),) = tested.datamodule.test_dataloader()
    x = (grey[:1] + 0.5) / 256.0
    with torch.no_grad():
        z = tested.model.flow(x)[0]
        torch.testing.assert_close(z, model(x), atol=1e-3, rtol=1e-3)
    assert tested.trainer.callback_metrics["test/bits_per_dim_center"].isfinite()


def test_a_file_of_something_else_writes_nothing(folder):
    torch.save([1], "weights.pth")
    with pytest.raises(ValueError, match=r"Expected weights\.pth to hold a `state_dict`"):
        import_weights("config.yaml", Path("weights.pth"), Path("imported.ckpt"))
    assert not Path("imported.ckpt").exists()
