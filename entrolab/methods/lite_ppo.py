"""LITE-PPO: centred by the group, scaled by the deviation of the whole batch.

Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning, Liu et al. (arXiv:2508.08221, 2025).
Official code: huggingface/trl, trl/trainer/grpo_trainer.py (scale_rewards="batch").
Acts on: advantage.  State: none.
Differs from the official code: none known; the batch is the whole rollout.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods.grpo import centred_advantage
from entrolab.ranks import known_mean
from entrolab.typing import Advantage, Array, Float


@checked
def deviation(rewards: Float[Array, " B"]) -> Float[Array, ""]:
  """Standard deviation of the known rewards of the rollout, over n - 1; 0 for a single one."""
  return jnp.sqrt(known_mean(jnp.square(rewards - known_mean(rewards)), less=1))


@checked
def batch_scaled(rewards: Float[Array, " B"], *, size: int, eps: float = 1e-4) -> Advantage:
  """A = (R - mean_group R) / (std_batch R + eps); an all-equal group gives exactly zero.

  size: G, groups contiguous. Groups of small spread keep small advantages, unlike GRPO's.
  """
  return centred_advantage(rewards, size=size) / (deviation(rewards) + eps)
