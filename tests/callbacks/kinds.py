"""The two kinds of model that callbacks act on: with our blocks, and with fields of its own."""

import pytest

from tests.helpers.models import ForeignModel, OwnModel

KINDS = [(OwnModel, {}), (ForeignModel, {"vector_fields": ["func"]})]
both = pytest.mark.parametrize(("model_class", "where"), KINDS, ids=["own", "foreign"])
