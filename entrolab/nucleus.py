"""The exact cut of a nucleus without sorting: a search for the logit at which the mass is reached.

Rows of logits [N, V] -> the smallest kept and the largest dropped logit, so that a pass over the
same logits in another blocking, which may round differently, finds the same set. The search goes
over e^(logit - maximum), the mass itself, so that a round reads one array once; 160 random rows of
49,152 and 151,936 logits took 6 to 24 rounds at top-p 0.8 and 0.95, mostly 12 or 18, and a block
ends with its slowest row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Float

ROUNDS = 6  # of a search, between looks at what is left
SLACK = 64  # floats that a bound may be off by rounding
SEARCH, TYPICAL = "nucleus_search", 2  # its name in compiled programs, how often it looks there


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


def _next(logits: Array, bound: Array, up: Array, axis: str | None) -> Array:
  """Per row the smallest logit above `bound` where `up`, else the largest below it."""
  bound, sign = bound[:, None], jnp.where(up, -1.0, 1.0).astype(logits.dtype)
  side = jnp.where(up[:, None], logits > bound, logits < bound)
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
  """The bracket, as keys: mass{x >= low} >= goal > above = mass{x >= high}; try_ is probed next;
  under, over: what a secant takes for the distances of the two masses from the goal; rose: low
  moved last."""
  low: Array
  high: Array
  try_: Array
  above: Array
  under: Array
  over: Array
  rose: Array


def _search(x: Array, mass: Array, logits: Array, goal: Array, low: Array, high: Array,
            whole: Array, axis: str | None, everywhere: tuple[str, ...]
            ) -> tuple[Array, Array, Array]:
  """(the smallest and the largest logit of those whose x is the largest t that has mass{x >= t} >=
  goal, the mass strictly above them); low <= t <= high, whole: the mass of all.

  Secants in the order of floats, which is logarithmic (Illinois: the end that stays counts half),
  and one round of six that halves; a round reads the row once. After six of them it looks at the
  logits between the ends, and the search is over when these are equal, or no float is left between
  the ends: after 200 rounds at most for float32. Only the loop compares x: a compiler that computes
  it again elsewhere may round it differently there.
  """
  value = lambda key: _float(key, x.dtype)[:, None]
  middle = lambda a, b: (a >> 1) + (b >> 1) + (a & b & 1)

  def one(number, s):
    got = summed(jnp.where(x >= value(s.try_), mass, 0.0).sum(-1), axis)
    up = got >= goal
    a, b = jnp.where(up, s.try_, s.low), jnp.where(up, s.high, s.try_)
    under = jnp.where(up, jnp.where(s.rose, s.under / 2.0, s.under), goal - got)
    over = jnp.where(up, got - goal, jnp.where(s.rose, s.over, s.over / 2.0))
    width = b.astype(x.dtype) - a.astype(x.dtype)
    probe = b - (width * (under / (under + over))).astype(b.dtype)
    halves = (number == ROUNDS - 1) | (probe <= a) | (probe >= b)
    probe = jnp.where(halves, middle(a, b), probe)
    probe = jnp.where(probe > a, probe, b)  # no float between: the ends stay as they are
    return _Search(a, b, probe, jnp.where(up, s.above, got), under, over, up)

  def rounds(carry):
    s = jax.lax.fori_loop(0, ROUNDS, one, carry[0])
    held = (x >= value(s.low)) & (x < value(s.high))
    ends = jnp.stack([jnp.where(held, -logits, -jnp.inf).max(-1),
                      jnp.where(held, logits, -jnp.inf).max(-1)])
    first, last = highest(ends, axis) * jnp.asarray([[-1.0], [1.0]], x.dtype)
    more = (first < last) & (middle(s.low, s.high) > s.low)
    return s, first, last, _anywhere(more, everywhere)

  a, b = _key(low), jnp.minimum(_key(high) + SLACK, _key(jnp.asarray(jnp.inf, x.dtype)))
  a = jnp.where(goal > 0.0, jnp.minimum(a, b - 2 * SLACK), b - 2 * SLACK)
  start = _Search(a, b, b - 2 * SLACK, jnp.zeros_like(goal), goal, whole - goal, goal < 0.0)
  with jax.named_scope(SEARCH):
    s, first, last, _ = jax.lax.while_loop(lambda carry: carry[-1], rounds,
                                           (start, low, high, jnp.array(True)))
  return first, last, s.above


def _anywhere(on: Array, everywhere: tuple[str, ...]) -> Array:
  """Whether any row of any device: a branch with collectives is taken by all of them or none."""
  some = on.any()
  return jax.lax.pmax(some.astype(jnp.int32), everywhere) > 0 if everywhere else some


class Edge(NamedTuple):
  """Where a set of largest logits ends, per row: all above tau are in it, and `kept` of the `total`
  logits that equal tau, the first ones."""
  tau: Array
  kept: Array
  total: Array


def edge_at(logits: Float[Array, "N V"], x: Float[Array, "N V"], mass: Float[Array, "N V"],
            weigh: Callable[[Array], Array], goal: Float[Array, " N"], low: Float[Array, " N"],
            whole: Float[Array, " N"], inclusive: bool, axis: str | None = None,
            everywhere: tuple[str, ...] = ()) -> Edge:
  """Where the mass of the largest logits reaches `goal`, of `whole` in all.

  inclusive: the smallest prefix in descending order (ties by index) that reaches it; otherwise the
  largest that stays below. x: e^(logit - maximum); mass: of every logit, by weigh(logit); low: a
  bound below the x where the goal is reached. axis, everywhere: the mesh axis of a sharded
  vocabulary, and all axes of its mesh.
  """
  count = lambda on: summed(jnp.where(on, jnp.ones_like(logits), 0.0).sum(-1), axis)
  first, last, strictly = _search(x, mass, logits, goal, low, jnp.ones_like(goal), whole, axis,
                                  everywhere)
  these = (logits >= first[:, None]) & (logits <= last[:, None])
  total, each = count(these), weigh(last)
  # how many of them it takes to reach the goal; the exclusive set stops one short
  need = jnp.ceil((goal - strictly) / jnp.where(each > 0, each, 1.0))
  need = jnp.clip(need, 1.0, total) - (0.0 if inclusive else 1.0)

  def among():
    """Several logits have one exponential: a search by their number."""
    own = jnp.where(these, logits, -jnp.inf)
    _, tau, before = _search(own, jnp.where(these, jnp.ones_like(logits), 0.0), own,
                             jnp.maximum(need, 1.0), first, last, total, axis, everywhere)
    return Edge(tau, need - before, count(logits == tau[:, None]))

  return jax.lax.cond(_anywhere(first < last, everywhere), among, lambda: Edge(last, need, total))


def cut_of(logits: Float[Array, "N V"], edge: Edge, begin: int | Array = 0,
           axis: str | None = None, everywhere: tuple[str, ...] = ()) -> Cut:
  """The cut at an edge. begin: index in the whole vocabulary of the first logit; the rest as in
  `edge_at`."""
  tau, none = edge.tau, edge.kept <= 0
  split = ~none & (edge.kept < edge.total)
  near = _next(logits, tau, none, axis)
  middle = jnp.where(none, _above(tau, near), _below(tau, near))
  even = Cut(middle, middle, jnp.full_like(none, -1, jnp.int32))
  return jax.lax.cond(_anywhere(split, everywhere),
                      lambda: _halved(logits, begin, edge, split, even, axis), lambda: even)


def edge_rows(logits: Float[Array, "N V"], top_p: float | Array, inclusive: bool,
              axis: str | None = None, everywhere: tuple[str, ...] = ()) -> Edge:
  """Where the nucleus of every row ends; top_p: a number, or [N] of them.

  exclusive: the largest prefix in descending order (ties by index) whose mass stays strictly
  below top_p; inclusive: the smallest whose mass reaches it. The rest as in `edge_at`.
  """
  peak = highest(logits.max(-1), axis)
  x = jnp.exp(logits - peak[:, None])
  whole = summed(x.sum(-1), axis)
  size = logits.shape[-1] * (1 if axis is None else jax.lax.axis_size(axis))
  # together, the tokens below this hold less than half of 1 - top_p, however the sum is rounded
  low = (1.0 - top_p) / (2.0 * size) * whole
  return edge_at(logits, x, x, lambda z: jnp.exp(z - peak), top_p * whole, low, whole, inclusive,
                 axis, everywhere)


def cut_rows(logits: Float[Array, "N V"], top_p: float | Array, inclusive: bool) -> Cut:
  """The cut of the nucleus of every row, gradient-free, as in `edge_rows`."""
  logits = jax.lax.stop_gradient(logits)
  return cut_of(logits, edge_rows(logits, top_p, inclusive))


def _halved(logits: Array, begin: int | Array, edge: Edge, split: Array, even: Cut,
            axis: str | None) -> Cut:
  """`even`, but where the cut splits equal logits: a band around them, and the last one kept."""
  tau, yes = edge.tau, jnp.ones_like(split)
  upper = _above(tau, _next(logits, tau, yes, axis))
  lower, band = _next(logits, tau, ~yes, axis), _band(tau)
  middle = _below(tau, lower)
  middle = jnp.where(middle > lower, middle, tau)  # adjacent floats: low itself is kept
  tied, kept = logits == tau[:, None], edge.kept.astype(jnp.int32)
  if axis is not None:  # copies on the shards before this one come first
    own = jax.lax.all_gather(tied.sum(-1, dtype=jnp.int32), axis)
    mine = jnp.arange(own.shape[0])[:, None] < jax.lax.axis_index(axis)
    kept = kept - jnp.where(mine, own, 0).sum(0)
  place = _place_of(tied, kept)
  last = highest(jnp.where(place < 0, -1, begin + place), axis)
  return Cut(jnp.where(split, jnp.maximum(tau - band, middle), even.low),
             jnp.where(split, jnp.minimum(tau + band, upper), even.high),
             jnp.where(split, last, -1).astype(jnp.int32))


def _place_of(on: Array, number: Array) -> Array:
  """The place of the `number`-th true entry of every row (the last one where there are fewer), -1
  without any: by halving the row, since a cumulative sum of it costs ten times as much."""
  def half(_, ends):
    a, b = ends  # of the places before a, fewer than number are true; of those before b, enough
    middle = (a + b) // 2
    enough = (on & (place < middle[:, None])).sum(-1, dtype=jnp.int32) >= want
    return jnp.where(enough, a, middle), jnp.where(enough, middle, b)

  size = on.shape[-1]
  place = jnp.arange(size, dtype=jnp.int32)[None]
  want = jnp.minimum(number, on.sum(-1, dtype=jnp.int32))
  zero = jnp.zeros_like(want)
  _, end = jax.lax.fori_loop(0, size.bit_length(), half, (zero, zero + size))
  return jnp.where(want > 0, end - 1, -1)


def of_rows(logits: Float[Array, "N V"], top_p: float, inclusive: bool, begin: int | Array,
            axis: str | None, everywhere: tuple[str, ...]) -> dict[str, Any]:
  """cut; lse_nucleus, the log-sum-exp of the nucleus; nucleus_entropy."""
  edge = edge_rows(logits, top_p, inclusive, axis, everywhere)
  peak = highest(logits.max(-1), axis)
  on, far = logits > edge.tau[:, None], logits - peak[:, None]
  x = jnp.exp(far)
  s, u = summed(jnp.stack([jnp.where(on, x, 0.0).sum(-1),
                           jnp.where(on, x * far, 0.0).sum(-1)]), axis)
  each = jnp.exp(edge.tau - peak)  # of the equal logits at the edge
  s, u = s + edge.kept * each, u + edge.kept * each * (edge.tau - peak)
  some = s > 0
  s = jnp.where(some, s, 1.0)
  return {"cut": cut_of(logits, edge, begin, axis, everywhere), "lse_nucleus": peak + jnp.log(s),
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
