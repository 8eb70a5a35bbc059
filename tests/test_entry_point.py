"""``steer-lightning`` and ``python -m steer_lightning``."""

import platform
from configparser import ConfigParser
from importlib import import_module, metadata
from pathlib import Path

import pytest

import steer_lightning
from steer_lightning import __main__ as entry
from steer_lightning.doctor import Finding
from steer_lightning.doctor import report as doctor
from tests.helpers.fresh_process import run

ROOT = Path(__file__).resolve().parents[1]


def test_version_prints_what_is_installed(capsys):
    assert entry.main(["version"]) == 0
    printed = capsys.readouterr().out
    assert f"steer-lightning   {steer_lightning.__version__}\n" in printed
    assert f"python            {platform.python_version()}\n" in printed
    assert f"torchdiffeq       {metadata.version('torchdiffeq')}\n" in printed
    assert "jsonargparse" not in printed  # an extra
    assert printed.endswith(f"python {ROOT / 'cli.py'} --help\n")


def test_version_is_an_option_too(capsys):
    with pytest.raises(SystemExit, match="0"):
        entry.main(["--version"])
    assert capsys.readouterr().out == f"{steer_lightning.__version__}\n"


def test_version_works_where_torch_does_not(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    (tmp_path / "steer_lightning").symlink_to(Path(steer_lightning.__file__).parent)
    path = str(tmp_path)
    printed = run("-m", "steer_lightning", "version", cwd=tmp_path, PYTHONPATH=path)
    assert "torch             " in printed


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr(entry.metadata, "distributions", list)
    assert "torch             not installed" in entry.versions()


def test_the_installed_package_says_that_the_command_line_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(entry, "__file__", str(tmp_path / "steer_lightning" / "__main__.py"))
    assert "in the repository and not in the installed package" in entry.command_line()


def test_doctor_is_the_doctor(monkeypatch, tmp_path, capsys):
    seen = []

    def diagnose(data_dir):
        seen.append(data_dir)
        yield Finding("torch", "fault", "broken.")

    monkeypatch.setattr(doctor, "diagnose", diagnose)
    assert entry.main(["doctor", "--data_dir", str(tmp_path)]) == 1
    assert seen == [tmp_path]
    assert capsys.readouterr().out == "FAULT  torch              broken.\n\nfaults: 1, notes: 0\n"


def test_no_command_is_an_error_that_names_them(capsys):
    with pytest.raises(SystemExit, match="2"):
        entry.main([])
    assert "{doctor,version}" in capsys.readouterr().err


def test_the_script_is_declared():
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg")
    scripts = declared["options.entry_points"]["console_scripts"].split("=")
    assert scripts[0].strip() == "steer-lightning"
    module, _, function = scripts[1].strip().partition(":")
    assert getattr(import_module(module), function) is entry.main
