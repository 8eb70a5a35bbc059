"""Small models with data, a trainer that logs to TensorBoard, and what it left there."""

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import StiffODEDataModule, ToyDensityDataModule
from steer_lightning.modules import CNFModule, StiffODEModule
from steer_lightning.nn import CNF, ConcatSquashField, MLPField
from steer_lightning.solvers import FixedGridSolver
from tests.helpers.models import tiny_trainer


def make_cnf(dim=2, **arguments):
    solver = FixedGridSolver("rk4", 2)
    return CNFModule(CNF(ConcatSquashField(dim, (8,)), (dim,), solver, **arguments))


def toy_data(dim=2, **arguments):
    name = {1: "mixture1d", 2: "8gaussians"}[dim]
    return ToyDensityDataModule(name, **{"n_train": 16, "n_val": 16, "n_test": 16, **arguments})


def make_stiff():
    return StiffODEModule(MLPField(1, (8,)), 0.5, solver=FixedGridSolver("rk4", 1))


def stiff_data():
    return StiffODEDataModule(r=5.0, interval=0.5, n_starts=12, batch_size=4, n_test=5)


def make_trainer(tmp_path, *callbacks, **arguments):
    logger = TensorBoardLogger(tmp_path, name="run", version="v")
    settings = {"logger": logger, "default_root_dir": tmp_path, "log_every_n_steps": 1}
    return tiny_trainer(*callbacks, **{**settings, **arguments})


def images(tmp_path):
    """Steps at which each plot was drawn, by tag, as TensorBoard reads them."""
    events = EventAccumulator(str(tmp_path / "run" / "v"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def plots(tmp_path):
    """Names of the files of plots, without the SVG that each PNG has beside it."""
    folder = tmp_path / "run" / "v" / "plots"
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    vectors = {name.replace(".png", ".svg") for name in names if name.endswith(".png")}
    assert vectors <= names
    return sorted(names - vectors)
