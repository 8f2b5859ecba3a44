"""RLOO: the reward less the mean reward of the other responses to the same prompt.

Back to Basics: Revisiting REINFORCE Style Optimization, Ahmadian et al. (arXiv:2402.14740, 2024).
Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: verl's two versions disagree on a group of one (raw reward, or 0);
the default keeps the raw reward, `alone=0.0` is the other.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods.grpo import centred_advantage
from entrolab.ranks import grouped
from entrolab.typing import Advantage, Array, Float, real


@checked
def leave_one_out(rewards: Float[Array, " B"], *, size: int, alone: float = 1.0) -> Advantage:
  """A = R - mean of the others = (R - mean_group R) G / (G - 1), arXiv:2402.14740 equation 10.

  size: G, groups contiguous; alone: factor on the raw reward of a group of one. Rewards that are
  not known (NaN) are no others, and G counts those that are.
  """
  centred = centred_advantage(rewards, size=size)
  if size == 1:
    return alone * centred
  known = grouped(~jnp.isnan(rewards), size)
  count = real(known).sum(1, keepdims=True).astype(rewards.dtype)
  factor = jnp.where(known.all(1, keepdims=True), size / (size - 1),
                     count / jnp.maximum(count - 1.0, 1.0)).astype(rewards.dtype)
  return centred * jnp.broadcast_to(factor, known.shape).reshape(rewards.shape)
