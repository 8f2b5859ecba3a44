"""EPO: an entropy bonus over whole trajectories and a corridor around the historical mean entropy.

EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning
(arXiv:2509.22576, 2025). Official code: WujiangXu/EPO, verl/workers/actor/dp_actor.py.
Acts on: penalty, scale, controller.  State: mean entropy of past steps, phase weight.
Differs from the official code: (1) the corridor is the paper's hinge, which has a gradient; the
code's step function (`indicator`) has none, so that its training equals the plain bonus; (2) the
phase weight is the paper's, falling from 2 to 1; `code_phase` is the code's; (3) the reference is
one mean over past steps, theirs one value per turn, present rollout included; (4) token, turn, then
trajectory mean, theirs a token mean per micro-batch; (5) no gate on late turns.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.ranks import replicated, step_sums
from entrolab.typing import Array, Bool, Float, Int, Penalty, Scale, real


@checked
def trajectory_mean(mask: Bool[Array, "B T"], trajectory: Int[Array, " B"]) -> Scale:
  """Token mean, then turn mean, then trajectory mean; a row is a turn (section 3.1).

  trajectory: ids in [0, B). An empty turn is left out of its trajectory's count of turns.
  """
  lengths = real(mask).sum(-1)
  ids, filled = replicated(trajectory), replicated(real(lengths > 0))
  rows = jnp.zeros_like(filled)
  turns = rows.at[ids].add(filled)[ids]
  trajectories = real(rows.at[ids].add(1.0) > 0).sum()
  share = real(mask) / jnp.maximum(lengths, 1.0)[:, None]
  return share / jnp.maximum(turns, 1.0)[:, None] / trajectories


@checked
def corridor(entropy: Float[Array, "B T"], history: Float[Array, ""], *, low: float = 0.0,
             high: float = 2.0, alpha: float = 0.1) -> Penalty:
  """alpha [relu(low W - H) + relu(H - high W)], W the mean entropy of past steps, nats.

  Gradient through H of the current policy; zero at equality and while there is no history.
  """
  hinge = jax.nn.relu(low * history - entropy) + jax.nn.relu(entropy - high * history)
  return jnp.where(history < 0.0, 0.0, alpha * hinge)


@checked
def indicator(entropy: Float[Array, "B T"], turn_history: Float[Array, " B"], *, low: float = 0.0,
              high: float = 2.0, alpha: float = 0.1) -> Penalty:
  """The code's form: alpha outside (low W, high W), 0 inside; its gradient is exactly zero.

  turn_history: mean entropy at this row's turn index over all rollouts so far.
  """
  w = turn_history[:, None]
  inside = (entropy > low * w) & (entropy < high * w)
  return jnp.where(inside, 0.0, alpha).astype(entropy.dtype)


@checked
def indicator_rows(entropy: Float[Array, "B T"], turn_history: Float[Array, " B"], *,
                   low: float = 0.0, high: float = 2.0, alpha: float = 0.1) -> Penalty:
  """The code's "seq" mode: the same test on the mean over all T columns of a row.

  The caller sets padding to zero and it counts, as in the code.
  """
  rows = jnp.broadcast_to(entropy.mean(-1, keepdims=True), entropy.shape)
  return indicator(rows, turn_history, low=low, high=high, alpha=alpha)


def phase_weight(step: Array | float, *, gamma: float = 3.0, middle: int = 60) -> Array:
  """beta_k = 1 + exp(-gamma k / middle): 2 at first, towards 1; middle: half of all steps."""
  return 1.0 + jnp.exp(-gamma * jnp.asarray(step, float) / middle)


def code_phase(epoch: Array | int, *, epochs: int = 150) -> Array:
  """The code's weight: 1 falling to 0.827 at half-time, then 0.769 falling to 0.040.

  Half-time is floor(epochs / 2), and the second part takes the rest; an epoch below 0 counts as 0,
  one above `epochs` as the last. Raises ValueError for fewer than one epoch.
  """
  if epochs < 1:
    raise ValueError(f"code_phase(epochs={epochs}): at least 1")
  half = epochs // 2
  e = jnp.clip(jnp.asarray(epoch, float), 0.0, float(epochs))
  early = 1.0 - 0.2 * (1.0 - jnp.exp(-2.0 * e / max(half, 1)))
  late = 0.8 * jnp.exp(-3.0 * (e - half) / (epochs - half))
  return jnp.where(e <= half, early, late)


@dataclasses.dataclass(frozen=True)
class History(Controller):
  """`history`: mean entropy of all earlier optimiser steps, -1 before the first; `smooth`: the
  weight of the corridor, strength * phase_weight."""
  strength: float = 1e-3  # the paper's lambda, which also weighs the entropy bonus
  gamma: float = 3.0  # of `phase_weight`
  steps: int = 120  # optimiser steps of the run

  def init(self) -> State:
    zero = jnp.zeros((), float)
    return {"history": zero - 1.0, "history_sum": zero, "history_count": zero,
            "smooth": self.strength * phase_weight(0, gamma=self.gamma, middle=1)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    count = state["history_count"] + 1.0
    total = state["history_sum"] + metrics["entropy/exact"]
    middle = max(math.floor(self.steps / 2), 1)
    return {"history": total / count, "history_sum": total, "history_count": count,
            "smooth": self.strength * phase_weight(count, gamma=self.gamma, middle=middle)}


@checked
def turn_mean(mask: Bool[Array, "B T"], phase: Int[Array, "B T"], *, steps: int) -> Scale:
  """Token mean in every turn, mean over the turns of an episode, mean over episodes.

  EPO's aggregation (arXiv:2509.22576, section 3.1), a row being an episode. steps: the most turns
  that a row may have. Turns without a token, and rows without one, are left out.
  """
  count = step_sums(jnp.ones_like(mask, real(mask).dtype), phase, mask, steps=steps)
  turns = real(count > 0).sum(0)
  length = jnp.take_along_axis(count.T, jnp.clip(phase, 0, steps - 1), 1)
  share = real(mask) / jnp.maximum(length, 1.0) / jnp.maximum(turns, 1.0)[:, None]
  return share / jnp.maximum(real(turns > 0).sum(), 1.0)
