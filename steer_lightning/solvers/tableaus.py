"""Explicit Runge-Kutta methods, as data."""

from typing import Final, NamedTuple

Row = tuple[float, ...]


class Tableau(NamedTuple):
    r"""An explicit Runge-Kutta method.

    .. math::
        k_i = f\Bigl(t + c_i h,\; y + h \sum_{j<i} a_{ij} k_j\Bigr), \qquad
        y(t + h) \approx y + h \sum_i b_i k_i

    Args:
        order: Order of the solution.
        c: Stage times in units of a step.
        a: Stage weights, a row for each stage.
        b: Solution weights.
        error: Weights of the embedded error estimate, solution minus embedded solution; empty
            for a method without one.
        interpolant: Of each stage the weights of its powers of :math:`\theta = (s - t) / h`,
            from the first power on.
        stable: Longest stable step along the negative real axis, in units of 1 / |eigenvalue|, of
            a method whose last two stages are both at the end of the step; 0 for another.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row = ()
    interpolant: tuple[Row, ...] = ()
    stable: float = 0.0

    @property
    def error_order(self) -> int:
        """Power of :math:`h` that the error estimate falls with."""
        return self.order

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the first one of the next step."""
        return len(self.a[-1]) > 0 and (*self.a[-1], 0.0) == self.b

    def with_hermite_interpolant(self) -> "Tableau":
        """This method with the slope at the end of a step as one more stage, and the cubic."""
        first = [1.0, *[0.0] * (len(self.b) - 1)]
        cubic = [(d, 3.0 * b - 2.0 * d, d - 2.0 * b) for d, b in zip(first, self.b, strict=True)]
        return self._replace(
            c=(*self.c, 1.0),
            a=(*self.a, self.b),
            b=(*self.b, 0.0),
            interpolant=(*cubic, (0.0, -1.0, 1.0)),
        )


EULER: Final = Tableau(1, (0.0,), ((),), (1.0,))

MIDPOINT: Final = Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0))

HEUN: Final = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))

# Kutta's 3/8 rule, as torchdiffeq's "rk4".
RK4: Final = Tableau(
    4,
    (0.0, 1 / 3, 2 / 3, 1.0),
    ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    (1 / 8, 3 / 8, 3 / 8, 1 / 8),
)

# Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, 1989. The interpolant is Hermite's.
BOSH3: Final = Tableau(
    3,
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    ((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
)

# Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980; the quartic interpolant is
# Shampine's, Some practical Runge-Kutta formulas, 1986.
DOPRI5: Final = Tableau(
    5,
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (
        35 / 384 - 5179 / 57600, 0.0, 500 / 1113 - 7571 / 16695, 125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200, 11 / 84 - 187 / 2100, -1 / 40,
    ),
    (
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (
            0.0, 127303824393 / 49829197408, -318862633887 / 49829197408,
            701980252875 / 199316789632,
        ),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    3.3066,
)  # fmt: skip

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
# assumption, 2011, with its interpolant of order 4.
TSIT5: Final = Tableau(
    5,
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
            2.324710524099774,
        ),
    ),
    (
        0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
        2.324710524099774, 0.0,
    ),
    (
        -0.0017800110522257771, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
        0.5823571654525552, -0.45808210592918697, 1 / 66,
    ),
    (
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.13169999999999998, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    3.5068,
)  # fmt: skip

FIXED: Final = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4}
ADAPTIVE: Final = {"dopri5": DOPRI5, "tsit5": TSIT5, "bosh3": BOSH3}
