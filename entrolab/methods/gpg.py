"""GPG: centred rewards, scaled up by the share of the batch that carries no reward.

GPG: A Simple and Strong Reinforcement Learning Baseline, Chu et al. (arXiv:2504.02546, 2025).
Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: none known. The surrogate is `ppo.reinforce`: no ratio.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods.grpo import centred_advantage
from entrolab.typing import Advantage, Array, Float, real


@checked
def rescale(rewards: Float[Array, " B"]) -> Float[Array, ""]:
  """alpha = B / max(number of rewards that are not 0, 1), over the known ones of the rollout."""
  known = ~jnp.isnan(rewards)
  return real(known).sum() / jnp.maximum(real(known & (rewards != 0.0)).sum(), 1.0)


@checked
def scaled_advantage(rewards: Float[Array, " B"], *, size: int, norm: float = 1.0) -> Advantage:
  """A = alpha (R - mean_group R) / norm; a group of one keeps alpha R / norm.

  size: G, groups contiguous; norm: the paper's F_norm, 1 in verl's trainer.
  """
  return rescale(rewards).astype(rewards.dtype) * centred_advantage(rewards, size=size) / norm
