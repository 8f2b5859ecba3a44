"""ONE-SHOT: a whole batch of copies of one prompt; the entropy loss alone; which prompt to take.

Reinforcement Learning for Reasoning in Large Language Models with One Training Example
(arXiv:2504.20571, 2025). Official code: ypwang61/One-Shot-RLVR, verl/workers/actor/dp_actor.py,
verl/trainer/ppo/core_algos.py, data/data_selection.py.
Acts on: surrogate, penalty, data.  State: none.
Differs from the official code: (1) the token mean is over the whole optimiser batch, theirs over
each micro-batch, weighted by rows (`scope="micro"`); (2) scores rank by variance, theirs by its
root: the same order. Log-probs and entropy are those at the sampling temperature tau
(`vocab.Spec(temperature=tau)`), as theirs. The entropy term is `bonus.negative_entropy`, the KL
`kl.k3`. Each copy of the prompt is a separate group (`countdown.Copies`).
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods import ppo
from entrolab.typing import Array, Bool, Float, Int, Surrogate


@checked
def policy_loss(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                adv: Float[Array, "B T"], *, coefficient: float = 1.0,
                clip: float = 0.2) -> Surrogate:
  """coefficient max(-A r, -A clip(r, 1 - clip, 1 + clip)): 0 trains on the penalties alone."""
  return coefficient * ppo.clipped_ratio(logp, old_logp, adv, low=clip, high=clip)


@checked
def historical_variance(history: Float[Array, "N E"]) -> Float[Array, " N"]:
  """v_i = Var_e(s_ie), accuracies of example i over epochs e; NaN where there is none, ddof 0."""
  return jnp.nanvar(history, axis=1)


@checked
def lim_score(history: Float[Array, "N E"]) -> Float[Array, " N"]:
  """1 - sum_e (s_ie - m_e)^2 / sum_e (1 - m_e)^2, m_e the mean over examples; the baseline.

  Epochs count up to the shortest history. 1 where every example was right in each of them, or
  where there is none: no history differs from the mean.
  """
  full: Bool[Array, " E"] = ~jnp.isnan(history).any(0)
  mean = jnp.where(full, history.mean(0), 1.0)
  gap = jnp.where(full[None], jnp.square(history - mean[None]), 0.0).sum(1)
  most = jnp.square(1.0 - mean).sum()
  return 1.0 - gap / jnp.where(most > 0.0, most, 1.0)


@checked
def ranked(score: Float[Array, " N"]) -> Int[Array, " N"]:
  """Examples by descending score; equal ones keep the order of the file."""
  return jnp.argsort(-score, stable=True)
