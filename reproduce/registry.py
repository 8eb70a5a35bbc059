"""Every experiment by name, in the order of ``all``."""

from collections.abc import Callable

from reproduce.classifiers import figure2, table5
from reproduce.experiments import Experiment, Scale
from reproduce.flows import figure1, figure3, table1
from reproduce.series import figure6, table2, table3, table4
from reproduce.stiff import figure4, figure5
from reproduce.sweeps import sweep_b_classifier, sweep_b_flow

EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
    make.__name__: make
    for make in (
        figure1, figure3, sweep_b_flow, table5, figure2, sweep_b_classifier, figure5, figure4,
        figure6, table2, table3, table4, table1,
    )
}  # fmt: skip

# What else a name on the command line may mean.
GROUPS = {
    "all": tuple(EXPERIMENTS),
    "sweep_b": ("sweep_b_flow", "sweep_b_classifier"),
}


def names_of(words: list[str]) -> list[str]:
    """Names of experiments, groups spelled out, each once.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> names_of(["sweep_b", "sweep_b_flow"])
        ['sweep_b_flow', 'sweep_b_classifier']
    """
    for word in words:
        if word not in EXPERIMENTS and word not in GROUPS:
            known = ", ".join((*GROUPS, *sorted(EXPERIMENTS)))
            raise ValueError(f"Expected the name of an experiment, but got {word!r}. Use {known}.")
    return list(dict.fromkeys(name for word in words for name in GROUPS.get(word, (word,))))
