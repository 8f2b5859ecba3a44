"""QAE: the baseline of a group is a quantile of its rewards, not their mean.

Quantile Advantage Estimation: Stabilizing RLVR for LLM Reasoning, Wu et al. (arXiv:2509.22611,
2025). Official code: junkangwu/QAE.
Acts on: advantage.  State: none.
Differs from the official code, which was not at hand: the quantile is the smallest reward that a
share K of the group does not exceed, the reading under which the abstract's two regimes hold to
the letter; the deviation is that of `grpo.group_advantage`.
"""

import math

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped, known_std
from entrolab.typing import Advantage, Array, Float


@checked
def quantile_baseline(rewards: Float[Array, " B"], *, size: int,
                      level: float = 0.4) -> Float[Array, "P 1"]:
  """Q_K = inf {r : at least K G of the group's rewards are <= r}.

  For rewards of 0 and 1 and a share p of right answers: 0 if p <= 1 - K (rare successes are
  reinforced, failures left alone), 1 if p > 1 - K (failures are punished, successes left alone).
  G counts the rewards that are known; of none the quantile is infinite. Raises ValueError for a
  level outside (0, 1].
  """
  if not 0.0 < level <= 1.0:
    raise ValueError(f"quantile_baseline(level={level}): inside (0, 1]")
  r = grouped(rewards, size)
  known = ~jnp.isnan(r)
  ordered = jnp.sort(jnp.where(known, r, jnp.inf), axis=1)
  # its place among 0 to G known rewards; the ceiling forgives the rounding of level * count, which
  # is a share of it
  places = [max(math.ceil(level * count * (1.0 - 1e-12)), 1) - 1 for count in range(size + 1)]
  at = jnp.asarray(places)[known.sum(1, keepdims=True)]
  return jnp.take_along_axis(ordered, at, axis=1)


@checked
def quantile_advantage(rewards: Float[Array, " B"], *, size: int, level: float = 0.4,
                       eps: float = 1e-6) -> Advantage:
  """A = (R - Q_K) / (std_group R + eps): zero for most of a group when rewards are 0 and 1.

  level: K, 0.4 in the paper. An all-equal group gives exactly zero; the deviation is over n - 1.
  A reward that is not known (NaN) is in neither, and has advantage 0.
  """
  r = grouped(rewards, size)
  above = r - quantile_baseline(rewards, size=size, level=level)
  above = jnp.where(jnp.isnan(r), 0.0, above)
  if size == 1:
    return above.reshape(rewards.shape)
  return (above / (known_std(r) + eps)).reshape(rewards.shape)
