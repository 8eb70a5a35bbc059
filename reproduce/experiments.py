"""Experiments: variants to train, metrics to compare, and what was cut, in words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from reproduce.records import Results

Scale = Literal["smoke", "short", "full", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "short", "full", "paper")
T = TypeVar("T")


def pick(scale: Scale, paper: T, short: T, smoke: T, full: T | None = None) -> T:
    """The value that belongs to a scale; that of ``full`` is the paper's unless it is given."""
    full = paper if full is None else full
    return {"paper": paper, "full": full, "short": short, "smoke": smoke}[scale]


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
    better: Literal["higher", "lower"]
    factor: float = 1.0  # what it is multiplied by to be shown
    digits: int = 3  # after the point
    ratio: bool = False  # compare logarithms: means are geometric, differences are ratios
    matters: float = 0.0  # the smallest difference, or factor, that would, as shown


Verdict = Literal["gain", "loss", "no difference"]


@dataclass(frozen=True)
class Claim:
    """What an experiment is to show, by the paper or by a question that it leaves open."""

    says: str  # a sentence's worth, without its full stop
    metric: str  # the key of the metric that shows it
    expects: tuple[Verdict, ...] = ("gain",)  # verdicts that agree with it
    settings: str = ""  # how settings begin that it is about


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper at one scale."""

    name: str  # as on the command line
    title: str
    comparisons: tuple[Comparison, ...]
    metrics: tuple[Metric, ...]  # the first is the one that the paper's numbers belong to
    scale: Scale  # what was asked for; but ``paper`` for ``full`` where that is nothing else
    cut: str  # what this scale leaves out of the paper's setting
    seeds: int  # how many, unless the command line says
    draw: "Callable[[Experiment, Results], Figure]"
    notes: tuple[str, ...] = ()  # sentences below the caption
    # What stands on the page in place of a table for each metric and one of the work.
    tables: "Callable[[Experiment, Results], str] | None" = None
    claims: tuple[Claim, ...] = ()

    @property
    def pairs(self) -> list[tuple[Comparison, Variant]]:
        """Every variant with its comparison."""
        return [(part, variant) for part in self.comparisons for variant in part.variants]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(variant for _, variant in self.pairs))


def experiment(
    title: str,
    metrics: Iterable[Metric],
    cuts: Sequence[str],
    seeds: tuple[int, int],
    draw: "Callable[[Experiment, Results], Figure]",
    notes: tuple[str, ...] = (),
    tables: "Callable[[Experiment, Results], str] | None" = None,
    claims: tuple[Claim, ...] = (),
) -> Callable[[Callable[[Scale], Iterable[Comparison]]], Callable[[Scale], Experiment]]:
    """Turn a function that makes comparisons at a scale into one that makes the experiment.

    ``cuts`` belong to the scales ``paper``, ``short`` and ``full``, and ``seeds`` to the first
    two. Without the third of ``cuts`` the scale ``full`` is the paper's, and shares its runs.
    """
    smoke = "Two steps of a few samples: that it runs, and nothing else."

    def decorate(parts: Callable[[Scale], Iterable[Comparison]]) -> Callable[[Scale], Experiment]:
        def make(scale: Scale) -> Experiment:
            if scale == "full" and len(cuts) < 3:
                scale = "paper"
            cut = pick(scale, cuts[0], cuts[1], smoke, *cuts[2:])
            n = pick(scale, *seeds, 1)
            comparisons = tuple(parts(scale))
            return Experiment(
                parts.__name__, title, comparisons, tuple(metrics), scale, cut, n, draw, notes,
                tables, claims,
            )  # fmt: skip

        make.__name__ = parts.__name__
        return make

    return decorate


def compare(
    setting: str,
    config: str,
    overrides: Sequence[str],
    others: Mapping[str, tuple[str, ...]],
    paper: Sequence[str] = (),
    weights: Literal["best", "last"] = "best",
    baseline: str = "without",
) -> Comparison:
    """A config and, by label, the same with more arguments; the paper's numbers in this order."""
    numbers = dict(zip((baseline, *others), paper, strict=False))
    first, *rest = (
        Variant(label, config, (*overrides, *more), numbers.get(label, ""), weights)
        for label, more in ((baseline, ()), *others.items())
    )
    return Comparison(setting, first, tuple(rest))
