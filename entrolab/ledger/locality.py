"""Locality: which share of a change of entropy stays at the state whose token caused it.

With K_ij = <grad H_i, P grad l_j>, the effect of token j's loss on the entropy of state i,

  L = trace(K) / sum(K)

L = 1 where no state shares a parameter with another: closed forms that know a token's own state
alone (covariance, STEER's and Clip-Cov's criteria) are exact there. Near 0 entropy moves by
generalisation, and L may leave [0, 1] where own effects and those of others have different signs.

The trace is estimated by Hutchinson's method: for signs e_i of mean 0,

  E <grad sum_i e_i H_i, P grad sum_j e_j l_j> = trace(K)

and the sum is the same product with every e_i = 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entrolab.ledger.account import inner
from entrolab.typing import Array, Float, Key

# (params, rows of a part) -> (H [b, T], l [b, T]), zero on padding
PerToken = Callable[[Any, Any], tuple[Array, Array]]


class Locality(NamedTuple):
  """An estimate of L."""
  share: Float[Array, ""]  # trace(K) / sum(K); not finite where nothing moves
  error: Float[Array, ""]  # its standard error over the probes


def locality(per_token: PerToken, params: Any, parts: Any, preconditioner: Any,
             key: Key[Array, ""], probes: int) -> Locality:
  """L of the tokens of all parts; parts: their rows, with a leading axis of parts.

  Each probe takes a forward pass and two backward passes. Raises ValueError for fewer than two
  probes, whose spread is the standard error.
  """
  if probes < 2:
    raise ValueError(f"probes={probes}: at least 2, since their spread is the standard error")

  def product(signs_of):  # <grad sum e H, P grad sum e l>; signs_of(index of a part, shape) -> e
    def add_part(total, indexed):
      index, rows = indexed
      (entropy, loss), back = jax.vjp(lambda p: per_token(p, rows), params)
      e = signs_of(index, entropy.shape).astype(entropy.dtype)
      of_entropy, = back((e, jnp.zeros_like(loss)))
      of_loss, = back((jnp.zeros_like(entropy), e))
      return jax.tree.map(jnp.add, total, (of_entropy, of_loss)), None

    zero = jax.tree.map(jnp.zeros_like, (params, params))
    count = jax.tree.leaves(parts)[0].shape[0]
    (of_entropy, of_loss), _ = jax.lax.scan(add_part, zero, (jnp.arange(count), parts))
    return inner(of_entropy, jax.tree.map(jnp.multiply, preconditioner, of_loss))

  def probe(key):
    return product(lambda index, shape: jax.random.rademacher(
        jax.random.fold_in(key, index), shape, jnp.int32))

  traces = jax.lax.map(probe, jax.random.split(key, probes))
  total = product(lambda index, shape: jnp.ones(shape, jnp.int32))
  return Locality(traces.mean() / total,
                  traces.std(ddof=1) / jnp.sqrt(1.0 * probes) / jnp.abs(total))
