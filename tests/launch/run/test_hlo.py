"""Reading a program's text: loops, traffic, and which mesh axes a collective is over."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import collectives, hlo

MESH = {"pipe": 1, "data": 2, "fsdp": 4, "expert": 1, "context": 1, "tensor": 2}

# Lines cut from what libtpu made of a decoder on MESH; shapes and metadata are shortened.
TPU = """HloModule jit_update, is_scheduled=true

%condition.1 (param.1: (s32[], bf16[8,512])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(5), metadata={op_name="jit(update)/while"}
  %param.1 = (s32[]{:T(128)}, bf16[8,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.4), direction=LT
}

%start.1 (param_0.1: bf16[1,128,512]) -> (bf16[1,128,512], bf16[1,512,512], s32[2]) {
  %param_0.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.145 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=33, replica_groups={{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}, dimensions={1}, frontend_attributes={chain_id="3"}
  ROOT %custom-call.25 = (bf16[1,128,512]{2,1,0}, bf16[1,512,512]{2,1,0}, s32[2]{0:S(4)}) custom-call(%all-gather.145), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.797 (param_0.2: bf16[1,128,512], param_1.2: bf16[8,512]) -> (bf16[8,512], bf16[1,512,512]) {
  %param_0.2 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = bf16[8,512]{1,0:T(8,128)(2,1)} parameter(1)
  %convolution.1 = bf16[8,512]{1,0:T(8,128)(2,1)} convolution(%param_1.2, %param_1.2), dim_labels=bf_io->bf
  %all-gather.147 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=33, replica_groups={{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}, dimensions={1}, frontend_attributes={chain_id="3"}
  ROOT %tuple.1 = (bf16[8,512]{1,0}, bf16[1,512,512]{2,1,0}) tuple(%convolution.1, %all-gather.147)
}

%body.1 (param.2: (s32[], bf16[8,512])) -> (s32[], bf16[8,512]) {
  %param.2 = (s32[]{:T(128)}, bf16[8,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %x.1 = bf16[8,512]{1,0:T(8,128)(2,1)} get-tuple-element(%param.2), index=1
  %w.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} bitcast(%x.1)
  %async-collective-start = (bf16[1,128,512]{2,1,0}, bf16[1,512,512]{2,1,0}, s32[2]{0:S(4)}) fusion(%w.1), kind=kCustom, calls=%start.1
  %fusion.797 = (bf16[8,512]{1,0}, bf16[1,512,512]{2,1,0}) fusion(%w.1, %x.1), kind=kOutput, calls=%async_collective_fusion.797, metadata={op_name="a(b)/c"}
  %reduce_scatter.1 = bf16[4,512]{1,0:T(8,128)(2,1)} reduce-scatter(%x.1), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}, dimensions={0}, to_apply=%add.1
  %i.1 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[8,512]{1,0:T(8,128)(2,1)}) tuple(%i.1, %x.1)
}

ENTRY %main.1 (arg.1: bf16[8,512]) -> bf16[8,512] {
  %arg.1 = bf16[8,512]{1,0:T(8,128)(2,1)} parameter(0)
  %zero.1 = s32[]{:T(128)} constant(0)
  %tuple.3 = (s32[]{:T(128)}, bf16[8,512]{1,0:T(8,128)(2,1)}) tuple(%zero.1, %arg.1)
  %while.1 = (s32[]{:T(128)}, bf16[8,512]{1,0:T(8,128)(2,1)}) while(%tuple.3), condition=%condition.1, body=%body.1
  %y.1 = bf16[8,512]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
  %start.2 = (bf16[8,512]{1,0}, bf16[8,512]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y.1), channel_id=7, source_target_pairs={{0,8},{1,9},{8,0},{9,1}}
  %dot.1 = bf16[8,512]{1,0} dot(%y.1, %y.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done.2 = bf16[8,512]{1,0:T(8,128)(2,1)} collective-permute-done(%start.2)
  %start.3 = (bf16[8,512]{1,0}, bf16[32,512]{1,0}) all-gather-start(%y.1), channel_id=8, replica_groups=[4,4]<=[2,4,2]T(0,2,1), dimensions={0}
  %copy.1 = bf16[8,512]{1,0} copy(%y.1)
  %done.3 = bf16[32,512]{1,0} all-gather-done(%start.3)
  %all-reduce.4 = (f32[8]{0:T(128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%y.1, %y.1), channel_id=9, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2,'axis_3'=1,'axis_4'=2], device_ids=([2,8]T(1,0)) {'axis_1'}, to_apply=%add.1
  ROOT %all-reduce.5 = bf16[8,512]{1,0} all-reduce(%done.2), replica_groups={}, to_apply=%add.1
}
"""  # noqa: E501


def test_loops_run_as_often_as_their_condition_says() -> None:
    module = hlo.parse(TPU)
    assert module.entry == "main.1"
    assert module.counts["body.1"] == 5
    assert module.counts["async_collective_fusion.797"] == 5
    noted = TPU.replace(
        "body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert hlo.parse(noted).counts["body.1"] == 7
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


def test_every_collective_is_found_once_with_its_axes_and_bytes() -> None:
    """Bytes are those that one device sends."""
    rows = collectives.find(hlo.parse(TPU), MESH)
    assert {(c.axes, c.kind, c.times): c.bytes for c in rows} == {
        (("fsdp",), "all-gather", 5): 512 * 512 * 2 * 3 // 4,
        (("fsdp",), "all-gather", 1): 32 * 512 * 2 * 3 // 4,
        (("tensor",), "reduce-scatter", 5): 4 * 512 * 2,
        (("data",), "collective-permute", 1): 8 * 512 * 2,
        (("fsdp",), "all-reduce", 1): 2 * 9 * 4 * 3 // 4,
        (("data", "fsdp", "tensor"), "all-reduce", 1): 2 * 8 * 512 * 2 * 15 // 16,
    }
    assert len(rows) == 6
    assert collectives.bytes_sent("all-to-all", 800, 8) == 700


def test_overlap_is_a_product_between_start_and_end() -> None:
    rows = {(c.kind, c.times): c.overlapped for c in collectives.find(hlo.parse(TPU), MESH)}
    assert rows["collective-permute", 1]  # a dot between its halves
    assert not rows["all-gather", 1]  # a copy is no work to hide behind
    assert rows["all-gather", 5]  # a fusion of its chain multiplies
    assert not rows["reduce-scatter", 5]
    silent = hlo.parse(TPU.replace(" convolution(", " add(").replace(" dot(", " add("))
    assert not any(c.overlapped for c in collectives.find(silent, MESH))


def test_rows_add_up() -> None:
    rows = collectives.summarize(collectives.find(hlo.parse(TPU), MESH))
    gathers = next(r for r in rows if r["kind"] == "all-gather")
    assert (gathers["count"], gathers["overlapped_count"], gathers["group"]) == (6, 5, 4)
    assert gathers["bytes"] == (5 * 512 * 512 + 32 * 512) * 2 * 3 // 4
    assert gathers["overlapped_bytes"] == 5 * 512 * 512 * 2 * 3 // 4


GROUPS = {
    "replica_groups={{0,1},{2,3}}, dimensions={0}": [[0, 1], [2, 3]],
    "replica_groups={}, to_apply=%add": [[0, 1, 2, 3]],
    "channel_id=1": [[0, 1, 2, 3]],
    "replica_groups=[2,2]<=[4], x": [[0, 1], [2, 3]],
    "replica_groups=[2,2]<=[2,2]T(1,0), x": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'b'}, x": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([4]) {'a','b'}, x": [[0, 1, 2, 3]],
}


@pytest.mark.parametrize("attributes", GROUPS)
def test_groups_in_every_form(attributes: str) -> None:
    assert collectives.parse_groups(attributes, 4).tolist() == GROUPS[attributes]


def test_axes_of_every_subset_of_a_mesh() -> None:
    grid = np.arange(16).reshape(tuple(MESH.values()))
    large = [axis for axis, size in MESH.items() if size > 1]
    for count in range(1, len(large) + 1):
        for axes in itertools.combinations(large, count):
            places = [list(MESH).index(axis) for axis in axes]
            groups = np.moveaxis(grid, places, range(-count, 0))
            groups = groups.reshape(-1, int(np.prod([MESH[axis] for axis in axes])))
            assert collectives.axes_of(groups, MESH) == axes
            assert collectives.axes_of(groups[:, ::-1], MESH) == axes
    half = np.arange(16).reshape(-1, 4)[:, [0, 2]]  # two of the four of fsdp
    assert collectives.axes_of(half, MESH) == (collectives.OTHER,)
    assert collectives.axes_of(np.arange(16)[:, None], MESH) == ()


def test_permutations_are_over_the_axes_that_differ() -> None:
    ring = collectives.parse_pairs("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}, x")
    assert collectives.axes_of(ring, MESH, pairs=True) == ("fsdp",)
    assert collectives.axes_of(np.asarray([[0, 8]]), MESH, pairs=True) == ("data",)


def test_bytes_of_shapes() -> None:
    assert hlo.shape_bytes("f32[8,128]{1,0:T(8,128)}") == 4096
    assert hlo.shape_bytes("(bf16[3]{0}, /*index=1*/pred[], token[], s4[3])") == 6 + 1 + 0 + 2
    assert hlo.shape_bytes("f8e4m3fn[16]{0}") == 16
    assert hlo.shape_bytes("(f32[2]{0:T(128)S(1)}, f32[4]{0:T(128)})", "hbm") == 16


def compiled_traffic(fn, *args) -> tuple[int, float]:
    compiled = jax.jit(fn).lower(*args).compile()
    return hlo.memory_traffic(hlo.parse(compiled.as_text())), compiled.cost_analysis()[
        "bytes accessed"
    ]


def test_traffic_is_that_of_xla_where_there_is_no_loop() -> None:
    x = jnp.ones((256, 256))
    ours, theirs = compiled_traffic(lambda x, y: jnp.tanh(x @ y) + x, x, x)
    assert ours == pytest.approx(theirs, rel=0.01)


def test_traffic_of_a_loop_counts_slices_and_every_iteration() -> None:
    """A layer of the stack is read in each iteration, not all of it."""
    stack, x = jnp.ones((32, 256, 256)), jnp.ones((256, 256))

    def run(stack: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    ours, theirs = compiled_traffic(run, stack, x)
    layer = 256 * 256 * 4
    assert 32 * 3 * layer <= ours <= 32 * 9 * layer
    assert ours > 4 * theirs  # which counts the body once
