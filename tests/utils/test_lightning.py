import lightning.pytorch.loggers
import pytest
import pytorch_lightning.loggers

from steer_lightning.utils.lightning import is_lightning


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch])
def test_a_class_of_either_package_is_told(package, tmp_path):
    logger = package.loggers.CSVLogger(tmp_path)
    assert is_lightning(logger, "loggers", "CSVLogger")
    assert not is_lightning(logger, "loggers", "TensorBoardLogger")
    assert not is_lightning(object(), "loggers", "CSVLogger")
