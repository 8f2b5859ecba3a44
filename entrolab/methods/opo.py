"""OPO: the group baseline that is optimal when the gradient grows with the length.

On-Policy RL with Optimal Reward Baseline, Hao et al. (arXiv:2505.23585, 2025). Official code:
volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: (1) a group of empty responses gives 0, theirs 0 / 0; (2) an
all-equal group is exactly 0.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import all_equal, grouped
from entrolab.typing import Advantage, Array, Bool, Float, real


@checked
def length_baseline(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], *,
                    size: int) -> Advantage:
  """A = R - sum_group(n R) / sum_group(n), n the valid tokens of a response.

  size: G, groups contiguous; a group of one keeps R. A reward that is not known (NaN) is in no sum
  and has advantage 0.
  """
  unknown = jnp.isnan(rewards)
  if size == 1:
    return jnp.where(unknown, 0.0, rewards)
  r = grouped(jnp.where(unknown, 0.0, rewards), size)
  n = jnp.where(grouped(unknown, size), 0.0, grouped(real(mask).sum(-1), size)).astype(r.dtype)
  base = (n * r).sum(1, keepdims=True) / jnp.maximum(n.sum(1, keepdims=True), 1.0)
  nothing = all_equal(grouped(rewards, size)) | grouped(unknown, size)
  return jnp.where(nothing, 0.0, r - base).reshape(rewards.shape)
