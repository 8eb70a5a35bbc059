"""Rosenbrock methods, as data."""

import math
from typing import Final, NamedTuple

from steer_lightning.solvers.tableaus import Row


class RosenbrockTableau(NamedTuple):
    r"""A Rosenbrock method, in the form that needs no product with the Jacobian.

    .. math::
        \Bigl(\frac{1}{\gamma} I - h J\Bigr) k_i
        &= f\Bigl(t + c_i h,\; y + h \sum_{j<i} a_{ij} k_j\Bigr)
        + \sum_{j<i} C_{ij} k_j + h d_i \frac{\partial f}{\partial t} \\
        y(t + h) &\approx y + h \sum_i b_i k_i

    with the Jacobian :math:`J` and the derivative in time at the start of the step.

    Args:
        error_order: Power of :math:`h` that the error estimate falls with.
        gamma: :math:`\gamma`.
        c: Stage times in units of a step.
        d: Weights of the derivative in time.
        a: Weights of the stages within the field, a row for each stage.
        coupling: Weights :math:`C_{ij}` of the stages beside the field, a row for each stage.
        b: Solution weights.
        error: Weights of the error estimate, solution minus embedded solution.
        interpolant: Of each stage the weights of its powers of :math:`\theta = (s - t) / h`,
            from the first power on.

    References:
        Hairer and Wanner, *Solving ODEs II*, Section IV.7.
    """

    error_order: int
    gamma: float
    c: Row
    d: Row
    a: tuple[Row, ...]
    coupling: tuple[Row, ...]
    b: Row
    error: Row
    interpolant: tuple[Row, ...]


def _stiffly_accurate(
    order: int,
    gamma: float,
    c: Row,
    d: Row,
    a: tuple[Row, ...],
    coupling: tuple[Row, ...],
    dense: tuple[Row, ...],
) -> RosenbrockTableau:
    r"""A method each of whose last stages corrects the solution before it.

    Args:
        order: Order of the solution; that of the embedded one is lower by one.
        gamma: :math:`\gamma`.
        c: Times of the stages inside the step; the others are at its end.
        d: Weights of the derivative in time for those; zero for the others.
        a: Rows up to the first stage at the end of the step.
        coupling: Rows of all stages.
        dense: Weights :math:`H_m` of the interpolant :math:`(1 - \theta) y_0 + \theta y_1
            + \theta (1 - \theta) \sum_m \theta^m \sum_i H_{mi} k_i`.
    """
    n = len(coupling)
    ones = n - len(a)
    rows = [*a, *((*a[-1], *[1.0] * (i + 1)) for i in range(ones))]
    b = (*a[-1], *[1.0] * (ones + 1))
    padded = [(0.0,) * n, *((*row, *[0.0] * (n - len(row))) for row in dense), (0.0,) * n]
    columns = [
        tuple(after - before for before, after in zip(padded[m], padded[m + 1], strict=True))
        for m in range(len(dense) + 1)
    ]
    columns[0] = tuple(x + y for x, y in zip(columns[0], b, strict=True))
    return RosenbrockTableau(
        error_order=order,
        gamma=gamma,
        c=(*c, *[1.0] * (n - len(c))),
        d=(*d, *[0.0] * (n - len(d))),
        a=tuple(rows),
        coupling=coupling,
        b=b,
        error=(*[0.0] * (n - 1), 1.0),
        interpolant=tuple(zip(*columns, strict=True)),
    )


# Shampine and Reichelt, The MATLAB ODE suite, 1997, "ode23s", with its quadratic interpolant. The
# estimate compares with a solution of order 3. Here for stages that absorb the products J k.
_S: Final = math.sqrt(2.0)
ROSENBROCK23: Final = RosenbrockTableau(
    error_order=3,
    gamma=1.0 - 0.5 * _S,
    c=(0.0, 0.5, 1.0),
    d=(1.0 - 0.5 * _S, 0.0, 0.5 * _S - 1.0),
    a=((), (1.0 + 0.5 * _S,), (2.0 + _S, 2.0 + _S)),
    coupling=((), (-2.0 - _S,), (-2.0 * (2.0 + _S), -(6.0 + _S) * (2.0 + _S))),
    b=(2.0 + _S, 2.0 + _S, 0.0),
    error=((2.0 + _S) / 6.0, (4.0 + _S) * (2.0 + _S) / 6.0, (2.0 + _S) / 6.0),
    interpolant=((2.0 + _S, 0.0), (-2.0 - 2.0 * _S, 4.0 + 3.0 * _S), (0.0, 0.0)),
)

# Hairer and Wanner, Solving ODEs II, 1996, "RODAS", of order 4(3), with an interpolant of order 3.
RODAS4: Final = _stiffly_accurate(
    order=4,
    gamma=0.25,
    c=(0.0, 0.386, 0.21, 0.63),
    d=(0.25, -0.1043, 0.1035, -0.0362),
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895),
    ),
    coupling=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (
            8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136,
            -6.058818238834054,
        ),
    ),
    dense=(
        (
            10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823,
            1.025137723295662,
        ),
        (
            -0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386,
            -6.594389125716872,
        ),
    ),
)  # fmt: skip

# Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the
# Julia Differential Equations package, 2023, of order 5(4), with its interpolant of order 4.
RODAS5P: Final = _stiffly_accurate(
    order=5,
    gamma=0.21193756319429014,
    c=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664),
    d=(
        0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734,
        2.325825639765069,
    ),
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (
            -7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256,
            0.030198172008377946,
        ),
    ),
    coupling=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783,
            -19.097331116725623, -28.087943162872662,
        ),
        (
            37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047,
            -40.06618937091002, -54.66780262877968, -9.48861652309627,
        ),
    ),
    dense=(
        (
            25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
            0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493,
        ),
        (
            -9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
            20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372,
        ),
        (
            11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
            -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722,
        ),
    ),
)  # fmt: skip

ROSENBROCK: Final = {"rodas5p": RODAS5P, "rodas4": RODAS4, "rosenbrock23": ROSENBROCK23}
