"""Generation with a key-value cache: one compiled loop over tokens, on any mesh.

`generate` is one program; `Stepwise` cuts it between steps, for those who want to see tokens as
they come. A callback from within the loop would do that too, but an ordered one makes the devices
wait for the host at every token, and there is none across the devices of a mesh; a loop that
returns after some steps, and takes its state back, costs one dispatch for all of them.

Legend: B rows, P longest prompt, N new tokens, T = P + N, D width of the states, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.run import reading
from launch.run.beam import Beam
from launch.run.logits import Processor, adjust, sample
from launch.run.logits import Sampling as Sampling
from launch.run.reading import Inputs, Loop, State
from nn import parallel
from nn.parallel import BATCH_AXES
from nn.parallel.collectives import varying


class Rows(State):
    tokens_BT: jax.Array


@dataclasses.dataclass(frozen=True)
class Plain:
    """One token per row and step: the likeliest or a drawn one."""

    model: nn.Module
    how: Sampling
    new_tokens: int
    processor: Processor | None = None

    @property
    def stops(self) -> bool:
        return bool(self.how.stop)

    def start(self, params: Any, inputs: Inputs) -> Rows:
        tokens_BT = reading.room(inputs, self.new_tokens)
        states_BD, cache = reading.prefill(self.model, params, inputs, tokens_BT.shape[1])
        none_B = inputs.lengths_B < 0
        state = Rows(jnp.zeros((), jnp.int32), inputs.lengths_B, none_B, cache, tokens_BT)
        return self._append(params, inputs, state, states_BD)

    def step(self, params: Any, inputs: Inputs, state: Rows) -> Rows:
        # A row that is done reads its last token again, to the same place.
        last_B1 = state.ends_B[:, None] - 1
        token_B1 = jnp.take_along_axis(state.tokens_BT, last_B1, axis=1)
        states_B1D, cache = reading.read(
            self.model, params, token_B1, last_B1, state.cache, inputs.memory
        )
        return self._append(params, inputs, state.replace(cache=cache), states_B1D[:, 0])

    def _append(self, params: Any, inputs: Inputs, state: Rows, states_BD: jax.Array) -> Rows:
        """Choose a token for each row that is not done."""
        tokens_BT, ends_B, done_B = state.tokens_BT, state.ends_B, state.done_B
        logits_BV = reading.logits(self.model, params, states_BD[:, None])[:, 0]
        logits_BV = adjust(logits_BV, tokens_BT, ends_B, inputs.lengths_B, self.how, self.processor)
        token_B = sample(logits_BV, inputs.keys(state.step), self.how)
        places_B = jnp.where(done_B, tokens_BT.shape[1], ends_B)
        rows = jnp.arange(len(places_B))
        tokens_BT = tokens_BT.at[rows, places_B].set(token_B, mode="drop")
        ends_B = jnp.where(done_B, ends_B, ends_B + 1)
        done_B |= ends_B - inputs.lengths_B >= self.new_tokens
        if self.stops:
            done_B |= reading.is_stop(token_B, self.how.stop)
        return state.replace(step=state.step + 1, tokens_BT=tokens_BT, ends_B=ends_B, done_B=done_B)

    def view(self, state: Rows) -> dict[str, jax.Array]:
        return {"tokens": state.tokens_BT, "ends": state.ends_B, "done": state.done_B}


def loop_of(
    model: nn.Module, new_tokens: int, how: Sampling, processor: Processor | None = None
) -> Loop:
    """The loop over one model that does what `how` asks for."""
    kind = Plain if how.beams == 1 else Beam
    return kind(model, how, new_tokens, processor)


def advance(loop: Loop, params: Any, inputs: Inputs, state: Any, until: Any) -> Any:
    """Go on until every row is done or the loop has gone round `until` times."""

    def unfinished(state: Any) -> jax.Array:
        short = state.step < until
        return short & ~_all_rows(state.done_B) if loop.stops else short

    return jax.lax.while_loop(unfinished, lambda s: loop.step(params, inputs, s), state)


def _all_rows(done_B: jax.Array) -> jax.Array:
    """Whether every row of every shard is done: all shards must leave the loop together."""
    open_rows = jnp.sum(~done_B)
    return parallel.psum(open_rows, BATCH_AXES) == 0


def run(loop: Loop, params: Any, inputs: Inputs) -> dict[str, jax.Array]:
    """All of it: `loop.view` of the end."""
    state = loop.start(params, inputs)
    return loop.view(advance(loop, params, inputs, state, loop.new_tokens))


def generate(
    model: nn.Module,
    params: Any,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    seed: jax.Array,
    rows_B: jax.Array,
    memory: Any = None,
    *,
    new_tokens: int,
    how: Sampling,
    processor: Processor | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continue each row by up to `new_tokens` tokens; arguments as in `Inputs`.

    Returns:
      tokens (B, T), each row's new tokens right after its prompt; and the new lengths (B,).
    """
    loop = loop_of(model, new_tokens, how, processor)
    view = run(loop, params, Inputs(prompts_BP, lengths_B, seed, rows_B, memory or {}))
    return view["tokens"], view["ends"]


def compiled(
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    rules: parallel.Rules,
    param_specs: Any,
    new_tokens: int,
    how: Sampling,
    processor: Processor | None = None,
) -> Any:
    """`(params, prompts, lengths, seed, rows, memory={}) -> (tokens, lengths)`, jitted, rows over
    the mesh."""
    on_mesh = OnMesh(loop_of(model, new_tokens, how, processor), mesh, rules, param_specs)
    whole = on_mesh.whole()

    @jax.jit
    def call(
        params: Any, prompts: Any, lengths: Any, seed: Any, ids: Any, memory: Any = None
    ) -> Any:
        view = whole(params, Inputs(prompts, lengths, seed, ids, memory or {}))
        return view["tokens"], view["ends"]

    return call


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A loop with its rows over the batch axes of a mesh. Views are on every device, so that every
    process can read them."""

    loop: Loop
    mesh: jax.sharding.Mesh
    rules: parallel.Rules
    param_specs: Any

    def whole(self) -> Any:
        """`(params, inputs) -> view`, one program."""
        body = functools.partial(run, self.loop)
        return jax.jit(self._spmd(body, (), self._rows), out_shardings=self._everywhere)

    def pieces(self, params: Any, inputs: Inputs) -> tuple[Any, Any]:
        """`start(params, inputs)` and `advance(params, inputs, state, until)`, jitted; both return
        the state and a view of it. `advance` takes the place of the state that it is given.

        Between the two a leaf of the state has one more dimension in front, over the axes on which
        it differs from shard to shard: whatever a model's cache is made of, it comes back as it
        went.
        """
        specs: list[Any] = []

        def out(state: Any) -> tuple[Any, dict[str, jax.Array]]:
            specs[:] = [jax.tree.map(lambda x: P(varying(x) or None), state)]
            return jax.tree.map(lambda x: x[None], state), self.loop.view(state)

        def start(params: Any, inputs: Inputs) -> Any:
            return out(self.loop.start(params, inputs))

        def go_on(params: Any, inputs: Inputs, state: Any, until: jax.Array) -> Any:
            state = jax.tree.map(lambda x: x[0], state)
            return out(advance(self.loop, params, inputs, state, until))

        # The first trace only tells on which axes the leaves differ.
        jax.eval_shape(self._spmd(start, (), (P(parallel.AXES), self._rows)), params, inputs)
        held = specs[0]
        places = (None, self._everywhere)
        return (
            jax.jit(self._spmd(start, (), (held, self._rows)), out_shardings=places),
            jax.jit(
                self._spmd(go_on, (held, P()), (held, self._rows)),
                out_shardings=places,
                donate_argnums=2,
            ),
        )

    @property
    def _rows(self) -> P:
        return P(parallel.mesh.present(self.mesh, BATCH_AXES) or None)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def _spmd(self, body: Any, more_specs: tuple[Any, ...], out_specs: Any) -> Any:
        # One token at a time leaves no sequence to split.
        rules = dataclasses.replace(self.rules, sequence_parallel=False)
        rows: Any = self._rows
        whole: Any = P()
        inputs = Inputs(rows, rows, whole, rows, rows)
        in_specs = (self.param_specs, inputs, *more_specs)
        return parallel.spmd(body, self.mesh, rules, in_specs, out_specs)
