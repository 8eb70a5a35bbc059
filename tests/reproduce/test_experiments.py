"""Experiments compare what they say."""

import re
from pathlib import Path

import pytest
import yaml

import cli
from reproduce.__main__ import parse
from reproduce.arguments import DATA, FLOW, TRAINER, options
from reproduce.catalogue import EXPERIMENTS
from reproduce.catalogue.regularizers import TASKS
from reproduce.experiments import SCALES
from reproduce.runs import CONFIGS, Run, Settings
from steer_lightning.callbacks import EndTimeSweep

# The regularisers have tests of their own.
OF_THE_PAPER = {name: EXPERIMENTS[name] for name in EXPERIMENTS if "regularizers" not in name}
ALL = [
    pytest.param(make(scale), id=f"{name}-{scale}")
    for name, make in OF_THE_PAPER.items()
    for scale in SCALES
]
ROOT = CONFIGS.parent


def is_steer(argument):
    return argument.startswith("--steer.")


def steer_settings(variant):
    """A variant's settings of STEER."""
    options = (a.removeprefix("--steer.").split("=") for a in variant.overrides if is_steer(a))
    return {name: yaml.safe_load(value) for name, value in options}


@pytest.mark.parametrize("experiment", ALL)
def test_variants_have_names_and_differ_from_their_baseline_by_steer_alone(experiment):
    settings = [part.setting for part in experiment.comparisons]
    assert len(set(settings)) == len(settings)
    for part in experiment.comparisons:
        assert len({variant.label for variant in part.variants}) == len(part.variants)
        baseline = part.baseline
        assert steer_settings(baseline) == {}
        for variant in part.others:
            settings = steer_settings(variant)
            assert variant.config == baseline.config
            rest = [a for a in variant.overrides if not is_steer(a)]
            assert tuple(rest) == baseline.overrides
            assert variant.weights == baseline.weights
            if labelled := re.search(r"b = ([\d.]+)", variant.label):
                assert settings["b"] == float(labelled[1])
            elif labelled := re.search(r"b from ([\d.]+) to 0", variant.label):
                assert settings == {"b.start": float(labelled[1]), "b.end": 0, "b.length": 7000}
            else:
                assert settings["b"] == "auto"
                (part_moved,) = re.findall(r"(\w+) alone", variant.label) or [""]
                moved = [f"network.{part_moved}"] if part_moved else []
                assert settings.get("horizons", []) == moved


@pytest.mark.parametrize("name", ["figure1", "figure3", "sweep_b_flow", "sweep_b_classifier"])
def test_all_variants_are_evaluated_over_one_range(name, data_dir, tmp_path):
    ranges = set()
    first, *_, last = EXPERIMENTS[name]("short").comparisons[0].variants  # b grows
    for variant in (first, last):
        arguments = Run(variant, 0, Settings("short", tmp_path, data_dir)).arguments()
        trainer = cli.main([*arguments, "--trainer.logger=false"], run=False).trainer
        (sweep,) = (c for c in trainer.callbacks if isinstance(c, EndTimeSweep))
        ranges.add((sweep.t1, sweep.b))
    assert len(ranges) == 1


@pytest.mark.parametrize("make", OF_THE_PAPER.values(), ids=OF_THE_PAPER)
def test_the_papers_scale_cuts_nothing(make):
    cuts = ("limit_", "hidden", "filters", "image_size", "n_train", "batch_size", "n_traj")
    for variant in make("paper").variants:
        given = [a for a in variant.overrides if any(word in a for word in cuts)]
        if variant.config.startswith("cnf/toy"):  # each of 10,000 steps has 100 points of its own
            assert given == ["--data.init_args.n_train=1000000", "--data.init_args.batch_size=100"]
            assert "--trainer.max_epochs=1" in variant.overrides
        else:
            assert given == []
        assert "_small" not in variant.config


def test_full_is_the_papers_scale_unless_it_says_what_differs():
    full, paper = ({n: m(scale) for n, m in EXPERIMENTS.items()} for scale in ("full", "paper"))
    differing = {"figure1", "figure2", "sweep_b_classifier", "table2", "table4", "table5"}
    for name in EXPERIMENTS:
        assert full[name].scale == ("full" if name in differing else "paper")
        assert (full[name].cut == paper[name].cut) == (name not in differing)
        assert (full[name].variants == paper[name].variants) == (name not in differing)
    variant = full["figure1"].variants[0]
    of_full, of_paper, of_short = (
        Run(variant, 0, Settings(scale, Path("results"), Path("data"))).folder
        for scale in ("full", "paper", "short")
    )
    assert of_full == of_paper != of_short


def test_the_stiff_equation_has_the_papers_iterations():
    config = yaml.safe_load((CONFIGS / "stiff/chapra.yaml").read_text())
    assert config["trainer"]["max_steps"] == 3000
    released = yaml.safe_load((CONFIGS / "stiff/chapra_released.yaml").read_text())
    assert released["data"]["init_args"]["n_starts"] == 118  # six batches of up to 20
    for variant in EXPERIMENTS["figure4"]("paper").variants:
        grid = variant.config.endswith("released") or f"{DATA}.n_starts=118" in variant.overrides
        assert f"{TRAINER}.max_epochs={500 if grid else 60}" in variant.overrides


@pytest.mark.parametrize(
    ("part", "whole", "shared"),
    [
        ("figure2", "table5", 4),
        ("figure4", "figure5", 6),
        ("sweep_b_flow", "figure1", 2),
        ("sweep_b_classifier", "table5", 2),
    ],
)
def test_experiments_share_runs(part, whole, shared):
    settings = Settings("short", Path("results"), Path("data"))
    folders = [
        {Run(variant, 0, settings).folder for variant in EXPERIMENTS[name]("short").variants}
        for name in (part, whole)
    ]
    assert len(folders[0] & folders[1]) == shared


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("all", list(EXPERIMENTS)),
        ("table5 table5 figure2", ["table5", "figure2"]),
        ("sweep_b", ["sweep_b_flow", "sweep_b_classifier"]),
        ("regularizers --seeds 3", [f"regularizers_{task}" for task in TASKS]),
        (
            "figure1 regularizers --task toy2d physionet",
            ["figure1", "regularizers_toy2d", "regularizers_physionet"],
        ),
    ],
)
def test_names_on_the_command_line(line, names):
    assert parse(line.split()).names == names


def test_the_paper_is_whole():
    paper = {f"table{i}" for i in range(1, 6)} | {f"figure{i}" for i in range(1, 7)}
    assert paper <= set(EXPERIMENTS)


# Tiny batches of what is cut in shape: other sides and widths must still fit together.
FEW = options(DATA, batch_size=2, eval_batch_size=2, val_size=4)
COARSE = options(f"{FLOW}.eval_solver.init_args", rtol=1.0, atol=1.0)
SHORT = options(DATA, n_trajectories=40, n_points=20, val_size=8)
SHAPED = [
    ("table5", "CIFAR-10, NODE", FEW),
    ("table5", "SVHN, ANODE", FEW),
    ("table1", "CIFAR-10, RNODE", (*FEW, *COARSE)),
    ("table4", "interpolation, 10%, latent ODE, ODE-RNN encoder", SHORT),
    ("table4", "extrapolation, 10%, ODE-RNN", SHORT),
]


@pytest.mark.parametrize(("name", "setting", "few"), SHAPED, ids=lambda x: str(x)[:40])
def test_short_shapes_fit_together(name, setting, few, data_dir):
    (part,) = (p for p in EXPERIMENTS[name]("short").comparisons if p.setting == setting)
    run = Run(part.baseline, 0, Settings("short", Path("results"), data_dir))
    main = cli.main(["fit", *run.arguments(), f"{TRAINER}.fast_dev_run=1", *few])
    assert main.trainer.global_step == 1
