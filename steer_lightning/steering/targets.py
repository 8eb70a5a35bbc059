"""Find what STEER moves in a model: its own horizons, and vector fields by name."""

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from steer_lightning.horizon import Horizon
from steer_lightning.solvers import SolveStats
from steer_lightning.steering.attach import AttachedHorizon, Span
from steer_lightning.utils.checks import check_choice

_ATTACHED: WeakKeyDictionary[nn.Module, AttachedHorizon] = WeakKeyDictionary()


def as_paths(name: str, paths: Sequence[str] | None) -> tuple[str, ...] | None:
    """Dotted paths as a tuple; a single string, for argument ``name``, is a ``ValueError``."""
    if isinstance(paths, str):
        raise ValueError(
            f"Expected `{name}` to be a list of dotted paths, but got the string {paths!r}. Write "
            f"[{paths!r}]."
        )
    return None if paths is None else tuple(paths)


def plain_path(path: str) -> str:
    """A module's path, as if nothing were wrapped by ``torch.compile``."""
    return ".".join(name for name in path.split(".") if name != "_orig_mod")


def named_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by the paths that logs and draws name; its own is ``model``."""
    return ((plain_path(path) or "model", part) for path, part in model.named_modules())


def find_horizons(model: nn.Module, within: Sequence[str] | None = None) -> dict[str, Horizon]:
    """A model's own horizons by path.

    Args:
        model: Any model.
        within: Dotted paths of the parts to look in; the whole model if not given.

    Raises:
        ValueError: If the model, or one of those parts, has no horizon.
    """
    horizons = {path: part for path, part in named_parts(model) if isinstance(part, Horizon)}
    if not horizons:
        raise ValueError(
            f"Expected a model with horizons, but {type(model).__name__} has none, so there is "
            f"nothing to steer. Build it from steer_lightning.nn (ODEBlock, CNF), or name the "
            f"modules that it passes to odeint: SteerCallback(b=..., vector_fields=['flow.func'])."
        )
    if within is None:
        return horizons
    chosen: dict[str, Horizon] = {}
    for part in within:
        found = {p: h for p, h in horizons.items() if f"{p}.".startswith(f"{part}.")}
        if not found:
            check_choice("horizons", part, horizons)
        chosen |= found
    return chosen


def find_stats(model: nn.Module) -> dict[str, SolveStats]:
    """The counts of a model's blocks, of whatever has ``stats``, by path."""
    found = ((path, getattr(part, "stats", None)) for path, part in named_parts(model))
    return {path: stats for path, stats in found if isinstance(stats, SolveStats)}


def refuse_double_warp(model: nn.Module) -> None:
    """Raise if a field is moved inside a block, or another field, that is moved itself."""
    for path, block in model.named_modules():
        own = [m for m in block.children() if isinstance(m, Horizon)]
        outer = [m for m in (*own, *attached_horizons(block, inside=False)) if m.owner]
        inner = [a for a in attached_horizons(block) if a.owner and a not in outer]
        if outer and inner:
            raise ValueError(
                f"Expected one owner for the end time of {path or 'the model'!r}, but "
                f"{outer[0].owner} moves its own horizon and {inner[0].owner} the vector field "
                f"{inner[0].path!r} inside it: T would move twice. Keep one of the two."
            )


def attached_horizons(module: nn.Module, inside: bool = True) -> list[AttachedHorizon]:
    """The horizons attached to a module and, if asked, to the modules inside it."""
    modules = module.modules() if inside else [module]
    return [_ATTACHED[m] for m in modules if m in _ATTACHED]


def find_fields(model: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """The modules at dotted paths, by name; a ``ValueError`` where none is, or one named twice."""
    known = dict(model.named_modules(remove_duplicate=False))
    fields: dict[str, nn.Module] = {}
    for path in paths:
        if path not in known:
            try:
                check_choice("vector_fields", path, (name for name in known if name))
            except ValueError as error:
                raise ValueError(
                    f"{error} A path leads to an nn.Module inside the model, such as 'flow.func'; "
                    f"a plain function cannot be attached: wrap it in an nn.Module."
                ) from None
        field = known[path]
        for other, before in fields.items():
            if before is field:
                raise ValueError(
                    f"Expected `vector_fields` to name each module once, but {other!r} and "
                    f"{path or 'model'!r} are the same. Leave one of them out."
                )
        fields[path or "model"] = field
    return fields


def attach(model: nn.Module, path: str, field: nn.Module, span: Span | None) -> AttachedHorizon:
    """The horizon of a named vector field; the one it has, if that is of the same span."""
    horizon = _ATTACHED.get(field)
    if horizon is not None and horizon.attached:
        if horizon.owner is not None or horizon.asked == span:
            return horizon
        horizon.detach()
    names = path.split(".") if path else []
    outer = (".".join(names[:n]) for n in range(len(names)))
    around = {name: model.get_submodule(name) for name in outer}
    horizon = AttachedHorizon(field, path or "model", span, around)
    _ATTACHED[field] = horizon
    return horizon
