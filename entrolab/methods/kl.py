"""KL: the estimators of KL(current || reference) per token, each with the gradient it has.

Approximating KL Divergence, Schulman (2020, http://joschu.net/blog/kl-approx.html); k3 in the
loss: DeepSeekMath, Shao et al. (arXiv:2402.03300, 2024), equation 4; in the reward, with an
adaptive coefficient: Ziegler et al. (arXiv:1909.08593, 2019), equation 2 and section 2.2.
Official code: volcengine/verl, verl/trainer/ppo/core_algos.py (kl_penalty).
Acts on: penalty, advantage, controller.  State: coefficient.
Differs from the official code: k1_plus and k3_plus (value of one, gradient of k2) are documented
in verl but raise there; here they are what their names say.

On policy the expected gradient of k1 is zero and that of k3 is not the gradient of the KL; only
k2's is. `ref_logp` is the reference policy; to stay near the policy that sampled, pass old_logp.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.typing import Advantage, Array, Float, Penalty


@checked
def k1(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"]) -> Penalty:
  """logp - ref_logp: unbiased value; its expected gradient on policy is zero."""
  return logp - ref_logp


@checked
def absolute(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"]) -> Penalty:
  """|logp - ref_logp|; gradient sign(logp - ref_logp), exactly zero at equality."""
  return _absolute(logp - ref_logp)


@checked
def k2(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"]) -> Penalty:
  """(logp - ref_logp)^2 / 2: its expected gradient on policy is the gradient of the KL."""
  return jnp.square(logp - ref_logp) / 2.0


@checked
def k3(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"], *, limit: float = 20.0,
       cap: float = 10.0) -> Penalty:
  """clip(e^d - d - 1, -cap, cap), d = clip(ref_logp - logp, -limit, limit): never negative.

  The clamps are verl's (low_var_kl); infinities give TRL's form. Zero gradient beyond a clamp.
  """
  d = jnp.clip(ref_logp - logp, -limit, limit)
  return jnp.clip(jnp.expm1(d) - d, -cap, cap)


@checked
def k1_plus(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"]) -> Penalty:
  """Value of k1, gradient of k2 (straight through)."""
  return _through(k1(logp, ref_logp), k2(logp, ref_logp))


@checked
def k3_plus(logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"], *, limit: float = 20.0,
            cap: float = 10.0) -> Penalty:
  """Value of k3, gradient of k2 (straight through)."""
  return _through(k3(logp, ref_logp, limit=limit, cap=cap), k2(logp, ref_logp))


@checked
def in_reward(adv: Float[Array, "B T"], old_logp: Float[Array, "B T"],
              ref_logp: Float[Array, "B T"], kl_coef: Float[Array, ""]) -> Advantage:
  """r_t - kl_coef (old_logp - ref_logp): the KL as a token reward, no gradient.

  adv holds the token rewards (`gae.last_token`); kl_coef is a controlled value (`Adaptive`).
  """
  return adv - kl_coef.astype(adv.dtype) * k1(old_logp, ref_logp)


@dataclasses.dataclass(frozen=True)
class Adaptive(Controller):
  """`kl_coef` *= 1 + clip(KL / target - 1, -0.2, 0.2) * rows / horizon, arXiv:1909.08593."""
  target: float  # nats a token
  start: float = 0.2  # first coefficient
  rows: int = 1  # responses of an optimiser step
  horizon: float = 10_000.0  # responses; infinity keeps the coefficient constant
  # the KL: a penalty of weight 0 logs it where the coefficient acts in the reward
  metric: str = "term/kl.k3"

  def init(self) -> State:
    return {"kl_coef": jnp.asarray(self.start, float)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    error = jnp.clip(metrics[self.metric].astype(float) / self.target - 1.0, -0.2, 0.2)
    return {"kl_coef": state["kl_coef"] * (1.0 + error * self.rows / self.horizon)}


def _through(value: Array, gradient: Array) -> Array:
  return jax.lax.stop_gradient(value - gradient) + gradient


def _absolute(x: Array) -> Array:
  # jnp.abs has gradient 1 or 0 at zero depending on the version; here it is 0 by construction
  return x * jax.lax.stop_gradient(jnp.sign(x))
