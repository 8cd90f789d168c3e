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


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_self_attention_is_torchs_own(mask):
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(3, 5, 16)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    shown = {None: None, "bool": hidden, "float": torch.zeros(5, 5).masked_fill(hidden, -torch.inf)}[mask]
    with torch.inference_mode():
        expected = layer(x, x, x, need_weights=False, attn_mask=shown)[0]
        crossed, weights = layer(x, x.flip(1), x, attn_mask=shown)
        quicken(layer)
        assert "forward" in vars(layer)
        torch.testing.assert_close(layer(x, x, x, need_weights=False, attn_mask=shown)[0], expected)
        again = layer(x, x.flip(1), x, attn_mask=shown)
        torch.testing.assert_close(again, (crossed, weights))


def test_other_types_keep_their_own_products():
    half, training = torch.nn.Linear(4, 4, dtype=torch.bfloat16), torch.nn.MultiheadAttention(8, 2)
    quicken(torch.nn.ModuleList([half, training]))
    assert "forward" not in vars(half)
    assert "forward" not in vars(training)
    assert "forward" not in vars(training.out_proj)


def test_torchs_own_switch_is_heeded():
    layer = torch.nn.Linear(4, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        quicken(layer)
    assert "forward" not in vars(layer)
