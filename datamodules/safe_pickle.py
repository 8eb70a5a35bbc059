"""Pickles of numbers, text and numpy arrays, read without running anything that they name."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPE = re.compile(r"[|<>=]?[biuf][1248]")


class _Refused(pickle.UnpicklingError):
    """What a file asked for is not among the stand-ins."""


# Stand-ins take the place of what a pickle names; the real thing is never called, for numpy's own
# functions trust what they are given. Each has `__setstate__`, without which a file could set
# attributes on it.


class _DType:
    """Stands for ``numpy.dtype``: numbers and nothing else."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not _DTYPE.fullmatch(code):
            raise _Refused(f"numpy.dtype({code!r})")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]  # The rest of it is for structures.
        if byte_order in ("<", ">"):
            self.value = self.value.newbyteorder(byte_order)


class _Array:
    """Stands for ``numpy.ndarray``, empty until it gets its state."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if is_fortran else "C")


def _array(raw: Any, dtype: _DType, shape: Any, order: Any) -> NDArray[Any]:
    # Python 2 wrote bytes as text.
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


class _Function:
    """Stands for a function: calling it makes something else, and never an instance."""

    @classmethod
    def __setstate__(cls, state: Any) -> None:
        raise _Refused(f"a change of {cls.__name__}")


class _Reconstruct(_Function):
    """Stands for the function that makes an empty array."""

    def __new__(cls, *args: Any) -> Any:
        return _Array()


class _Scalar(_Function):
    """Stands for the function that makes a numpy scalar; makes a number of Python."""

    def __new__(cls, dtype: _DType, raw: Any) -> Any:
        return _array(raw, dtype, (), "C").item()


class _FromBuffer(_Function):
    """Stands for the function by which pickles of protocol 5 make an array."""

    def __new__(cls, raw: Any, dtype: _DType, shape: Any, order: Any) -> Any:
        array = _Array()
        array.value = _array(raw, dtype, shape, order)
        return array


class _Encode(_Function):
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"_codecs.encode to {encoding!r}")
        return text.encode("latin-1")


_STAND_INS: dict[tuple[str, str], type[Any]] = {
    ("_codecs", "encode"): _Encode,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Reconstruct),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _FromBuffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]


def load_pickle(path: Path) -> Any:
    r"""Read a pickle of numbers, text, bytes, lists, tuples, dictionaries and numpy arrays.

    A pickle names functions to call, and :func:`pickle.load` calls them, whatever they do. Here
    every name is replaced by a stand-in of this module or refused, so that a file can run
    nothing. Arrays hold booleans, integers or floats. Files of Python 2 are read too: their
    strings become text.

    Args:
        path: The file.

    Returns:
        What was pickled. Arrays come back as read-only numpy arrays where they are the whole or
        a value of the outermost dictionary.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file asks for anything else, or is broken.

    References:
        Python's documentation of :mod:`pickle`, "Restricting Globals".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "batch")
        ...     _ = path.write_bytes(pickle.dumps({"labels": [3, 1], "mean": np.arange(2.0)}))
        ...     load_pickle(path)
        {'labels': [3, 1], 'mean': array([0., 1.])}
    """
    with path.open("rb") as file:
        try:
            content = _Unpickler(file, encoding="latin1").load()
        except _Refused as error:
            raise ValueError(
                f"Expected {path} to be a pickle of numbers, text and numpy arrays, but it asks "
                f"for {error}. Do not open it otherwise: it may run code. Get the file from its "
                "official source again."
            ) from error
        except Exception as error:  # Broken bytes may raise nearly anything.
            raise ValueError(
                f"Expected {path} to be a complete pickle, but reading it failed: {error!r}. "
                "Unpack or download the file again."
            ) from error
    if isinstance(content, dict):
        return {key: _unwrap(value) for key, value in content.items()}
    return _unwrap(content)


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value
