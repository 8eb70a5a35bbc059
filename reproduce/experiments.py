"""Experiments: variants to train, metrics to compare, and what was cut, in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from reproduce.records import Results

Scale = Literal["smoke", "short", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "short", "paper")
Better = Literal["higher", "lower"]

MODEL, DATA, TRAINER = "--model.init_args", "--data.init_args", "--trainer"
FLOW = f"{MODEL}.flow.init_args"
NETWORK = f"{MODEL}.network.init_args"

T = TypeVar("T")


def pick(scale: Scale, paper: T, short: T, smoke: T) -> T:
    """The one of three values that belongs to a scale."""
    return {"paper": paper, "short": short, "smoke": smoke}[scale]


def options(room: str, **values: object) -> tuple[str, ...]:
    """Arguments of ``cli.py`` for one part of the config.

    Example:
        >>> options(DATA, batch_size=4, image_size=16)
        ('--data.init_args.batch_size=4', '--data.init_args.image_size=16')
    """
    return tuple(f"{room}.{name}={value}" for name, value in values.items())


# Two optimisation steps, a check after each, one batch everywhere else.
SMOKE = options(
    TRAINER, max_epochs=1, max_steps=-1, limit_train_batches=2, val_check_interval=1,
    limit_val_batches=1, limit_test_batches=1, num_sanity_val_steps=0,
)  # fmt: skip
SMOKE_CUT = "Two steps of a few samples: that it runs, and nothing else."


@dataclass(frozen=True)
class Variant:
    """One thing to train: a config and what is changed in it."""

    label: str
    config: str  # a file below `configs`, without its ending
    overrides: tuple[str, ...] = ()  # arguments of `cli.py`, after the config
    paper: str = ""  # the paper's number, as it stands there
    weights: Literal["best", "last"] = "best"  # tested: by the config's monitor, or the last ones


@dataclass(frozen=True)
class Comparison:
    """A baseline and what is set against it, seed by seed."""

    setting: str
    baseline: Variant
    others: tuple[Variant, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The baseline first."""
        return (self.baseline, *self.others)


@dataclass(frozen=True)
class Metric:
    """A number of a run, and how it is shown."""

    key: str  # its name among the run's values
    label: str  # what it is, with its unit
    better: Better
    factor: float = 1.0  # what it is multiplied by to be shown
    digits: int = 3  # after the point
    ratio: bool = False  # compare logarithms: means are geometric, differences are ratios


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper at one scale."""

    name: str  # as on the command line
    title: str
    comparisons: tuple[Comparison, ...]
    metrics: tuple[Metric, ...]  # the first is the one that the paper's numbers belong to
    cut: str  # what this scale leaves out of the paper's setting
    seeds: int  # how many, unless the command line says
    draw: "Callable[[Experiment, Results], Figure]"
    notes: tuple[str, ...] = ()  # sentences below the caption

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of them, each once."""
        return tuple(
            dict.fromkeys(variant for part in self.comparisons for variant in part.variants)
        )


def steer(b: float | Literal["auto"], horizons: Sequence[str] = ()) -> tuple[str, ...]:
    """Arguments that train a config, or parts of its model, with STEER.

    Example:
        >>> steer(0.25)
        ('--steer.b=0.25',)
    """
    parts = (f"--steer.horizons=[{','.join(horizons)}]",) if horizons else ()
    return (f"--steer.b={b}", *parts)


def compare(
    setting: str,
    config: str,
    overrides: tuple[str, ...],
    widths: Sequence[float],
    paper: Sequence[str] = (),
    weights: Literal["best", "last"] = "best",
) -> Comparison:
    """A config without STEER, and with several half-widths; the paper's numbers in this order."""
    baseline, *others = (
        Variant(
            f"STEER, b = {b:g}" if b else "without",
            config,
            overrides + (steer(b) if b else ()),
            paper[i] if paper else "",
            weights,
        )
        for i, b in enumerate((0.0, *widths))
    )
    return Comparison(setting, baseline, tuple(others))
