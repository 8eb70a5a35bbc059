"""The doctor finds what is wrong and says it in words."""

import math
import re
import sys
from importlib import import_module, metadata

import pytest
import torch
from packaging.requirements import Requirement

from steer_lightning.__main__ import main
from steer_lightning.doctor import Finding, devices, installation
from steer_lightning.doctor import report as doctor
from steer_lightning.doctor.installation import check_package, requirements
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.mnist_files import write_mnist

NMS = RuntimeError("operator torchvision::nms does not exist")
CPU = torch.device("cpu")
TORCH = metadata.version("torch")


def by_name(findings):
    return {finding.name: finding for finding in findings}


def breaking(monkeypatch, **errors):
    """Make the import of a module fail."""

    def broken(name):
        if name in errors:
            raise errors[name]
        return import_module(name)

    monkeypatch.setattr(installation, "import_module", broken)


@pytest.fixture
def quick(monkeypatch):
    """A doctor that looks at two packages and one device only."""
    asked = [(Requirement("torch>=2.11"), None), (Requirement("torchvision"), "tasks")]
    monkeypatch.setattr(installation, "requirements", lambda: asked)


def test_nothing_is_wrong_with_what_runs_these_tests(tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    assert doctor.diagnose_and_report(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "FAULT" not in printed
    assert f"ok     torch              {torch.__version__.split('+')[0]}" in printed
    assert "(needs >=2.11)" in printed
    assert "ok     solve on cpu       y' = -a y in float32, float64" in printed
    assert "note   mnist" in printed  # a part of it
    assert "note   cifar10            no folder" in printed
    assert printed.rstrip().splitlines()[-1].startswith("faults: 0, notes: ")


def test_a_torchvision_that_does_not_fit_is_named_and_the_rest_is_looked_at(
    quick, tmp_path, monkeypatch, capsys
):
    breaking(monkeypatch, torchvision=NMS)
    assert doctor.diagnose_and_report(tmp_path) == 1
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "FAULT torchvision" in words
    assert "cannot be imported (RuntimeError: operator torchvision::nms does not exist)" in words
    version = metadata.version("torchvision")
    assert f"torch {TORCH} and torchvision {version} are builds that do not fit" in words
    assert "`pip install --force-reinstall torch torchvision`" in words
    assert "ok solve on cpu" in words
    assert "faults: 1, notes: " in words


def test_any_other_import_that_fails_is_a_fault(monkeypatch):
    breaking(monkeypatch, scipy=OSError("libgfortran.so.5: cannot open\nand more"))
    found = check_package(Requirement("scipy"), "tasks")
    assert found.state == "fault"
    assert "cannot be imported (OSError: libgfortran.so.5: cannot open). Install" in found.sentence
    assert "`pip install --force-reinstall scipy`" in found.sentence


WANTED = "`pip install 'no-such-thing>=2'`."


@pytest.mark.parametrize(
    ("asked", "extra", "state", "sentence"),
    [
        (
            "no-such-thing>=2",
            None,
            "fault",
            f"not installed, but steer_lightning does not work without it: {WANTED}",
        ),
        (
            "no-such-thing>=2",
            "tasks",
            "note",
            f"not installed. The command line and the experiments need it: {WANTED}",
        ),
        (
            "torch>=1000",
            None,
            "fault",
            f"{TORCH}, but >=1000 is needed: `pip install 'torch>=1000'`.",
        ),
    ],
)
def test_what_is_missing_or_too_old_is_a_fault_if_it_is_needed(asked, extra, state, sentence):
    requirement = Requirement(asked)
    assert check_package(requirement, extra) == Finding(requirement.name, state, sentence)


def test_requirements_are_those_of_the_metadata(monkeypatch):
    lines = [
        "torch>=2.11",
        'jsonargparse[signatures]>=4.40; extra == "tasks"',
        'mujoco==3.17.0; extra == "mujoco"',
        'pytest>=8; extra == "dev"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert [(r.name, str(r.specifier), extra) for r, extra in requirements()] == [
        ("torch", ">=2.11", None),
        ("jsonargparse", ">=4.40", "tasks"),
        ("mujoco", "==3.17.0", "mujoco"),
    ]


def test_a_package_that_pip_did_not_install_is_a_fault(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: metadata.distribution("no-such-thing"))
    (found,) = installation.check_packages()
    assert found.state == "fault"
    assert "not installed by pip. Run `pip install .`" in found.sentence


class WrongGradient(TorchdiffeqSolver):
    """Solves rightly, and gives the adjoint's gradients three times as large."""

    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        solution = super().solve(vector_field, y0, t_eval, stats=stats)
        if self.gradient == "adjoint":
            solution.ys.register_hook(lambda gradient: 3 * gradient)
        return solution


class NoSolution(TorchdiffeqSolver):
    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might")


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setattr(devices, "TorchdiffeqSolver", WrongGradient)
    found = list(devices.check_solves(CPU))
    assert [finding.state for finding in found] == ["fault", "fault"]
    for finding, dtype in zip(found, ("float32", "float64"), strict=True):
        assert finding.name == "solve on cpu"
        right = math.exp(-0.7 * 1.5)
        wrong = f"dopri5 in {dtype} by adjoint: its gradient in y(t0) is {3 * right:.4f}"
        assert finding.sentence.startswith(wrong)
        assert f" in place of {right:.7g}. Do not train" in finding.sentence


@pytest.mark.parametrize(
    ("gradient", "solver"), [("autograd", "AdaptiveSolver"), ("adjoint", "TorchdiffeqSolver")]
)
def test_a_solve_that_fails_is_a_fault(monkeypatch, gradient, solver):
    monkeypatch.setattr(devices, solver, NoSolution)
    found = devices.wrong_solve(CPU, torch.float32, gradient)
    assert "fails (RuntimeError: CUDA error: no kernel image is available). Do not" in found


def test_a_device_without_float64_is_not_asked_for_it(monkeypatch):
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    (found,) = devices.check_solves(CPU)
    assert found.sentence.startswith("y' = -a y in float32: ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_gpu_solves_rightly():
    found = by_name(devices.check_devices())
    assert found["solve on cuda:0"].state == "ok"


@pytest.mark.parametrize(
    ("gpus", "cuda", "state", "sentence"),
    [
        ([], "13.0", "note", "none was found; torch .* built for CUDA 13.0. Everything runs"),
        (["GPU 0"], "13.0", "fault", "lists 1, but torch sees none.*; update NVIDIA's driver"),
        (["GPU 0"], None, "fault", "without CUDA. Install a build for CUDA"),
    ],
)
def test_a_gpu_that_torch_does_not_see(gpus, cuda, state, sentence, monkeypatch):
    monkeypatch.setattr(devices.torch.version, "cuda", cuda)
    found = devices.check_hidden_gpus(gpus)
    assert found.state == state
    assert re.search(sentence, found.sentence)


def test_the_drivers_list_of_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.nvidia_gpus() == []
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho nothing\n")
    command.chmod(0o755)
    assert devices.nvidia_gpus() == ["GPU 0: NVIDIA H200 (UUID: GPU-1)"]
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert devices.nvidia_gpus() == []


def test_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = installation.check_compiler()
    assert found.state == "note"
    assert "no-such-compiler was not found; `compile` in solvers and flows" in found.sentence
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(installation.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h was not found" in installation.check_compiler().sentence
    (tmp_path / "Python.h").touch()
    assert installation.check_compiler().state == "ok"


def test_a_check_that_fails_itself_is_a_fault_and_the_others_go_on(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_compiler", lambda: 1 / 0)
    found = list(doctor.diagnose(tmp_path))
    compiler = by_name(found)["C++ compiler"]
    assert compiler.state == "fault"
    assert "could not be looked at (ZeroDivisionError: division by zero)." in compiler.sentence
    assert found[-1].name == "person_activity"


def test_data_modules_whose_own_import_fails_are_a_fault(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "datamodules.intact", raising=False)
    monkeypatch.setitem(sys.modules, "datamodules.images", None)
    (found,) = doctor.guarded("data", lambda: doctor.check_data(tmp_path))
    assert found.state == "fault"
    assert "could not be looked at (ModuleNotFoundError: " in found.sentence


def test_somebody_elses_package_of_that_name_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datamodules.intact", None)
    (found,) = doctor.guarded("data", lambda: doctor.check_data(tmp_path))
    assert found.state == "note"


def test_the_data_folder_of_the_environment(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEER_DATA_DIR", str(tmp_path / "elsewhere"))
    main(["doctor"])
    assert "elsewhere/mnist" in "".join(capsys.readouterr().out.split())
