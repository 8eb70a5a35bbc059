"""Draw flows without and with STEER, of finished runs of ``reproduce figure1 --scale full``.

    python scripts/front_picture.py [FOLDER]

The folder is that of ``--output``, ``results`` if it is not given.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import main  # noqa: E402
from reproduce.catalogue import EXPERIMENTS  # noqa: E402
from reproduce.runs import Run, Settings  # noqa: E402
from steer_lightning.callbacks.plots.style import COLOURS  # noqa: E402
from steer_lightning.steering.contexts import end_time_offset_at  # noqa: E402

B = 0.5
OFFSETS = torch.linspace(-B, B, 21).tolist()


def tested(run: Run) -> tuple[torch.nn.Module, torch.Tensor]:
    """The flow that a finished run was tested with, in eval mode, and a batch of test points."""
    built = main(run.arguments(), run=False)
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    built.model.load_state_dict(checkpoint["state_dict"])
    built.datamodule.setup("test")
    points = next(iter(built.datamodule.test_dataloader()))
    x: torch.Tensor = points if isinstance(points, torch.Tensor) else points[0]
    return built.model.flow.eval(), x


def draw(flows: dict[str, torch.nn.Module], x: torch.Tensor) -> Figure:
    """Samples at t1 above, the loss at every end time of evaluation below."""
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    axes = figure.subplot_mosaic([[*flows], ["loss", "loss"]], height_ratios=[3, 2])
    for (label, flow), colour in zip(flows.items(), COLOURS, strict=False):
        samples = flow.sample(20_000, torch.Generator().manual_seed(0)).numpy()  # type: ignore[operator]
        axes[label].hist2d(*samples.T, bins=120, range=[[-4, 4]] * 2, cmap="cividis")
        axes[label].set(title=f"samples at t1, {label}", aspect="equal", xticks=[], yticks=[])
        loss = []
        for offset in OFFSETS:
            with end_time_offset_at(flow, offset):
                loss.append(-float(flow.log_prob(x).mean()))  # type: ignore[operator]
        axes["loss"].plot(1.0 + np.array(OFFSETS), loss, color=colour, label=label)
    axes["loss"].axvline(1.0, color="0.6", lw=0.8)
    axes["loss"].set(
        xlabel="end time T of evaluation (t1 = 1)", ylabel="negative log-likelihood, nats"
    )
    axes["loss"].legend(frameon=False)
    return figure


if __name__ == "__main__":
    folder, sys.argv = Path(*sys.argv[1:2] or ["results"]), sys.argv[:1]
    plain, steered, *_ = EXPERIMENTS["figure1"]("full").comparisons[0].variants
    settings = Settings("full", folder, ROOT / "data")
    with torch.no_grad():
        (without, x), (with_steer, _) = (tested(Run(v, 0, settings)) for v in (plain, steered))
        figure = draw({"without STEER": without, f"with STEER, b = {B}": with_steer}, x)
    path = ROOT / "docs" / "pictures" / "front.png"
    figure.savefig(path, dpi=120)
    print(path.relative_to(ROOT))
