"""Warner et al. 2024, ModernBERT: files of transformers' ModernBert models, in both directions.

Queries, keys and values lie in one tensor, as do both halves of the gated feed-forward block. The
first layer's attention has no norm before it: files have none, and our leaf, which has one for
every layer, holds what is never used. Newer configs list the kinds of layers in `layer_types` and
the rotary bases in `rope_parameters`; older ones name their period and the bases.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nn import names as names_
from nn.families.bert import Config
from nn.pretrained import encoder
from nn.pretrained.encoder import linear, norm
from nn.pretrained.table import Leaf, Row, Table, read, require

MODEL_TYPES = ("modernbert",)
FAMILY = "bert"
FULL, LOCAL = "full_attention", "sliding_attention"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "modernbert",
    "architectures": None,
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_pooling": "cls",
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "local_attention": 128,
    "layer_types": None,
    "global_attn_every_n_layers": 3,
    "rope_parameters": None,
    "rope_scaling": None,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "id2label": None,
    "num_labels": 2,
}
HEADS = {
    "ModernBertModel": "none",
    "ModernBertForMaskedLM": "masked_token",
    "ModernBertForSequenceClassification": "class",
}
GATED = {"gelu": "geglu", "silu": "swiglu", "relu": "reglu"}  # theirs -> ours
POOLS = {"cls": "first", "mean": "mean"}
DROPOUTS = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our encoder",
        decoder_bias=(c["decoder_bias"], True),
        mlp_bias=(c["mlp_bias"], c["attention_bias"]),
        tie_word_embeddings=(c["tie_word_embeddings"], True),
        rope_scaling=(c["rope_scaling"], None),
        **{key: (c[key], 0.0) for key in DROPOUTS},
    )
    theta, local_theta = _thetas(c)
    activation = c["classifier_activation"]
    activation = names_.lookup("classifier_activation", activation, encoder.ACTIVATIONS)
    return Config(
        **encoder.head_from(c, HEADS, "none"),
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        token_types=0,
        pad_token=encoder.padding(raw, 50283),
        dim=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        activation=names_.lookup("hidden_activation", c["hidden_activation"], GATED),
        norm_order="pre",
        norm_eps=c["norm_eps"],
        norm_bias=c["norm_bias"],
        bias=c["attention_bias"],
        position="rotary",
        rope_theta=theta,
        rope_local_theta=0.0 if local_theta == theta else local_theta,
        windows=_windows(c),
        head_activation=activation,
        head_bias=c["classifier_bias"],
        pool=names_.lookup("classifier_pooling", c["classifier_pooling"], POOLS),
        pool_activation=activation,
        pool_norm=True,
        init_std=c["initializer_range"],
    )


def _thetas(c: Mapping[str, Any]) -> tuple[float, float]:
    """Rotary bases of the layers that see everything, and of the others."""
    bases = {FULL: float(c["global_rope_theta"]), LOCAL: float(c["local_rope_theta"])}
    for kind, options in (c["rope_parameters"] or {}).items():
        options = {"rope_type": "default", "rope_theta": bases[kind]} | (options or {})
        require("our encoder", rope_type=(options["rope_type"], "default"))
        bases[kind] = float(options["rope_theta"])
    return bases[FULL], bases[LOCAL]


def _windows(c: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the layers in turn. They see half of `local_attention` on either side."""
    period, layers = c["global_attn_every_n_layers"], range(c["num_hidden_layers"])
    kinds = c["layer_types"] or [LOCAL if i % period else FULL for i in layers]
    require("layer_types", num_hidden_layers=(c["num_hidden_layers"], len(kinds)))
    sizes = {FULL: 0, LOCAL: c["local_attention"] // 2 + 1}
    found = [names_.lookup("kind of layer", kind, sizes) for kind in kinds]
    turn = next(
        n for n in range(1, len(found) + 1) if all(found[i] == found[i % n] for i in layers)
    )
    return tuple(found[:turn])


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens but that of padding.

    Raises:
      ValueError: a ModernBERT cannot have a value of `config`.
    """
    limits = {w for w in config.windows if w}
    require(
        "a ModernBERT file",
        norm_order=(config.norm_order, "pre"),
        position=(config.position, "rotary"),
        token_types=(config.token_types, 0),
        embed_dim=(config.embed_width, config.dim),
        dropout=(config.dropout, 0.0),
        attention_dropout=(config.attention_dropout, 0.0),
        pool_activation=(config.pool_activation, config.head_activation),
        pool_norm=(config.pool_norm, True),
        windows=(config.windows, tuple(w and max(limits) for w in config.windows)),
    )
    gated = {ours: name for name, ours in GATED.items()}
    pools = {ours: name for name, ours in POOLS.items()}
    kinds = [LOCAL if config.windows[i % len(config.windows)] else FULL
             for i in range(config.num_layers)]  # fmt: skip
    bases = {FULL: config.rope_theta, LOCAL: config.rope_local_theta or config.rope_theta}
    return {
        "model_type": "modernbert",
        **encoder.head_to(config, HEADS, "ModernBERT"),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_activation": names_.lookup("activation of ModernBERT", config.activation, gated),
        "initializer_range": config.init_std,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "decoder_bias": True,
        "classifier_bias": config.head_bias,
        "classifier_pooling": pools[config.pool],
        "classifier_activation": encoder.activation_to(config.head_activation, "ModernBERT"),
        "local_attention": 2 * (max(limits) - 1) if limits else DEFAULTS["local_attention"],
        "layer_types": kinds,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        "pad_token_id": None if config.pad_token < 0 else config.pad_token,
        "tie_word_embeddings": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }


@dataclasses.dataclass(frozen=True)
class _Table(Table):
    """absent: what our leaves hold that no file does: name of a tensor -> its values."""

    absent: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def leaves(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Leaf]:
        first = next((tensors[row.file].dtype for row in self.rows if row.file in tensors), None)
        filled: Any = {name: x.astype(first or x.dtype) for name, x in self.absent.items()}
        theirs: Any = tensors
        return super().leaves(ChainMap(filled, theirs))

    def tensors(self, read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        yield from (pair for pair in super().tensors(read) if pair[0] not in self.absent)

    def sizes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: x for name, x in super().sizes().items() if name not in self.absent}


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where. Raises ValueError where a ModernBERT cannot have a value of `config`."""
    config_to(config)
    base, D, V = encoder.base_of(config, names, "model."), config.dim, config.vocab_size
    rows = [
        *norm(f"{base}embeddings.norm", "embed_norm", D, config.norm_bias),
        Row(f"{base}embeddings.tok_embeddings.weight", ("embed/embedding",), (V, D)),
        *norm(f"{base}final_norm", "final_norm", D, config.norm_bias),
        *_blocks(f"{base}layers.{{}}", config),
    ]
    if config.predicts_tokens:
        parts = ("head.dense", "head.norm", "decoder.bias")
        rows += encoder.token_head(config, *parts, head_bias=config.head_bias)
    if config.head == "class":
        rows += linear("head.dense", "pooler", D, D, config.head_bias)
        rows += norm("head.norm", "pooler_norm", D, config.norm_bias)
        rows += linear("classifier", "classifier", D, config.num_classes)
    copies = {"decoder.weight": f"{base}embeddings.tok_embeddings.weight"}
    tied = copies if config.predicts_tokens else {}
    values = {"weight": np.ones(D, np.float32), "bias": np.zeros(D, np.float32)}
    absent = {
        f"{base}layers.0.attn_norm.{part}": values[part]
        for part in (("weight", "bias") if config.norm_bias else ("weight",))
    }
    heads = r"(head|decoder|classifier)\..*"
    return _Table(tuple(rows), config.num_layers, heads, tied, absent=absent)


def _blocks(layer: str, config: Config) -> list[Row]:
    D, H, K, F = config.dim, config.num_heads, config.head_width, config.mlp_width
    attention, mlp = "blocks/attention", "blocks/mlp"
    kinds = {"weight": "kernel", "bias": "bias"} if config.bias else {"weight": "kernel"}
    rows = []
    for file, ours in kinds.items():
        matrix = ours == "kernel"
        qkv = tuple(f"{attention}/{name}_{ours}" for name in ("query", "key", "value"))
        halves = tuple(f"{mlp}/{name}/{ours}" for name in ("gate", "up"))
        shape, merged = ((D, H, K), (D, H * K)) if matrix else ((H, K), (H * K,))
        rows.append(Row(f"{layer}.attn.Wqkv.{file}", qkv, shape, merged, matrix))
        wide = (D, F) if matrix else (F,)
        rows.append(Row(f"{layer}.mlp.Wi.{file}", halves, wide, (), matrix))
    out_bias = f"{attention}/out_bias" if config.bias else ""
    rows += encoder.dense(f"{layer}.attn.Wo", f"{attention}/out_kernel", (H, K, D), 2, out_bias)
    rows += linear(f"{layer}.mlp.Wo", f"{mlp}/down", F, D, config.bias)
    for name in ("attention", "mlp"):
        file = "attn" if name == "attention" else "mlp"
        rows += norm(f"{layer}.{file}_norm", f"blocks/{name}_norm", D, config.norm_bias)
    return rows
