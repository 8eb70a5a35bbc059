import os
import resource
import signal
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from steer_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from tests.helpers.models import tiny_trainer


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    saved = {"x": torch.ones(2), "n": 3, "pytorch-lightning_version": "2"}
    AtomicCheckpointIO().save_checkpoint(saved, str(path))
    found = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert (found["x"].tolist(), found["n"]) == ([1.0, 1.0], 3)
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"weight": torch.ones(2)}, r"training in .*a\.ckpt, but it holds \['weight'\]"),
        (torch.nn.Linear(1, 1), r"plain values and tensors in .*a\.ckpt, but got objects"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, saved, words):
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=words):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)


def test_a_kill_in_the_middle_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)

    def half(checkpoint, path):
        path.write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", half)
    child = os.fork()
    if child == 0:
        AtomicCheckpointIO().save_checkpoint({"n": 2}, path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"n": 1}
    AtomicCheckpointIO().save_checkpoint({"n": 3}, path)
    assert torch.load(path, weights_only=True) == {"n": 3}


def test_a_failure_leaves_the_checkpoint_before_and_no_litter(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)
    with pytest.raises(AttributeError, match=r"pickle"):
        AtomicCheckpointIO().save_checkpoint({"n": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_full_disk_is_said_with_the_path_and_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"n": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=f"write {path}, but could not: .* disk full"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(path, weights_only=True) == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_storage_options_are_refused_as_by_lightning(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})


def test_a_trainer_saves_by_it(tmp_path):
    plugin = AtomicCheckpointIO()
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path, "max_steps": 1}
    with patch.object(plugin, "save_checkpoint", wraps=plugin.save_checkpoint) as save:
        tiny_trainer(plugins=[plugin], **settings).fit(BoringModel())
    ((_, path, *_),) = [call.args for call in save.call_args_list]
    assert "state_dict" in torch.load(path, weights_only=True)
