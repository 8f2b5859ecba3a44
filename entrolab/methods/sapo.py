"""SAPO: a sigmoid gate in place of the clip, steeper for negative advantages.

Soft Adaptive Policy Optimization, Gao et al. (arXiv:2511.20347, 2025). Official code:
volcengine/verl, verl/trainer/ppo/core_algos.py; huggingface/trl, trl/trainer/grpo_trainer.py.
Acts on: surrogate.  State: none.
Differs from the official code: none known; TRL has no clamp on the log ratio (`limit=inf`). The
aggregation is `aggregate.sequence_mean`, which both force (TRL counts empty rows: `row_mean`).
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods.ppo import ratio
from entrolab.typing import Array, Float, Surrogate


@checked
def soft_gate(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
              adv: Float[Array, "B T"], *, positive: float = 1.0, negative: float = 1.05,
              limit: float = 20.0) -> Surrogate:
  """-A (4 / tau) sigmoid(tau (r - 1)), tau = positive where A > 0 else negative.

  On policy the gradient is that of -A r. limit: nats, see `ppo.ratio`. Raises ValueError for a
  temperature that is not positive.
  """
  if min(positive, negative) <= 0.0:
    raise ValueError(f"soft_gate(positive={positive}, negative={negative}): above 0")
  tau = jnp.where(adv > 0.0, positive, negative).astype(adv.dtype)
  r = ratio(logp, old_logp, limit=limit)
  return -adv * (4.0 / tau) * jax.nn.sigmoid(tau * (r - 1.0))
