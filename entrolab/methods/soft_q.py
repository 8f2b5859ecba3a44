"""SOFT-Q: log-probabilities read as soft advantages, fitted to the reward by their residual.

Learning from Suboptimal Data in Continuous Control via Auto-Regressive Soft Q-Network (ARSQ), Liu
et al. (arXiv:2502.00288, 2025): advantages of the parts of an action, each normalised, add up to
the soft Q of the action. Here the parts are tokens; the formulas are not published elsewhere.
Official code: none for tokens.
Acts on: advantage, surrogate.  State: none.
Differs from the official code: (1) tokens instead of a coarse-to-fine grid; the model's softmax
normalises them, no further network is needed: Q(x, y) = V(x) + alpha sum_t log pi(y_t); (2) V(x)
is the one that fits the group best (`residual`), or a critic of the caller (`bellman`).

The residual is zero on every response iff pi(y) = exp(R(y) / alpha) / Z: the fixed point does not
depend on which policy sampled, and no importance weight appears. Entropy at the fixed point is set
by alpha alone.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped, known_mean
from entrolab.typing import Advantage, Array, Bool, Float, Surrogate


@checked
def residual(rewards: Float[Array, " B"], logp: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
             size: int, alpha: float = 0.1) -> Advantage:
  """R - alpha S - mean_group(R - alpha S), S = sum_t log pi of the current policy.

  With `ppo.reinforce` and `aggregate.sequence_sum` its gradient is that of
  sum_b (V + alpha S_b - R_b)^2 / (2 alpha B), V = mean_group(R - alpha S): the best V for the
  group. A row whose reward is not known (NaN) is not in the mean. alpha: units of reward a nat.
  Raises ValueError for groups of one, whose V fits anything.
  """
  return _residual(rewards, jnp.where(mask, logp, 0.0).sum(1), size, alpha)


@checked
def reference_residual(rewards: Float[Array, " B"], logp: Float[Array, "B T"],
                       ref_logp: Float[Array, "B T"], mask: Bool[Array, "B T"], *, size: int,
                       alpha: float = 0.1) -> Advantage:
  """`residual` with S = sum_t log pi / pi_ref: fixed point pi_ref(y) exp(R(y) / alpha) / Z."""
  return _residual(rewards, jnp.where(mask, logp - ref_logp, 0.0).sum(1), size, alpha)


@checked
def bellman(logp: Float[Array, "B T"], value: Float[Array, "B T"], adv: Float[Array, "B T"],
            mask: Bool[Array, "B T"], *, alpha: float = 0.1, gamma: float = 1.0) -> Surrogate:
  """(V_t + alpha log pi_t - r_t - gamma sg(V_next))^2 / 2: the residual of every token.

  value [B, T]: a critic of the caller at the state before token t (gradient); V_next that of the
  following valid token, 0 after the last, without gradient. adv holds the token rewards r
  (`gae.last_token`). Fixed point: pi_t = exp((Q_t - V_t) / alpha), V = alpha logsumexp(Q / alpha).
  """
  def step(later, now):
    v, on = now
    return jnp.where(on, v, later), later

  fixed = jax.lax.stop_gradient(jnp.where(mask, value, 0.0)).T
  _, after = jax.lax.scan(step, jnp.zeros_like(fixed[0]), (fixed, mask.T), reverse=True)
  return jnp.square(value + alpha * logp - adv - gamma * after.T) / 2.0


def _residual(rewards, total, size, alpha):
  if size < 2 or alpha <= 0.0:
    raise ValueError(f"soft_q.residual(size={size}, alpha={alpha}): size >= 2 and alpha > 0")
  gap = grouped(rewards - alpha * total.astype(rewards.dtype), size)
  centred = gap - known_mean(gap, axis=1)
  return jnp.where(jnp.isnan(gap), 0.0, centred).reshape(rewards.shape)
