"""CLIP-COV: drop a random handful of high-covariance tokens from the policy gradient.

The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (arXiv:2505.22617,
2025). Official code: PRIME-RL/Entropy-Mechanism-of-RL, verl/trainer/ppo/core_algos.py.
Acts on: weights.  State: none.
Differs from the official code: (1) statistics and the number of dropped tokens are those of the
whole optimiser batch, theirs of each micro-batch and device (`scope="micro"`); (2) the draw comes
from the noise column, so that it does not depend on the order of rows.
"""

import jax
import jax.numpy as jnp

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.methods import ppo
from entrolab.typing import Array, Bool, Float, Weight, real


@checked
def covariance(logp: Float[Array, "B T"], adv: Float[Array, "B T"],
               mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """c = (A - mean A)(log pi - mean log pi) over all valid tokens, arXiv:2505.22617 equation 9.

  log pi of the current policy; no gradient; 0 outside the mask.
  """
  logp = jax.lax.stop_gradient(logp)
  return ranks.centred(adv, mask) * ranks.centred(logp, mask)


@checked
def candidates(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
               mask: Bool[Array, "B T"], *, lower: float = 1.0, upper: float = 5.0,
               low: float = 1.0, high: float = 1.0) -> Array:
  """bool [B, T]: lower < c < upper, and not removed by PPO's own clip [1 - low, 1 + high]."""
  c = covariance(logp, adv, mask)
  clipped = ppo.is_clipped(logp, old_logp, adv, low=low, high=high, limit=float("inf"))
  return mask & ~clipped & (lower < c) & (c < upper)


@checked
def keep_mask(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
              mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *, fraction: float = 2e-4,
              lower: float = 1.0, upper: float = 5.0, low: float = 1.0,
              high: float = 1.0) -> Weight:
  """0 on max(floor(fraction * N), 1) candidates drawn uniformly, 1 elsewhere (equation 10).

  N: valid tokens. lower, upper: window of the covariance, made for advantages of unit deviation.
  low, high: the surrogate's clip range (1 / 1 in the official recipes). The denominator still
  counts the dropped tokens.
  """
  pool = candidates(logp, old_logp, adv, mask, lower=lower, upper=upper, low=low, high=high)
  count = jnp.maximum(jnp.floor(fraction * real(mask).sum()), 1.0)
  dropped = ranks.top(noise, pool, noise, count)
  return real(~dropped)
