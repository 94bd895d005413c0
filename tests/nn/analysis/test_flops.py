"""FLOPs of jaxprs against closed forms, and against XLA's own count where that is right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from nn.analysis import flops
from nn.analysis.flops import Flops


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def xla(fn: Any, *args: Any) -> float:
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ab,bc->ac", [(4, 5), (5, 6)], 2 * 4 * 5 * 6),
        ("btd,dhk->bthk", [(2, 3, 8), (8, 4, 5)], 2 * 2 * 3 * 8 * 20),
        ("bthk,bshk->bhts", [(2, 3, 4, 5), (2, 7, 4, 5)], 2 * 2 * 4 * 3 * 7 * 5),
        ("a,b->ab", [(4,), (5,)], 2 * 20),
    ],
)
def test_products(equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
    def product(*args: jax.Array) -> jax.Array:
        return jnp.einsum(equation, *args)

    found = flops.count(product, *(array(*shape) for shape in shapes))
    assert (found.total, found.matmul) == (expected, {"dot": expected})
    assert xla(product, *(array(*s) for s in shapes)) in (expected, expected // 2)  # outer: no sums


def convolution(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


CONVS = [
    ((2, 9, 11, 4), (3, 5, 4, 6), dict(window_strides=(1, 1), padding="VALID")),
    ((2, 9, 11, 4), (3, 3, 4, 6), dict(window_strides=(2, 1), padding="VALID")),
    ((2, 9, 11, 4), (3, 3, 2, 6), dict(window_strides=(1, 1), padding="VALID")),  # two groups
    (
        (1, 9, 9, 2),
        (3, 3, 2, 3),
        dict(window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 2)),
    ),
]


@pytest.mark.parametrize(("image", "kernel", "options"), CONVS)
def test_convolutions(
    image: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    options = options | {"feature_group_count": image[3] // kernel[2]}
    out = jax.eval_shape(lambda x, w: convolution(x, w, **options), array(*image), array(*kernel))
    found = flops.count(lambda x, w: convolution(x, w, **options), array(*image), array(*kernel))
    kh, kw, features, _ = kernel
    assert found.matmul == {"conv": 2 * out.size * kh * kw * features}
    assert found.total == xla(
        lambda x, w: convolution(x, w, **options), array(*image), array(*kernel)
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_backward_of_a_convolution_costs_twice_the_forward(stride: int) -> None:
    """Strides leave holes in the backward pass's operands, which nobody has to multiply."""
    x, w = array(2, 16, 16, 4), array(4, 4, 4, 8)

    def loss(args: Any) -> jax.Array:
        return jnp.sum(convolution(*args, window_strides=(stride,) * 2, padding="SAME") ** 2)

    found = flops.train_step_flops(loss, (x, w))
    assert found.backward.total == 2 * found.forward.total
    assert found.forward.total == 2 * 2 * (16 // stride) ** 2 * 8 * 4 * 16


def test_transposed_convolution_skips_holes() -> None:
    x, w = array(1, 5, 5, 3), array(2, 2, 3, 4)
    found = flops.count(
        lambda x, w: convolution(
            x, w, window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)
        ),
        x,
        w,
    )
    assert found.total == 2 * 100 * 4 * 3  # 10 x 10 outputs, each of which meets one input


def test_resnet50_stem() -> None:
    """118,013,952 multiply-adds: the figure that published counts of ResNet-50 have for it."""
    found = flops.count(
        lambda x, w: convolution(x, w, window_strides=(2, 2), padding=((3, 3), (3, 3))),
        array(1, 224, 224, 3),
        array(7, 7, 3, 64),
    )
    assert found.total == 2 * 118_013_952


def test_scan_is_length_times_body() -> None:
    def body(c: jax.Array, w: jax.Array) -> Any:
        return jnp.tanh(c @ w), None

    w, c = array(7, 5, 5), array(3, 5)
    found = flops.count(lambda c, w: lax.scan(body, c, w)[0], c, w)
    assert found.total == 7 * 2 * 3 * 5 * 5
    assert found.elementwise == 7 * 3 * 5
    assert found.total == flops.count(lambda c, w: lax.scan(body, c, w, unroll=7)[0], c, w).total
    # What makes XLA's own figure useless here:
    assert xla(lambda c, w: lax.scan(body, c, w)[0], c, w) < found.total / 4


def test_nested_loops_multiply() -> None:
    def inner(c: jax.Array, _: Any) -> Any:
        return c @ c, None

    def outer(c: jax.Array, _: Any) -> Any:
        return lax.scan(inner, c, None, length=3)[0], None

    found = flops.count(lambda c: lax.scan(outer, c, None, length=5)[0], array(4, 4))
    assert found.total == 15 * 2 * 64


def test_fori_loop_of_known_length() -> None:
    found = flops.count(lambda c: lax.fori_loop(0, 6, lambda i, c: c @ c, c), array(4, 4))
    assert (found.total, found.loops) == (6 * 128, ())


def test_while_is_counted_once_and_reported() -> None:
    def run(c: jax.Array) -> jax.Array:
        with jax.named_scope("search"):
            return lax.while_loop(lambda c: jnp.max(c) < 9, lambda c: c @ c, c)

    found = flops.count(run, array(4, 4))
    assert found.total == 128
    assert found.elementwise == 16 + 1  # the maximum and the comparison
    assert found.loops == ("while in search",)


def test_cond_is_its_dearest_branch() -> None:
    def run(i: jax.Array, x: jax.Array) -> jax.Array:
        return lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    assert flops.count(run, array(dtype=jnp.int32), array(4, 4)).total == 2 * 128


def test_wrappers_are_looked_into() -> None:
    @jax.custom_vjp
    def custom(x: jax.Array) -> jax.Array:
        return x @ x

    custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    forward = jax.custom_jvp(lambda x: x @ x)
    forward.defjvps(lambda dx, y, x: dx @ x + x @ dx)
    x = array(4, 4)
    for fn in (jax.jit(lambda x: x @ x), jax.checkpoint(lambda x: x @ x), forward, custom):
        assert flops.count(fn, x).total == 128, fn
    found = flops.train_step_flops(lambda x: forward(x).sum(), x)
    assert (found.forward.total, found.backward.total) == (128, 256)
    found = flops.train_step_flops(lambda x: custom(x).sum(), x)
    assert (found.forward.total, found.backward.total) == (128, 256)


def test_shard_map_counts_all_devices() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def local(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(x @ w, "b")

    split = jax.shard_map(local, mesh=mesh, in_specs=(P("a", "b"), P("b")), out_specs=P("a"))
    x, w = array(8, 6), array(6, 10)
    assert flops.count(split, x, w).total == flops.count(lambda x, w: x @ w, x, w).total
    # Over one axis only, the other is not multiplied.
    part = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), axis_names={"a"}
    )
    assert flops.count(part, x, w).total == flops.count(lambda x, w: x @ w, x, w).total


@pytest.mark.parametrize("groups", [1, 3])
def test_grouped_product_counts_its_rows(groups: int) -> None:
    x, w, sizes = array(12, 4), array(groups, 4, 5), array(groups, dtype=jnp.int32)
    forward = 2 * 12 * 4 * 5
    assert flops.count(lax.ragged_dot, x, w, sizes).matmul == {"ragged_dot": forward}
    found = flops.train_step_flops(
        lambda xw, sizes: jnp.sum(lax.ragged_dot(*xw, sizes) ** 2), (x, w), sizes
    )
    assert found.backward.total == 2 * forward


def test_kernels() -> None:
    def kernel(x: Any, y: Any) -> None:
        y[...] = x[...] @ x[...]

    def call(**options: Any) -> Any:
        block = pl.BlockSpec((1, 8, 8), lambda i: (i, 0, 0))
        return pl.pallas_call(
            lambda x, y: kernel(x.at[0], y.at[0]),
            grid=(3,),
            in_specs=[block],
            out_specs=block,
            out_shape=array(3, 8, 8),
            **options,
        )

    assert flops.count(call(), array(3, 8, 8)).matmul == {"kernel": 3 * 1024}
    estimate = pl.CostEstimate(flops=77, transcendentals=5, bytes_accessed=9)
    found = flops.count(call(cost_estimate=estimate), array(3, 8, 8))
    assert (found.matmul, found.elementwise) == ({"kernel": 77}, 5)


def test_what_is_not_counted_is_said() -> None:
    found = flops.count(lambda x: jnp.linalg.qr(x)[0] @ x, array(4, 4))
    assert found.total == 128
    assert any("householder" in what or "qr" in what for what in found.opaque)


def test_elementwise_agrees_with_xla() -> None:
    def run(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y + x - 2.0 * y, axis=0)

    x = array(64, 32)
    found = flops.count(run, x, x)
    assert found.matmul == {}
    assert found.elementwise == 5 * 64 * 32
    assert xla(run, x, x) == pytest.approx(found.elementwise, rel=0.02)  # n - 1 sums of n


DIM, LAYERS, HEADS, VOCAB, BATCH, LENGTH = 24, 3, 4, 50, 2, 10


def decoder(remat: bool) -> Any:
    """A toy decoder: (loss of parameters and tokens, abstract parameters, tokens)."""
    params = {
        "embed": array(VOCAB, DIM),
        "qkv": array(LAYERS, DIM, 3, HEADS, DIM // HEADS),
        "out": array(LAYERS, HEADS, DIM // HEADS, DIM),
        "up": array(LAYERS, DIM, 4 * DIM),
        "down": array(LAYERS, 4 * DIM, DIM),
    }

    def block(x: jax.Array, p: Any) -> Any:
        q, k, v = jnp.einsum("btd,dihk->ibthk", x, p["qkv"])
        with jax.named_scope("attention"):
            weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
            y = jnp.einsum("bhts,bshk->bthk", weights, v)
        x = x + jnp.einsum("bthk,hkd->btd", y, p["out"])
        return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        layers = {name: p for name, p in params.items() if name != "embed"}
        step = jax.checkpoint(block) if remat else block
        x, _ = lax.scan(step, params["embed"][tokens], layers)
        return jnp.sum(jax.nn.log_softmax(x @ params["embed"].T))

    return loss, params, array(BATCH, LENGTH, dtype=jnp.int32)


def test_decoder_against_the_formula() -> None:
    """6 N D of the weights that multiply, and 12 L T d per token for attention (PaLM, app. B)."""
    loss, params, tokens = decoder(remat=False)
    weights = sum(int(np.prod(p.shape)) for p in params.values())  # the tied head multiplies
    per_token = 6 * weights + 12 * LAYERS * LENGTH * DIM
    found = flops.train_step_flops(loss, params, tokens)
    assert found.model.total == per_token * BATCH * LENGTH
    assert found.model.matmul["attention"] == 12 * LAYERS * LENGTH * DIM * BATCH * LENGTH
    assert found.backward.total == 2 * found.forward.total
    assert found.model.causal == found.model.total - found.model.matmul["attention"] / 2
    assert found.recompute.total == 0
    assert found.executed.total == flops.count(jax.value_and_grad(loss), params, tokens).total


def test_recomputation_is_no_model_flops() -> None:
    plain, params, tokens = decoder(remat=False)
    found = flops.train_step_flops(decoder(remat=True)[0], params, tokens)
    expected = flops.train_step_flops(plain, params, tokens)
    assert found.model.matmul == expected.model.matmul
    # All of a block again but its last product, whose result nothing needs.
    layer = DIM * (3 * DIM + DIM + 4 * DIM) + 2 * LENGTH * DIM
    assert found.recompute.total == 2 * layer * LAYERS * BATCH * LENGTH
    assert found.executed.total == (
        flops.count(jax.value_and_grad(decoder(remat=True)[0]), params, tokens).total
    )


def test_recomputation_inside_a_custom_backward_pass() -> None:
    """What a fused attention does: scores again, from what it kept, here in a jit of their own
    whose other result does depend on the cotangent."""

    @jax.custom_vjp
    def f(q: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.exp(q @ k.T)

    def backward(kept: Any, g: jax.Array) -> Any:
        q, k = kept
        s, g = jax.jit(lambda g: (q @ k.T, g + 1))(g)
        s = g * jnp.exp(s @ jnp.eye(4))
        return s @ k, s.T @ q

    f.defvjp(lambda q, k: (f(q, k), (q, k)), backward)
    x = array(4, 4)
    found = flops.train_step_flops(lambda qk: f(*qk).sum(), (x, x))
    assert [f.total for f in (found.forward, found.backward, found.recompute)] == [128, 256, 256]


def test_a_cotangent_that_enters_a_loop_on_the_way() -> None:
    """The carry of the backward loop starts from zero: what it multiplies is no recomputation."""

    def loss(w: jax.Array, c: jax.Array) -> jax.Array:
        def body(c: jax.Array, _: Any) -> Any:
            return c @ w, jnp.sum(c)

        return jnp.sum(lax.scan(body, c, None, length=6)[1])

    found = flops.train_step_flops(loss, array(4, 4), array(4, 4))
    assert found.forward.total == 6 * 128
    assert found.backward.total == 2 * found.forward.total
    assert found.recompute.total == 0


def test_auxiliary_results() -> None:
    def loss(w: jax.Array, x: jax.Array) -> Any:
        return jnp.sum(x @ w), {"extra": x @ x.T}

    found = flops.train_step_flops(loss, array(4, 5), array(3, 4))
    assert found.backward.total == 2 * 3 * 4 * 5


def test_sums_of_counts() -> None:
    a = Flops({"dot": 3, "conv": 1}, 2, ("while in x",), ("qr",))
    b = Flops({"dot": 1}, 5, ("while in x",), ())
    assert a + b == Flops({"dot": 4, "conv": 1}, 7, ("while in x",), ("qr",))
    assert a - b == Flops({"dot": 2, "conv": 1}, 0, (), ("qr",))
    assert b * 3 == Flops({"dot": 3}, 15, ("while in x",), ())


def test_mfu_says_what_it_means() -> None:
    work = Flops({"dot": 600, "attention": 400})
    full = flops.mfu(work, seconds=2.0, devices=5, peak=200.0)
    assert full.value == pytest.approx(0.5)
    half = flops.mfu(work, seconds=2.0, devices=5, peak=200.0, attention="causal")
    assert half.value == pytest.approx(0.4)
    text = str(flops.mfu(Flops({"dot": 4 * 10**14}), 1.0, 1, 989e12))
    assert text == "40.4% of 989 TFLOP/s per device (attention counted in full)"
    assert "by half, as a causal mask leaves it" in str(half)


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"devices": 0}, {"peak": float("nan")}])
def test_mfu_of_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        flops.mfu(Flops({}), **({"seconds": 1.0, "devices": 1, "peak": 1.0} | wrong))
    with pytest.raises(ValueError, match="unknown convention for attention 'half'"):
        flops.mfu(Flops({}), 1.0, 1, 1.0, attention="half")
