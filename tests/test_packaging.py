"""What `pip install` gives: the package alone, importable from anywhere."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

import steer_lightning
from tests.helpers.fresh_process import run

ROOT = Path(__file__).resolve().parents[1]

# Prints what it found as JSON, so that the test can say what is wrong.
PROBE = """
import json, pkgutil, sys

import steer_lightning
import steer_lightning.doctor.devices
from steer_lightning import horizon, nn, penalties, solvers, steering, utils

found = {"file": steer_lightning.__file__, "version": steer_lightning.__version__}
loaded = {name.split(".")[0] for name in sys.modules} - {"steer_lightning"}
heavy = {"datamodules", "torchvision", "matplotlib", "lightning_fabric"}
found["heavy"] = sorted(n for n in loaded if n in heavy or n.endswith("lightning"))

from steer_lightning import NFEMonitor, SteerCallback, steer
from steer_lightning.modules import ClassifierModule, CNFModule, StiffODEModule

found["plotting"] = "steer_lightning.callbacks.plots.base" in sys.modules

from steer_lightning.callbacks import EndTimeSweep, FlowPlot, StiffPlot

modules = pkgutil.walk_packages(steer_lightning.__path__, "steer_lightning.")
found["modules"] = [__import__(module.name, fromlist=["_"]).__name__ for module in modules]
found["datamodules"] = "datamodules" in sys.modules

from steer_lightning.__main__ import main

found["doctor"] = main(["doctor"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, tree)
        elif (path / "__init__.py").is_file() or path.name in ("configs", "scripts", "docs"):
            shutil.copytree(
                path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__", "_build")
            )
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=tree)
    (path,) = out.iterdir()
    return path


@pytest.mark.slow
def test_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    dist_info = f"steer_lightning-{steer_lightning.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"steer_lightning", dist_info}
    inside = {name for name in names if name.startswith("steer_lightning/")}
    tree = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "steer_lightning").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert inside == tree
    assert "steer_lightning/py.typed" in inside
    assert f"{dist_info}/licenses/LICENSE" in names


@pytest.mark.slow
def test_installed_wheel_imports_from_an_empty_folder(wheel, tmp_path):
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "install", *options, "--target", target, wheel, cwd=empty)
    *said, last = run("-c", PROBE, cwd=empty, PYTHONPATH=str(target)).splitlines()
    found = json.loads(last)
    assert Path(found["file"]).is_relative_to(target)
    assert found["version"] == steer_lightning.__version__
    assert found["heavy"] == []  # the pure layers do not need them
    assert found["plotting"] is False  # nor does the callback need matplotlib
    assert found["datamodules"] is False
    assert "steer_lightning.callbacks.plots.base" in found["modules"]
    assert found["doctor"] == 0
    words = " ".join(" ".join(said).split())
    assert "data not looked at: the data sets' modules are part of the repository" in words
