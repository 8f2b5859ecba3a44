"""GMPO: the geometric mean of the clipped token ratios of a response.

Geometric-Mean Policy Optimization, Zhao et al. (arXiv:2507.20673, 2025). Official code:
volcengine/verl, verl/trainer/ppo/core_algos.py (geo_mean).
Acts on: surrogate.  State: none.
Differs from the official code: none known. The aggregation is `aggregate.row_mean`: ALL rows.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float, Surrogate


@checked
def geometric_mean(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                   adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *, low: float = 0.4,
                   high: float = 0.4) -> Surrogate:
  """-A exp(mean_t k), k = sgn(A) min(sgn(A) d, sgn(A) clip(d, -low, high)).

  d = logp - old_logp; the clip is in nats, paper's e^-0.4 .. e^0.4. A is the mean advantage of the
  row. Every token of a row holds the value of the row.
  """
  d, sign = logp - old_logp, jnp.sign(adv)
  k = sign * jnp.minimum(sign * d, sign * jnp.clip(d, -low, high))
  row = -masked_mean(adv, mask, axis=1) * jnp.exp(masked_mean(k, mask, axis=1))
  return jnp.broadcast_to(row[:, None], logp.shape)
