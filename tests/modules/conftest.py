import pytest

from tests.helpers.models import tiny_trainer
from tests.modules.cases import CASES


@pytest.fixture
def trainer():
    return tiny_trainer()


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]
