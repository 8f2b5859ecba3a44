"""SPINE: learn at forking tokens alone, and keep their entropy inside a band of quantiles.

SPINE: Token-Selective Test-Time Reinforcement Learning with Entropy-Band Regularization
(arXiv:2511.17938, 2025). Official code: JianghaoWu/SPINE, named by the paper, not to be had when
this was written.
Acts on: weights, penalty.  State: none.
Differs from the paper, read in descriptions of it: where these are silent, max(1, ceil(rho n))
tokens of a row fork, quantiles are linear, the band has two weights for its two sides, and
every term is a mean over forking tokens (`aggregate.selected_mean`). The reward is TTRL's. As the
band follows the current policy, half of the forking tokens lie above it: with equal weights it
lowers entropy at forks more than it raises it.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Penalty, Weight, real


@checked
def fork_mask(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], noise: Float[Array, "B T"],
              *, fraction: float = 0.2,
              scope: Literal["sequence", "batch"] = "sequence") -> Weight:
  """1 on the max(1, ceil(fraction n)) tokens of highest entropy of each row, or of the batch.

  entropy: of the current policy, nats; no gradient through the choice. Ties by noise.
  """
  if scope not in ("sequence", "batch"):
    raise ValueError(f"fork_mask(scope={scope!r}); choices: 'sequence', 'batch'")
  if scope == "sequence":
    return real(_row_forks(entropy, mask, noise, fraction))
  return real(ranks.top(entropy, mask, noise, _count(real(mask).sum(), fraction)))


@checked
def band(entropy: Float[Array, "B T"], chosen: Bool[Array, "B T"], *, low: float = 0.1,
         high: float = 0.5) -> tuple[Array, Array]:
  """(relu(H - h_high), relu(h_low - H)) at chosen tokens, h the quantiles of the row's chosen.

  Gradient through H, none through the quantiles and none at the kink.
  """
  bounds = [ranks.quantile(entropy, chosen, q, rows=True) for q in (high, low)]
  above, under = jax.nn.relu(entropy - bounds[0]), jax.nn.relu(bounds[1] - entropy)
  return jnp.where(chosen, above, 0.0), jnp.where(chosen, under, 0.0)


@checked
def band_penalty(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
                 noise: Float[Array, "B T"], *, fraction: float = 0.2, low: float = 0.1,
                 high: float = 0.5, above: float = 1.0, under: float = 1.0) -> Penalty:
  """above relu(H - h_high) + under relu(h_low - H) at the row's forking tokens, nats."""
  over, below = band(entropy, _row_forks(entropy, mask, noise, fraction), low=low, high=high)
  return above * over + under * below


def _count(n: Array, fraction: float) -> Array:
  # the ceiling forgives the rounding of fraction * n, which is a share of it
  exact = fraction * n * (1.0 - 2.0 * jnp.finfo(n.dtype).eps)
  return jnp.where(n > 0, jnp.maximum(jnp.ceil(exact), 1.0), 0.0)


def _row_forks(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
               noise: Float[Array, "B T"], fraction: float) -> Bool[Array, "B T"]:
  mask = ranks.replicated(mask)
  count = _count(real(mask).sum(1, keepdims=True), fraction)
  return ranks.top(entropy, mask, noise, count, rows=True)
