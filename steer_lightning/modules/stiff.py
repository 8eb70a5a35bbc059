"""Learning a stiff ODE from short pieces of its solution."""

from collections import deque
from math import inf, isnan
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from steer_lightning.modules.base import TaskModule, mean_with_nan
from steer_lightning.nn import MLPField, ODEBlock
from steer_lightning.solvers import AdaptiveSolver, Solver
from steer_lightning.utils.checks import check_choice


class StiffODEModule(TaskModule):
    r"""Learn :math:`dy/dt = f(t, y)` from pairs of states, one piece of a trajectory each.

    A training batch is a tuple ``(t_start (B,), y_start (B, D), t_end (B,), y_end (B, D))``; the
    loss is an error at ``t_end``. An evaluation batch is a whole trajectory, ``t (T,)`` and
    ``y (T, D)``, rolled out from its first state.

    Logged in validation:

    - ``val/mse``, and ``val/mse_min``, its minimum over the checks of a training, which is chosen
      on the test trajectory and is what the paper reports;
    - ``val/mse_median``, its median over the last ``window`` checks;
    - ``val/relative_error_1`` and so on: for each component the largest error, in units of that
      component's range; ``val/relative_error``, the largest of these.

    ``predict`` gives the rolled-out states ``(T, D)``.

    Args:
        vector_field: ``f(t, y)`` for states ``(B, D)``; if not given, the tanh network of the
            reference: two hidden layers of 500, normal weights of standard deviation 0.1.
        interval: Length of the pieces, in units of time; ``None`` for pieces with lengths of their
            own, each of which runs over the nominal span ``[0, 1]``.
        time_input: ``"absolute"`` gives the field the time of each piece, as the equation says;
            ``"released"`` the time since its start, as the code released with the paper does.
        solver: Integrator; dopri5 at ``rtol=1e-7, atol=1e-9`` if not given.
        window: Number of checks in ``val/mse_median``.
        loss: ``"mae"``, the mean absolute error, or ``"rms"``, the root of the mean square of each
            component's errors over the batch, averaged over the components.
        eval_solver: Integrator in eval mode; ``solver`` if not given.
        slope_weight: Weight of a second loss, collocation: the field in the middle of a piece's
            ends against the slope between them, each as :math:`\operatorname{asinh}(\cdot /
            \sigma)`, their mean absolute difference. Where a field that is still slow has to
            become fast, an error at the end of a short piece says next to nothing of it; the
            logarithm of a slope does. For pieces that are short beside the solution's bends.
        slope_scale: The :math:`\sigma`, about the size of the smallest slopes that matter.
        **optimization: See :class:`~steer_lightning.modules.base.TaskModule`.

    Raises:
        ValueError: If ``time_input`` or ``loss`` is unknown, or ``slope_weight``, ``slope_scale``
            or ``window`` out of range; at a batch, if its pieces have another length.

    References:
        Ghosh et al., *STEER*, NeurIPS 2020, arXiv:2006.10711, Section 4.4 and Figures 4 and 5.
        For collocation Roesch, Rackauckas and Stumpf, *Collocation based training of neural
        ordinary differential equations*, 2021.

    Example:
        >>> import torch
        >>> module = StiffODEModule(MLPField(1, (8,)))
        >>> module(torch.zeros(1), torch.linspace(0.0, 1.0, 5)).shape
        torch.Size([5, 1])
    """

    evaluates = "train"  # the other batches are whole trajectories

    def __init__(
        self,
        vector_field: nn.Module | None = None,
        interval: float | None = 0.125,
        time_input: Literal["absolute", "released"] = "absolute",
        solver: Solver | None = None,
        window: int = 25,
        loss: Literal["mae", "rms"] = "mae",
        eval_solver: Solver | None = None,
        slope_weight: float = 0.0,
        slope_scale: float = 1.0,
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        check_choice("time_input", time_input, ("absolute", "released"))
        check_choice("loss", loss, ("mae", "rms"))
        if not (slope_weight >= 0.0 and slope_scale > 0.0 and window >= 1):
            raise ValueError(
                f"Expected slope_weight >= 0, slope_scale > 0 and window >= 1, but got "
                f"{slope_weight}, {slope_scale} and {window}."
            )
        if vector_field is None:
            vector_field = MLPField(1, (500, 500), "tanh", init_std=0.1)
        self.interval = interval
        self.time_input = time_input
        self.loss = loss
        self.slope_weight = slope_weight
        self.slope_scale = slope_scale
        self.block = ODEBlock(
            vector_field,
            AdaptiveSolver("dopri5", rtol=1e-7, atol=1e-9) if solver is None else solver,
            t_span=(0.0, 1.0 if interval is None else interval),
            eval_solver=eval_solver,
        )
        self.add_metrics({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        self._minimum = float("inf")
        self._recent: deque[float] = deque(maxlen=window)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.trainer.global_step == 0:  # a checkpoint is read after this
            self._minimum = inf
            self._recent.clear()

    def forward(self, y0: Tensor, t: Tensor) -> Tensor:
        """Roll out from ``y0``, shape ``(D,)``, at times ``t``, ``(T,)``; gives ``(T, D)``.

        Autocast is off: no step would be short enough for a tight tolerance if the rounding of
        half precision were part of the field.
        """
        with torch.autocast(t.device.type, enabled=False):
            states: Tensor = self.block(y0[None], t)
        return states[:, 0]

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        t_start, y_start, t_end, y_end = batch
        length = t_end - t_start
        absolute = self.time_input == "absolute"
        start, end = t_start if absolute else None, None
        if self.interval is None:
            end = t_end if absolute else length
        elif bool(((length - self.interval).abs() > self._slack(t_end)).any()):
            raise ValueError(
                f"Expected pieces of length interval = {self.interval:g}, but got lengths "
                f"{length.min():g} to {length.max():g}. Give module and data the same interval, "
                f"or the module interval=None for pieces with lengths of their own."
            )
        error = self.block(y_start, t_start=start, t_end=end) - y_end
        if self.loss == "mae":
            return {"loss": error.abs().mean()}
        return {"loss": torch.linalg.vector_norm(error, dim=0).mean() / len(error) ** 0.5}

    def _slack(self, t_end: Tensor) -> Tensor:
        """How far lengths may be from the interval, by the rounding of late times too."""
        assert self.interval is not None
        rounding = 4.0 * torch.finfo(t_end.dtype).eps * t_end.abs().max()
        return rounding + 1e-4 * self.interval

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.evaluate(batch)["loss"]
        self.log(f"train/{self.loss}", loss, prog_bar=True)
        if self.slope_weight:
            apart = self.slope_error(batch)
            self.log("train/slope_error", apart)
            loss = loss + self.slope_weight * apart
        return loss

    def slope_error(self, batch: Any) -> Tensor:
        """Collocation: the field against the slopes of the chords, by their logarithms."""
        t_start, y_start, t_end, y_end = batch
        length = t_end - t_start
        middle = 0.5 * (t_start + t_end if self.time_input == "absolute" else length)
        slope = self.block.vector_field(middle, 0.5 * (y_start + y_end))
        chord = (y_end - y_start) / length[:, None]
        scale = self.slope_scale
        return (torch.asinh(slope / scale) - torch.asinh(chord / scale)).abs().mean()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        t, y = batch
        return self(y[0], t)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return  # no check of the training
        mse = float(self.stage_metrics("val")["mse"].compute())
        mse = inf if isnan(mse) else mse  # so that it has an order
        self._minimum = min(self._minimum, mse)
        self._recent.append(mse)
        # Equal on all ranks already: the error is reduced exactly.
        self.log("val/mse_min", self._minimum, sync_dist=True)
        self.log("val/mse_median", median(self._recent), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mse_checks"] = {"minimum": self._minimum, "recent": list(self._recent)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not self._goes_on:
            return
        checks = checkpoint.get("mse_checks", {"minimum": float("inf"), "recent": []})
        self._minimum = checks["minimum"]
        self._recent = deque(checks["recent"], self._recent.maxlen)

    def evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        t, y = batch
        predicted = self(y[0], t)
        self.update_metric(stage, "mse", predicted, y, prog_bar=True, batch_size=1)
        self.update_metric(stage, "mae", predicted, y, batch_size=1)
        span = y.amax(0) - y.amin(0)  # of what is constant, its size
        span = torch.where(span > 0, span, y.abs().amax(0).clamp(min=torch.finfo(y.dtype).tiny))
        errors = (predicted - y).abs().amax(0) / span
        found = {f"relative_error_{i}": error for i, error in enumerate(errors, start=1)}
        metrics = self.stage_metrics(stage)
        for name, error in {**found, "relative_error": errors.max()}.items():
            if name not in metrics:  # how many components there are is known now
                metrics.add_metrics({name: mean_with_nan().to(self.device)})
            place = {"metric_attribute": f"metrics.{stage}.{name}"}
            self.update_metric(stage, name, error, batch_size=1, **place)
