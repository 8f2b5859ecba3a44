"""STEER: down-weight tokens by the change of entropy they are estimated to cause.

Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, Hao et al.
(arXiv:2510.10150, 2025). Official code: zz-haooo/STEER, verl/trainer/ppo/core_algos.py.
Acts on: weights.  State: none.
Differs from the official code: (1) the extremes are those of the whole optimiser batch, theirs of
each micro-batch and device (`scope="micro"`); (2) 1 - pi is expm1, theirs loses it in float32.
Forms of Omega: "code"; "squared", with (1 - pi)^2, as the naming in the code suggests the paper has
it; "own_logit", the change if the logit of the sampled token alone moved. Separate functions take
the exact first-order change of one sampled token (`exact_linear`, `exact_exponential`).
H is of the policy that sampled, pi the current one, as in the code; source="current" is both now.
"""

from typing import Literal

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Weight, real

Form = Literal["code", "squared", "own_logit"]
Source = Literal["old", "current"]
TINY = 1e-8  # the official bounds on a probability


@checked
def change(logp: Float[Array, "B T"], entropy: Float[Array, "B T"], old_logp: Float[Array, "B T"],
           old_entropy: Float[Array, "B T"], adv: Float[Array, "B T"], *, form: Form = "code",
           source: Source = "old") -> Float[Array, "B T"]:
  """Omega = (A / pi_old) pi (1 - pi) (log pi + H); -Omega is the estimated change of entropy.

  form: "squared" has (1 - pi)^2, "own_logit" another factor pi. Not finite -> 0. No gradient.
  """
  if form not in ("code", "squared", "own_logit") or source not in ("old", "current"):
    raise ValueError(f"steer.change(form={form!r}, source={source!r}); choices: 'code', 'squared', "
                     "'own_logit'; 'old', 'current'")
  h = old_entropy if source == "old" else entropy
  pi, rest = _bounded(jnp.exp(logp)), _bounded(-jnp.expm1(logp))
  factor = {"code": 1.0, "squared": rest, "own_logit": pi}[form]
  omega = adv / jnp.clip(jnp.exp(old_logp), TINY, 1.0) * pi * rest * factor * (_log(logp) + h)
  return jnp.where(jnp.isfinite(omega), omega, 0.0)


@checked
def exact_change(logp: Float[Array, "B T"], entropy: Float[Array, "B T"],
                 sum_p2: Float[Array, "B T"], sum_p2_logp: Float[Array, "B T"],
                 old_logp: Float[Array, "B T"], adv: Float[Array, "B T"]) -> Float[Array, "B T"]:
  """r A [pi (log pi + H) - sum_v pi_v^2 (log pi_v + H)]: minus the first-order change of entropy
  per unit of step along the logit gradient of r A log pi. All of the current policy but r's pi_old.
  """
  r = jnp.exp(logp) / jnp.clip(jnp.exp(old_logp), TINY, 1.0)
  of_token = jnp.exp(logp) * (_log(logp) + entropy)
  omega = r * adv * (of_token - sum_p2_logp - entropy * sum_p2)
  return jnp.where(jnp.isfinite(omega), omega, 0.0)


@checked
def linear(logp: Float[Array, "B T"], entropy: Float[Array, "B T"], old_logp: Float[Array, "B T"],
           old_entropy: Float[Array, "B T"], adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
           low: float = 0.8, high: float = 1.2, form: Form = "code",
           source: Source = "old") -> Weight:
  """From `high` at the smallest |Omega| of the batch down to `low` at the largest; see `change`.

  Where all |Omega| are equal, the middle. The denominator of the loss is not re-weighted.
  """
  omega = change(logp, entropy, old_logp, old_entropy, adv, form=form, source=source)
  return _linear(omega, mask, low, high)


@checked
def exponential(logp: Float[Array, "B T"], entropy: Float[Array, "B T"],
                old_logp: Float[Array, "B T"], old_entropy: Float[Array, "B T"],
                adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *, low: float = 0.8,
                floor: float = 0.02, form: Form = "code", source: Source = "old") -> Weight:
  """exp(-k |Omega|), k = -log(low) / max(max |Omega|, floor): `low` at the largest; see `change`.

  floor: batches whose largest |Omega| is under it are hardly re-weighted; 0 is the paper's form.
  """
  omega = change(logp, entropy, old_logp, old_entropy, adv, form=form, source=source)
  return _exponential(omega, mask, low, floor)


@checked
def exact_linear(logp: Float[Array, "B T"], entropy: Float[Array, "B T"],
                 sum_p2: Float[Array, "B T"], sum_p2_logp: Float[Array, "B T"],
                 old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
                 mask: Bool[Array, "B T"], *, low: float = 0.8, high: float = 1.2) -> Weight:
  """`linear` with the exact first-order change in place of Omega."""
  omega = exact_change(logp, entropy, sum_p2, sum_p2_logp, old_logp, adv)
  return _linear(omega, mask, low, high)


@checked
def exact_exponential(logp: Float[Array, "B T"], entropy: Float[Array, "B T"],
                      sum_p2: Float[Array, "B T"], sum_p2_logp: Float[Array, "B T"],
                      old_logp: Float[Array, "B T"], adv: Float[Array, "B T"],
                      mask: Bool[Array, "B T"], *, low: float = 0.8,
                      floor: float = 0.02) -> Weight:
  """`exponential` with the exact first-order change in place of Omega."""
  omega = exact_change(logp, entropy, sum_p2, sum_p2_logp, old_logp, adv)
  return _exponential(omega, mask, low, floor)


def _linear(omega, mask, low, high):
  if not 0.0 <= low <= high:
    raise ValueError(f"steer: low={low}, high={high}: 0 <= low <= high")
  size = jnp.abs(omega)
  least, most = jnp.where(mask, size, jnp.inf).min(), jnp.where(mask, size, -jnp.inf).max()
  span = most - least
  # all equal but for rounding, or nothing valid
  flat = ~(span > 16.0 * jnp.finfo(size.dtype).eps * most)
  w = high - (size - jnp.where(flat, 0.0, least)) * (high - low) / jnp.where(flat, 1.0, span)
  return jnp.where(mask, jnp.where(flat, (low + high) / 2.0, jnp.clip(w, low, high)), 0.0)


def _exponential(omega, mask, low, floor):
  if not 0.0 < low <= 1.0 or floor < 0.0:
    raise ValueError(f"steer: low={low}, floor={floor}: 0 < low <= 1, 0 <= floor")
  size = jnp.where(mask, jnp.abs(omega), 0.0)
  most = jnp.maximum(size.max(), max(floor, jnp.finfo(size.dtype).tiny))
  k = -jnp.log(real(jnp.asarray(low))).astype(size.dtype) / most
  return jnp.where(mask, jnp.clip(jnp.exp(-k * size), low, 1.0), 0.0)


def _bounded(p):
  return jnp.clip(p, TINY, 1.0 - TINY)


def _log(logp):
  return jnp.clip(logp, jnp.log(TINY), jnp.log1p(-TINY))
