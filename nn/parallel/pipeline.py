"""A stack of layers whose parts lie on the stages of the mesh axis `pipe`.

Every stage runs the same program; at each tick it works on what `nn.parallel.schedule` says and
passes the result on with a `ppermute`. A stage is a pure function

    stage(weights, carry, chunk, part) -> (carry, aux)

of the weights of one piece of the depth, the rows of microbatch `part` (leaves of `carry` have the
rows as their first dimension) and the number of the piece; aux is a dict of scalars. Microbatch m
of M holds the rows m, m + M, ... of a device, hence the examples m mod M on any mesh.

gpipe and interleaved leave the backward pass to automatic differentiation and compute a stage again
in it (all but its inputs); 1f1b runs both passes itself. Blocks that have a remat policy of their
own are computed a third time: a stage then holds the activations of one block, else of all of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn.parallel import collectives, schedule
from nn.parallel.collectives import axis_index, axis_size, psum, psum_scatter, vary
from nn.parallel.mesh import current_rules
from nn.parallel.weight import bound_axis, spread

PIPE = "pipe"
Stage = Callable[[Any, Any, Any, Any], tuple[Any, dict[str, jax.Array]]]


def stages() -> int:
    """Over how many stages the layers are spread here."""
    return axis_size(PIPE) if bound_axis("layers") == PIPE else 1


def alternates() -> bool:
    """Whether training here is by 1f1b, which needs the loss of a microbatch (`one_f_one_b`)."""
    return stages() > 1 and current_rules().schedule == "1f1b"


def between_stages(tree: Any) -> Any:
    """Typed as different on each stage. Of the tokens, before their embedding: its gradient is
    then summed over the stages as one table, not as the activations of the whole batch."""
    return vary(tree, [PIPE]) if stages() > 1 else tree


def rows(tree: Any, part: Any, parts: int, batch: int) -> Any:
    """The rows of one microbatch of every leaf; leaves with one row, or none, are shared.

    Raises ValueError where the batch does not divide, or a leaf has another number of rows.
    """
    schedule.check_rows(batch, parts)

    def one(x: jax.Array) -> jax.Array:
        if x.ndim == 0 or (x.shape[0] == 1 and batch > 1):
            return x
        if x.shape[0] != batch:
            raise ValueError(
                f"a pipeline of {batch} rows cannot split an array of shape {x.shape}: "
                f"its first dimension must be the rows, or 1"
            )
        return lax.dynamic_index_in_dim(_by_part(x, parts), part, 1, keepdims=False)

    return jax.tree.map(one, tree)


def share(x_BT: jax.Array, *, states: bool) -> jax.Array:
    """This stage's share of the rows, or of the positions where the rows do not divide.

    states: x comes from the last layer and is zero on all stages but the last; else all stages
      hold the same x, such as the targets that go with the states.
    Raises ValueError where the stages divide neither.
    """
    n = stages()
    if n == 1:
        return x_BT
    dim = schedule.shared_dim(x_BT.shape[0], x_BT.shape[1], n)
    return psum_scatter(x_BT, PIPE, dim) if states else collectives.local_slice(x_BT, PIPE, dim)


def circular(stage: Stage, weights: Any, carry: Any, parts: int, rounds: int) -> tuple[Any, Any]:
    """gpipe; with more than one round: interleaved.

    Args:
      weights: of this stage's layers in their natural order, stacked along dimension 0.
      carry: input of the first layer.
    Returns:
      The output of the last layer, zero on all stages but the last; and the sum of aux over the
      stages, averaged over the microbatches.
    """
    n, here, batch = stages(), axis_index(PIPE), jax.tree.leaves(carry)[0].shape[0]
    carry = between_stages(carry)
    # Typed as varying before the loop, so that gradients are summed over the mesh once, after it.
    weights = _to_users(spread(weights, _axes(carry)), rounds)
    slots = jnp.asarray(schedule.arrivals(n, rounds))

    # The choice of the weights lies inside: outside, each tick would keep its choice.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(weights: Any, carry: Any, received: Any, chunk: Any, part: Any) -> Any:
        fresh = (here == 0) & (chunk == 0)
        x = _where(fresh, rows(carry, part, parts, batch), received)
        if rounds > 1:
            slot = slots[here, chunk]
            weights = jax.tree.map(lambda w: w[slot], weights)
        return stage(weights, x, chunk, part)

    def tick(state: Any, time: Any) -> Any:
        received, done = state
        work = schedule.forward(time, here, n, parts, rounds)
        y, aux = step(weights, carry, received, work.chunk, work.part)
        final = work.live & (here == n - 1) & (work.chunk == rounds - 1)
        done = _put(done, y, work.part, parts, final)
        aux = _where(work.live, aux, _zeros(aux))
        return (_shift(y, 1), done), aux

    start = _zeros((rows(carry, 0, parts, batch), carry))
    (_, done), aux = lax.scan(tick, start, jnp.arange(schedule.ticks(n, parts, rounds)))
    return done, jax.tree.map(lambda x: psum(x.sum(axis=0), PIPE) / parts, aux)


def one_f_one_b(
    stage: Stage,
    last: Callable[[Any, Any, Any], tuple[jax.Array, Any]],
    weights: Any,
    rest: Any,
    carry: Any,
    parts: int,
    aux_weight: jax.Array,
) -> tuple[jax.Array, Any, Any]:
    """Loss by schedule 1f1b, which knows its gradient when it is done.

    The forward pass of this function is both passes of the pipeline: what it keeps for the
    backward pass of the program is the gradient of the loss, which a factor of the loss
    multiplies afterwards: too late for gradients that float16 loses without it.

    Args:
      last: (rest, output of the last layer, part) -> (loss, metrics), sums over this stage's share
        of the microbatch; the output is zero on all stages but the last (see `share`).
      weights, rest: parameters of the stage and of `last`.
      aux_weight: factor of aux["loss"] of each microbatch in the loss.
    Returns:
      The loss and the metrics, of this stage; aux as in `circular`. The loss alone has a gradient,
      with respect to weights, rest and carry.
    """
    # Types of the gradients must be those of the arguments, hence the cast outside; its transpose
    # is the one sum over the mesh.
    carry = between_stages(carry)
    weights, rest = spread((weights, rest), _axes(carry))

    def passes(weights: Any, rest: Any, carry: Any) -> Any:
        return _Passes(stage, last, weights, rest, carry, parts, aux_weight).run()

    @jax.custom_vjp
    def run(weights: Any, rest: Any, carry: Any) -> Any:
        return passes(weights, rest, carry)[0]

    def scale(gradients: Any, cotangents: Any) -> Any:
        return jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradients)

    run.defvjp(passes, scale)
    loss, metrics, aux = run(weights, rest, carry)
    aux = jax.tree.map(lambda x: psum(x, PIPE) / parts, aux)
    return loss, *lax.stop_gradient((metrics, aux))


@dataclasses.dataclass(frozen=True)
class _Passes:
    """Both passes of `one_f_one_b`; fields as its arguments. Lives inside one trace."""

    stage: Stage
    last: Callable[[Any, Any, Any], tuple[jax.Array, Any]]
    weights: Any
    rest: Any
    carry: Any
    parts: int
    aux_weight: jax.Array

    @property
    def depth(self) -> int:
        """Microbatches between the two passes of a stage, at most."""
        return min(2 * stages() - 1, self.parts)

    def input(self, part: Any) -> Any:
        """What a microbatch enters the first stage with."""
        return rows(self.carry, part, self.parts, jax.tree.leaves(self.carry)[0].shape[0])

    def with_loss(self, weights: Any, x: Any, part: Any) -> Any:
        """((output, what the stage adds to the loss or None), aux)."""
        y, aux = self.stage(weights, x, 0, part)
        return (y, aux["loss"] * self.aux_weight if "loss" in aux else None), aux

    def forward(self, received: Any, kept: Any, time: Any) -> Any:
        """Output, inputs kept for the backward pass, and (loss, aux) of the stage."""
        here = axis_index(PIPE)
        live, part, _ = schedule.forward(time, here, stages(), self.parts)
        x = _where(here == 0, self.input(part), received)
        (y, loss), aux = self.with_loss(self.weights, x, part)
        slot = part % self.depth
        kept = jax.tree.map(lambda k, x: _write(k, x, slot, 0, live), kept, x)
        return y, kept, _where(live, (loss, aux), _zeros((loss, aux)))

    def head(self, y: Any, time: Any) -> Any:
        """(loss, metrics) of the microbatch that the last stage has just done; its gradients."""
        n = stages()
        part = schedule.forward(time, n - 1, n, self.parts).part
        final = axis_index(PIPE) == n - 1

        def of_last(rest: Any, y: Any) -> Any:
            return self.last(rest, _where(final, y, _zeros(y)), part)

        loss, pull, metrics = jax.vjp(of_last, self.rest, y, has_aux=True)
        return (loss, metrics), pull(jnp.ones_like(loss))

    def backward(self, cotangent: Any, kept: Any, gradients: Any, time: Any) -> Any:
        """Cotangent for the stage before, and the gradients with those of a microbatch."""
        here = axis_index(PIPE)
        live, part, _ = schedule.backward(time, here, stages(), self.parts)
        x = jax.tree.map(lambda k: k[part % self.depth], kept)
        (_, loss), pull, _ = jax.vjp(
            lambda w, x: self.with_loss(w, x, part), self.weights, x, has_aux=True
        )
        seed = (cotangent, jax.tree.map(jnp.ones_like, loss))
        dw, dx = pull(_where(live, seed, _zeros(seed)))
        of_weights, of_carry = gradients
        of_carry = _put(of_carry, dx, part, self.parts, live & (here == 0))
        return _shift(dx, -1), (_add(of_weights, dw), of_carry)

    def run(self) -> tuple[Any, Any]:
        """((loss, metrics, aux), gradients of the loss)."""
        final = axis_index(PIPE) == stages() - 1

        def fill(state: Any, time: Any) -> Any:
            received, kept = state
            y, kept, sums = self.forward(received, kept, time)
            return (_shift(y, 1), kept), sums

        def steady(state: Any, time: Any) -> Any:
            received, kept, cotangent, gradients, of_rest = state
            y, kept, sums = self.forward(received, kept, time)
            out, (dr, dy) = self.head(y, time)
            cotangent = _where(final, dy, cotangent)
            cotangent, gradients = self.backward(cotangent, kept, gradients, time)
            return (_shift(y, 1), kept, cotangent, gradients, _add(of_rest, dr)), (sums, out)

        def drain(state: Any, time: Any) -> Any:
            return self.backward(state[0], kept, state[1], time), None

        filling, full, draining = (
            jnp.asarray(np.asarray(phase, np.int32))
            for phase in schedule.phases(stages(), self.parts)
        )
        x = _zeros(self.input(0))
        kept = jax.tree.map(lambda x: jnp.stack([x] * self.depth), x)
        (received, kept), early = lax.scan(fill, (x, kept), filling)
        start = (received, kept, x, _zeros((self.weights, self.carry)), _zeros(self.rest))
        state, (late, (losses, metrics)) = lax.scan(steady, start, full)
        _, kept, cotangent, gradients, of_rest = state
        (_, (of_weights, of_carry)), _ = lax.scan(drain, (cotangent, gradients), draining)

        loss, aux = jax.tree.map(lambda a, b: a.sum(axis=0) + b.sum(axis=0), early, late)
        total = losses.sum(axis=0) + (0.0 if loss is None else loss)
        metrics = jax.tree.map(lambda x: x.sum(axis=0), metrics)
        return (total, metrics, aux), (of_weights, of_rest, of_carry)


def _to_users(weights: Any, rounds: int) -> Any:
    """The weights of the pieces that this stage works on, stacked in the order of arrival.

    Stored are neighbouring pieces, so that the stack as a whole has its natural order; used are
    every n-th. The transpose brings the gradients home.
    """
    if rounds == 1:
        return weights
    n, here = stages(), axis_index(PIPE)
    routes = schedule.routes(n, rounds)

    def move(w: jax.Array) -> jax.Array:
        pieces = w.reshape(rounds, -1, *w.shape[1:])
        arrived = []
        for route in routes:
            piece = lax.dynamic_index_in_dim(
                pieces, jnp.asarray(route.group)[here], 0, keepdims=False
            )
            arrived.append(lax.ppermute(piece, PIPE, list(enumerate(route.to))))
        return jnp.stack(arrived)

    return jax.tree.map(move, weights)


def _axes(tree: Any) -> set[str]:
    """The mesh axes over which any leaf varies."""
    return {axis for x in jax.tree.leaves(tree) for axis in collectives.varying(x)}


def _by_part(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:])


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _shift(tree: Any, by: int) -> Any:
    return jax.tree.map(lambda x: collectives.shift(x, PIPE, by), tree)


def _write(store: jax.Array, x: jax.Array, index: Any, dim: int, condition: Any) -> jax.Array:
    """The store with x at an index of `dim`, where the condition holds."""
    old = lax.dynamic_index_in_dim(store, index, dim, keepdims=False)
    return lax.dynamic_update_index_in_dim(store, jnp.where(condition, x, old), index, dim)


def _put(tree: Any, part_of_tree: Any, part: Any, parts: int, condition: Any) -> Any:
    """The inverse of `rows`: write a microbatch into the whole, where the condition holds."""

    def one(whole: jax.Array, x: jax.Array) -> jax.Array:
        split = _by_part(whole, parts)
        return _write(split, x, part, 1, condition).reshape(whole.shape)

    return jax.tree.map(one, tree, part_of_tree)
