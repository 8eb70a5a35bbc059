from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch import nn

import benchmarks
from benchmarks import cnf_step


@pytest.mark.parametrize("name", [module.name for module in iter_modules(benchmarks.__path__)])
def test_every_module_imports(name):
    assert import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("std", [0.01, 0.1])
def test_flow_agrees_with_plain_torchdiffeq_code(std):
    flow = cnf_step.make_flow(size=8, hidden=(4,))
    torch.manual_seed(0)
    for block in flow.blocks:
        nn.init.normal_(block.vector_field.layers[-1].weight, std=std)
    differences = cnf_step.compare(flow, cnf_step.make_batch(2, size=8))
    assert len(differences) == 2
    for loss, gradient in differences.values():
        assert 0.0 <= loss < 1e-4
        assert 0.0 <= gradient < 1e-4
