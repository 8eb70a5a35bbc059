"""What all plots have in common: colours, legends, words, files."""

from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Ten that are told apart with every colour vision: Petroff, arXiv:2107.02270.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
WORDS = {
    "train": "training",
    "val": "validation",
    "nll": "negative log-likelihood (nats)",
    "log_likelihood": "log-likelihood (nats)",
    "bits_per_dim": "bits per dimension",
    "bits_per_dim_center": "bits per dimension, at bin centres",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "kl": "KL divergence (nats)",
    "auc": "area under the ROC curve",
    "nfe_forward": "evaluations (NFE)",
}


def in_words(name: str) -> str:
    """A metric's name as the label of an axis.

    Example:
        >>> in_words("val/bits_per_dim"), in_words("calibration_error")
        ('validation bits per dimension', 'calibration error')
    """
    return " ".join(WORDS.get(part, part.replace("_", " ")) for part in name.split("/"))


def panels(
    rows: int, columns: int, size: tuple[float, float], **settings: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of axes that draw in :data:`COLOURS`.

    The size is width and height in inches, a legend not counted; the settings are those of
    :meth:`matplotlib.figure.Figure.subplots`.
    """
    figure = Figure(figsize=size, layout="constrained")
    with rc_context({"axes.prop_cycle": cycler(color=COLOURS)}):
        axes = figure.subplots(rows, columns, squeeze=False, **settings)
    return figure, axes.tolist()


def legend_below(figure: Figure, columns: int = 4) -> None:
    """One legend for all axes, each label once, below them and outside of the data."""
    handles: dict[str, Artist] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    width, height = figure.get_size_inches()
    fitting = int(width / (0.6 + 0.065 * max(map(len, handles))))  # of this size of text
    columns = max(1, min(columns, fitting, len(handles)))
    figure.set_size_inches(width, height + 0.1 + 0.2 * -(-len(handles) // columns))
    figure.legend(
        [*handles.values()], [*handles],
        loc="outside lower center", ncols=columns, fontsize=8, frameon=False,
    )  # fmt: skip


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG and, beside it, SVG, the same bytes for the same figure."""
    figure.savefig(path, dpi=120)
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
