"""NSR: learn from right answers alone, from wrong ones alone, or weigh the two.

The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning, Zhu et al.
(arXiv:2506.01347, 2025). Official code: TianHongZXY/RLVR-Decomposed,
verl/trainer/ppo/core_algos.py and ray_trainer.py.
Acts on: advantage, weights.  State: none.
Differs from the official code: (1) the denominator counts every valid token of the batch
(`aggregate.token_mean`), so that positive and negative parts add up to the whole; the repository
removes rows without advantage first: `kept_rows` with `aggregate.selected_mean`; (2) the verdict
is read instead of a reward that must be 0 or 1; unknown is neither right nor wrong; (3) the
repository's configuration adds an entropy bonus of 0.001, here a penalty to be named. No baseline,
no groups.
The paper's surrogate is `ppo.reinforce`, the code's `ppo.clipped_ratio` without a dual clip.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Advantage, Array, Bool, Float, Int, Weight, real


@checked
def positive(verdict: Int[Array, " B"]) -> Advantage:
  """PSR: A = 1 on right answers, 0 on the others; paper's L_PSR."""
  return real(verdict == 1)


@checked
def negative(verdict: Int[Array, " B"]) -> Advantage:
  """NSR: A = -1 on wrong answers, 0 on the others; paper's L_NSR.

  Gradient by the logits: down by 1 - pi at the sampled token, up by pi at every other one.
  """
  return -real(verdict == 0)


@checked
def weighted(verdict: Int[Array, " B"], *, positive: float = 0.1) -> Advantage:
  """W-REINFORCE: A = `positive` (the paper's lambda) on right answers, -1 on wrong ones, else 0."""
  known = jnp.where(verdict == 1, positive, -1.0)
  return jnp.where(verdict < 0, 0.0, known).astype(real(verdict).dtype)


@checked
def kept_rows(adv: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Weight:
  """1 on tokens with an advantage, 0 on the others: for a denominator that counts those alone."""
  return real(mask & (adv != 0.0))
