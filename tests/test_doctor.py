"""The doctor finds what is wrong and says it in words."""

import math
import os
import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import steer_lightning
from steer_lightning.doctor import Finding, devices, in_words, installation
from steer_lightning.doctor import __main__ as doctor
from steer_lightning.doctor.installation import check_package, requirements
from steer_lightning.solvers import TorchdiffeqSolver
from tests.helpers.mnist_files import write_mnist

NMS = RuntimeError("operator torchvision::nms does not exist")
CPU = torch.device("cpu")


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
    assert doctor.main(["--data_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "FAULT" not in printed
    assert f"ok     torch              {torch.__version__.split('+')[0]}" in printed
    assert "(needs >=2.11)" in printed
    assert "ok     cpu" in printed
    assert "ok     solve on cpu       y' = -a y in float32, float64" in printed
    assert "ok     mnist" in printed
    assert "note   cifar10            no folder" in printed
    assert printed.rstrip().splitlines()[-1].startswith("Nothing is wrong, ")


def test_the_package_alone_has_a_doctor(tmp_path):
    """As installed: the wheel holds no datamodules, and the current folder neither."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "steer_lightning").symlink_to(Path(steer_lightning.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "steer_lightning.doctor"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = " ".join(done.stdout.split())
    assert "data not looked at: datamodules.intact cannot be imported from here" in words


def test_a_torchvision_that_does_not_fit_is_named_and_the_rest_is_looked_at(
    quick, tmp_path, monkeypatch, capsys
):
    breaking(monkeypatch, torchvision=NMS)
    assert doctor.main(["--data_dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "FAULT torchvision" in words
    assert "cannot be imported (RuntimeError: operator torchvision::nms does not exist)" in words
    torch_version, version = metadata.version("torch"), metadata.version("torchvision")
    assert f"torch {torch_version} and torchvision {version} are builds that do not fit" in words
    assert "`pip install --force-reinstall torch torchvision`" in words
    assert "ok solve on cpu" in words
    assert re.search(r"1 fault, \d+ notes\.$", words)


def test_lightning_fails_by_the_same_fault_and_says_so(monkeypatch):
    breaking(monkeypatch, pytorch_lightning=NMS)
    found = check_package(Requirement("pytorch-lightning>=2.6"))
    assert found.state == "fault"
    assert "pip install --force-reinstall torch torchvision" in found.sentence


def test_any_other_import_that_fails_is_a_fault(monkeypatch):
    breaking(monkeypatch, scipy=OSError("libgfortran.so.5: cannot open\nand more"))
    found = check_package(Requirement("scipy"), "tasks")
    assert found.state == "fault"
    assert "cannot be imported (OSError: libgfortran.so.5: cannot open). Install" in found.sentence
    assert "`pip install --force-reinstall scipy`" in found.sentence


@pytest.mark.parametrize(
    ("extra", "state", "sentence"),
    [
        (
            None,
            "fault",
            "not installed, but steer_lightning does not work without it: "
            "`pip install 'no-such-thing>=2'`.",
        ),
        (
            "tasks",
            "note",
            "not installed. The command line and the experiments need it: "
            "`pip install 'no-such-thing>=2'`.",
        ),
    ],
)
def test_what_is_missing_is_a_fault_only_if_it_is_needed(extra, state, sentence):
    requirement = Requirement("no-such-thing>=2")
    assert check_package(requirement, extra) == Finding("no-such-thing", state, sentence)


def test_a_version_that_is_too_old_is_a_fault():
    version = metadata.version("torch")
    assert check_package(Requirement("torch>=1000")) == Finding(
        "torch", "fault", f"{version}, but >=1000 is needed: `pip install 'torch>=1000'`."
    )


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


def test_a_package_that_pip_did_not_install_is_looked_at_without_versions(monkeypatch):
    monkeypatch.setattr(installation, "DISTRIBUTION", "no-such-thing")
    assert [r.name for r, _ in requirements()] == [*installation.NEEDED]
    monkeypatch.setattr(installation, "NEEDED", ("torch",))
    itself, torch_found = installation.check_packages()
    assert (itself.state, torch_found.state) == ("note", "ok")
    assert "the versions that it needs are unknown. Run `pip install .`" in itself.sentence
    assert installation.check_python().state == "ok"


def test_an_old_python_is_a_fault(monkeypatch):
    monkeypatch.setattr(installation.platform, "python_version", lambda: "3.9.1")
    found = installation.check_python()
    assert found == Finding(
        "python", "fault", "3.9.1, but >=3.10 is needed. Make an environment of a newer Python."
    )


class WrongGradient(TorchdiffeqSolver):
    """Solves rightly, and gives the adjoint's gradients three times as large."""

    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        solution = super().solve(vector_field, y0, t_eval, stats=stats)
        if self.gradient == "adjoint":
            solution.ys.register_hook(lambda gradient: 3 * gradient)
        return solution


class WrongSolution(TorchdiffeqSolver):
    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        return super().solve(vector_field, y0, 1.001 * t_eval, stats=stats)


class NoSolution(TorchdiffeqSolver):
    def solve(self, vector_field, y0, t_eval, *, stats=None, dense=False, first_step=None):
        raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might")


def test_a_wrong_gradient_is_found(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "TorchdiffeqSolver", WrongGradient)
    found = list(devices.check_solves(CPU))
    assert [finding.state for finding in found] == ["fault", "fault"]
    for finding, dtype in zip(found, ("float32", "float64"), strict=True):
        assert finding.name == "solve on cpu"
        right = math.exp(-0.7 * 1.5)
        wrong = f"dopri5 in {dtype} by adjoint: its gradient in y(t0) is {3 * right:.4f}"
        assert finding.sentence.startswith(wrong)
        assert f" in place of {right:.7g}. Do not train" in finding.sentence
    assert doctor.main(["--data_dir", str(tmp_path)]) == 1
    assert "2 faults" in capsys.readouterr().out


def test_a_wrong_solution_is_found(monkeypatch):
    monkeypatch.setattr(devices, "TorchdiffeqSolver", WrongSolution)
    found = devices.wrong_solve(CPU, torch.float32, "autograd")
    assert found.startswith("dopri5 in float32 by autograd: y(t1) is 0.699")


def test_a_solve_that_fails_is_a_fault(monkeypatch):
    monkeypatch.setattr(devices, "TorchdiffeqSolver", NoSolution)
    found = devices.wrong_solve(CPU, torch.float32, "autograd")
    assert "fails (RuntimeError: CUDA error: no kernel image is available). Do not" in found


def test_a_device_without_float64_is_not_asked_for_it(monkeypatch):
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    (found,) = devices.check_solves(CPU)
    assert found.sentence.startswith("y' = -a y in float32: ")


def test_dtypes_that_do_not_work_are_named(monkeypatch):
    ones = torch.ones
    broken = {torch.float16}

    def some_ones(*shape, dtype, device):
        if dtype in broken:
            raise TypeError("no such dtype here")
        return ones(*shape, dtype=dtype, device=device)

    monkeypatch.setattr(devices.torch, "ones", some_ones)
    assert devices.check_dtypes(CPU) == Finding(
        "cpu", "ok", "torch's kernels: float64, float32, bfloat16 work, float16 not"
    )
    broken.add(torch.float32)
    found = devices.check_dtypes(CPU)
    assert found.state == "fault"
    assert "float32 does not work (TypeError: no such dtype here). Install" in found.sentence


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_gpu_solves_rightly():
    found = by_name(devices.check_devices())
    assert found["cuda:0"].state == found["solve on cuda:0"].state == "ok"


@pytest.mark.parametrize(
    ("gpus", "cuda", "visible", "state", "sentence"),
    [
        (
            [],
            "13.0",
            None,
            "note",
            "none was found; torch .* built for CUDA 13.0. Everything runs",
        ),
        (
            ["GPU 0"],
            "13.0",
            None,
            "fault",
            "lists 1, but torch sees none.* Update NVIDIA's driver",
        ),
        (["GPU 0"], None, None, "fault", "without CUDA. Install a build for CUDA"),
        (["GPU 0"], "13.0", "", "note", "hidden from torch by CUDA_VISIBLE_DEVICES=''"),
    ],
)
def test_a_gpu_that_torch_does_not_see(gpus, cuda, visible, state, sentence, monkeypatch):
    monkeypatch.setattr(devices.torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
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
    assert "Install the headers of this Python" in installation.check_compiler().sentence
    (tmp_path / "Python.h").touch()
    assert installation.check_compiler().state == "ok"


def test_a_check_that_fails_itself_is_a_fault_and_the_others_go_on(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_compiler", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "PLUG_INS", ("no_such_plug_in", "no_such.plug_in"))
    found = list(doctor.diagnose(tmp_path))
    compiler = by_name(found)["C++ compiler"]
    assert compiler.state == "fault"
    assert "could not be looked at (ZeroDivisionError: division by zero)." in compiler.sentence
    assert [(finding.name, finding.state) for finding in found[-2:]] == [("data", "note")] * 2


def test_a_plug_in_whose_own_import_fails_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "broken_plug_in.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = doctor.guarded("data", lambda: doctor.check_data(tmp_path, "broken_plug_in"))
    assert found.state == "fault"
    assert "(ModuleNotFoundError: No module named 'no_such_module_at_all')" in found.sentence


def test_a_truncated_file_sets_the_exit_status(quick, tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    path = tmp_path / "mnist" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert doctor.main(["--data_dir", str(tmp_path)]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "FAULT mnist Expected" in words
    assert "train-labels-idx1-ubyte to be an uncompressed IDX file of bytes" in words
    assert "Set `--data.download true` to replace it" in words


def test_the_data_folder_of_the_environment(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEER_DATA_DIR", str(tmp_path / "elsewhere"))
    doctor.main([])
    assert "elsewhere/mnist" in "".join(capsys.readouterr().out.split())


def test_errors_without_a_text_have_a_name():
    assert in_words(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert in_words(ValueError("\n")) == "ValueError"
