"""GAE: returns, generalised advantages from a critic, and the critic's clipped loss.

High-Dimensional Continuous Control Using Generalized Advantage Estimation, Schulman et al.
(arXiv:1506.02438, 2015). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage, penalty.  State: none.
Differs from the official code: (1) the advantage is raw, whitening is a separate term
(`reinforce_pp.whitened`) that leaves padding at zero; (2) a gap in the mask (the output of a tool)
is skipped without discount in every function; `gap="reset"` is verl's REINFORCE++, where a return
ends at a gap, so that earlier turns get none.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Advantage, Array, Bool, Float, Penalty


@checked
def last_token(rewards: Float[Array, " B"], mask: Bool[Array, "B T"]) -> Advantage:
  """The reward of a response on its last valid token, 0 elsewhere: token rewards from a verdict.

  A reward that is not known (NaN) is 0 everywhere.
  """
  left = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # valid tokens from here on
  paid = mask & (left == 1) & ~jnp.isnan(rewards)[:, None]
  return jnp.where(paid, rewards[:, None], 0.0)


@checked
def return_to_go(adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *, gamma: float = 1.0,
                 gap: Literal["carry", "reset"] = "carry") -> Advantage:
  """R_t = r_t + gamma R_next over valid tokens, 0 on padding; adv holds the token rewards r.

  next: the following valid token, across gaps of the mask (carry) or only inside a run (reset).
  Raises ValueError for another `gap`.
  """
  if gap not in ("carry", "reset"):
    raise ValueError(f"return_to_go(gap={gap!r}); choices: 'carry', 'reset'")

  def step(later, now):
    r, on = now
    here = r + gamma * later
    return jnp.where(on, here, later if gap == "carry" else 0.0), jnp.where(on, here, 0.0)

  rewards = jnp.where(mask, adv, 0.0).T
  _, returns = jax.lax.scan(step, jnp.zeros_like(rewards[0]), (rewards, mask.T), reverse=True)
  return returns.T


@checked
def generalised(adv: Float[Array, "B T"], old_value: Float[Array, "B T"],
                mask: Bool[Array, "B T"], *, gamma: float = 1.0,
                lam: float = 1.0) -> Advantage:
  """A_t = delta_t + gamma lam A_next, delta_t = r_t + gamma V_next - V_t, equations 11 and 16.

  adv holds the token rewards r; old_value [B, T]: the critic at the time of the rollout. Beyond
  the last valid token V and A are 0. The critic's target is A + V, before any whitening.
  """
  def step(later, now):
    a, v = later
    r, value, on = now
    here = r + gamma * v - value + gamma * lam * a
    return (jnp.where(on, here, a), jnp.where(on, value, v)), jnp.where(on, here, 0.0)

  rewards, values = jnp.where(mask, adv, 0.0).T, jnp.where(mask, old_value, 0.0).T
  start = (jnp.zeros_like(rewards[0]), jnp.zeros_like(values[0]))
  _, out = jax.lax.scan(step, start, (rewards, values, mask.T), reverse=True)
  return out.T


@checked
def clipped_value_loss(value: Float[Array, "B T"], old_value: Float[Array, "B T"],
                       target: Float[Array, "B T"], *, clip: float = 0.5) -> Penalty:
  """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2: the critic's loss.

  value: the critic now (gradient); old_value: at the time of the rollout; target: R = A + V_old.
  """
  return jnp.maximum(*_squares(value, old_value, target, clip)) / 2.0


@checked
def is_value_clipped(value: Float[Array, "B T"], old_value: Float[Array, "B T"],
                     target: Float[Array, "B T"], *, clip: float = 0.5) -> Array:
  """bool [B, T]: where the clipped square is the larger one."""
  plain, clipped = _squares(value, old_value, target, clip)
  return clipped > plain


def _squares(value, old_value, target, clip):
  near = jnp.clip(value, old_value - clip, old_value + clip)
  return jnp.square(value - target), jnp.square(near - target)
