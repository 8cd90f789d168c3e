"""Linear layers by oneDNN give what float64 gives, and other layers are let alone."""

from __future__ import annotations

import pytest
import torch

from harness.models.onednn import quicken


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_float64(bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 20, bias=bias)
    model, exact = torch.nn.Sequential(layer), torch.nn.Linear(48, 20, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    quicken(model)
    assert "forward" in vars(layer)
    for shape in ((1, 48), (3, 5, 48)):
        x = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(model(x), exact(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_other_types_and_kinds_of_layers_keep_their_own_products():
    half, attention = torch.nn.Linear(4, 4, dtype=torch.bfloat16), torch.nn.MultiheadAttention(8, 2)
    quicken(torch.nn.ModuleList([half, attention]))
    assert "forward" not in vars(half)
    assert "forward" not in vars(attention.out_proj)
