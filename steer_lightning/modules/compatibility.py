"""Refuse checkpoints of another network, and say what differs."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn

_MOST = 6  # that a message names of each kind
_ABSENT = object()


def check_same_network(
    module: LightningModule, state_dict: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> None:
    """Check that the weights of a checkpoint are those of a module, by names and shapes.

    Raises:
        ValueError: If they are not; it says how the two configs differ.
    """
    saved = {name: tuple(value.shape) for name, value in state_dict.items()}
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if saved == own:
        return
    shared = saved.keys() & own.keys()
    changed = sorted(name for name in shared if saved[name] != own[name])
    found = [
        _some([f"{name} {saved[name]} where the model has {own[name]}" for name in changed]),
        _some(sorted(own.keys() - saved.keys()), "not in the checkpoint: "),
        _some(sorted(saved.keys() - own.keys()), "not in the model: "),
    ]
    differences = _some(config_differences(checkpoint.get("hyper_parameters", {}), module.hparams))
    raise ValueError(
        f"Expected a checkpoint of the same network as {type(module).__name__} has now, but got "
        f"other weights: {'; '.join(filter(None, found))}. "
        + (f"The configs differ in {differences}. " if differences else "")
        + "Run it with the config.yaml that was saved beside its folder, or train anew."
        + ("" if changed else " strict=False, or strict_loading = False, loads what fits.")
    )


def warn_of_changes(what: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say which settings differ from those that a checkpoint was saved with."""
    if saved and (differences := _some(config_differences(saved, now))):
        rank_zero_warn(f"The checkpoint was saved with other settings of {what}: {differences}.")


def config_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each plain value that differs between two nested configs, in words.

    Example:
        >>> config_differences({"flow": {"hidden": [8, 8]}}, {"flow": {"hidden": [16]}})
        ['flow.hidden (was [8, 8], is [16])']
    """
    before, after = _flat(saved), _flat(now)
    return [
        f"{name} (was {before.get(name, 'absent')}, is {after.get(name, 'absent')})"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if str(name).startswith("_"):  # how LightningCLI builds the module again
            continue
        path = f"{prefix}{name}".replace(".init_args", "")
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.")
        elif isinstance(value, bool | int | float | str | list | tuple | type(None)):
            flat[path] = list(value) if isinstance(value, tuple) else value
    return flat


def _some(items: list[str], what: str = "") -> str:
    more = f", and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return f"{what}{', '.join(items[:_MOST])}{more}" if items else ""
