"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import steer_lightning

PACKAGE = Path(steer_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
# Each room with those below it that it may import; a room of Lightning may know them all.
BELOW = {
    "utils": set(),
    "solvers": {"utils"},
    "horizon": {"utils"},
    "nn": {"horizon", "solvers", "utils"},
    "steering": {"horizon", "solvers", "nn", "utils"},
    "penalties": {"horizon", "solvers", "nn", "steering", "utils"},
    "doctor": {"horizon", "solvers", "nn", "steering", "utils"},
}


def layer(source):
    """The first part of a path inside the package: a folder or a file."""
    return source.relative_to(PACKAGE).parts[0]


def imported(source):
    """Every module named by an import in a file, lazy ones inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {source}"
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def roots(source):
    return {name.split(".")[0] for name in imported(source)}


def layers(source):
    """The layers of the package that a file imports."""
    return {name.split(".")[1] for name in imported(source) if name.startswith("steer_lightning.")}


def test_the_scan_sees_imports():
    assert "torchdiffeq" in roots(PACKAGE / "solvers" / "torchdiffeq.py")
    assert layers(PACKAGE / "horizon" / "grid.py") == {"horizon", "utils"}
    assert "pytorch_lightning" in roots(PACKAGE / "callbacks" / "steer.py")


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_keeps_to_its_layer(source):
    assert not roots(source) & {"datamodules", "cli", "command_line", "tests"}
    if layer(source) != "solvers":
        assert "torchdiffeq" not in roots(source)
    if layer(source) in BELOW:
        assert not roots(source) & LIGHTNING
        assert layers(source) <= {layer(source)} | BELOW[layer(source)]
    if layer(source) in ("callbacks", "guard"):
        assert "modules" not in layers(source)


def test_the_root_holds_no_other_file():
    found = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert found == {"__init__.py", "__main__.py", "py.typed"}


def test_only_the_doctor_names_a_module_of_the_repository_and_as_a_plug_in():
    """A name that is tried at run time escapes the scan of imports, so it is looked for here.

    It is no dependency: ``tests/test_packaging.py`` runs the package alone, without the plug-in.
    """
    named = {
        (source.relative_to(PACKAGE).as_posix(), node.value)
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and str(node.value).startswith("datamodules")
    }
    assert named == {("doctor/report.py", "datamodules.intact")}


def test_only_the_entry_point_depends_on_the_doctor():
    depend = {layer(source) for source in SOURCES if "doctor" in layers(source)}
    assert depend == {"doctor", "__main__.py"}


def test_the_packages_top_level_exports_lazily():
    assert steer_lightning.__all__ == [
        "NFEMonitor", "PenaltyCallback", "SteerCallback",
        "nominal", "penalize", "penalty", "steer",
    ]  # fmt: skip
    assert set(steer_lightning.__all__) <= set(dir(steer_lightning))
    assert steer_lightning.SteerCallback.__module__ == "steer_lightning.callbacks.steer"
    assert steer_lightning.NFEMonitor.__module__ == "steer_lightning.callbacks.nfe_monitor"
    assert steer_lightning.steer.__module__ == "steer_lightning.steering.contexts"
    with pytest.raises(AttributeError, match="'steer_lightning' has no attribute 'SteerCalback'"):
        steer_lightning.SteerCalback  # noqa: B018
