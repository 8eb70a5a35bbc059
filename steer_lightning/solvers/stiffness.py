"""Tell from the steps of an explicit method that the field is stiff there."""

from typing import Any, Final

import torch

from steer_lightning.solvers.steps import stiffness_rate
from steer_lightning.solvers.tableaus import Tableau

# Of the longest stable step, as at tight tolerances the error estimate, which the fast part of the
# solution is in, keeps the steps shorter than that: at 1e-7 it is 0.62 to 0.98, of a field that is
# not stiff below 0.2; at 1e-9 0.38 to 0.66 and below 0.1; at 1e-11 0.16 to 0.34 and below 0.05.
SHARE: Final = 0.6
STIFF_STEPS, LOOSE_STEPS = 20, 6


class StiffnessWatch:
    """Counts the steps whose length stability bounds, not accuracy.

    After twenty of them, with never six others in a row, the field counts as stiff.

    Args:
        tableau: The method, whose longest stable step is known.
        controlled: Leading parts of the state to look at; all if ``None``.
        tolerance: The larger one of a solve.

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.2.
    """

    def __init__(self, tableau: Tableau, controlled: int | None, tolerance: float) -> None:
        tightness = min(1.0, tolerance / 1e-7) ** (1.0 / tableau.error_order)
        self._longest = SHARE * tightness * tableau.stable
        self.tableau = tableau
        self.controlled = controlled
        self.rate = 0.0
        self._stiff = self._loose = 0

    def is_stiff(self, h: float, stages: list[Any]) -> bool:
        """Look at one more step, of length ``h``."""
        with torch.no_grad():
            self.rate = float(stiffness_rate(self.tableau, h, stages, self.controlled))
        if abs(h) * self.rate > self._longest:
            self._stiff, self._loose = self._stiff + 1, 0
        else:
            self._loose += 1
            if self._loose == LOOSE_STEPS:
                self._stiff = 0
        return self._stiff >= STIFF_STEPS
