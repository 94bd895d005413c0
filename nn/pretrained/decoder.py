"""What the files of decoders have in common: keys of config.json, names of tensors.

The names are those of Llama and its descendants: an embedding table, layers with `self_attn` and
`mlp`, norms whose names tell where they stand, an output head of its own unless it is tied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nn import names
from nn.families.transformer import Config
from nn.pretrained.table import Row, Table, dense, require

LAYER = "model.layers.{}"
PROJECTIONS = ("query", "key", "value", "out")
# What the formats mean when config.json leaves a key out; sizes are their own.
DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": None,  # None: as many as attention heads
    "head_dim": None,  # None: hidden_size / num_attention_heads
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "sliding_window": None,
    "layer_types": None,
}
# Theirs -> our gated activation; of two names for one function the first is written.
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
    "sigmoid": "glu",
}
# Theirs -> ours, of feed-forward blocks without a gate.
PLAIN = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "quick_gelu": "quick_gelu",
}
# Rotary options of each rope_type: theirs -> our field. Default: no more than the base.
ROPE_TYPES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low",
        "high_freq_factor": "rope_high",
        "original_max_position_embeddings": "rope_original_length",
    },
}
LAYER_TYPES = ("full_attention", "sliding_attention")
# Fields that say how a model is trained, of which files know nothing.
_TRAINING = ("remat", "remat_names", "scan_unroll", "init_std", "dropout", "attention_dropout")


def fields_from(c: Mapping[str, Any], activation: str = "hidden_act") -> dict[str, Any]:
    """Fields of our Config from a whole config.json; activation: the key of it."""
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    kv_heads, width = c["num_key_value_heads"], c["head_dim"]
    return {
        "vocab_size": c["vocab_size"],
        "context_length": c["max_position_embeddings"],
        "dim": dim,
        "num_layers": c["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": 0 if kv_heads in (None, heads) else kv_heads,
        "head_dim": 0 if width is None or width * heads == dim else width,
        "mlp_dim": c["intermediate_size"],
        "activation": names.lookup(activation, c[activation], GATED),
        "norm": "rms",
        "norm_eps": c["rms_norm_eps"],
        "position": "rotary",
        "tie_embeddings": c["tie_word_embeddings"],
        "init_std": c["initializer_range"],
        "attention_dropout": rate_from(c["attention_dropout"], 0.0),
        **rope_from(rope_of(c), c["max_position_embeddings"]),
    }


def fields_to(config: Config, kind: str, activation: str = "hidden_act") -> dict[str, Any]:
    """The same keys of a config.json of a kind of model, such as "Llama". It names no special
    tokens: those are the tokenizer's."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        activation: activation_to(config, GATED, kind),
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "attention_dropout": config.attention_rate,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        **rope_to(config, kind),
    }


def activation_to(config: Config, activations: Mapping[str, str], kind: str) -> str:
    """Their name of the activation."""
    theirs = {ours: name for name, ours in reversed(list(activations.items()))}
    return names.lookup(f"activation of {kind}", config.activation, theirs)


def rate_from(attention: float, others: float) -> float:
    """Our attention_dropout."""
    return -1.0 if attention == others else attention


def biases_from(attention: Iterable[str], mlp: bool) -> dict[str, Any]:
    """Our fields where these projections of the attention have a bias, and the feed-forward."""
    has = {name: name in attention for name in PROJECTIONS} | {"mlp": mlp}
    without = tuple(name for name, biased in has.items() if not biased)
    return {"bias": any(has.values()), "unbiased": without if any(has.values()) else ()}


def biased(config: Config, name: str) -> bool:
    """Whether a projection, or "mlp", has a bias."""
    return config.bias and name not in config.unbiased


def rope_of(c: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary options, from the old keys or the new ones."""
    given = c["rope_scaling"] or c["rope_parameters"] or {}
    kind = given["type"] if "type" in given else "default"
    return {"rope_theta": c["rope_theta"], "rope_type": kind} | dict(given)


def rope_from(rope: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Our rotary fields; context: of a config, which is the length of training if none is said."""
    rope = {"partial_rotary_factor": 1.0, "original_max_position_embeddings": context} | dict(rope)
    require("our transformer", partial_rotary_factor=(rope["partial_rotary_factor"], 1.0))
    kind = rope["rope_type"]
    fields = names.lookup("rope_type", kind, ROPE_TYPES)
    for key in fields:
        if key not in rope:
            raise ValueError(f"rope_type={kind!r} without {key!r}: needs {', '.join(fields)}")
    found = {ours: rope[theirs] for theirs, ours in fields.items()}
    scaling = "none" if kind == "default" else kind
    return {"rope_theta": float(rope["rope_theta"]), "rope_scaling": scaling, **found}


def scaling_to(config: Config, kind: str) -> dict[str, Any]:
    """rope_type and its options."""
    name = "default" if config.rope_scaling == "none" else config.rope_scaling
    fields = names.lookup(f"rope_scaling of {kind}", name, ROPE_TYPES)
    return {"rope_type": name} | {key: getattr(config, ours) for key, ours in fields.items()}


def rope_to(config: Config, kind: str) -> dict[str, Any]:
    """The old keys and the new ones."""
    scaling = scaling_to(config, kind)
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling if len(scaling) > 1 else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }


def windows_from(c: Mapping[str, Any], default: Sequence[bool] = ()) -> tuple[int, ...]:
    """The windows of the layers in turn, from layer_types and sliding_window.

    default: which layers have one where layer_types is left out; by default all, if there is one.
    """
    window = c["sliding_window"] or 0
    slides = list(default) or [True]
    if c["layer_types"] is not None:
        for kind in c["layer_types"]:
            names.lookup("layer_types", kind, dict.fromkeys(LAYER_TYPES))
        slides = [kind == LAYER_TYPES[1] for kind in c["layer_types"]]
    every = [window if slide else 0 for slide in slides]
    lengths = range(1, len(every) + 1)
    turn = next(n for n in lengths if all(w == every[i % n] for i, w in enumerate(every)))
    return tuple(every[:turn])


def windows_to(config: Config, kind: str) -> dict[str, Any]:
    """layer_types and sliding_window."""
    sizes = {w for w in config.windows if w}
    if len(sizes) > 1:
        raise ValueError(
            f"windows={config.windows}: {kind} has one size; nearest: {max(sizes)} for all"
        )
    every = [config.windows[i % len(config.windows)] for i in range(config.num_layers)]
    return {
        "sliding_window": max(sizes, default=None),
        "layer_types": [LAYER_TYPES[bool(w)] for w in every],
    }


def held(
    kind: str, config: Config, raw: dict[str, Any], back: Callable[[Mapping[str, Any]], Config]
) -> dict[str, Any]:
    """`raw`, the config.json of `config`, if what `back` reads from it is the same model.

    Raises:
      ValueError: a field that a file of this kind cannot hold, and what it would be.
    """
    ours, theirs = _whole(config), _whole(back(raw))
    require(kind, **{name: (x, theirs[name]) for name, x in ours.items() if name in theirs})
    return raw


def _whole(config: Config) -> dict[str, Any]:
    """The fields that tell one model from another, with what zeros stand for."""
    rotary, experts = config.position == "rotary", config.num_experts > 0
    every = tuple(config.windows[i % len(config.windows)] for i in range(config.num_layers))
    fields = dataclasses.asdict(config) | {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_width,
        "mlp_dim": config.mlp_width,
        "rope_dim": config.rope_dim or config.head_width,
        "attention_scale": config.attention_scale or config.head_width**-0.5,
        "windows": config.windows if len(set(every)) > 1 else every[:1],
        "unbiased": tuple(sorted(config.unbiased)) if config.bias else (),
        "norm_bias": config.norm_bias and config.norm == "layer",
    }
    known = {
        name: value
        for name, value in fields.items()
        if name not in _TRAINING
        and (rotary or not name.startswith("rope_"))
        and (experts or not name.startswith(("router_", "expert", "shared_")))
    }
    if config.rope_scaling == "none":
        unused = ("rope_factor", "rope_original_length", "rope_low", "rope_high")
        known = {name: value for name, value in known.items() if name not in unused}
    return known


def norm(file: str, ours: str, width: int, bias: bool = True) -> list[Row]:
    """Rows of a norm, FILE.weight and, with `bias`, FILE.bias."""
    rows = [Row(f"{file}.weight", (f"{ours}/scale",), (width,))]
    return [*rows, Row(f"{file}.bias", (f"{ours}/bias",), (width,))] if bias else rows


def attention(config: Config, file: str, projections: Sequence[str]) -> list[Row]:
    """Rows of the four projections, FILE.NAME, in the order of `PROJECTIONS`."""
    D, H, G, K = config.dim, config.num_heads, config.kv_heads, config.head_width
    shapes = ((D, H, K), (D, G, K), (D, G, K), (H, K, D))
    rows = []
    for theirs, ours, shape in zip(projections, PROJECTIONS, shapes, strict=True):
        path = f"blocks/attention/{ours}"
        bias = f"{path}_bias" if biased(config, ours) else ""
        inputs = 2 if ours == "out" else 1
        rows += dense(f"{file}.{theirs}", f"{path}_kernel", shape, inputs, bias)
    return rows


def feed_forward(config: Config, **matrices: str) -> list[Row]:
    """Rows of dense matrices: our name ("gate", "up", "down") = the name of the file."""
    D, F = config.dim, config.mlp_width
    rows = []
    for ours, file in matrices.items():
        path, shape = f"blocks/mlp/{ours}", (F, D) if ours == "down" else (D, F)
        bias = f"{path}/bias" if biased(config, "mlp") else ""
        rows += dense(file, f"{path}/kernel", shape, 1, bias)
    return rows


def gpt_layers(config: Config, layer: str) -> list[Row]:
    """Rows of the layers of GPT and GPT-2, whose `Conv1D` kernels are (in, out) as ours are."""
    D, H, K, F = config.dim, config.num_heads, config.head_width, config.mlp_width
    path = "blocks/attention"
    kernels = tuple(f"{path}/{x}_kernel" for x in PROJECTIONS[:3])
    biases = tuple(f"{path}/{x}_bias" for x in PROJECTIONS[:3])
    return [
        *norm(f"{layer}.ln_1", "blocks/attention_norm", D),
        Row(f"{layer}.attn.c_attn.weight", kernels, (D, H, K), (D, H * K)),
        Row(f"{layer}.attn.c_attn.bias", biases, (H, K), (H * K,)),
        Row(f"{layer}.attn.c_proj.weight", (f"{path}/out_kernel",), (H, K, D), (H * K, D)),
        Row(f"{layer}.attn.c_proj.bias", (f"{path}/out_bias",), (D,)),
        *norm(f"{layer}.ln_2", "blocks/mlp_norm", D),
        Row(f"{layer}.mlp.c_fc.weight", ("blocks/mlp/up/kernel",), (D, F)),
        Row(f"{layer}.mlp.c_fc.bias", ("blocks/mlp/up/bias",), (F,)),
        Row(f"{layer}.mlp.c_proj.weight", ("blocks/mlp/down/kernel",), (F, D)),
        Row(f"{layer}.mlp.c_proj.bias", ("blocks/mlp/down/bias",), (D,)),
    ]


# Where the norms of a layer stand: theirs -> ours.
NORMS = {
    "pre": {"input": "attention_norm", "post_attention": "mlp_norm"},
    "sandwich": {
        "input": "attention_norm",
        "post_attention": "attention_out_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_out_norm",
    },
    "output": {"post_attention": "attention_out_norm", "post_feedforward": "mlp_out_norm"},
}


def table(config: Config, experts: Sequence[Row] = ()) -> Table:
    """What lies where; experts: rows of a mixture in place of the feed-forward block."""
    D, H, G, K = config.dim, config.num_heads, config.kv_heads, config.head_width
    rows = [
        Row("model.embed_tokens.weight", ("embed/embedding",), (config.vocab_size, D)),
        *norm("model.norm", "final_norm", D, bias=False),
    ]
    for file, ours in NORMS[config.norm_order].items():
        rows += norm(f"{LAYER}.{file}_layernorm", f"blocks/{ours}", D, bias=False)
    rows += attention(config, f"{LAYER}.self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"))
    if config.qk_norm != "none":
        row = config.qk_norm == "row"
        for file, ours, heads in (("q", "query", H), ("k", "key", G)):
            shape, merged = ((heads, K), (heads * K,)) if row else ((K,), ())
            path = (f"blocks/attention/{ours}_norm/scale",)
            rows.append(Row(f"{LAYER}.self_attn.{file}_norm.weight", path, shape, merged))
    mlp = f"{LAYER}.mlp"
    rows += experts or feed_forward(
        config, gate=f"{mlp}.gate_proj", up=f"{mlp}.up_proj", down=f"{mlp}.down_proj"
    )
    if not config.tie_embeddings:
        rows += dense("lm_head", "output/kernel", (D, config.vocab_size), 1)
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    count = config.num_experts if experts else 0
    return Table(tuple(rows), config.num_layers, frequencies, copies, experts=count)
