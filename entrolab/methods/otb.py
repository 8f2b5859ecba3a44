"""OTB: a baseline for every position, weighed by the gradient a response has gathered so far.

The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, Li et al.
(arXiv:2602.07078, 2026). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: (1) pi is the policy at the start of the optimiser batch, theirs
the one that sampled: the same in the first update of a rollout; (2) where one response of the
group alone is left, the formula makes it its own baseline, so that it gets 0 (`tail="own"`, the
default); newer releases of the code have no baseline there (`tail="zero"`).
"""

from typing import Literal

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped
from entrolab.typing import Advantage, Array, Bool, Float, real


@checked
def less_baseline(adv: Float[Array, "B T"], logp: Float[Array, "B T"], sum_p2: Float[Array, "B T"],
                  mask: Bool[Array, "B T"], *, size: int, eps: float = 1e-8,
                  tail: Literal["own", "zero"] = "own") -> Advantage:
  """A_t = G_t - B_t, B_t = sum_group(G_t W_t) / (sum_group W_t + eps) over rows that reach t.

  W_t = sum_{s <= t} (1 - 2 pi_s + sum_v pi_v^2): squared norm of the gradient by the logits,
  summed up to t. adv holds the returns G (`gae.return_to_go`). size: G, groups contiguous; a
  group of one has no baseline. Raises ValueError for another `tail`.
  """
  if tail not in ("own", "zero"):
    raise ValueError(f"less_baseline(tail={tail!r}); choices: 'own', 'zero'")
  if size == 1:
    return jnp.where(mask, adv, 0.0)
  energy = jnp.cumsum(jnp.where(mask, 1.0 - 2.0 * jnp.exp(logp) + sum_p2, 0.0), axis=1)
  g, w, on = grouped(adv, size), grouped(energy, size), grouped(mask, size)
  w = jnp.where(on, w, 0.0)
  base = (g * w).sum(1, keepdims=True) / (w.sum(1, keepdims=True) + eps)
  if tail == "zero":
    base = jnp.where(real(on).sum(1, keepdims=True) > 1.0, base, 0.0)
  return jnp.where(on, g - base, 0.0).reshape(adv.shape)
