"""Plain values, which checkpoints hold and load without running anything."""

from numbers import Integral, Real
from typing import Any


def as_plain(value: Any) -> Any:
    """Python's numbers for those of other types, such as NumPy's, in lists, tuples and dicts too.

    Example:
        >>> import numpy as np
        >>> as_plain({"b": np.float64(0.5), "widths": [np.int64(8), "auto"]})
        {'b': 0.5, 'widths': [8, 'auto']}
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if type(value) is dict:
        return {as_plain(k): as_plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_plain, value))
    return value


def is_plain(value: Any) -> bool:
    """Whether :func:`as_plain` leaves nothing but plain values in it.

    Example:
        >>> is_plain([1, (2.0, None)]), is_plain([object()])
        (True, False)
    """
    if type(value) is dict:
        return all(map(is_plain, (*value, *value.values())))
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, Real | str)
