"""Reading a program's text: loops, traffic, and which mesh axes a collective is over."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import hlo, hlo_collectives

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
    rows = hlo_collectives.find(hlo.parse(TPU), MESH)
    assert {(c.axes, c.kind, c.times): c.bytes for c in rows} == {
        (("fsdp",), "all-gather", 5): 512 * 512 * 2 * 3 // 4,
        (("fsdp",), "all-gather", 1): 32 * 512 * 2 * 3 // 4,
        (("tensor",), "reduce-scatter", 5): 4 * 512 * 2,
        (("data",), "collective-permute", 1): 8 * 512 * 2,
        (("fsdp",), "all-reduce", 1): 2 * 9 * 4 * 3 // 4,
        (("data", "fsdp", "tensor"), "all-reduce", 1): 2 * 8 * 512 * 2 * 15 // 16,
    }
    assert len(rows) == 6
    assert hlo_collectives.bytes_sent("all-to-all", 800, 8) == 700


def test_overlap_is_a_product_between_start_and_end() -> None:
    rows = {(c.kind, c.times): c.overlapped for c in hlo_collectives.find(hlo.parse(TPU), MESH)}
    assert rows["collective-permute", 1]  # a dot between its halves
    assert not rows["all-gather", 1]  # a copy is no work to hide behind
    assert rows["all-gather", 5]  # a fusion of its chain multiplies
    assert not rows["reduce-scatter", 5]
    silent = hlo.parse(TPU.replace(" convolution(", " add(").replace(" dot(", " add("))
    assert not any(c.overlapped for c in hlo_collectives.find(silent, MESH))


def test_rows_add_up() -> None:
    rows = hlo_collectives.summarize(hlo_collectives.find(hlo.parse(TPU), MESH))
    gathers = next(r for r in rows if r["kind"] == "all-gather")
    assert (gathers["count"], gathers["overlapped_count"], gathers["group"]) == (6, 5, 4)
    assert gathers["bytes"] == (5 * 512 * 512 + 32 * 512) * 2 * 3 // 4
    assert gathers["overlapped_bytes"] == 5 * 512 * 512 * 2 * 3 // 4


# From a step on v5p:2x4x4 with fsdp=16 and tensor=2, shortened. The slice of 2304 rows that 16
# devices keep is padded; the second all-reduce is one, of which another instruction takes a part.
SCATTER = """HloModule jit_update, is_scheduled=true

%all-reduce-scatter (input: f32[2048,16000]) -> f32[144,16000] {
  %input = f32[2048,16000]{1,0:T(8,128)} parameter(0)
  %constant.575 = f32[] constant(0)
  %pad.152 = f32[2304,16000]{1,0:T(8,128)} pad(%input, %constant.575), padding=0_256x0_0
  %all-reduce.20 = f32[2304,16000]{1,0:T(8,128)} all-reduce(%pad.152), channel_id=50, replica_groups={{0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30},{1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31}}, use_global_device_ids=true, to_apply=%region_60.61.clone, frontend_attributes={from-cross-replica-sharding="true"}
  %constant.shard_id_table = u32[32]{0:T(128)} constant({...})
  %partition-id.12 = u32[] partition-id()
  %dynamic-slice.2 = u32[1]{0:T(128)} dynamic-slice(%constant.shard_id_table, %partition-id.12), dynamic_slice_sizes={1}
  %bitcast.167 = u32[]{:T(128)} bitcast(%dynamic-slice.2)
  %constant.577 = u32[] constant(0)
  ROOT %dynamic-slice.3 = f32[144,16000]{1,0:T(8,128)} dynamic-slice(%all-reduce.20, %bitcast.167, %constant.577), dynamic_slice_sizes={144,16000}
}

ENTRY %main.1 (arg.1: f32[2048,16000], arg.2: s32[]) -> f32[8,16000] {
  %arg.1 = f32[2048,16000]{1,0:T(8,128)} parameter(0)
  %arg.2 = s32[]{:T(128)} parameter(1)
  %fusion.11 = f32[144,16000]{1,0:T(8,128)} fusion(%arg.1), kind=kCustom, calls=%all-reduce-scatter
  %all-reduce.21 = f32[2048,16000]{1,0:T(8,128)} all-reduce(%arg.1), replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15},{16,17},{18,19},{20,21},{22,23},{24,25},{26,27},{28,29},{30,31}}, to_apply=%add.1
  ROOT %dynamic-slice.4 = f32[8,16000]{1,0:T(8,128)} dynamic-slice(%all-reduce.21, %arg.2, %arg.2), dynamic_slice_sizes={8,16000}
}
"""  # noqa: E501


def test_an_all_reduce_that_a_fusion_slices_is_a_reduce_scatter() -> None:
    mesh = {"pipe": 1, "data": 1, "fsdp": 16, "expert": 1, "context": 1, "tensor": 2}
    rows = hlo_collectives.find(hlo.parse(SCATTER), mesh)
    assert [(c.kind, c.axes, c.bytes) for c in rows] == [
        ("all-reduce", ("tensor",), 2 * 2048 * 16000 * 4 // 2),
        ("reduce-scatter", ("fsdp",), 144 * 16000 * 4 * 15),
    ]


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
    assert hlo_collectives.parse_groups(attributes, 4).tolist() == GROUPS[attributes]


def test_axes_of_every_subset_of_a_mesh() -> None:
    grid = np.arange(16).reshape(tuple(MESH.values()))
    large = [axis for axis, size in MESH.items() if size > 1]
    for count in range(1, len(large) + 1):
        for axes in itertools.combinations(large, count):
            places = [list(MESH).index(axis) for axis in axes]
            groups = np.moveaxis(grid, places, range(-count, 0))
            groups = groups.reshape(-1, int(np.prod([MESH[axis] for axis in axes])))
            assert hlo_collectives.axes_of(groups, MESH) == axes
            assert hlo_collectives.axes_of(groups[:, ::-1], MESH) == axes
    half = np.arange(16).reshape(-1, 4)[:, [0, 2]]  # two of the four of fsdp
    assert hlo_collectives.axes_of(half, MESH) == (hlo_collectives.OTHER,)
    assert hlo_collectives.axes_of(np.arange(16)[:, None], MESH) == ()


def test_permutations_are_over_the_axes_that_differ() -> None:
    ring = hlo_collectives.parse_pairs("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}, x")
    assert hlo_collectives.axes_of(ring, MESH, pairs=True) == ("fsdp",)
    assert hlo_collectives.axes_of(np.asarray([[0, 8]]), MESH, pairs=True) == ("data",)


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
