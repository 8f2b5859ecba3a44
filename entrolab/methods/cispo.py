"""CISPO: REINFORCE with a clipped importance weight, so that no token loses its gradient.

MiniMax-M1, MiniMax (arXiv:2506.13585, 2025). Official code: volcengine/verl,
verl/trainer/ppo/core_algos.py; huggingface/trl, trl/trainer/grpo_trainer.py.
Acts on: surrogate.  State: none.
Differs from the official code: none known. The two libraries bound the weight differently:
`clipped_weight` is verl's range around 1, `capped_weight` TRL's absolute cap without a lower one.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods.ppo import ratio
from entrolab.typing import Array, Float, Surrogate


@checked
def clipped_weight(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                   adv: Float[Array, "B T"], *, low: float = 0.2, high: float = 0.28,
                   limit: float = 20.0) -> Surrogate:
  """-sg(clip(r, 1 - low, 1 + high)) A log pi, equations 4 and 5; no gradient through the weight.

  The paper has no lower bound in effect: low=inf. limit: nats, see `ppo.ratio`.
  """
  r = ratio(logp, old_logp, limit=limit)
  return -jax.lax.stop_gradient(jnp.clip(r, 1.0 - low, 1.0 + high)) * adv * logp


@checked
def capped_weight(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                  adv: Float[Array, "B T"], *, cap: float = 5.0,
                  limit: float = float("inf")) -> Surrogate:
  """-sg(min(r, cap)) A log pi: TRL's epsilon_high is this absolute cap, not a distance to 1."""
  r = ratio(logp, old_logp, limit=limit)
  return -jax.lax.stop_gradient(jnp.minimum(r, cap)) * adv * logp
