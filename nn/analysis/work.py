"""Work of a single equation of a jaxpr that has no body of its own; conventions: see `flops`."""

from __future__ import annotations

import math
from typing import Any

# One per element of the result.
ARITHMETIC = frozenset(
    (
        *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2"),
        *("atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "digamma", "div", "eq", "erf"),
        *("erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
        *("is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul"),
        *("ne", "neg", "nextafter", "not", "or", "population_count", "pow", "rem", "round"),
        *("rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
        *("sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"),
    )
)
# One per element of the first argument.
REDUCTIONS = frozenset(
    (
        *("argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"),
        *("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"),
        "reduce_xor",
    )
)
# One per element of the last argument.
SCATTERS = frozenset(
    ("scatter-add", "scatter-mul", "scatter_add", "scatter_max", "scatter_min", "scatter_mul")
)
# What no rule here knows.
OPAQUE = frozenset(
    (
        *("cholesky", "custom_call", "eig", "eigh", "ffi_call", "geqrf", "hessenberg"),
        *("householder_product", "io_callback", "lu", "pure_callback", "qr", "schur", "svd"),
        *("triangular_solve", "tridiagonal", "tridiagonal_solve"),
    )
)


def of_equation(eqn: Any) -> tuple[str, int]:
    """(kind, amount): "dot", "batched_dot" (the product has batch dimensions), "conv" and
    "ragged_dot" in FLOPs, "elementwise" in operations; "opaque" where the amount is not known."""
    name = eqn.primitive.name
    size = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return "conv", _conv(eqn)
    if name in ("ragged_dot_general", "ragged_dot"):
        return "ragged_dot", _ragged_dot(eqn)
    if name in REDUCTIONS:
        size = math.prod(eqn.invars[0].aval.shape)
    elif name in SCATTERS:
        size = math.prod(eqn.invars[-1].aval.shape)
    elif name.startswith(("reduce_window", "select_and_")):
        size *= math.prod(eqn.params["window_dimensions"])
    elif name == "fft":
        size = round(5 * size * math.log2(max(math.prod(eqn.params["fft_lengths"]), 2)))
    elif name in OPAQUE or "dot_product_attention" in name:
        return "opaque", 0
    elif name not in ARITHMETIC:  # what only moves data
        size = 0
    return "elementwise", size


def _dot(eqn: Any) -> tuple[str, int]:
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    flops = 2 * math.prod(out) * math.prod(lhs[d] for d in contracted)
    return ("batched_dot" if batch else "dot"), flops


def _ragged_dot(eqn: Any) -> int:
    """Each row of the left side meets the matrix of one group."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    used = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(lhs) * math.prod(n for d, n in enumerate(rhs) if d not in used)


def _conv(eqn: Any) -> int:
    p = eqn.params
    numbers = p["dimension_numbers"]
    rhs, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    flops = 2 * rhs[numbers.rhs_spec[1]]  # input features that an output feature sees
    flops *= out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
    for d, (k, o) in enumerate(zip(numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)):
        holes, pad = p["lhs_dilation"][d], p["padding"][d][0]
        flops *= _meetings(rhs[k], out[o], p["window_strides"][d], p["rhs_dilation"][d], holes, pad)
    return flops


def _meetings(kernel: int, out: int, stride: int, dilation: int, holes: int, pad: int) -> int:
    """Pairs (output, element of the kernel) along one dimension that do not meet a hole."""
    if holes == 1:
        return kernel * out
    starts = (o * stride + k * dilation - pad for o in range(out) for k in range(kernel))
    return sum(position % holes == 0 for position in starts)
