"""Products by oneDNN: on a CPU torch hands float32 products to MKL, which some processors slow down.

On AMD's Zen 5, one thread, 1,024 × 384 by 384 × 1,536: 107 GFLOP/s through `nn.Linear`, 236 here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def quicken(model: nn.Module) -> None:
    """Let the float32 linear and self-attention layers of a model on a CPU multiply by onednn. The model
    can no longer be trained. Nothing happens under `torch.backends.mkldnn.flags(enabled=False)`."""
    import torch

    onednn = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled):  # type: ignore[no-untyped-call]
        return
    for layer in model.modules():
        weight = next(layer.parameters(recurse=False), None)
        if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        if type(layer) is torch.nn.Linear:
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
        elif type(layer) is torch.nn.MultiheadAttention and layer.batch_first and not layer.training:
            layer.forward = partial(_attention, layer, layer.forward)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return _product(x, layer.weight, layer.bias)


def _attention(
    layer: nn.MultiheadAttention, plain: Any, query: Tensor, key: Tensor, value: Tensor, **named: Any
) -> tuple[Tensor, Tensor | None]:
    """[B, L, E] from the same [B, L, E] thrice; all but plain self-attention goes the usual way."""
    from torch.nn.functional import scaled_dot_product_attention

    mask = named.get("attn_mask")
    asked = {name for name, given in named.items() if given is not None} - {"need_weights", "attn_mask"}
    usual = query.dim() == 3 and query is key is value and not named.get("need_weights", True)
    if not usual or asked or layer.in_proj_weight is None or (mask is not None and mask.dim() != 2):
        found: tuple[Tensor, Tensor | None] = plain(query, key, value, **named)
        return found
    batch, length, width = query.shape
    heads = (batch, length, 3, layer.num_heads, width // layer.num_heads)
    q, k, v = _product(query, layer.in_proj_weight, layer.in_proj_bias).view(heads).permute(2, 0, 3, 1, 4)
    if mask is not None and not mask.is_floating_point():
        mask = ~mask
    seen = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(query.shape)
    return _product(seen, layer.out_proj.weight, layer.out_proj.bias), None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., O] = [..., I] by [O, I]."""
    import torch

    if torch.compiler.is_compiling():  # which chooses for itself, and cannot lower this operator
        return torch.nn.functional.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
