import pytest
import torch

from steer_lightning.utils import compiling
from steer_lightning.utils.compiling import compiled


def double(x):
    return 2.0 * x


@pytest.fixture
def settings(monkeypatch):
    """What torch.compile is asked for; nothing is compiled."""
    asked = []

    def listen(function, **settings):
        asked.append(settings)
        return lambda *args: function(*args)

    monkeypatch.setattr(torch, "compile", listen)
    compiled.cache_clear()
    yield asked
    compiled.cache_clear()


def test_a_function_is_compiled_once(settings):
    assert compiled(double) is compiled(double)
    assert settings == [{"fullgraph": True}]
    assert torch.equal(compiled(double)(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize(("before", "after"), [(8, compiling.RECOMPILE_LIMIT), (999, 999)])
@pytest.mark.usefixtures("settings")
def test_room_for_the_graphs_of_many_blocks_and_never_less_than_before(before, after):
    with torch._dynamo.config.patch(recompile_limit=before):
        compiled(double)(torch.ones(2))
        assert torch._dynamo.config.recompile_limit == after
