"""One token from one row of logits: the draw, and the statistics of the distributions behind it.

A token is the inverse of the cumulative distribution at one uniform number, found in two levels
(about sqrt(V) block sums, then inside one block): a Gumbel draw or a full cumulative sum costs a
third of a decode step on a CPU. The same exponentials give log-prob and entropy.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entrolab import nucleus
from entrolab.nucleus import inside
from entrolab.typing import Array, Bool, Float, Int


class DrawnToken(NamedTuple):
  """A token a row with statistics in nats, [B]; [B, T] where a loop has gathered those of T steps.

  The untruncated distribution at temperature 1 is the policy, which training needs; the one drawn
  from differs from it in temperature and truncation.
  """
  token: Int[Array, "B *T"]  # the token that was drawn
  logp: Float[Array, "B *T"]  # of the token under the policy
  entropy: Float[Array, "B *T"]  # of the policy
  sampled_logp: Float[Array, "B *T"]  # of the token under the distribution drawn from
  sampled_entropy: Float[Array, "B *T"]  # of the distribution drawn from


def first_max(x: Float[Array, "B V"]) -> Int[Array, " B"]:
  """Lowest index of the row maximum; several times faster than argmax on a CPU."""
  ids = jnp.arange(x.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(x == x.max(-1, keepdims=True), ids, x.shape[-1]).min(-1)


def _first(on: Bool[Array, "B N"]) -> Int[Array, " B"]:
  """Index of the first that is on; N where none is."""
  indices = jnp.arange(on.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(on, indices, on.shape[-1]).min(-1)


def _last(on: Bool[Array, "B N"]) -> Int[Array, " B"]:
  """Index of the last that is on; -1 where none is."""
  indices = jnp.arange(on.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(on, indices, -1).max(-1)


def _search(weight: Float[Array, "B N"], target: Float[Array, " B"]) -> tuple[Array, Array]:
  """(first index whose cumulative weight exceeds target, cumulative weight before it).

  Where rounding leaves none, the last index of positive weight: never one of weight zero.
  """
  total = jnp.cumsum(weight, -1)
  at = _first(total > target[:, None])
  at = jnp.where(at < weight.shape[-1], at, _last(weight > 0))
  before = jnp.take_along_axis(total - weight, at[:, None], -1)[:, 0]
  return at, before


def _width(size: int) -> int:
  """Entries of a block: the divisor of `size` nearest to its root, or the root where none is near,
  so that the weights are seldom copied to be padded."""
  root = max(1, math.isqrt(size))
  near = [w for w in range(max(1, root // 4), 4 * root + 1) if size % w == 0]
  return min(near, key=lambda w: abs(math.log(w / root)), default=root)


def inverse_cdf(weight: Float[Array, "B V"], u: Float[Array, " B"]
                ) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """(the token at which the cumulative weight passes u times the total, the total); u in [0, 1)."""
  rows, size = weight.shape
  width = _width(size)
  blocks = jnp.pad(weight, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
  sums = blocks.sum(-1)
  total = sums.sum(-1)
  target = u * total
  block, before = _search(sums, target)
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return block * width + _search(inside, target - before)[0], total


def support(logits: Float[Array, "B V"], top_p: Float[Array, " B"],
         top_k: Int[Array, " B"]) -> Bool[Array, "B V"]:
  """The tokens that may be drawn: exact top-k, then top-p with the crossing token included.

  Ties by index; at least one token. Found by search, without sorting; a row with top_k 0 and
  top_p 1 costs one round of it.
  """
  size = logits.shape[-1]
  ids = jnp.arange(size, dtype=jnp.int32)[None]
  within = lambda z, cut: inside(z, ids, jax.tree.map(lambda x: x[:, None], cut))
  possible = (logits > -jnp.inf).sum(-1)  # a token of mass 0 is none of the k
  most = jnp.clip(jnp.where(top_k > 0, top_k, 1), 1, possible).astype(logits.dtype)
  ones = jnp.ones_like(logits)
  x = jnp.exp(logits - logits.max(-1, keepdims=True))
  counts = nucleus.edge_at(logits, x, ones, jnp.ones_like, most, jnp.zeros_like(most),
                           jnp.full_like(most, size), True)
  on = within(logits, nucleus.cut_of(logits, counts)) | (top_k <= 0)[:, None]
  left = jnp.where(on, logits, -jnp.inf)
  off = (top_p >= 1.0)[:, None]
  return on & (within(left, nucleus.cut_rows(left, jnp.where(off[:, 0], 0.0, top_p), True)) | off)


def _statistics(x: Float[Array, "B V"], e: Float[Array, "B V"], z: Float[Array, " B"],
                token: Int[Array, " B"]) -> tuple[Array, Array]:
  """(log-prob of the token, entropy) of probabilities e / z, where e = exp(x) or 0."""
  at = jnp.take_along_axis(x, token[:, None], -1)[:, 0]
  return at - jnp.log(z), jnp.log(z) - jnp.where(e > 0, e * x, 0.0).sum(-1) / z


def draw(logits: Float[Array, "B V"], u: Float[Array, " B"], temperature: Float[Array, " B"],
         top_p: Float[Array, " B"], top_k: Int[Array, " B"]) -> DrawnToken:
  """A token a row. temperature 0 takes the lowest index of the maximum; top_p 1, top_k 0: off."""
  logits = logits.astype(jnp.float32)
  x = logits - logits.max(-1, keepdims=True)
  e = jnp.exp(x)

  def plain():
    token, z = inverse_cdf(e, u)
    logp, entropy = _statistics(x, e, z, token)
    return DrawnToken(token, logp, entropy, logp, entropy)

  def shaped():
    greedy = temperature <= 0.0
    tempered = x / jnp.where(greedy, 1.0, temperature)[:, None]
    cut = jnp.any((top_p < 1.0) | (top_k > 0))
    mask = jax.lax.cond(cut, lambda: support(tempered, top_p, top_k),
                        lambda: jnp.ones(tempered.shape, bool))
    weight = jnp.where(mask, jnp.exp(tempered), 0.0)
    token, mass = inverse_cdf(weight, u)
    token = jnp.where(greedy, first_max(x), token)
    total = inverse_cdf(e, u)[1]  # summed as in `plain`, so that other rows' settings move no bit
    logp, entropy = _statistics(x, e, total, token)
    sampled_logp, sampled_entropy = _statistics(tempered, weight, mass, token)
    # a greedy token is certain under what it was drawn from
    return DrawnToken(token, logp, entropy, jnp.where(greedy, 0.0, sampled_logp),
                      jnp.where(greedy, 0.0, sampled_entropy))

  other = jnp.any((temperature != 1.0) | (top_p < 1.0) | (top_k > 0))
  return jax.lax.cond(other, shaped, plain)
