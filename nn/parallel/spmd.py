"""One `shard_map` over the whole mesh, with the types that prove gradients complete."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from nn.parallel.mesh import Rules, platform_of, use_rules


def spmd(
    fn: Callable[..., Any], mesh: Mesh | None, rules: Rules, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Run `fn` on every device of the mesh on its shares of the arguments.

    With no mesh, or a mesh of one device, `fn` runs as it is: the single-device program is the
    very same function.
    """

    @functools.wraps(fn)
    def body(*args: Any) -> Any:
        with use_rules(rules, platform_of(mesh)):
            return fn(*args)

    if mesh is None or mesh.size == 1:
        return body

    # check_vma: the type system inserts, and checks, every sum of gradients over the mesh.
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True)
