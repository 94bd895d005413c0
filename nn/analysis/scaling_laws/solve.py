"""The one objective and the one optimiser: many weighted robust fits at once.

    minimise over phi   sum_i w_i H_delta(ln L(phi, x_i) - ln L_i)      Hoffmann et al. 2022, eq. 3

with Huber's H_delta(r) = r^2/2 for |r| < delta, else delta (|r| - delta/2). Bootstrap,
leave-one-out, hold-out, drop-k, many starts, many noisy tables: all are problems with the same rows
but other weights, losses, deltas or starts, so all run through `solve`, S problems in step.

delta = 0 is the least absolute deviation, sum_i w_i |r_i|; delta = inf least squares. The sum is
never replaced by a mean: with fixed tolerances a mean stops optimisers early (which is how
Hoffmann's published constants came about). All tolerances here are relative, so that weights
scaled by any number give the same answer.

Step (Levenberg-Marquardt with two curvatures): with J the derivatives of ln L,
    [J' W (1{|r| < delta} + lambda min(1, delta/|r|)) J + lambda mu diag] step = - J' W psi(r)
lambda -> 0 is Newton's step on Huber's piecewise quadratic (terms in r psi left out), lambda >= 1
that of iteratively reweighted least squares, which can not go up but for the curvature of ln L.
Steps that do go up are refused and lambda is raised; for small deltas the length of the step is
first searched on residuals that are linear along it, which sees the kinks. A large delta is brought
down to the wanted one in stages, so that far starts see a smooth objective first.

Legend: S problems, P parameters, I rows, K features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nn.analysis.scaling_laws.forms import Form
from nn.analysis.scaling_laws.table import Array, Labels, Mask

SMALLEST_DELTA = 1e-7  # stands for 0: a ten-millionth of the loss
MAX_STEPS = 300
_RIDGE = 0.05  # mu
_LONGEST = 1.0  # of a step, in any coordinate
_KINKED = 1e-3  # below this delta the objective is all but piecewise linear
_LENGTHS = 2.0 ** np.arange(0, -12, -1)
_CHUNK = 200_000  # numbers in the derivatives of one chunk: these stay in the processor's cache


@dataclass(frozen=True)
class Problems:
    """S problems over the same rows; log_loss, weights: (S, I) or (1, I); delta: (S,) or (1,)."""

    form: Form
    x_KI: Array
    log_loss: Array
    weights: Array
    delta: Array
    low_P: Array
    high_P: Array
    free_P: Mask

    def part(self, chosen: Labels | Mask | slice) -> Problems:
        """Those problems alone; what all share stays shared."""
        return replace(
            self,
            log_loss=_of(self.log_loss, chosen),
            weights=_of(self.weights, chosen),
            delta=_of(self.delta, chosen),
        )


@dataclass(frozen=True)
class Solutions:
    """Of every problem: parameters (S, P), objective (S,), whether it converged, and its steps."""

    phi_SP: Array
    objective: Array
    converged: Mask
    steps: Array


def huber(r: Array, delta: Array) -> Array:
    """H_delta; |r| where delta is 0 and r^2/2 where it is infinite."""
    size = np.abs(r)
    inner = np.minimum(size, delta)
    value = inner * (size - 0.5 * inner)
    return np.where(delta == 0, size, value)


def objective(problems: Problems, phi_SP: Array) -> Array:
    """(S,): the sum that is minimised, by the delta that was asked for."""
    parts = []
    for chunk in _chunks(problems, len(phi_SP)):
        p = problems.part(chunk)
        value = p.form.value_and_jacobian(phi_SP[chunk], p.x_KI)[0]
        parts.append((p.weights * huber(value - p.log_loss, p.delta[:, None])).sum(axis=1))
    return np.concatenate(parts)


def solve(problems: Problems, start_SP: Array, tolerance: float = 1e-12) -> Solutions:
    """Solve all problems from their starts, (S, P), in stages of falling delta.

    `tolerance`: relative to the objective, of what one more step could gain.
    """
    parts = []
    for chunk in _chunks(problems, len(start_SP)):
        part, phi = problems.part(chunk), start_SP[chunk]
        wanted = np.maximum(part.delta, SMALLEST_DELTA)
        steps = np.zeros(len(phi))
        for stage in (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 0.0):
            if stage > 0 and not (wanted < stage).any():
                continue
            last = stage == 0
            delta = np.maximum(wanted, stage)
            phi, converged, took = _descend(part, phi, delta, tolerance if last else 1e-4)
            steps += took
        parts.append((phi, converged, steps))
    phi_SP = np.concatenate([phi for phi, _, _ in parts])
    converged = np.concatenate([good for _, good, _ in parts])
    steps = np.concatenate([steps for _, _, steps in parts])
    return Solutions(phi_SP, objective(problems, phi_SP), converged, steps)


def _chunks(problems: Problems, count: int) -> list[slice]:
    size = max(1, _CHUNK // (problems.x_KI.shape[1] * len(problems.low_P)))
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _descend(
    problems: Problems, start_SP: Array, delta: Array, tolerance: float
) -> tuple[Array, Mask, Array]:
    """One stage: parameters, whether each problem converged, and the steps it took."""
    phi_SP = np.clip(start_SP, problems.low_P, problems.high_P)
    phi_SP = np.where(problems.free_P, phi_SP, start_SP)
    converged = np.zeros(len(phi_SP), bool)
    steps = np.zeros(len(phi_SP))
    active = np.arange(len(phi_SP))
    state = _State.at(problems.part(active), phi_SP, _of(delta, active))
    damping = np.full(len(phi_SP), 1e-2)
    for _ in range(MAX_STEPS):
        part, d = problems.part(active), _of(delta, active)
        step, gain = state.step(part, d, damping)
        trial = np.where(part.free_P, np.clip(state.phi + step, part.low_P, part.high_P), state.phi)
        new = _State.at(part, trial, d)
        better = new.value < state.value
        # Nielsen 1999: lower the damping as far as the gain was the promised one, gain / 2.
        ratio = 2 * (state.value - new.value) / np.maximum(gain, 1e-300)
        factor = np.maximum(0.2, 1 - (2 * np.clip(ratio, 0.0, 1.0) - 1) ** 3)
        damping = np.where(better, np.maximum(damping * factor, 1e-9), damping * 4)
        state.take(new, better)
        steps[active] += 1
        # What an undamped step would gain; or no step helps any more (rounding).
        done = (np.abs(gain) * (1 + damping) <= tolerance * state.value) | (damping > 1e12)
        done |= state.value <= 1e-16 * np.minimum(d, 1.0) * part.weights.sum(axis=1)  # exact data
        phi_SP[active] = state.phi
        converged[active[done]] = True
        if done.all():
            break
        if done.mean() > 0.1 or len(active) < 8:
            left = ~done
            active, damping = active[left], damping[left]
            state = state.part(left)
    return phi_SP, converged, steps


def _of(values: Array, chosen: Labels | Mask | slice) -> Array:
    return values if len(values) == 1 else values[chosen]


@dataclass
class _State:
    """Where every problem stands: parameters, residuals, derivatives (S, P, I) and objective."""

    phi: Array
    r: Array
    jacobian: Array
    value: Array

    @classmethod
    def at(cls, problems: Problems, phi: Array, delta: Array) -> _State:
        log_loss, jacobian = problems.form.value_and_jacobian(phi, problems.x_KI)
        r = log_loss - problems.log_loss
        value = (problems.weights * huber(r, delta[:, None])).sum(axis=1)
        return cls(phi, r, jacobian, np.where(np.isfinite(value), value, np.inf))

    def take(self, new: _State, chosen: Mask) -> None:
        for mine, other in (
            (self.phi, new.phi),
            (self.r, new.r),
            (self.jacobian, new.jacobian),
            (self.value, new.value),
        ):
            mine[chosen] = other[chosen]

    def part(self, chosen: Mask) -> _State:
        return _State(self.phi[chosen], self.r[chosen], self.jacobian[chosen], self.value[chosen])

    def step(self, problems: Problems, delta: Array, damping: Array) -> tuple[Array, Array]:
        """The step of the file's head, (S, P), and the gain that it promises, (S,)."""
        size = np.maximum(np.abs(self.r), 1e-300)
        d = delta[:, None]
        slope = problems.weights * np.clip(self.r, -d, d)
        shrink = np.minimum(1.0, d / size)
        curvature = problems.weights * ((size < d) + damping[:, None] * shrink)
        gradient = np.matmul(self.jacobian, slope[:, :, None])[:, :, 0]
        hessian = np.matmul(self.jacobian * curvature[:, None, :], self.jacobian.transpose(0, 2, 1))
        diagonal = np.einsum("spp->sp", hessian)
        ridge = _RIDGE * damping[:, None] * diagonal
        diagonal += ridge + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-290
        fixed = np.broadcast_to(~problems.free_P, gradient.shape)
        low, high = self.phi <= problems.low_P, self.phi >= problems.high_P
        step = -gradient
        for _ in range(2):  # what the slope, then what the step pushes out of bounds is held
            fixed = fixed | (low & (step < 0)) | (high & (step > 0))
            step = _solve(hessian, np.where(fixed, 0.0, gradient), fixed)
        gradient = np.where(fixed, 0.0, gradient)
        # A term that a long step makes vanish has no slope to come back by.
        step *= np.minimum(1.0, _LONGEST / np.abs(step).max(axis=1, keepdims=True).clip(1e-30))
        if (delta < _KINKED).any():
            step *= self._length(problems, step, d)[:, None]
        return step, -(gradient * step).sum(axis=1)

    def _length(self, problems: Problems, step: Array, delta: Array) -> Array:
        """(S,): which fraction of each step is best, were ln L linear: sees Huber's kinks."""
        change = np.matmul(step[:, None, :], self.jacobian)[:, 0, :]
        values = [
            (problems.weights * huber(self.r + t * change, delta)).sum(axis=1) for t in _LENGTHS
        ]
        return _LENGTHS[np.argmin(values, axis=0)]


def _solve(hessian: Array, gradient: Array, fixed: Mask) -> Array:
    """The step -H^-1 g of the coordinates that are not fixed; the others stay."""
    across = fixed[:, :, None] | fixed[:, None, :]
    held = np.where(across, np.eye(fixed.shape[1]), hessian)
    return np.asarray(-np.linalg.solve(held, gradient[:, :, None])[:, :, 0], np.float64)
