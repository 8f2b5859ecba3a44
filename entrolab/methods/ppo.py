"""PPO: the clipped importance ratio, with separate bounds and an optional dual clip.

Proximal Policy Optimization Algorithms, Schulman et al. (arXiv:1707.06347, 2017); dual clip:
Mastering Complex Control in MOBA Games, Ye et al. (arXiv:1912.09729, 2019); clip-higher: DAPO,
Yu et al. (arXiv:2503.14476, 2025). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: surrogate.  State: none.
Differs from the official code: (1) no metrics inside the loss; (2) the aggregation is a slot.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Array, Float, Surrogate


@checked
def ratio(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], *,
          limit: float = 20.0) -> Float[Array, "B T"]:
  """exp(clip(logp - old_logp, -limit, limit)): pi_current / pi_old of the sampled token.

  limit: nats, infinity for none. Gradient through logp; zero once the limit is hit.
  """
  return jnp.exp(jnp.clip(logp - old_logp, -limit, limit))


@checked
def clipped_ratio(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                  adv: Float[Array, "B T"], *, low: float = 0.2, high: float = 0.2,
                  dual: float = 0.0, limit: float = 20.0) -> Surrogate:
  """max(-A r, -A clip(r, 1 - low, 1 + high)), arXiv:1707.06347 equation 7, negated.

  dual: where A < 0 the loss is at most -A * dual (arXiv:1912.09729 equation 5); 0 is off, verl's
  default is 3. low, high: 0.2 / 0.28 is clip-higher. old_logp is the policy that sampled.
  Raises ValueError for a dual clip in (0, 1].
  """
  if 0.0 < dual <= 1.0:
    raise ValueError(f"clipped_ratio(dual={dual}): above 1, or 0 for none")
  r = ratio(logp, old_logp, limit=limit)
  loss = jnp.maximum(-adv * r, -adv * jnp.clip(r, 1.0 - low, 1.0 + high))
  if dual:
    loss = jnp.where(adv < 0.0, jnp.minimum(loss, -adv * dual), loss)
  return loss


@checked
def plain_ratio(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                adv: Float[Array, "B T"], *, limit: float = float("inf")) -> Surrogate:
  """-A r without any clip: the importance-weighted policy gradient."""
  return -adv * ratio(logp, old_logp, limit=limit)


@checked
def reinforce(logp: Float[Array, "B T"], adv: Float[Array, "B T"]) -> Surrogate:
  """-A log pi: the score-function policy gradient, which knows no old policy."""
  return -adv * logp


@checked
def is_clipped(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
               *, low: float = 0.2, high: float = 0.2, limit: float = 20.0) -> Array:
  """bool [B, T]: the tokens whose gradient the clip removes, counted by a PPO clip fraction."""
  r = jax.lax.stop_gradient(ratio(logp, old_logp, limit=limit))
  return -adv * jnp.clip(r, 1.0 - low, 1.0 + high) > -adv * r
