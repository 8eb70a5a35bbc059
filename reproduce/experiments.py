"""What an experiment is: arms to train, metrics to compare, and what was cut, in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

Scale = Literal["smoke", "short", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "short", "paper")
Better = Literal["higher", "lower"]
Status = Literal["finished", "failed", "not run", "pending"]

MODEL, DATA, TRAINER = "--model.init_args", "--data.init_args", "--trainer"
FLOW = f"{MODEL}.flow.init_args"
NETWORK = f"{MODEL}.network.init_args"

# Two optimisation steps, a check after each, one batch everywhere else.
SMOKE = (
    f"{TRAINER}.max_epochs=1",
    f"{TRAINER}.max_steps=-1",
    f"{TRAINER}.limit_train_batches=2",
    f"{TRAINER}.val_check_interval=1",
    f"{TRAINER}.limit_val_batches=1",
    f"{TRAINER}.limit_test_batches=1",
    f"{TRAINER}.num_sanity_val_steps=0",
)


@dataclass(frozen=True)
class Arm:
    """One thing to train: a config and what is changed in it.

    Args:
        label: Name in tables and plots.
        config: A file below ``configs``, without its ending.
        overrides: Arguments of ``cli.py``, after the config.
        paper: The paper's number, as it stands there.
        weights: Which are tested: of the best check of the config's monitor, or the last ones.
    """

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    paper: str = ""
    weights: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class Comparison:
    """A baseline and what is set against it, seed by seed."""

    setting: str
    baseline: Arm
    others: tuple[Arm, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The baseline first."""
        return (self.baseline, *self.others)


@dataclass(frozen=True)
class Metric:
    """A number of a run, and how it is shown.

    Args:
        key: Its name among the run's values.
        label: What it is, with its unit.
        better: Which direction is.
        factor: What it is multiplied by to be shown.
        digits: Digits after the point.
        ratio: Compare logarithms, for a positive number that spans decades: means are geometric
            and differences are ratios.
    """

    key: str
    label: str
    better: Better
    factor: float = 1.0
    digits: int = 3
    ratio: bool = False


class Check(NamedTuple):
    """A validation: what training had cost until then, and what it gave."""

    step: int
    epoch: int
    seconds: float
    cpu_seconds: float
    nfe_forward: float
    nfe_backward: float
    metrics: Mapping[str, float]


@dataclass
class Record:
    """What became of one run.

    Args:
        seed: Its ``seed_everything``.
        status: Whether there is a result.
        folder: Its files.
        message: Why there is none.
        values: Metrics of test, last check and sweep, by name.
        sweep: Columns of the table of ``EndTimeSweep``, by name.
        checks: The history of training.
        monitor: What its checkpoints are chosen by.
        mode: Whether a larger (``"max"``) or a smaller monitor is better.
        machine: Versions, hardware and commit of the last session.
    """

    seed: int
    status: Status
    folder: Path
    message: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[float]] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    monitor: str = ""
    mode: str = "min"
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def clock(self) -> Literal["seconds", "cpu_seconds"]:
        """Wall-clock time on a GPU; on CPU, which other work may share, processor time."""
        return "seconds" if self.machine.get("gpu") else "cpu_seconds"


Results = Mapping[Arm, Sequence[Record]]


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper at one scale.

    Args:
        name: As on the command line.
        title: What it shows, and where the paper has it.
        comparisons: What is trained.
        metrics: What is compared; the first is the one that the paper's numbers belong to.
        cut: What this scale leaves out of the paper's setting.
        seeds: How many, unless the command line says.
        draw: Makes the plot.
        notes: Sentences below the caption.
    """

    name: str
    title: str
    comparisons: tuple[Comparison, ...]
    metrics: tuple[Metric, ...]
    cut: str
    seeds: int
    draw: Callable[["Experiment", Results], Figure]
    notes: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(arm for part in self.comparisons for arm in part.arms))


def steer(b: float | Literal["auto"], horizons: Sequence[str] = ()) -> tuple[str, ...]:
    """Arguments that train a config with STEER.

    Args:
        b: Half-width; ``"auto"`` for nearly the whole of each interval of a grid.
        horizons: Parts of the model to move; all of it if empty.

    Example:
        >>> steer(0.25)
        ('--steer.b=0.25',)
    """
    parts = (f"--steer.horizons=[{','.join(horizons)}]",) if horizons else ()
    return (f"--steer.b={b}", *parts)
