"""Classes of Lightning's, which has two packages with a class of its own each."""

import sys


def is_lightning(thing: object, room: str, name: str) -> bool:
    """Whether something is of a class of Lightning's, such as ``"loggers"``, ``"CSVLogger"``.

    Example:
        >>> from pytorch_lightning.loggers import CSVLogger
        >>> is_lightning(CSVLogger("logs"), "loggers", "CSVLogger")
        True
    """
    roots = "pytorch_lightning", "lightning.pytorch"
    rooms = (sys.modules.get(f"{root}.{room}") for root in roots)
    return any(isinstance(thing, getattr(found, name)) for found in rooms if found is not None)
