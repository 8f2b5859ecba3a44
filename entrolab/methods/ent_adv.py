"""ENT-ADV: advantages raised by the entropy of their token, by at most a fraction of themselves.

Reasoning with Exploration: An Entropy Perspective, Cheng et al. (arXiv:2506.14758, 2025). Official
code: none published; public implementation: Linn3a/siren, verl/verl/workers/actor/dp_actor.py.
Acts on: advantage.  State: none.
Differs from the public implementation: (1) kappa defaults to the paper's 2, its later commits have
1, which lets a negative advantage become 0; (2) it adds in place, so that a second pass over the
same batch would add the bonus again; here every pass starts from the advantage of the rollout.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Advantage, Array, Float


@checked
def psi(adv: Float[Array, "B T"], entropy: Float[Array, "B T"], *, alpha: float = 0.4,
        kappa: float = 2.0) -> Float[Array, "B T"]:
  """min(alpha H, |A| / kappa), never negative; H of the current policy, nats, no gradient."""
  return jnp.minimum(alpha * entropy, jnp.abs(adv) / kappa)


@checked
def shaped(adv: Float[Array, "B T"], entropy: Float[Array, "B T"], *, alpha: float = 0.4,
           kappa: float = 2.0) -> Advantage:
  """A + psi: a right answer counts up to 1 + 1 / kappa, a wrong one down to 1 - 1 / kappa.

  A = 0 stays 0. Stands last in the chain of advantages, after every normalisation. alpha: 0.4
  with GRPO. Raises ValueError for kappa < 1, where the sign could flip.
  """
  if kappa < 1.0 or alpha < 0.0:
    raise ValueError(f"shaped(alpha={alpha}, kappa={kappa}): alpha >= 0 and kappa >= 1")
  return adv + psi(adv, entropy, alpha=alpha, kappa=kappa)
