"""Findings of the doctor about data sets."""

import pytest

from datamodules import intact
from tests.helpers.activity_files import write_activity
from tests.helpers.data_sets import write_every_data_set
from tests.helpers.image_files import accept_imagenet32, write_imagenet32
from tests.helpers.mnist_files import write_mnist


def found(folder):
    return {finding.name: finding for finding in intact.check_data(folder)}


def test_whole_data_sets_and_broken_ones_in_words(tmp_path, monkeypatch):
    write_every_data_set(tmp_path, monkeypatch)
    findings = found(tmp_path)
    assert findings.keys() == intact.CHECKS.keys()
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert "600 readable rows" in findings["person_activity"].sentence
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
    findings = found(tmp_path)
    assert {finding.state for finding in findings.values()} == {"fault"}
    for name, words in {
        "mnist": "t10k-images-idx3-ubyte to be an uncompressed IDX file",
        "cifar10": "data_batch_3 to have the MD5 checksum",
        "svhn": "test_32x32.mat to have the MD5 checksum",
        "physionet2012": "set-a.tar.gz to be a complete gzipped tar archive",
        "imagenet32": "val_data",
    }.items():
        assert words in findings[name].sentence


def test_the_variant_of_imagenet_is_found_by_count(tmp_path, monkeypatch):
    write_imagenet32(tmp_path / "imagenet32")
    accept_imagenet32(monkeypatch, n_train=41, n_test=13)
    finding = found(tmp_path)["imagenet32"]
    assert finding.state == "ok"
    assert finding.sentence.endswith("the variant 'withdrawn'")


def test_a_broken_file_of_imagenet_says_nothing_of_the_variant(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet32"
    write_imagenet32(folder)
    accept_imagenet32(monkeypatch)
    path = folder / "val_data.npz"
    path.write_bytes(path.read_bytes()[:-7])
    finding = found(tmp_path)["imagenet32"]
    assert finding.state == "fault"
    assert "val_data.npz to be a complete .npz file" in finding.sentence


def test_data_sets_that_are_not_there_are_noted(tmp_path):
    findings = found(tmp_path)
    assert findings.keys() == intact.CHECKS.keys()
    assert {finding.state for finding in findings.values()} == {"note"}
    assert f"no folder {tmp_path / 'mnist'}. Set `--data.down" in findings["mnist"].sentence
    assert "after a login at image-net.org" in findings["imagenet32"].sentence


def test_some_images_are_noted(tmp_path):
    write_mnist(tmp_path / "mnist")
    finding = found(tmp_path)["mnist"]
    assert finding.state == "note"
    assert "readable but partial, without the checksums" in finding.sentence


def test_a_partial_recording_is_noted(tmp_path):
    write_activity(tmp_path / "person_activity", name="ConfLongDemo_JSI.first600.txt")
    finding = found(tmp_path)["person_activity"]
    assert finding.state == "note"
    assert "readable but partial, 600 of 164860 rows" in finding.sentence


@pytest.mark.real_data
def test_the_real_data_sets_are_whole(data_dir):
    findings = found(data_dir)
    assert findings["mnist"].state == "ok"
    assert findings["physionet2012"].state == "ok"
    assert "4000 readable records" in findings["physionet2012"].sentence
