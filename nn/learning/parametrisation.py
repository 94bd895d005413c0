"""How first values and learning rates follow from the size of a model: what is tuned on a small
one, the base, then holds for a larger one.

muP: Yang & Hu 2021; Yang et al. 2022 (tensor programs V). CompleteP, for depth too: Dey et al.
2025. A weight is compared with its like in the base. m_in and m_out are how many times more inputs
it sums over, and outputs it makes; l is how many times more layers its stack has, or 1 without one.

|                       | first values, std of the base x         | Adam, Lion | SGD           |
|-----------------------|-----------------------------------------|------------|---------------|
| factor of             | m_in^-1/2 min(1, (m_out / m_in)^1/2)    | 1 / m_in   | l m_out / m_in |

is all of their tables: of input weights and vectors, which sum over nothing that grows, m_in is 1;
of output weights m_out is 1; of hidden ones neither. (Tables 3 and 8 of tensor programs V, where
m_in = m_out; the minimum is that of Yang, Simon & Bernstein 2023, equation 4, for hidden weights
whose sides grow apart.) A gradient is 1 / (l m_out) of the base's, hence Adam's epsilon too.
Decoupled decay keeps its strength: it is multiplied by m_in, as the rate is divided by it.

Factors of the forward pass are folded into these where they can be: a head that is divided by m_in
is one whose first values and rate are, as Adam's steps follow the scale of a weight. Where they
cannot, a model has fields for them (`FACTORS`), and its `Config.factors(base)` says what they are:
of the scores of attention, which are divided by the width of a head and not by its root; of what
each branch adds to the residual, which is divided by l; of a head that is the table of the
embedding, or of that table where it grows with the width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from nn import names
from nn.parallel.weight import LORA, Named, Names, is_named, matrix_dims

RULES = dict.fromkeys(("standard", "mup", "completep"))
# Fields of a model's Config that a rule sets, 1 where it has nothing to say.
FACTORS = ("attention_factor", "branch_factor", "logit_factor", "embed_factor")
VECTORS = ("scale", "bias")  # weights that are added or multiplied to what they are beside
LOOKED_UP = ("embedding", "positions", "relative")  # tables: their rows are not summed over
Tree = Any


@dataclasses.dataclass(frozen=True)
class Row:
    """What a rule says of one weight, beside its like in the base.

    fan_in, fan_out, depth: m_in, m_out and l. initial: factor of the first values, which takes into
      account how they depend on the shape anyway.
    """

    path: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    fan_in: float
    fan_out: float
    depth: float
    initial: float

    @property
    def kind(self) -> str:
        """One of the words of the papers."""
        if self.fan_in == 1:
            return "fixed" if self.fan_out == 1 else "input"
        return "output" if self.fan_out == 1 else "hidden"

    @property
    def adam_rate(self) -> float:
        """Factor of the rate of methods whose steps do not depend on the size of the gradient."""
        return 1 / self.fan_in

    @property
    def sgd_rate(self) -> float:
        return self.depth * self.fan_out / self.fan_in

    @property
    def gradient(self) -> float:
        """The size of an entry of the gradient over that of the base."""
        return 1 / (self.depth * self.fan_out)


def compare(rule: str, params: Tree, base: Tree) -> dict[str, Row]:
    """What a rule says of every weight, by path.

    params, base: of the model and its base, each leaf `Named`, abstract or not.
    Raises:
      ValueError: no such rule, weights that the base has not, or, for muP, another depth.
    """
    names.lookup("scale.rule", rule, RULES)
    own, theirs = _by_path(params), _by_path(base)
    strange = sorted(own.keys() ^ theirs.keys())
    if strange:
        has = "lacks" if strange[0] in own else "has"
        raise ValueError(
            f"scale.base {has} {strange[0]}, and models are compared weight by weight; "
            "nearest: a base that differs in widths and in the number of stacked layers only"
        )
    rows = {path: _row(path, own[path], theirs[path]) for path in own}
    for row in rows.values():
        if rule == "mup" and row.depth != 1:
            raise ValueError(
                f"scale.rule='mup' is for models of one depth, and {row.path} has {row.shape[0]} "
                f"layers, {row.base_shape[0]} in the base; nearest: scale.rule='completep'"
            )
    return rows


def _by_path(tree: Tree) -> dict[str, Named]:
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_named)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _row(path: str, own: Named, base: Named) -> Row:
    shapes = tuple(own.value.shape), tuple(base.value.shape)
    if own.names != base.names:
        raise ValueError(
            f"scale.base: {path} has the dimensions {base.names} there and {own.names} here; "
            "nearest: a base that differs in widths and in the number of stacked layers only"
        )
    # A vocabulary is no width: a base may have another.
    times = [1.0 if n == "vocab" else a / b for a, b, n in zip(*shapes, own.names, strict=True)]
    stack, cut = _sides(path, own.names)
    fan_in, fan_out = math.prod(times[stack:cut]), math.prod(times[cut:])
    depth = math.prod(n for n, name in zip(times, own.names, strict=True) if name == "layers")
    initial = 1.0
    if own.stddev and base.stddev:
        wanted = base.stddev * fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)
        initial = wanted / own.stddev
    return Row(path, *shapes, fan_in, fan_out, depth, initial)


def _sides(path: str, logical: Names) -> tuple[int, int]:
    """Where the inputs, and where the outputs of a weight begin; vectors and tables have none of
    the first."""
    stack, cut = matrix_dims(logical)
    leaf = path.rpartition("/")[2]
    if leaf.endswith(LORA[1]):
        return stack, stack + 1
    if leaf in LOOKED_UP:
        return stack + 1, stack + 1
    if len(logical) - stack < 2 or leaf.rpartition("_")[2] in VECTORS:
        return stack, stack
    return stack, cut


def scaled(params: Tree, rows: Mapping[str, Row]) -> Tree:
    """The first values of a model, each leaf `Named`, as the rows want them."""

    def one(path: Any, leaf: Named) -> Named:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        factor = rows[name].initial if name in rows else 1.0
        return leaf if factor == 1 else leaf.replace(value=leaf.value * factor)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_named)
