"""The exact cut of a nucleus without sorting: a search for the logit at which the mass is reached.

Rows of logits [N, V] -> a cut between the smallest logit inside and the largest outside, so that a
pass over the same logits in another blocking, which may round differently, finds the same set. The
search goes over e^(logit - maximum), the mass itself, so that a round reads one array once. 160
random rows of 49,152 and 151,936 logits took 6 to 24 rounds at top-p 0.8 and 0.95, mostly 12 or 18;
a block ends with its slowest row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Bool, Float, Int

ROUNDS = 6  # of a search, between looks at the logits that are left
SLACK = 64  # floats that a bound may be off by rounding
SEARCH = "nucleus_search"  # the name of a search in compiled programs
TYPICAL = 2  # how often a search looks at what is left, on random rows

PerRow = Float[Array, " N"]
Keys = Int[Array, " N"]  # floats as integers of the same order, see `_key`
Rows = Float[Array, "N V"]  # V: the vocabulary, or a shard's part of it


class Cut(NamedTuple):
  """Where a set of largest logits ends: a token of logit z and index i in the whole vocabulary is
  inside if z > high, or if z >= low and i <= last.

  Where the logits on both sides differ, low and high are the midpoint between them. Where the cut
  splits equal logits, of which the first are inside, low and high lie around their value.
  """
  low: PerRow  # bound of the equal logits from below, or the cut itself
  high: PerRow  # their bound from above, or the cut itself
  last: Int[Array, " N"]  # index of the last equal logit inside; -1 where none are split


def inside(logits: Array, ids: Array, cut: Cut) -> Array:
  """Whether logits are inside a cut, elementwise; ids: their indices in the whole vocabulary."""
  return (logits > cut.high) | ((logits >= cut.low) & (ids <= cut.last))


def summed(x: Array, axis: str | None) -> Array:
  """Sum over the shards of the vocabulary, where it has an axis."""
  return x if axis is None else jax.lax.psum(x, axis)


def highest(x: Array, axis: str | None) -> Array:
  """Maximum over the shards of the vocabulary, where it has an axis."""
  return x if axis is None else jax.lax.pmax(x, axis)


def _next(logits: Array, bound: Array, up: Array, axis: str | None) -> Array:
  """Per row the smallest logit above `bound` where `up`, else the largest below it."""
  bound = bound[:, None]
  # the smallest is the largest of the negated: both directions in one reduction
  sign = jnp.where(up, -1.0, 1.0).astype(logits.dtype)
  beyond = jnp.where(up[:, None], logits > bound, logits < bound)
  nearest = jnp.where(beyond, sign[:, None] * logits, -jnp.inf).max(-1)
  return sign * highest(nearest, axis)


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


def _middle(low: Keys, high: Keys) -> Keys:
  """floor((low + high) / 2), without the overflow of the sum."""
  return (low >> 1) + (high >> 1) + (low & high & 1)


class _Bracket(NamedTuple):
  """Where a search stands: mass{x >= low} >= goal > mass{x >= high}, low and high being keys."""
  low: Keys  # the goal is reached here
  high: Keys  # and not here
  probe: Keys  # where the mass is measured next
  above: PerRow  # mass{x >= high}
  under: PerRow  # goal - mass{x >= high} for the secant, which is halved while high stays
  over: PerRow  # mass{x >= low} - goal for the secant, which is halved while low stays
  rose: Bool[Array, " N"]  # whether low moved last, rather than high


def _first_bracket(low: PerRow, high: PerRow, goal: PerRow, whole: PerRow) -> _Bracket:
  """The bracket of a search between these values, wider by what they may be off by rounding."""
  below = _key(low)
  above = jnp.minimum(_key(high) + SLACK, _key(jnp.asarray(jnp.inf, high.dtype)))
  # a goal of 0 is reached anywhere: a bracket at the upper end leaves nothing to search
  below = jnp.where(goal > 0.0, jnp.minimum(below, above - 2 * SLACK), above - 2 * SLACK)
  # rose: False in the shape of goal, since neither end has moved
  return _Bracket(low=below, high=above, probe=above - 2 * SLACK, above=jnp.zeros_like(goal),
                  under=goal, over=whole - goal, rose=goal < 0.0)


def _next_probe(number: Array, low: Keys, high: Keys, under: PerRow, over: PerRow) -> Keys:
  """Where the secant through both ends reaches the goal, or the middle between them."""
  width = high.astype(under.dtype) - low.astype(under.dtype)
  secant = high - (width * (under / (under + over))).astype(high.dtype)
  # one round in ROUNDS halves the bracket whatever the masses are: their number is bounded
  halves = (number == ROUNDS - 1) | (secant <= low) | (secant >= high)
  probe = jnp.where(halves, _middle(low, high), secant)
  return jnp.where(probe > low, probe, high)  # no float between: the ends stay as they are


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

  def one_round(number, s):
    measured = summed(jnp.where(x >= value(s.probe), mass, 0.0).sum(-1), axis)
    reached = measured >= goal
    low = jnp.where(reached, s.probe, s.low)
    high = jnp.where(reached, s.high, s.probe)
    # the end that moves gets the measured distance; one that stays twice in a row gets half of what
    # it had, else it might stay for good and the bracket shrink from one side alone (Illinois)
    under = jnp.where(reached, jnp.where(s.rose, s.under / 2.0, s.under), goal - measured)
    over = jnp.where(reached, measured - goal, jnp.where(s.rose, s.over, s.over / 2.0))
    probe = _next_probe(number, low, high, under, over)
    above = jnp.where(reached, s.above, measured)
    return _Bracket(low, high, probe, above, under, over, rose=reached)

  def rounds(carry):
    s = jax.lax.fori_loop(0, ROUNDS, one_round, carry[0])
    between = (x >= value(s.low)) & (x < value(s.high))
    # the smallest as the largest of the negated: one collective for both
    ends = jnp.stack([jnp.where(between, -logits, -jnp.inf).max(-1),
                      jnp.where(between, logits, -jnp.inf).max(-1)])
    smallest, largest = highest(ends, axis) * jnp.asarray([[-1.0], [1.0]], x.dtype)
    more = (smallest < largest) & (_middle(s.low, s.high) > s.low)
    return s, smallest, largest, _anywhere(more, everywhere)

  start = _first_bracket(low, high, goal, whole)
  with jax.named_scope(SEARCH):
    s, smallest, largest, _ = jax.lax.while_loop(lambda carry: carry[-1], rounds,
                                                 (start, low, high, jnp.array(True)))
  return smallest, largest, s.above


def _anywhere(on: Array, everywhere: tuple[str, ...]) -> Array:
  """Whether any row of any device: a branch with collectives is taken by all of them or none."""
  some = on.any()
  return jax.lax.pmax(some.astype(jnp.int32), everywhere) > 0 if everywhere else some


class Edge(NamedTuple):
  """Where a set of largest logits ends: all above tau are in it, and the first that equal tau."""
  tau: PerRow  # the logit at the edge
  taken: PerRow  # how many of the logits that equal tau are in the set
  total: PerRow  # how many logits equal tau


def edge_at(logits: Rows, x: Rows, mass: Rows, weigh: Callable[[Array], Array], goal: PerRow,
            low: PerRow, whole: PerRow, inclusive: bool, axis: str | None = None,
            everywhere: tuple[str, ...] = ()) -> Edge:
  """Where the mass of the largest logits reaches `goal`, of `whole` in all.

  inclusive: the smallest prefix in descending order (ties by index) that reaches it; otherwise the
  largest that stays below. x: e^(logit - maximum); mass: of every logit, by weigh(logit); low: a
  bound below the x where the goal is reached. axis, everywhere: the mesh axis of a sharded
  vocabulary, and all axes of its mesh.
  """
  count = lambda on: summed(jnp.where(on, jnp.ones_like(logits), 0.0).sum(-1), axis)
  smallest, largest, mass_above = _search(x, mass, logits, goal, low, jnp.ones_like(goal), whole,
                                          axis, everywhere)
  at_edge = (logits >= smallest[:, None]) & (logits <= largest[:, None])
  total = count(at_edge)
  each = weigh(largest)
  # how many of them it takes to reach the goal; the exclusive set stops one short
  need = jnp.ceil((goal - mass_above) / jnp.where(each > 0, each, 1.0))
  need = jnp.clip(need, 1.0, total) - (0.0 if inclusive else 1.0)

  def among():
    """Several logits have one exponential: a search among them that counts them."""
    candidates = jnp.where(at_edge, logits, -jnp.inf)
    ones = jnp.where(at_edge, jnp.ones_like(logits), 0.0)
    _, tau, before = _search(candidates, ones, candidates, jnp.maximum(need, 1.0), smallest,
                             largest, total, axis, everywhere)
    return Edge(tau, need - before, count(logits == tau[:, None]))

  return jax.lax.cond(_anywhere(smallest < largest, everywhere), among,
                      lambda: Edge(largest, need, total))


def cut_of(logits: Rows, edge: Edge, first_id: int | Array = 0, axis: str | None = None,
           everywhere: tuple[str, ...] = ()) -> Cut:
  """The cut at an edge. first_id: index in the whole vocabulary of the first logit; the rest as in
  `edge_at`."""
  none = edge.taken <= 0
  split = ~none & (edge.taken < edge.total)
  # with none of the logits that equal tau the cut lies above it, with all of them below
  near = _next(logits, edge.tau, none, axis)
  middle = jnp.where(none, _above(edge.tau, near), _below(edge.tau, near))
  even = Cut(middle, middle, jnp.full_like(none, -1, jnp.int32))
  return jax.lax.cond(_anywhere(split, everywhere),
                      lambda: _halved(logits, first_id, edge, split, even, axis), lambda: even)


def edge_rows(logits: Rows, top_p: float | Array, inclusive: bool, axis: str | None = None,
              everywhere: tuple[str, ...] = ()) -> Edge:
  """Where the nucleus of every row ends; top_p: one for all rows, or [N].

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


def cut_rows(logits: Rows, top_p: float | Array, inclusive: bool) -> Cut:
  """The cut of the nucleus of every row, gradient-free, as in `edge_rows`."""
  logits = jax.lax.stop_gradient(logits)
  return cut_of(logits, edge_rows(logits, top_p, inclusive))


def _halved(logits: Array, first_id: int | Array, edge: Edge, split: Array, even: Cut,
            axis: str | None) -> Cut:
  """`even`, but where the cut splits equal logits: a band around them, and the last one inside."""
  tau = edge.tau
  up = jnp.ones_like(split)
  upper = _above(tau, _next(logits, tau, up, axis))
  lower = _next(logits, tau, ~up, axis)
  band = _band(tau)
  middle = _below(tau, lower)
  middle = jnp.where(middle > lower, middle, tau)  # adjacent floats: the cut is low itself
  tied = logits == tau[:, None]
  taken = edge.taken.astype(jnp.int32)
  if axis is not None:  # equal logits on the shards before this one come first
    counts = jax.lax.all_gather(tied.sum(-1, dtype=jnp.int32), axis)
    before = jnp.arange(counts.shape[0])[:, None] < jax.lax.axis_index(axis)
    taken = taken - jnp.where(before, counts, 0).sum(0)
  place = _place_of(tied, taken)
  last = highest(jnp.where(place < 0, -1, first_id + place), axis)
  return Cut(jnp.where(split, jnp.maximum(tau - band, middle), even.low),
             jnp.where(split, jnp.minimum(tau + band, upper), even.high),
             jnp.where(split, last, -1).astype(jnp.int32))


def _place_of(on: Array, number: Array) -> Array:
  """The place of the `number`-th true entry of every row (the last one where there are fewer), -1
  without any: by halving the row, since a cumulative sum of it costs ten times as much."""
  def half(_, ends):
    few, enough = ends  # before the place `few` fewer entries than wanted are true
    middle = (few + enough) // 2
    reached = (on & (place < middle[:, None])).sum(-1, dtype=jnp.int32) >= want
    return jnp.where(reached, few, middle), jnp.where(reached, middle, enough)

  size = on.shape[-1]
  place = jnp.arange(size, dtype=jnp.int32)[None]
  want = jnp.minimum(number, on.sum(-1, dtype=jnp.int32))
  zero = jnp.zeros_like(want)
  _, end = jax.lax.fori_loop(0, size.bit_length(), half, (zero, zero + size))
  return jnp.where(want > 0, end - 1, -1)


def of_rows(logits: Rows, top_p: float, inclusive: bool, first_id: int | Array, axis: str | None,
            everywhere: tuple[str, ...]) -> dict[str, Any]:
  """cut, a Cut; lse_nucleus [N], the log-sum-exp of the nucleus; nucleus_entropy [N], nats.

  first_id: index in the whole vocabulary of the first logit; the rest as in `edge_rows`.
  """
  edge = edge_rows(logits, top_p, inclusive, axis, everywhere)
  peak = highest(logits.max(-1), axis)
  above = logits > edge.tau[:, None]
  x = logits - peak[:, None]
  e = jnp.exp(x)
  sums = jnp.stack([jnp.where(above, e, 0.0).sum(-1), jnp.where(above, e * x, 0.0).sum(-1)])
  sum_exp, sum_exp_x = summed(sums, axis)
  # the equal logits at the edge are counted, not looked for: no mask of the nucleus is made
  each = jnp.exp(edge.tau - peak)
  sum_exp = sum_exp + edge.taken * each
  sum_exp_x = sum_exp_x + edge.taken * each * (edge.tau - peak)
  some = sum_exp > 0
  sum_exp = jnp.where(some, sum_exp, 1.0)  # log and quotient stay finite where nothing is taken
  return {"cut": cut_of(logits, edge, first_id, axis, everywhere),
          "lse_nucleus": peak + jnp.log(sum_exp),
          "nucleus_entropy": jnp.where(some, jnp.log(sum_exp) - sum_exp_x / sum_exp, 0.0)}


def by_rows(fn: Callable[[Array], Any], logits: Callable[[Array], Array],
            hidden: Float[Array, "N D"], *, size: int, whole: bool, few: int) -> Any:
  """fn(logits(hidden)) [N, ...] of `few` rows of `size` logits at a time, or of the whole at once.

  The logits are made for up to 64 rows at a time: an efficient matmul, 24 MB at most.
  """
  if whole:
    return fn(logits(hidden))
  rows = hidden.shape[0]
  many = max(1, min(64, (24 << 20) // (4 * size), rows) // few) * few
  count = math.ceil(rows / many)
  parts = jnp.pad(hidden, ((0, count * many - rows), (0, 0))).reshape(count, many, -1)
  of_part = lambda part: jax.lax.map(fn, logits(part).reshape(-1, few, size))
  out = jax.lax.map(of_part, parts)
  return jax.tree.map(lambda x: x.reshape(-1)[:rows], out)  # without the rows of the padding
