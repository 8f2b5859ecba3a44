"""PEAR: right answers lose reward for thinking entropy in excess of the entropy of their answer.

PEAR: Phase Entropy Aware Reward for Efficient Reasoning (arXiv:2510.08026, 2025). Official code:
iNLP-Lab/PEAR, named by the paper, not to be had when this was written.
Acts on: reward.  State: none.
Differs from the paper, read in descriptions of it: nothing known; a phase without tokens has mean
0. A missing end of thinking counts as one at the last token, literally. Nothing keeps the reward
of a right answer above that of a wrong one: `floor` would. The objective around it is GRPO with a
sequence mean (`grpo.group_advantage`, `aggregate.sequence_mean`).
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float, Int, Reward, real


@checked
def phases(mask: Bool[Array, "B T"], think_end: Int[Array, " B"]) -> tuple[Array, Array]:
  """(thinking, answer) masks [B, T]: before and after the token that ends the thinking.

  think_end: its position, counted from 0; -1, or a position outside the mask: the last token.
  """
  positions = jnp.arange(mask.shape[1])[None]
  there = (mask & (positions == think_end[:, None])).any(1)
  last = jnp.where(mask, positions, -1).max(1)
  end = jnp.where(there, think_end.astype(last.dtype), last)[:, None]
  return mask & (positions < end), mask & (positions > end)


@checked
def excess(old_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
           think_end: Int[Array, " B"], *, alpha: float = 1.0) -> Float[Array, " B"]:
  """P = max(0, mean H of the thinking - alpha mean H of the answer), nats.

  old_entropy: full vocabulary, temperature 1, of the policy that sampled: a constant.
  """
  thinking, answer = phases(mask, think_end)
  mean = lambda on: masked_mean(jnp.maximum(old_entropy, 0.0), on, axis=1)
  return jnp.maximum(mean(thinking) - alpha * mean(answer), 0.0)


@checked
def phase_reward(verdict: Int[Array, " B"], old_entropy: Float[Array, "B T"],
                 mask: Bool[Array, "B T"], think_end: Int[Array, " B"], *, alpha: float = 1.0,
                 right: float = 1.0, wrong: float = 0.0,
                 floor: float = -float("inf")) -> Reward:
  """r = min(1, right - P) if right, at least `floor`; `wrong` if wrong; NaN where that is unknown.

  alpha: coefficient of the answer's entropy (ablated from -1 to 2 in the paper).
  """
  paid = jnp.minimum(right - excess(old_entropy, mask, think_end, alpha=alpha), 1.0)
  known = jnp.where(verdict == 1, jnp.maximum(paid, floor), wrong)
  return jnp.where(verdict < 0, jnp.nan, known).astype(real(verdict).dtype)
