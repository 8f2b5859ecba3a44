"""PASSK: only the best response of a group is reinforced, by its margin over the second.

Optimizing Language Models for Inference Time Objectives using Reinforcement Learning, Tang et al.
(arXiv:2503.19595, 2025). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: none known; `norm="none"` is the paper's margin, the default
divides by the deviation of the group, as the code does.
"""

from typing import Literal

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped, known_std
from entrolab.typing import Advantage, Array, Float


@checked
def best_margin(rewards: Float[Array, " B"], *, size: int, eps: float = 1e-6,
                norm: Literal["std", "none"] = "std") -> Advantage:
  """A = (R_best - R_second) / (std_group R + eps) on the best response, 0 on the others.

  size: G >= 2, groups contiguous; std over n - 1. A tie for the best gives 0 everywhere. Rewards
  that are not known (NaN) are neither best nor second, and in no deviation.
  """
  if size < 2:
    raise ValueError(f"best_margin(size={size}): the margin needs groups of 2 or more")
  if norm not in ("std", "none"):
    raise ValueError(f"best_margin(norm={norm!r}); choices: 'std', 'none'")
  r = grouped(rewards, size)
  known = ~jnp.isnan(r)
  ordered = jnp.sort(jnp.where(known, r, -jnp.inf), axis=1)
  best, second = ordered[:, -1:], ordered[:, -2:-1]
  margin = jnp.where(second > -jnp.inf, best - second, 0.0)
  if norm == "std":
    margin = margin / (known_std(r) + eps)
  return jnp.where(r == best, margin, 0.0).reshape(rewards.shape)
