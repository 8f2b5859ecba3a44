"""GSPO: one importance ratio for a whole response, its geometric mean over tokens.

Group Sequence Policy Optimization, Zheng et al. (arXiv:2507.18071, 2025). Official code:
volcengine/verl, verl/trainer/ppo/core_algos.py; huggingface/trl, trl/trainer/grpo_trainer.py.
Acts on: surrogate.  State: none.
Differs from the official code: the clip range defaults to the paper's (3e-4, 4e-4), verl's to
0.2 / 0.2. The aggregation is `aggregate.sequence_mean`, which verl forces.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float, Surrogate


@checked
def sequence_ratio(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                   mask: Bool[Array, "B T"], *,
                   path: Literal["token", "sequence"] = "token") -> Float[Array, "B T"]:
  """s = exp(mean_t(logp - old_logp)) of the row, at every token, equation 7.

  path: "token" (GSPO-token, equation 14, verl) lets the gradient of a token pass through its
  logp alone, with log s at most 10; "sequence" (TRL) differentiates s itself. Under a sequence
  mean and one advantage a row both give the same gradient.
  """
  if path not in ("token", "sequence"):
    raise ValueError(f"sequence_ratio(path={path!r}); choices: 'token', 'sequence'")
  log_s = masked_mean(logp - old_logp, mask, axis=1)[:, None]
  if path == "sequence":
    return jnp.broadcast_to(jnp.exp(log_s), logp.shape)
  zero = logp - jax.lax.stop_gradient(logp)  # with the gradient of the token's logp
  return jnp.exp(jnp.minimum(zero + jax.lax.stop_gradient(log_s), 10.0))


@checked
def clipped_sequence(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                     adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *, low: float = 3e-4,
                     high: float = 4e-4,
                     path: Literal["token", "sequence"] = "token") -> Surrogate:
  """max(-A s, -A clip(s, 1 - low, 1 + high)), equation 5 negated. old_logp sampled the tokens."""
  s = sequence_ratio(logp, old_logp, mask, path=path)
  return jnp.maximum(-adv * s, -adv * jnp.clip(s, 1.0 - low, 1.0 + high))
