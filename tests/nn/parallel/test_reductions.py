"""Where gradients are summed over the mesh, and what fsdp holds besides its share."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest

from launch.run.state import abstract_state
from nn import parallel
from nn.families import transformer
from tests import collectives_of
from tests import parallel_cases as cases

CONFIG = dataclasses.replace(transformer.tiny(), remat="block")
MEBI = 2**20


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_accumulation_sums_once_over_data(sizes: dict[str, int]) -> None:
    """Without it each layer is summed in the loop over depth; with it nothing is, in any loop.

    What fsdp splits must be reduce-scattered per microbatch, or a whole gradient would be held.
    """
    found = {}
    for accumulate in (1, 2):
        rule = cases.make_rule(
            "transformer", CONFIG, sizes, parallel.Rules(), accumulate=accumulate
        )
        state = abstract_state(rule)
        batch = cases.to_mesh(rule, cases.batch_of("transformer", CONFIG))
        for program, collectives in (
            ("jaxpr", collectives_of.in_jaxpr(rule.gradients, state, batch)),
            (
                "hlo",
                collectives_of.in_hlo(
                    jax.jit(rule.gradients).lower(state, batch).compile().as_text()
                ),
            ),
        ):
            found[program, accumulate] = collections.Counter(
                (c.kind, c.loop) for c in collectives if c.bytes > 4
            )
        leaves = len(jax.tree.leaves(state.params))
    psum, scatter = "all-reduce", "reduce-scatter"
    for program in ("jaxpr", "hlo"):
        plain, once = found[program, 1], found[program, 2]
        assert plain[psum, True] == 16  # the leaves of a layer
        assert once[psum, True] == 0
        assert once[psum, False] == leaves
        split = 0 if "fsdp" not in sizes else 9
        assert plain[scatter, True] + plain[scatter, False] == split
        assert (once[scatter, True], once[scatter, False]) == (split, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_fsdp_holds_one_layer_at_a_time() -> None:
    """264 MiB of parameters, 33 MiB on each of 8 devices; beside them 23.6 MiB, else 316 MiB."""
    temporaries = {}
    for remat in ("block", "none"):
        config = transformer.Config(
            vocab_size=256, context_length=32, dim=384, num_layers=39, num_heads=8, remat=remat
        )
        rule = cases.make_rule("transformer", config, {"fsdp": 8}, parallel.Rules())
        state = abstract_state(rule)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
        assert size > 260 * MEBI
        split = parallel.shardings(rule.task.mesh, parallel.batch_spec(rule.task.mesh, 2))
        batch = {
            name: jax.ShapeDtypeStruct((8, 32), dtype, sharding=split)
            for name, dtype in (("inputs", np.int32), ("targets", np.int32), ("mask", np.float32))
        }
        compiled = jax.jit(rule.gradients).lower(state, batch).compile()
        memory = compiled.memory_analysis()
        assert memory.output_size_in_bytes < 1.1 * size / 8  # gradients leave as they live
        temporaries[remat] = memory.temp_size_in_bytes / MEBI
    assert temporaries["block"] <= 26
    assert temporaries["none"] > 264  # every gathered layer
