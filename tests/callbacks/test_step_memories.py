"""First steps that go from batch to batch, through checkpoints, and around a failure."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateFinder
from torch.utils.checkpoint import checkpoint

from steer_lightning import SteerCallback
from steer_lightning.callbacks import StepMemories
from steer_lightning.callbacks.step_memories import find_step_memories
from steer_lightning.guard import SolverGuard
from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.modules import CNFModule
from steer_lightning.nn import CNF, ConcatSquashField, LatentDecoder, MLPField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver, NonFiniteStateError
from tests.helpers.models import ClockField, TinyModule, lively, seeded, tiny_loader, tiny_trainer
from tests.helpers.watching import weights

PREVIOUS = AdaptiveSolver("tsit5", 1e-8, 1e-8, first_step="previous")


class Remembering(TinyModule):
    """A model whose block begins with the step of the last batch."""

    def __init__(self):
        super().__init__()
        self.block = ODEBlock(lively(ClockField()), PREVIOUS)

    def forward(self, y0):
        return self.block(y0)


def test_the_second_solve_begins_with_the_step_of_the_first():
    model, counts = seeded(Remembering), []
    y0 = torch.ones(3, 2)
    for _ in range(2):
        model.block.stats.reset()
        model(y0)
        stats = model.block.stats
        counts.append(stats.nfe_forward - 6 * (stats.accepted + stats.rejected))
    assert counts == [2, 1]  # no evaluation to find a first step
    assert model.block.stats.rejected == 0


def test_steps_are_kept_in_nominal_time_and_scale_with_a_moved_end():
    block = seeded(Remembering).block
    block(torch.ones(3, 2))
    ((start, nominal),) = block.step_memory.steps.values()
    assert start == 0.0
    asked = []

    class Listening(AdaptiveSolver):
        def solve(self, *args, first_step=None, **options):
            asked.append(first_step)
            return super().solve(*args, first_step=first_step, **options)

    block.solver = Listening("tsit5", 1e-8, 1e-8, first_step="previous")
    block.horizon.perturb(FixedOffset(0.5))
    block(torch.ones(3, 2))
    assert asked == [pytest.approx(1.5 * nominal)]
    block.horizon.reset()
    block(torch.ones(3, 2), torch.tensor([0.5, 1.0]))  # another start: nothing is known
    block(torch.ones(3, 2), torch.tensor([1.0, 0.0]))  # the other direction
    assert asked[1:] == [None, None]
    assert set(block.step_memory.steps) == {1, -1}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_block_is_refused(use_reentrant):
    block, y0 = seeded(Remembering).block, torch.ones(3, 2, requires_grad=True)
    loss = checkpoint(block, y0, use_reentrant=use_reentrant).sum()
    with pytest.raises(RuntimeError, match=r"no torch.utils.checkpoint around a block"):
        loss.backward()


def test_bad_times_are_refused_as_by_any_solver():
    with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
        seeded(Remembering).block(torch.ones(3, 2), torch.tensor([1.0, 1.0]))


def test_evaluation_neither_reads_nor_writes_them():
    block = seeded(Remembering).block
    block(torch.ones(3, 2))
    before = dict(block.step_memory.steps)
    block.eval().stats.reset()
    block(5.0 * torch.ones(3, 2))
    assert block.step_memory.steps == before
    assert block.stats.nfe_forward == 2 + 6 * (block.stats.accepted + block.stats.rejected)


def test_flows_and_decoders_remember_too():
    flow = CNF(ConcatSquashField(2, (4,)), (2,), PREVIOUS)
    decoder = LatentDecoder(MLPField(2, (4,), time_dependent=False), PREVIOUS)
    for _ in range(2):
        flow.log_prob(torch.ones(3, 2))
        decoder(torch.ones(1, 2, 2), torch.tensor([[0.0, 1.0], [0.5, 0.7]]), torch.tensor([2, 2]))
    assert list(flow.step_memory.steps) == [-1]
    assert list(decoder.step_memory.steps) == [1]
    assert not list(flow.horizon.buffers())
    assert not [name for name in flow.state_dict() if "memory" in name]


def fit(model, callback, max_epochs, ckpt_path=None, **settings):
    trainer = tiny_trainer(callback, SteerCallback(0.5, seed=0), max_epochs=max_epochs, **settings)
    trainer.fit(model, tiny_loader(), ckpt_path=ckpt_path)
    return trainer


def test_a_resumed_run_begins_with_the_same_steps(tmp_path):
    whole, memories = seeded(Remembering), StepMemories()
    fit(whole, memories, 2)
    first = seeded(Remembering)
    fit(first, StepMemories(), 1).save_checkpoint(tmp_path / "a.ckpt")
    resumed, again = seeded(Remembering), StepMemories()
    fit(resumed, again, 2, tmp_path / "a.ckpt")
    assert again.state_dict() == memories.state_dict()
    assert memories.state_dict()["block"]
    assert resumed.block.stats.nfe_forward < whole.block.stats.nfe_forward
    assert torch.equal(weights(resumed), weights(whole))


def test_a_search_for_a_learning_rate_leaves_no_step_behind(tmp_path):
    class Starts(Callback):
        def on_train_start(self, trainer, pl_module):
            assert pl_module.block.step_memory.steps == {}

    model = seeded(Remembering)
    model.lr = 0.1
    finder = LearningRateFinder(num_training_steps=3)
    trainer = tiny_trainer(finder, Starts(), StepMemories(), default_root_dir=tmp_path)
    trainer.fit(model, tiny_loader())
    assert model.block.step_memory.steps


def test_a_dropped_batch_leaves_no_step_behind():
    kept = []

    class Keeps(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kept.append(dict(pl_module.block.step_memory.steps))

    class FailsLate(Remembering):
        def loss(self, batch):
            loss = super().loss(batch)  # solves, and remembers
            if len(self.ends) == 2:
                raise NonFiniteStateError(0.0, "forward")
            return loss

    model = seeded(FailsLate)
    with pytest.warns(UserWarning, match="a batch is dropped"):
        tiny_trainer(SolverGuard("skip", random_fields="ignore"), Keeps()).fit(
            model, tiny_loader()
        )
    assert len(kept) == 2
    assert kept[0] == kept[1]


def test_modules_of_this_library_bring_the_callback(tmp_path):
    for solver, expected in ((PREVIOUS, 1), (AdaptiveSolver(), 0)):
        module = CNFModule(CNF(ConcatSquashField(2, (4,)), (2,), solver))
        trainer = tiny_trainer(max_steps=1)
        trainer.fit(module, tiny_loader())
        assert sum(isinstance(c, StepMemories) for c in trainer.callbacks) == expected


def test_a_step_of_all_ranks_is_taken_only_where_there_is_one():
    model, memories = seeded(Remembering), StepMemories()
    model.block(torch.ones(3, 2))  # forward in time alone
    memories._memories = find_step_memories(model)
    shortest = torch.tensor([0.25, math.inf])
    strategy = SimpleNamespace(reduce=lambda lengths, reduce_op: shortest)
    memories.on_train_batch_end(SimpleNamespace(world_size=2, strategy=strategy), model)
    assert model.block.step_memory.steps == {1: (0.0, 0.25)}
