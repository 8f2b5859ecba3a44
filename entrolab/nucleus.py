"""The exact cut of a nucleus without sorting: a search for the logit at which the mass is reached.

Rows of logits [N, V] -> the smallest kept and the largest dropped logit, so that a pass over the
same logits in another blocking, which may round differently, finds the same set. A round of the
search reads the row twice; random rows of 151,936 logits took at most 16 rounds at top-p 0.8 and 20
at 0.95, and a block ends with its slowest row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Float

ROUNDS = 600  # never reached: every eighth round halves at most 2^32 (float64: 2^64) floats
SEARCH, TYPICAL = "nucleus_search", 12  # its name in compiled programs, rounds that count there


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


def summed(x: Array, axis: str | None) -> Array:
  """Over the shards of the vocabulary, where it has an axis."""
  return x if axis is None else jax.lax.psum(x, axis)


def highest(x: Array, axis: str | None) -> Array:
  """Maximum over the shards of the vocabulary, where it has an axis."""
  return x if axis is None else jax.lax.pmax(x, axis)


def _next(logits: Array, bound: Array, up: Array, axis: str | None, *, strict: bool) -> Array:
  """Per row the smallest logit above `bound` where `up`, else the largest below it.

  strict: the bound itself counts on neither side; otherwise it counts as above.
  """
  bound, sign = bound[:, None], jnp.where(up, -1.0, 1.0).astype(logits.dtype)
  above = logits > bound if strict else logits >= bound
  side = jnp.where(up[:, None], above, logits < bound)
  return sign * highest(jnp.where(side, sign[:, None] * logits, -jnp.inf).max(-1), axis)


def _key(x: Array) -> Array:
  """Floats as integers of the same order; denormals count as zero, which many devices make them."""
  kind = np.int64 if x.dtype == jnp.float64 else np.int32
  bits = jax.lax.bitcast_convert_type(x, kind)
  size = jnp.maximum((bits & np.iinfo(kind).max) - _least(x.dtype), 0)
  return jnp.where(bits < 0, -size, size)


def _float(key: Array, dtype) -> Array:
  """The inverse of `_key`."""
  size = jnp.abs(key)
  bits = jnp.where(size > 0, size + _least(dtype), 0)
  return jnp.where(key < 0, -1.0, 1.0).astype(dtype) * jax.lax.bitcast_convert_type(bits, dtype)


def _least(dtype) -> int:
  """Bits of the largest denormal."""
  return (1 << np.finfo(dtype).nmant) - 1


def _between(low: Array, high: Array) -> Array:
  """t with low <= t < high, halfway where there are floats between the two."""
  middle = low / 2.0 + high / 2.0
  return jnp.where((middle >= low) & (middle < high), middle, low)


def _band(tau: Array) -> Array:
  """What a logit may change when it is computed again in another blocking."""
  return 4.0 * np.finfo(tau.dtype).eps * jnp.maximum(jnp.abs(tau), 1.0)


def _above(tau: Array, near: Array) -> Array:
  """A cut between a logit and the next one above it, inf if there is none."""
  return jnp.where(near < jnp.inf, _between(tau, near), tau + jnp.maximum(_band(tau), 1.0))


def _below(tau: Array, near: Array) -> Array:
  """A cut between a logit and the next one below it, -inf if there is none."""
  return jnp.where(near > -jnp.inf, _between(near, tau), tau - jnp.maximum(_band(tau), 1.0))


class _Search(NamedTuple):
  """The bracket: mass{z >= low} >= goal > strict = mass{z > high}; high, and low once it moved, are
  logits of the row; try_ is probed next; under, over: what a secant takes for the distances of the
  two masses from the goal; rose: low moved last."""
  low: Array
  high: Array
  try_: Array
  strict: Array
  under: Array
  over: Array
  rose: Array


def _search(logits: Array, mass: Array, goal: Array, start: _Search, axis: str | None,
            everywhere: tuple[str, ...]) -> tuple[Array, Array]:
  """(the largest logit t with mass{z >= t} >= goal, the mass strictly above it).

  Secants in the logit (Illinois: the end that stays counts half); of every eight rounds one halves
  the difference of the ends and one the number of floats between them. It ends: low < try <= high,
  and low jumps to the first logit from try on, or high, a logit itself, to the last one before, so
  that every round takes a distinct logit at least out of (low, high].
  """
  def one(carry):
    rounds, s = carry
    got = summed(jnp.where(logits >= s.try_[:, None], mass, 0.0).sum(-1), axis)
    up = got >= goal
    near = _next(logits, s.try_, up, axis, strict=False)
    low, high = jnp.where(up, near, s.low), jnp.where(up, s.high, near)
    under = jnp.where(up, jnp.where(s.rose, s.under / 2.0, s.under), goal - got)
    over = jnp.where(up, got - goal, jnp.where(s.rose, s.over, s.over / 2.0))
    probe = high - (high - low) * (under / (under + over))
    a, b = _key(low), _key(high)
    ends = jnp.stack([_float((a >> 1) + (b >> 1), low.dtype), low / 2.0 + high / 2.0])
    probe = jnp.where(rounds % 4 == 3, ends[rounds // 4 % 2], probe)
    probe = jnp.where((probe > low) & (probe < high), probe, high)
    return rounds + 1, _Search(low, high, probe, jnp.where(up, s.strict, got), under, over, up)

  def go(carry):
    rounds, s = carry
    more = (s.low < s.high).any()
    if everywhere:  # every device of the mesh takes part in the sums of every round
      more = jax.lax.pmax(more.astype(jnp.int32), everywhere) > 0
    return more & (rounds < ROUNDS)

  with jax.named_scope(SEARCH):
    _, end = jax.lax.while_loop(go, one, (jnp.zeros((), jnp.int32), start))
  return end.high, end.strict


def cut_at(logits: Float[Array, "N V"], mass: Float[Array, "N V"], weigh: Callable[[Array], Array],
           goal: Float[Array, " N"], low: Float[Array, " N"], whole: Float[Array, " N"],
           inclusive: bool, slots: Array | None = None, axis: str | None = None,
           everywhere: tuple[str, ...] = ()) -> Cut:
  """The cut where the mass of the largest logits reaches `goal`, of `whole` in all.

  inclusive: the smallest prefix in descending order (ties by index) that reaches it; otherwise the
  largest that stays below. weigh: the mass of a logit, `mass` being that of all of them; low: a
  bound below the logit at which it is reached. slots, axis, everywhere: indices and mesh axis of a
  sharded vocabulary, and all axes of its mesh.
  """
  if slots is None:
    slots = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  peak = highest(logits.max(-1), axis)
  start = _Search(jnp.minimum(low, peak), peak, peak, jnp.zeros_like(goal), goal, whole - goal,
                  goal < 0.0)
  tau, strictly = _search(logits, mass, goal, start, axis, everywhere)
  total = summed(jnp.where(logits == tau[:, None], 1.0, 0.0).sum(-1), axis)
  # copies of the tied logit it takes to reach the goal; the exclusive set stops one short
  each = weigh(tau)
  need = jnp.ceil((goal - strictly) / jnp.where(each > 0, each, 1.0))
  count = jnp.clip(need, 1.0, total) - (0.0 if inclusive else 1.0)
  none, split = count <= 0, (count > 0) & (count < total)
  near = _next(logits, tau, none, axis, strict=True)
  middle = jnp.where(none, _above(tau, near), _below(tau, near))
  even = Cut(middle, middle, jnp.full_like(total, -1, jnp.int32))
  some = split.any()
  if everywhere:  # a branch with collectives is taken by all devices or by none
    some = jax.lax.pmax(some.astype(jnp.int32), everywhere) > 0
  return jax.lax.cond(some, lambda: _halved(logits, slots, tau, count, split, even, axis),
                      lambda: even)


def lowest(logits: Float[Array, "N V"], axis: str | None = None) -> Float[Array, " N"]:
  """The smallest finite logit of every row."""
  return -highest(jnp.where(logits > -jnp.inf, -logits, -jnp.inf).max(-1), axis)


def cut_rows(logits: Float[Array, "N V"], top_p: float | Array, inclusive: bool,
             slots: Array | None = None, axis: str | None = None,
             everywhere: tuple[str, ...] = ()) -> Cut:
  """The cut of the nucleus of every row, gradient-free; top_p: a number, or [N] of them.

  exclusive: the largest prefix in descending order (ties by index) whose mass stays strictly
  below top_p; inclusive: the smallest whose mass reaches it. The rest as in `cut_at`.
  """
  logits = jax.lax.stop_gradient(logits)
  peak = highest(logits.max(-1), axis)
  mass = jnp.exp(logits - peak[:, None])
  whole = summed(mass.sum(-1), axis)
  size = logits.shape[-1] * (1 if axis is None else jax.lax.axis_size(axis))
  # together, the tokens below this hold less than half of 1 - top_p, however the sum is rounded
  rest = (1.0 - top_p) / (2.0 * size) * jnp.ones_like(peak)
  bound = lambda: peak + (jnp.log(whole) + jnp.log(rest)) - _band(peak)
  if isinstance(top_p, float):
    low = bound() if top_p < 1.0 else lowest(logits, axis)
  else:
    low = jnp.where(top_p < 1.0, bound(), lowest(logits, axis))
  return cut_at(logits, mass, lambda t: jnp.exp(t - peak), top_p * whole, low, whole, inclusive,
                slots, axis, everywhere)


def _halved(logits: Array, slots: Array, tau: Array, count: Array, split: Array, even: Cut,
            axis: str | None) -> Cut:
  """`even`, but where the cut splits equal logits: a band around them, and the last one kept."""
  yes = jnp.ones_like(split)
  upper = _above(tau, _next(logits, tau, yes, axis, strict=True))
  lower, band = _next(logits, tau, ~yes, axis, strict=True), _band(tau)
  middle = _below(tau, lower)
  middle = jnp.where(middle > lower, middle, tau)  # adjacent floats: low itself is kept
  tied = logits == tau[:, None]
  order: Any = jnp.cumsum(tied, -1, dtype=jnp.int32)
  if axis is not None:  # copies on the shards before this one come first
    before = jax.lax.all_gather(tied.sum(-1, dtype=jnp.int32), axis)
    mine = jnp.arange(before.shape[0])[:, None] < jax.lax.axis_index(axis)
    order = order + jnp.where(mine, before, 0).sum(0)[:, None]
  kept = tied & (order <= count[:, None].astype(jnp.int32))
  last = highest(jnp.where(kept, slots[None], -1).max(-1), axis)
  return Cut(jnp.where(split, jnp.maximum(tau - band, middle), even.low),
             jnp.where(split, jnp.minimum(tau + band, upper), even.high),
             jnp.where(split, last, -1).astype(jnp.int32))


def of_rows(logits: Float[Array, "N V"], top_p: float, inclusive: bool, slots: Array,
            axis: str | None, everywhere: tuple[str, ...]) -> dict[str, Any]:
  """cut; lse_nucleus, the log-sum-exp of the nucleus; nucleus_entropy."""
  cut = cut_rows(logits, top_p, inclusive, slots, axis, everywhere)
  on = inside(logits, slots[None], jax.tree.map(lambda x: x[:, None], cut))
  peak = highest(logits.max(-1), axis)
  x = jnp.where(on, logits - peak[:, None], 0.0)
  e = jnp.where(on, jnp.exp(x), 0.0)
  s, u = summed(jnp.stack([e.sum(-1), (e * x).sum(-1)]), axis)
  some = s > 0
  s = jnp.where(some, s, 1.0)
  return {"cut": cut, "lse_nucleus": peak + jnp.log(s),
          "nucleus_entropy": jnp.where(some, jnp.log(s) - u / s, 0.0)}


def by_rows(fn: Callable[[Array], Any], logits: Callable[[Array], Array],
            hidden: Float[Array, "N D"], *, size: int, whole: bool, few: int) -> Any:
  """fn(logits(hidden)) [N, ...] of `few` rows of `size` logits at a time, or of the whole at once.

  The logits are made for up to 64 rows at a time: an efficient product, 24 MB at most.
  """
  if whole:
    return fn(logits(hidden))
  rows = hidden.shape[0]
  many = max(1, min(64, (24 << 20) // (4 * size), rows) // few) * few
  count = math.ceil(rows / many)
  h = jnp.pad(hidden, ((0, count * many - rows), (0, 0))).reshape(count, many, -1)
  out = jax.lax.map(lambda x: jax.lax.map(fn, logits(x).reshape(-1, few, size)), h)
  return jax.tree.map(lambda x: x.reshape(-1)[:rows], out)
