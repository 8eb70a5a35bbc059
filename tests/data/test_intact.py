"""Findings of the doctor about data sets."""

import pytest

from datamodules import intact
from tests.helpers.activity_files import write_activity
from tests.helpers.cifar_files import accept_cifar10, write_cifar10
from tests.helpers.imagenet_files import accept_imagenet32, write_imagenet32
from tests.helpers.mnist_files import write_mnist
from tests.helpers.physionet_files import accept_physionet, write_physionet
from tests.helpers.svhn_files import accept_svhn, write_svhn


def by_name(findings):
    return {finding.name: finding for finding in findings}


def write_all(folder, monkeypatch):
    write_mnist(folder / "mnist")
    write_cifar10(folder / "cifar10")
    accept_cifar10(monkeypatch, folder / "cifar10")
    write_svhn(folder / "svhn")
    accept_svhn(monkeypatch, folder / "svhn")
    write_imagenet32(folder / "imagenet32")
    accept_imagenet32(monkeypatch)
    write_physionet(folder / "physionet2012")
    accept_physionet(monkeypatch)
    write_activity(folder / "person_activity")
    monkeypatch.setattr(intact, "N_ROWS", 600)


def test_whole_data_sets(tmp_path, monkeypatch):
    write_all(tmp_path, monkeypatch)
    found = by_name(intact.check_data(tmp_path))
    assert found.keys() == intact.CHECKS.keys()
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "600 readable rows" in found["person_activity"].sentence


def test_the_variant_of_imagenet_is_found_by_count(tmp_path, monkeypatch):
    write_imagenet32(tmp_path / "imagenet32")
    accept_imagenet32(monkeypatch, n_train=41, n_test=13)
    found = by_name(intact.check_data(tmp_path))["imagenet32"]
    assert (found.state, found.sentence[-21:]) == ("ok", "the variant 'withdrawn'"[-21:])


def test_data_sets_that_are_not_there_are_noted(tmp_path):
    found = by_name(intact.check_data(tmp_path))
    assert found.keys() == intact.CHECKS.keys()
    assert {finding.state for finding in found.values()} == {"note"}
    assert found["mnist"].sentence.startswith(f"no folder {tmp_path / 'mnist'}. Set `--data.down")
    assert "after a login at image-net.org" in found["imagenet32"].sentence


def test_broken_data_sets_are_faults_in_words(tmp_path, monkeypatch):
    write_all(tmp_path, monkeypatch)
    for file in (
        "mnist/MNIST/raw/t10k-images-idx3-ubyte",
        "cifar10/cifar-10-batches-py/data_batch_3",
        "svhn/test_32x32.mat",
        "physionet2012/set-a.tar.gz",
        "person_activity/ConfLongDemo_JSI.txt",
    ):
        path = tmp_path / file
        path.write_bytes(path.read_bytes()[:-7])
    (tmp_path / "imagenet32" / "val_data.npz").unlink()
    found = by_name(intact.check_data(tmp_path))
    assert {finding.state for finding in found.values()} == {"fault"}
    for name, words in {
        "mnist": "t10k-images-idx3-ubyte to be an uncompressed IDX file",
        "cifar10": "data_batch_3 to have the MD5 checksum",
        "svhn": "test_32x32.mat to have the MD5 checksum",
        "physionet2012": "set-a.tar.gz to be a complete gzipped tar archive",
        "imagenet32": "val_data",
    }.items():
        assert words in found[name].sentence


def test_a_partial_recording_is_noted(tmp_path):
    write_activity(tmp_path / "person_activity", name="ConfLongDemo_JSI.first600.txt")
    found = by_name(intact.check_data(tmp_path))["person_activity"]
    assert found.state == "note"
    assert "readable but partial, 600 of 164860 rows" in found.sentence


@pytest.mark.real_data
def test_the_real_data_sets_are_whole(data_dir):
    found = by_name(intact.check_data(data_dir))
    assert found["mnist"].state == "ok"
    assert found["physionet2012"].state == "ok"
    assert "4000 readable records" in found["physionet2012"].sentence
