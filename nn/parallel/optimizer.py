"""Where the state of an optimizer lives: each moment beside its parameter."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def optimizer_specs(
    optimizer: optax.GradientTransformation, params: Any, specs: Any, mesh: Mesh
) -> Any:
    """A PartitionSpec per leaf of `optimizer.init(params)`.

    On a mesh of Explicit axes shardings are part of the types, so that abstract evaluation alone
    follows them, through factored moments too.

    Args:
      params: abstract parameters; specs: their PartitionSpecs.
    """
    explicit = AbstractMesh(
        mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names)
    )

    def typed(x: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(explicit, spec))

    with jax.sharding.use_abstract_mesh(explicit):
        state = jax.eval_shape(optimizer.init, jax.tree.map(typed, params, specs))
    return jax.tree.map(lambda x: P() if x.sharding is None else x.sharding.spec, state)
