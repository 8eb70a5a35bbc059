from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch import nn

import benchmarks
from benchmarks import classifier_step, cnf_step
from benchmarks.classifier_step import Architecture


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


@pytest.mark.parametrize("architecture", [Architecture(4), Architecture(3, 2)])
def test_classifier_agrees_with_plain_torchdiffeq_code(architecture):
    x = classifier_step.make_images(4, size=6).double()
    steps = classifier_step.make_steps(architecture, x)
    apart = classifier_step.differences(steps)
    through_autograd = ("torchdiffeq, autograd", "`ODEBlock`", "`ODEBlock`, without channels-last")
    for name in through_autograd:
        assert max(apart[name]) < 1e-10
    plain, own = (steps[f"{name}, adjoint"].result() for name in ("torchdiffeq", "`ODEBlock`"))
    for a, b in zip(plain, own, strict=True):
        torch.testing.assert_close(a, b)


def test_classifier_takes_no_extra_evaluations():
    steps = classifier_step.make_steps(Architecture(4), classifier_step.make_images(4, size=6))
    counts = {}
    for name, step in steps.items():
        step()
        counts[name] = (step.stats.nfe_forward, step.stats.nfe_backward)
    assert counts["`ODEBlock`, adjoint"] == counts["torchdiffeq, adjoint"]
    assert counts["`ODEBlock`"] == counts["torchdiffeq, autograd"]
    assert steps["torchdiffeq, autograd"].kept() > steps["torchdiffeq, adjoint"].kept()
