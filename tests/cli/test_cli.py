import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import cli
from steer_lightning.callbacks import EndTimeSweep, FeaturePlot, PenaltyCallback, SteerCallback
from steer_lightning.solvers import NFEBudgetExceededError, RepeatedFailureError
from steer_lightning.utils.schedule import Schedule
from tests.cli.running import FLOW, QUIET, callbacks, of, toy_config, write
from tests.modules.test_common import RecordRates

RECORD_RATES = "--trainer.callbacks+=tests.modules.test_common.RecordRates"


def help_of(*arguments, capsys):
    """What is printed, on one line."""
    with pytest.raises(SystemExit) as done:
        cli.main([*arguments])
    assert done.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_script_prints_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cli.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(cli.__file__, run_name="__main__")
    assert done.value.code == 0
    assert "{fit,validate,test,predict}" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--help", ["--config", "--model", "--data", "--trainer", "--steer", "--guard.policy"]),
        ("--model.help=ImageFlowModule", ["--model.test_draws", "at least two"]),
        ("--model.help=RegressionModule", ["--model.head", "Maps flattened features"]),
        ("--data.help=SVHNDataModule", ["--data.download", "torchvision's layout"]),
        ("--trainer.callbacks.help=SteerCallback", ["--trainer.callbacks.b", "Half-width"]),
        ("--trainer.callbacks.help=EndTimeSweep", ["--trainer.callbacks.n_points"]),
        ("--trainer.callbacks.help=SampleGrid", ["--trainer.callbacks.temperatures", "one row"]),
    ],
)
def test_help_of_a_command_and_of_classes_by_short_name(option, words, capsys):
    text = help_of("fit", option, capsys=capsys)
    for word in words:
        assert word in text


def test_print_config_can_be_read_back(capsys):
    def print_config(path):
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", path, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    printed = print_config(write(toy_config()))
    assert printed["seed_everything"] == 0
    assert printed["last"] == {"every_n_train_steps": None, "dirpath": None}
    assert printed["trainer"]["logger"]["class_path"].endswith("TensorBoardLogger")
    assert printed["steer"]["init_args"]["b"] == 0.5
    assert printed["model"]["init_args"]["flow"]["init_args"]["t_span"] == [0.0, 1.0]
    assert print_config(write(printed, "printed.yaml")) == printed
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["config.yaml", "printed.yaml"]


def build(*arguments, **changes):
    return cli.main(["--config", write(toy_config(**changes)), *arguments, *QUIET], run=False)


def test_options_and_config_files_of_steer_add_up():
    scope = ["--config", write({"steer": {"scope": "rank"}}, "scope.yaml")]
    decay = {"start": 0.001, "end": 1, "length": 5}
    epsilon = [f"--steer.epsilon.{name}={value}" for name, value in decay.items()]
    options = ["--steer.horizons=[flow]", "--steer.b=auto", *epsilon, "--data.name=moons"]
    main = build(*scope, *options)
    (steer,) = callbacks(main, SteerCallback)
    assert (steer.b, steer.scope, steer.horizons) == ("auto", "rank", ("flow",))
    assert steer.epsilon == Schedule(0.001, 1.0, 5)
    assert main.config.data.init_args.name == "moons"
    assert main.trainer.logger.name == "run_steer"
    names = main.config.as_dict()["trainer"]["logger"]
    assert build(trainer={"logger": names}).trainer.logger.name == "run_steer"  # and not twice
    off = build(*scope, "--steer=null")
    assert callbacks(off, SteerCallback) == []
    assert off.trainer.logger.name == "run"


@pytest.mark.parametrize(
    ("b", "expected"),
    [("0.25", (0.5, 0.25, 0.5)), ("0.75", (0.75, 0.75, 0.5)), ("auto", (0.5, 0.25, 0.5))],
)
def test_plots_show_all_end_times_that_steer_trains(b, expected):
    one_range = of("EndTimeSweep", b=0.5, t1=1.0)
    plots = [of("EndTimeSweep", b=0.5), of("FeaturePlot", b=0.25), one_range]
    main = build(f"--steer.b={b}", trainer={"callbacks": plots})
    assert tuple(c.b for c in callbacks(main, EndTimeSweep | FeaturePlot)) == expected


WARM_UP = [
    "--model.lr_scheduler=LinearLR",
    "--model.lr_scheduler.start_factor=0.25",
    "--model.lr_scheduler.total_iters=2",
    "--model.lr_interval=step",
]
SGD = ["--optimizer=SGD", "--optimizer.lr=0.1"]
STEP = ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]


@pytest.mark.parametrize(
    ("arguments", "factors"),
    [
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1", *WARM_UP], [0.25, 0.625, 1, 1]),
        ([*SGD, *WARM_UP], [0.25, 0.625, 1, 1]),  # another optimiser keeps the schedule
        ([*SGD, *WARM_UP, *STEP], [1, 1, 0.1, 0.1]),  # another schedule counts epochs
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1", *STEP], [1, 1, 0.1, 0.1]),
        ([*SGD, *STEP, "--model.lr_interval=step"], [1, 0.1, 0.01, 0.001]),
    ],
)
def test_optimizer_and_schedule(arguments, factors):
    main = cli.main(["fit", "--config", write(toy_config()), *arguments, RECORD_RATES, *QUIET])
    (optimizer,) = main.trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert main.model.hparams.optimizer["class_path"] == "torch.optim.SGD"
    (recorded,) = callbacks(main, RecordRates)
    assert recorded.rates == pytest.approx([0.1 * factor for factor in factors])


@pytest.mark.parametrize("optimizer", [[], SGD])
def test_the_learning_rate_finder(optimizer):
    finder = [
        "--trainer.callbacks+=LearningRateFinder",
        "--trainer.callbacks.num_training_steps=24",
        "--trainer.callbacks.early_stop_threshold=null",
        RECORD_RATES,
        "--trainer.max_epochs=1",
        "--data.n_train=208",
    ]
    config = write(toy_config())
    main = cli.main(["fit", "--config", config, *finder, *optimizer, *WARM_UP, *QUIET])
    assert main.model.lr is not None
    rates = [main.model.lr * factor for factor in (0.25, 0.625, 1.0, 1.0)]
    (recorded,) = callbacks(main, RecordRates)
    assert recorded.rates[:4] == pytest.approx(rates)


@pytest.fixture
def backends():
    """Where the precision of matrix products and convolutions is set, put back afterwards."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before, allowed = cuda.matmul.fp32_precision, cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    yield cuda, cudnn
    torch.set_float32_matmul_precision(products)
    cuda.matmul.fp32_precision, cudnn.allow_tf32 = before, allowed


@pytest.mark.parametrize(
    ("command", "option", "precision", "products"),
    [
        ([], "true", "tf32", "high"),
        (["fit", "--trainer.fast_dev_run=1"], "false", "ieee", "highest"),
    ],
)
def test_tf32(command, option, precision, products, backends):
    arguments = [*command, "--config", write(toy_config()), f"--tf32={option}", *QUIET]
    cli.main(arguments, run=bool(command))
    cuda, cudnn = backends
    assert cuda.matmul.fp32_precision == precision
    assert cudnn.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == products  # as Lightning asks on a GPU


def test_last_is_the_newest_and_the_best_is_kept():
    config = toy_config(checkpoint={"monitor": "val/nll", "mode": "max"})  # the first is the best
    arguments = ["--trainer.max_epochs=3", "--last.every_n_train_steps=1", *QUIET]
    fit = cli.main(["fit", "--config", write(config), *arguments])
    folder = Path("logs/run_steer/version_0/checkpoints")
    last = torch.load(folder / "last.ckpt", weights_only=True)
    (best,) = folder.glob("epoch=*.ckpt")
    assert last["global_step"] == fit.trainer.global_step == 6
    assert torch.load(best, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_the_guard_is_always_there(policy):
    budget = "--model.init_args.flow.init_args.solver.init_args.max_nfe=3"
    solver = "--model.init_args.flow.init_args.solver=steer_lightning.solvers.TorchdiffeqSolver"
    arguments = ["fit", "--config", write(toy_config()), solver, budget, *QUIET]
    arguments += [f"--guard.policy={policy}", "--guard.max_consecutive=2"]
    arguments += ["--trainer.num_sanity_val_steps=0"]
    if policy == "raise":
        with pytest.raises(NFEBudgetExceededError, match=r"block 'flow', .*batch 0, rank 0"):
            cli.main(arguments)
    else:
        with (
            pytest.warns(UserWarning, match="a batch is dropped"),
            pytest.raises(RepeatedFailureError, match="2 training batches in a row"),
        ):
            cli.main(arguments)


def test_penalties_by_name_with_schedules(folder):
    settings = [
        "--penalties.local_error=2.0", "--penalties.local_error.form=one_step",
        "--penalties.kinetic_energy.weight.start=1.0", "--penalties.kinetic_energy.weight.end=0.0",
        "--penalties.kinetic_energy.weight.length=4",
        "--steer.b.start=0.5", "--steer.b.end=0.0", "--steer.b.length=2",
        "--trainer.callbacks+=HyperparameterLog",  # as every run has one: no second
        "--seed_everything=7",
    ]  # fmt: skip
    config = write(toy_config(penalties={"acceleration": 0.5}))
    fit = cli.main(["fit", "--config", config, *settings, *QUIET])
    kinetic, acceleration, local = penalties_of(fit)
    assert (kinetic.weight, local.form) == (Schedule(1.0, 0.0, 4), "one_step")
    logged = fit.trainer.callback_metrics
    assert logged["penalty/local_error_weight"] == 2.0
    assert logged["penalty/kinetic_energy"] > 0.0
    assert 0.0 < logged["penalty/kinetic_energy_weight"] < 1.0
    assert [c.b for c in callbacks(fit, SteerCallback)] == [Schedule(0.5, 0.0, 2)]
    last = folder / "logs" / "run_steer" / "version_0" / "checkpoints" / "last.ckpt"
    states = torch.load(last, weights_only=True)["callbacks"]
    assert [v["seed"] for k, v in states.items() if k.startswith("SteerCallback")] == [7]
    saved = states["HyperparameterLog"]
    assert (saved["steer"]["b"], saved["steer"]["b_end"]) == (0.5, 0.0)
    assert (saved["penalties"]["local_error"], saved["penalties"]["kinetic_energy"]) == (2.0, 1.0)
    assert saved["penalties"]["acceleration"] == 0.5 == acceleration.weight.start


def penalties_of(main):
    return [penalty for c in callbacks(main, PenaltyCallback) for penalty in c.penalties]


@pytest.mark.parametrize(
    ("given", "options", "weight", "form"),
    [
        (2.0, [], 2.0, "steps"),
        (2, [], 2.0, "steps"),
        ("1e-3", [], 1e-3, "steps"),
        ({"weight": 2.0, "form": "one_step"}, [], 2.0, "one_step"),
        ({"weight": 2.0, "form": "one_step"}, ["=3"], 3.0, "one_step"),
        ({"weight": 2.0, "form": "one_step"}, ["3"], 3.0, "one_step"),
        ({"weight": 2.0}, [".form=one_step"], 2.0, "one_step"),
        (None, ["=2.0", ".form=one_step"], 2.0, "one_step"),
        (None, [".form=one_step", "=2.0"], 2.0, "one_step"),
        (None, ["='{weight: 2.0, form: one_step}'"], 2.0, "one_step"),
    ],
)
def test_a_number_is_the_weight_of_a_penalty(given, options, weight, form):
    name = "--penalties.local_error"
    words = " ".join(f"{name} {x}" if x.isdigit() else f"{name}{x}" for x in options)
    main = build(*shlex.split(words), penalties={"local_error": given, "acceleration": 0.5})
    acceleration, local = penalties_of(main)
    assert (local.weight, local.form) == (Schedule.constant(weight), form)
    assert acceleration.weight == Schedule.constant(0.5)


@pytest.mark.parametrize("option", ["--penalties=null", "--penalties.local_error=null"])
def test_a_penalty_can_be_taken_back(option):
    assert penalties_of(build(option, penalties={"local_error": 1.0})) == []


def test_another_end_time_of_evaluation():
    flow = build(f"{FLOW}.eval_end_time=0.75").model.eval().flow
    assert flow.horizon.eval_end_time == flow.data_time == 0.75
