"""Every choice of the decoder-only transformer, with its default."""

from __future__ import annotations

import dataclasses

from nn import activations, names
from nn.layers import block, norm
from nn.layers.attention import QK_NORMS
from nn.layers.moe import Routing
from nn.layers.position import SCALINGS, Rotary
from nn.layers.stack import remat_policy

PARALLEL = dict.fromkeys(("none", "one_norm", "two_norms"))
PROJECTIONS = dict.fromkeys(("query", "key", "value", "out", "mlp"))
POSITIONS = dict.fromkeys(("learned", "sinusoidal", "rotary", "alibi", "none"))


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 256  # tokens
    context_length: int = 1024  # positions that the model can tell apart
    dim: int = 256  # residual width D
    num_layers: int = 4
    num_heads: int = 4  # query heads
    num_kv_heads: int = 0  # key and value heads; 0: as many as query heads
    head_dim: int = 0  # width of a head; 0: dim / num_heads
    mlp_dim: int = 0  # hidden units of the feed-forward block; 0: 4 * dim
    embed_dim: int = 0  # width of the tables of tokens, if it is not dim: projected in and out
    embed_scale: float = 1.0  # factor of the token vectors
    activation: str = "gelu_tanh"  # a gated one (swiglu, geglu) adds a third matrix
    norm: str = "layer"  # layer | rms | rms_one, whose scale is 1 + its parameter
    norm_eps: float = 1e-5
    norm_bias: bool = True  # of layer norms
    norm_order: str = "pre"  # pre | post | sandwich | output: see nn/layers/block.py
    final_norm: bool = True  # before the head
    parallel: str = "none"  # none | one_norm | two_norms: attention and feed-forward side by side
    position: str = "learned"  # learned | sinusoidal | rotary | alibi | none
    position_offset: int = 0  # rows of the learned table before that of position 0
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_local_theta: float = 0.0  # of the layers with a window, unscaled; 0: as the others
    rope_dim: int = 0  # features of a head that are turned; 0: all
    rope_interleaved: bool = False  # pairs are neighbours, not halves
    rope_scaling: str = "none"  # none | linear | ntk | yarn | llama3
    rope_factor: float = 1.0  # new context over the context of training
    rope_original_length: int = 8192  # positions, context of training
    rope_low: float = 1.0  # turns: lower end of the ramp between scaled and kept frequencies
    rope_high: float = 4.0  # turns: upper end
    bias: bool = True  # biases in dense layers
    unbiased: tuple[str, ...] = ()  # of query, key, value, out, mlp: without all the same
    qk_norm: str = "none"  # none | head | row: RMS norm of queries and keys
    attention_scale: float = 0.0  # factor of the scores; 0: 1 / sqrt(head_dim)
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    attention_cap: float = 0.0  # scores stay within this, by a tanh; 0: no cap
    logit_factor: float = 1.0  # of the logits; scale.rule sets it
    logit_cap: float = 0.0  # logits stay within this, by a tanh; 0: no cap
    head_bias: bool = False
    tie_embeddings: bool = True  # the head is the embedding table
    # a query sees this many positions up to itself, layer by layer in turn; 0: all
    windows: tuple[int, ...] = (0,)
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    dropout: float = 0.0  # probability: of embeddings, branches and attention weights
    attention_dropout: float = -1.0  # of the attention weights; -1: as dropout
    init_std: float = 0.02  # of weights; those that write to the residual: / sqrt(2 num_layers)
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loop over depth; 0: all of them
    num_experts: int = 0  # feed-forward blocks to choose from, in every layer; 0: one, for all
    experts_per_token: int = 2
    expert_dim: int = 0  # hidden units of an expert; 0: those of the feed-forward block
    shared_experts: int = 0  # experts that every token goes through besides
    shared_gate: bool = False  # the shared ones count as much as a gate says
    router_scores: str = "softmax"  # softmax | sigmoid | softmax_of_chosen
    router_normalize: bool = True  # the weights of a token's experts add up to 1
    router_scale: float = 1.0  # factor of those weights
    router_groups: int = 1  # groups of experts
    router_top_groups: int = 1  # groups of which a token's experts may be
    router_group_score: str = "max"  # max | top2: what makes a group good
    router_bias_rate: float = 0.0  # step of the bias that balances the load; 0: no bias
    router_jitter: float = 0.0  # noise on the router's input, relative
    router_balance_loss: float = 0.0  # coefficient of the load-balance loss of each layer
    router_z_loss: float = 0.0  # coefficient of the squared log-partition of each layer
    router_capacity: float = 0.0  # most tokens of an expert, over the mean; 0: no limit

    def __post_init__(self) -> None:
        for field in ("vocab_size", "context_length", "dim", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide model.dim={self.dim}; "
                f"nearest that does: {names.nearest_divisor(self.dim, self.num_heads)}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide "
                f"model.num_heads={self.num_heads}; nearest that does: "
                f"{names.nearest_divisor(self.num_heads, self.kv_heads)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout}: must be in [0, 1)")
        if self.attention_dropout != -1 and not 0.0 <= self.attention_dropout < 1.0:
            raise ValueError(
                f"model.attention_dropout={self.attention_dropout}: must be in [0, 1), or -1"
            )
        if not self.windows or min(self.windows) < 0:
            raise ValueError(f"model.windows={self.windows}: one or more sizes, 0 for no limit")
        if self.rope_dim % 2 or self.rope_dim > self.head_width:
            raise ValueError(
                f"model.rope_dim={self.rope_dim}: must be even and at most {self.head_width}, "
                f"the width of a head; nearest: {min(self.rope_dim // 2 * 2, self.head_width)}"
            )
        names.lookup("model.position", self.position, POSITIONS)
        names.lookup("model.norm_order", self.norm_order, block.ORDERS)
        names.lookup("model.qk_norm", self.qk_norm, QK_NORMS)
        names.lookup("model.parallel", self.parallel, PARALLEL)
        names.lookup("model.norm", self.norm, norm.NORMS)
        names.lookup("model.rope_scaling", self.rope_scaling, SCALINGS)
        for name in self.unbiased:
            names.lookup("model.unbiased", name, PROJECTIONS)
        activations.get(self.activation)
        remat_policy(self.remat, self.remat_names)
        _ = self.block  # checks the fields of the router

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or 4 * self.dim

    @property
    def attention_rate(self) -> float:
        return self.dropout if self.attention_dropout == -1 else self.attention_dropout

    @property
    def embed_width(self) -> int:
        return self.embed_dim or self.dim

    @property
    def experts(self) -> block.Experts | None:
        if not self.num_experts:
            return None
        fields = [f.name for f in dataclasses.fields(Routing) if f.name not in ("experts", "top_k")]
        own = {name: getattr(self, f"router_{name}") for name in fields}
        hidden = self.expert_dim or self.mlp_width
        routing = Routing(self.num_experts, self.experts_per_token, **own)
        return block.Experts(routing, hidden, self.shared_experts * hidden, self.shared_gate)

    @property
    def block(self) -> block.Spec:
        return block.Spec(
            layers=self.num_layers,
            dim=self.dim,
            heads=self.num_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_width,
            mlp_dim=self.mlp_width,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            order=self.norm_order,
            parallel=self.parallel != "none",
            shared_norm=self.parallel == "one_norm",
            bias=self.bias,
            unbiased=self.unbiased,
            qk_norm=self.qk_norm,
            scale=self.attention_scale,
            attention_factor=self.attention_factor,
            soft_cap=self.attention_cap,
            interleaved=self.rope_interleaved,
            alibi=self.position == "alibi",
            windows=self.windows,
            branch_factor=self.branch_factor,
            dropout=self.dropout,
            attention_dropout=self.attention_rate,
            init_std=self.init_std,
            out_std=self.init_std * (2 * self.num_layers) ** -0.5,
            experts=self.experts,
        )

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        tied = base.embed_width / self.embed_width if self.tie_embeddings else 1.0
        return block.factors([self.block], [base.block]) | {"logit_factor": tied}

    @property
    def rotary(self) -> tuple[Rotary, ...]:
        """Of the layers without a window, and of those with one where they differ."""
        scaled = Rotary(
            self.rope_theta,
            self.rope_scaling,
            self.rope_factor,
            self.rope_original_length,
            self.rope_low,
            self.rope_high,
        )
        return (scaled, Rotary(self.rope_local_theta)) if self.rope_local_theta else (scaled,)
