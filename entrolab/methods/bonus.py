"""BONUS: the plain entropy bonus, and a coefficient that adapts to a target entropy.

Skywork Open Reasoner 1, He et al. (arXiv:2505.22312, 2025), section 4 (adaptive coefficient).
Official code: huggingface/trl, trl/trainer/grpo_trainer.py.
Acts on: penalty, controller.  State: coefficient.
Differs from the official code: TRL aggregates the entropy by token mean whatever the loss does;
here it follows the objective's aggregation unless the penalty names another scale.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.typing import Array, Float, Penalty


@checked
def negative_entropy(entropy: Float[Array, "B T"]) -> Penalty:
  """-H of the current policy, nats: a positive beta raises entropy. Gradient through H."""
  return -entropy


@dataclasses.dataclass(frozen=True)
class Adaptive(Controller):
  """`coef` moves by `step` towards the target and acts only while the entropy is at or under it.

  inner += step if H <= target else -step, clipped to [low, high]; coef = inner * [H <= target],
  arXiv:2505.22312 equation 12.
  """
  target: float  # nats a token
  step: float = 0.005  # change of the inner coefficient in an optimiser step
  start: float = 0.0  # first coefficient
  low: float = 0.0  # least coefficient
  high: float = 1.0  # largest coefficient

  def init(self) -> State:
    start = jnp.asarray(self.start, float)
    return {"coef": start, "inner_coef": start}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    short = metrics["entropy/exact"] <= self.target
    inner = state["inner_coef"] + jnp.where(short, self.step, -self.step)
    inner = jnp.clip(inner, self.low, self.high)
    return {"coef": jnp.where(short, inner, 0.0), "inner_coef": inner}
