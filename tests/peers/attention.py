"""Attention of torch: multi-head, cross, grouped-query, windowed, with ALiBi; all gradients.

Kernels have our layout here: (D, H, K) into the heads, (H, K, D) out of them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from tests.golden_store import Record
from tests.peers.packages import array, tensor, values_and_gradients, versions

VARIANTS = ("float32",)
B, T, S, D, H, G, K, WINDOW = 2, 7, 5, 12, 6, 2, 4, 3
SEGMENTS = np.asarray([[1, 1, 1, 1, 2, 2, 2], [1, 1, 2, 3, 3, 3, 3]])

Tensor = torch.Tensor


def allowed(name: str) -> np.ndarray:
    """Which query may look at which key, bool (B, T, T)."""
    distance = np.arange(T)[:, None] - np.arange(T)
    mask = np.broadcast_to(distance >= 0, (B, T, T))
    if "segments" in name:
        mask = mask & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
    if "window" in name:
        mask = mask & (distance < WINDOW)
    return mask


def multi_head(name: str, **given: Tensor) -> Tensor:
    """torch.nn.MultiheadAttention, whose heads have D / H features."""
    layer = torch.nn.MultiheadAttention(D, H, batch_first=True)
    kinds = ("query", "key", "value")
    params = {
        "in_proj_weight": torch.cat([given[f"{kind}_kernel"].reshape(D, D).T for kind in kinds]),
        "in_proj_bias": torch.cat([given[f"{kind}_bias"].reshape(D) for kind in kinds]),
        "out_proj.weight": given["out_kernel"].reshape(D, D).T,
        "out_proj.bias": given["out_bias"],
    }
    x = given["x"]
    memory = given["memory"] if "memory" in given else x
    hidden = None
    if name == "causal_segments":
        hidden = tensor(~allowed(name)).repeat_interleave(H, dim=0)
    options = {"attn_mask": hidden, "need_weights": False}
    return torch.func.functional_call(layer, params, (x, memory, memory), options)[0]


def grouped(name: str, **given: Tensor) -> Tensor:
    """Projections without bias around scaled_dot_product_attention."""

    def heads(kind: str) -> Tensor:
        return torch.einsum("btd,dhk->bhtk", given["x"], given[f"{kind}_kernel"])

    mask = torch.zeros(B, 1, T, T).masked_fill(~tensor(allowed(name))[:, None], -torch.inf)
    if "alibi" in name:
        ones = torch.ones(B, T)
        mask = mask + build_alibi_tensor(ones, H, torch.float32).reshape(B, H, 1, T)
    out = F.scaled_dot_product_attention(
        heads("query"), heads("key"), heads("value"), attn_mask=mask, enable_gqa=True
    )
    return torch.einsum("bhtk,hkd->btd", out, given["out_kernel"])


def record(variant: str, seed: int) -> Record:
    """x (B, T, D), memory (B, S, D), kernels and biases are random; the masks are fixed."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    whole = {f"{kind}_kernel": (D, H, D // H) for kind in ("query", "key", "value")}
    whole |= {f"{kind}_bias": (H, D // H) for kind in ("query", "key", "value")}
    whole |= {"out_kernel": (H, D // H, D), "out_bias": (D,), "x": (B, T, D)}
    shapes["full"] = shapes["causal_segments"] = whole
    shapes["cross"] = whole | {"memory": (B, S, D)}
    few = {"query_kernel": (D, H, K), "key_kernel": (D, G, K), "value_kernel": (D, G, K)}
    few |= {"out_kernel": (H, K, D), "x": (B, T, D)}
    for name in ("grouped", "grouped_window", "grouped_segments_alibi"):
        shapes[name] = few
    inputs: dict[str, np.ndarray] = {"segments": SEGMENTS.astype(np.int32)}
    outputs: dict[str, np.ndarray] = {}
    for name, of_case in shapes.items():
        given = {key: 0.7 * rng.normal(size=shape) for key, shape in of_case.items()}
        given = {key: x.astype(variant) for key, x in given.items()}
        function = grouped if name.startswith("grouped") else multi_head
        ct, found = values_and_gradients(
            lambda name=name, function=function, **given: function(name, **given), given, rng
        )
        # It is 0 but for rounding: all scores of a query move alike.
        found = {key: x for key, x in found.items() if key != "d_key_bias"}
        inputs |= {f"{name}/{key}": x for key, x in given.items()} | {f"{name}/ct": ct}
        outputs |= {f"{name}/{key}": x for key, x in found.items()}
    for heads in (8, 6, 20):
        slopes = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        outputs[f"slopes/{heads}"] = array(slopes)
    about = {
        "reference": "torch.nn.MultiheadAttention, F.scaled_dot_product_attention, Bloom",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "window": WINDOW,
        "note": "Bloom adds slope * key position: in a softmax, -slope * distance",
    }
    return Record(inputs, outputs, about)
