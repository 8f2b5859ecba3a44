"""DID: the normalised ratio of two policies, its entropy, and the preferences that encode it.

Differential Information Distribution: A Bayesian Perspective on Direct Preference Optimization,
Won et al. (arXiv:2505.23761, 2025). Official code: none found; definitions read in reviews.
Acts on: analysis.  State: none.
Differs from the paper: its entropy estimator was not seen; `entropy_estimate` is self-normalised
importance sampling with its effective sample size, for samples of either policy.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Array, Float


@checked
def differential(log_pi: Float[Array, " Y"], log_ref: Float[Array, " Y"]) -> tuple[Array, Array]:
  """(log q [Y], ln Z): q = (pi / ref) / Z over enumerated outcomes, theorem 3.2. Nats."""
  ratio = log_pi - log_ref
  log_z = jax.nn.logsumexp(ratio)
  return ratio - log_z, log_z


@checked
def entropy(log_q: Float[Array, " Y"]) -> Float[Array, ""]:
  """-sum q ln q, nats, with 0 ln 0 = 0; ln |Y| exactly when pi = ref."""
  possible = jnp.isfinite(log_q)
  safe = jnp.where(possible, log_q, 0.0)
  return -jnp.where(possible, jnp.exp(safe) * safe, 0.0).sum()


@checked
def preference(log_pi: Float[Array, " Y"], log_ref: Float[Array, " Y"], *,
               beta: float) -> Float[Array, "Y Y"]:
  """P(row beats column) = sigma(beta (ln pi/ref(row) - ln pi/ref(column))): Z cancels."""
  ratio = beta * (log_pi - log_ref)
  return jax.nn.sigmoid(ratio[:, None] - ratio[None])


@checked
def ideal_rejected(log_pi: Float[Array, " Y"], log_ref: Float[Array, " Y"], *,
                   beta: float) -> Float[Array, " Y"]:
  """Log-probs of the distribution of rejected answers, proportional to ref (ref / pi)^beta, for
  which DPO recovers pi."""
  return jax.nn.log_softmax(log_ref + beta * (log_ref - log_pi))


@checked
def dpo_margin(logp_chosen: Float[Array, " N"], logp_rejected: Float[Array, " N"],
               ref_chosen: Float[Array, " N"], ref_rejected: Float[Array, " N"], *,
               beta: float) -> Float[Array, " N"]:
  """beta [(logp - ref) chosen - (logp - ref) rejected], log-probs summed over tokens."""
  return beta * ((logp_chosen - ref_chosen) - (logp_rejected - ref_rejected))


@checked
def dpo_loss(margin: Float[Array, " N"]) -> Float[Array, ""]:
  """-mean ln sigma(margin); 0 without any pair."""
  return -jax.nn.log_sigmoid(margin).sum() / max(margin.shape[0], 1)


@checked
def population_loss(log_pi: Float[Array, " Y"], log_ref: Float[Array, " Y"],
                    wins: Float[Array, "Y Y"], weight: Float[Array, "Y Y"], *,
                    beta: float) -> Float[Array, ""]:
  """DPO over all pairs: -sum weight [wins ln sigma(M) + (1 - wins) ln sigma(-M)]."""
  ratio = beta * (log_pi - log_ref)
  m = ratio[:, None] - ratio[None]
  return -(weight * (wins * jax.nn.log_sigmoid(m) + (1.0 - wins) * jax.nn.log_sigmoid(-m))).sum()


@checked
def entropy_estimate(log_pi: Float[Array, " K"], log_ref: Float[Array, " K"], *,
                     drawn_from: str = "pi") -> tuple[Array, Array, Array]:
  """(entropy of q, ln Z, effective sample size) from K samples of "pi" or "ref", nats.

  ln w = -ln ref for samples of pi, ln pi - 2 ln ref for samples of ref. The estimate is reliable
  only if the effective sample size is not small against K. Raises ValueError for another source,
  or without any sample.
  """
  if not log_pi.shape[0]:
    raise ValueError("entropy_estimate: needs at least one sample")
  if drawn_from not in ("pi", "ref"):
    raise ValueError(f"drawn_from={drawn_from!r}; choices: 'pi', 'ref'")
  log_w = -log_ref if drawn_from == "pi" else log_pi - 2.0 * log_ref
  share = jax.nn.softmax(log_w)
  log_z = jax.nn.logsumexp(log_w) - jnp.log(float(log_w.shape[0]))
  return log_z - (share * (log_pi - log_ref)).sum(), log_z, 1.0 / jnp.square(share).sum()
