"""The exact cut of a nucleus without sorting: bisection over the order of float keys.

Rows of logits [N, V] -> the smallest kept and the largest dropped logit, so that a pass over the
same logits in another blocking, which may round differently, finds the same set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Float


class Cut(NamedTuple):
  """A token of logit z at index i is kept if z > high, or z >= low and i <= last.

  low, high [N]: equal to the midpoint between kept and dropped logits where they differ (last is
  -1 then); around the tied logit where the cut splits equal logits, the first ones being kept.
  """
  low: Array
  high: Array
  last: Array


def inside(logits: Array, slots: Array, cut: Cut) -> Array:
  """Membership, elementwise; slots are indices in the whole vocabulary."""
  return (logits > cut.high) | ((logits >= cut.low) & (slots <= cut.last))


def _ordered(x: Array) -> Array:
  """Floats as integers of the same order."""
  kind = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
  bits = jax.lax.bitcast_convert_type(x, kind)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def _sum(x: Array, axis: str | None) -> Array:
  return x if axis is None else jax.lax.psum(x, axis)


def _max(x: Array, axis: str | None) -> Array:
  return x if axis is None else jax.lax.pmax(x, axis)


def cut_rows(logits: Float[Array, "N V"], top_p: float, inclusive: bool,
             slots: Array | None = None, axis: str | None = None) -> Cut:
  """The cut of every row. slots, axis: indices and mesh axis of a sharded vocabulary.

  exclusive: the largest prefix in descending order (ties by index) whose mass stays strictly
  below top_p; inclusive: the smallest whose mass reaches it. Gradient-free by construction.
  """
  logits = jax.lax.stop_gradient(logits)
  if slots is None:
    slots = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  peak = _max(logits.max(-1), axis)
  mass = jnp.exp(logits - peak[:, None])
  goal = top_p * _sum(mass.sum(-1), axis)
  keys = _ordered(logits)
  kind = keys.dtype
  # largest key t with mass{key >= t} >= goal: everything above it is kept, it is the cut's logit
  hi = _ordered(peak)
  lo = jnp.minimum(hi, jnp.iinfo(kind).min)  # where hi is, on whatever mesh

  def halve(_, bounds):
    lo, hi = bounds
    mid = (lo >> 1) + (hi >> 1) + ((lo | hi) & 1)  # ceil of the mean, without overflow
    reached = _sum(jnp.where(keys >= mid[:, None], mass, 0.0).sum(-1), axis) >= goal
    return jnp.where(reached, mid, lo), jnp.where(reached, hi, mid - 1)

  tau, _ = jax.lax.fori_loop(0, jnp.iinfo(kind).bits + 1, halve, (lo, hi))
  above, tied = keys > tau[:, None], keys == tau[:, None]
  strictly = _sum(jnp.where(above, mass, 0.0).sum(-1), axis)
  each = _max(jnp.where(tied, mass, 0.0).max(-1), axis)
  total = _sum(tied.sum(-1, dtype=jnp.int32), axis)
  # copies of the tied logit it takes to reach the goal; the exclusive set stops one short
  need = jnp.ceil((goal - strictly) / jnp.where(each > 0, each, 1.0)).astype(jnp.int32)
  need = jnp.clip(need, 1, total)
  count = need if inclusive else need - 1
  return _assemble(logits, slots, above, tied, count, total, axis)


def _assemble(logits, slots, above, tied, count, total, axis) -> Cut:
  value = _max(jnp.where(tied, logits, -jnp.inf).max(-1), axis)
  kept_low = -_max(-jnp.where(above, logits, jnp.inf).min(-1), axis)  # smallest above the tie
  below = _max(jnp.where(above | tied, -jnp.inf, logits).max(-1), axis)
  none, whole = count == 0, count >= total
  upper = jnp.where(jnp.isfinite(kept_low), (value + kept_low) / 2.0, value + 1.0)
  lower = jnp.where(jnp.isfinite(below), (value + below) / 2.0, value - 1.0)
  threshold = jnp.where(none, upper, jnp.where(whole, lower, 0.0))
  # index of the last kept copy of a tie that is split: the count-th tied slot
  if axis is None:
    order = jnp.cumsum(tied, -1, dtype=jnp.int32)
    last = jnp.where(tied & (order <= count[:, None]), slots[None], -1).max(-1)
  else:
    mine = tied.sum(-1, dtype=jnp.int32)
    before = jax.lax.all_gather(mine, axis)
    shard = jax.lax.axis_index(axis)
    start = jnp.where(jnp.arange(before.shape[0])[:, None] < shard, before, 0).sum(0)
    order = start[:, None] + jnp.cumsum(tied, -1, dtype=jnp.int32)
    last = jax.lax.pmax(jnp.where(tied & (order <= count[:, None]), slots[None], -1).max(-1), axis)
  split = ~none & ~whole
  band = 4.0 * np.finfo(value.dtype).eps * jnp.maximum(jnp.abs(value), 1.0)
  low = jnp.where(split, jnp.maximum(value - band, lower), threshold)
  high = jnp.where(split, jnp.minimum(value + band, upper), threshold)
  return Cut(low, high, jnp.where(split, last, -1).astype(jnp.int32))
