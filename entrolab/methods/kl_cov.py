"""KL-COV: keep the tokens of the highest covariance near the policy that sampled them.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (arXiv:2505.22617,
2025). Official code: PRIME-RL/Entropy-Mechanism-of-RL, verl/trainer/ppo/core_algos.py.
Acts on: penalty.  State: none.
Differs from the official code: (1) the ranking is over the whole optimiser batch, theirs per
micro-batch and device (`scope="micro"`); (2) ties are broken by the noise column; (3) the paper
says KL, the code takes |log ratio|: `distance` is the code's, `kl.k2` and `kl.k3` with old_logp
as reference are the other readings. The surrogate is `ppo.plain_ratio`: no clip at all.
Both ratios (2e-3, 2e-4) and both coefficients (1, 0.1) circulate; the defaults are the 7B recipe's.
"""

import jax.numpy as jnp

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.methods.clip_cov import covariance
from entrolab.methods.kl import absolute
from entrolab.typing import Array, Bool, Float, Penalty, Weight, real


@checked
def distance(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], *,
             tolerance: float = 0.0) -> Penalty:
  """|log pi - log pi_old|: gradient sign(logp - old_logp), exactly zero at equality.

  tolerance: nats under which the penalty is zero. Where old_logp comes from another program than
  logp, rounding makes the sign random on the first update; 1e-6 removes that. Identically zero
  with one update a rollout.
  """
  value = absolute(logp, old_logp)
  return jnp.where(value > tolerance, value, 0.0)


@checked
def top_mask(logp: Float[Array, "B T"], adv: Float[Array, "B T"], mask: Bool[Array, "B T"],
             noise: Float[Array, "B T"], *, fraction: float = 2e-3) -> Weight:
  """1 on the max(floor(fraction * N), 1) tokens of largest covariance, 0 elsewhere (equation 11).

  The sign of the covariance is not looked at, as in the official code.
  """
  count = jnp.maximum(jnp.floor(fraction * real(mask).sum()), 1.0)
  return real(ranks.top(covariance(logp, adv, mask), mask, noise, count))
