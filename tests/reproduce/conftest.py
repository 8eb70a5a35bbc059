import pytest

from tests.helpers.activity_files import write_activity
from tests.helpers.cifar_files import accept_cifar10, write_cifar10
from tests.helpers.hopper_files import without_dm_control, write_hopper
from tests.helpers.imagenet_files import accept_imagenet32, write_imagenet32
from tests.helpers.mnist_files import write_mnist
from tests.helpers.physionet_files import accept_physionet, write_physionet
from tests.helpers.svhn_files import accept_svhn, write_svhn


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reproduce"])
    monkeypatch.delenv("STEER_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Tiny files of every data set, which count as genuine."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        write_mnist(folder / "mnist")
        write_cifar10(folder / "cifar10")
        accept_cifar10(patch, folder / "cifar10")
        write_svhn(folder / "svhn")
        accept_svhn(patch, folder / "svhn")
        write_activity(folder / "person_activity")
        write_hopper(folder / "cache" / "hopper")
        without_dm_control(patch)
        write_physionet(folder / "physionet2012")
        accept_physionet(patch)
        write_imagenet32(folder / "imagenet32")
        accept_imagenet32(patch)
        yield folder
