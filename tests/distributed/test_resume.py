"""Two ranks that are killed go on, bit for bit; the runs are in resume_worker.py."""

import pytest
import torch

from tests.distributed.processes import run_ranks


@pytest.mark.slow
def test_ranks_that_are_killed_go_on(tmp_path):
    """Weights, moments, end times, noise, evaluations and metrics."""
    worker = ["-m", "tests.distributed.resume_worker", str(tmp_path)]
    with pytest.raises(RuntimeError, match=r"exit codes \[(-9, -9|-9, None|None, -9)\]"):
        run_ranks([*worker, "killed"], tmp_path)
    step = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"]
    assert step == 2
    run_ranks([*worker, "resumed"], tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        (whole, logged, _), (resumed, rest, _) = found["whole"], found["resumed"]
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
        assert [entry for entry in logged if entry[1] > step] == rest
        assert rest
