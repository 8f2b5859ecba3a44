"""OPO: the group baseline that is optimal when the gradient grows with the length.

On-Policy RL with Optimal Reward Baseline, Hao et al. (arXiv:2505.23585, 2025). Official code:
volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: (1) a group of empty responses gives 0, theirs 0 / 0; (2) an
all-equal group is exactly 0.
"""

import jax.numpy as jnp

from entrolab.ranks import grouped
from entrolab.typing import Advantage, Array, Bool, Float, real


def length_baseline(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], *,
                    size: int) -> Advantage:
  """A = R - sum_group(n R) / sum_group(n), n the valid tokens of a response.

  size: G, groups contiguous; a group of one keeps R.
  """
  if size == 1:
    return rewards
  r = grouped(rewards, size)
  n = grouped(real(mask).sum(-1), size).astype(r.dtype)
  base = (n * r).sum(1, keepdims=True) / jnp.maximum(n.sum(1, keepdims=True), 1.0)
  equal = (r == r[:, :1]).all(1, keepdims=True)
  return jnp.where(equal, 0.0, r - base).reshape(rewards.shape)
