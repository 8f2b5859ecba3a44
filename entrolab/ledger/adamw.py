"""AdamW after a clip by the global norm, as a linear map of the gradient of one update.

With the moments m and v of an update, bias corrections 1 - b^t, rate eta, weight decay w, the norm
clip factor c and P = 1 / (sqrt(v / (1 - b2^t)) + eps), elementwise,

  m = b1 m' + (1 - b1) c g           delta = -eta (P m / (1 - b1^t) + w theta)

so that, given P and c, which depend on g themselves, the step that was made is a sum over what the
gradient g is a sum of, the moment m' of earlier updates, and the parameters theta.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from entrolab.typing import Array, Float


class Step(NamedTuple):
  """One update that AdamW made."""
  rate: Float[Array, ""]  # eta
  preconditioner: optax.Params  # P, a tree like them
  carried: Float[Array, ""]  # b1 / (1 - b1^t): weight of the moment of earlier updates
  fresh: Float[Array, ""]  # (1 - b1) / (1 - b1^t): weight of the gradient of this update
  clip: Float[Array, ""]  # c, 1 where nothing was clipped
  decay: float  # w


def moment(opt: optax.OptState) -> optax.Params:
  """The mean gradient m of the optimiser's state, a tree like the parameters.

  Raises ValueError for a state without one, which is none of AdamW.
  """
  return _of_adam(opt).mu


def step(opt: optax.OptState, norm: Float[Array, ""], *, schedule: optax.Schedule,
         b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float) -> Step:
  """The update after which the optimiser's state is `opt`.

  norm: of the whole gradient before the clip. schedule: count of earlier updates -> eta.
  """
  adam = _of_adam(opt)
  count = jnp.asarray(adam.count)  # t
  corrected = 1.0 - b1**count
  preconditioner = jax.tree.map(lambda v: 1.0 / (jnp.sqrt(v) + eps),
                                optax.tree.bias_correction(adam.nu, b2, count))
  rate = jnp.asarray(schedule(count - 1))
  # optax: g / norm * clip_norm where the norm is larger
  clip = jnp.where(norm < clip_norm, 1.0, clip_norm / norm) if clip_norm else jnp.ones_like(norm)
  return Step(rate, preconditioner, b1 / corrected, (1.0 - b1) / corrected, clip, weight_decay)


def _of_adam(opt: optax.OptState) -> optax.ScaleByAdamState:
  is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
  found = [x for x in jax.tree.leaves(opt, is_leaf=is_adam) if is_adam(x)]
  if len(found) != 1:
    raise ValueError(f"the ledger knows AdamW alone: {len(found)} states of Adam in the optimiser, "
                     "not one; set ledger.every=0")
  return found[0]
