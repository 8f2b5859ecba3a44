"""One token from one row of logits: the draw, and the statistics of the distributions behind it.

A token is the inverse of the cumulative distribution at one uniform number, found in two levels
(about sqrt(V) block sums, then inside one block): a Gumbel draw or a full cumulative sum costs a
third of a decode step on a CPU. The same exponentials give log-prob and entropy.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entrolab.typing import Array, Bool, Float, Int


class Draw(NamedTuple):
  """A token [B] with its log-prob and the entropy, nats [B]: of the untruncated distribution at
  temperature 1 (logp, entropy), and of the one drawn from (sampled_logp, sampled_entropy)."""
  token: Array
  logp: Array
  entropy: Array
  sampled_logp: Array
  sampled_entropy: Array


def first_max(x: Float[Array, "B V"]) -> Int[Array, " B"]:
  """Lowest index of the row maximum; several times faster than argmax on a CPU."""
  slots = jnp.arange(x.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(x == x.max(-1, keepdims=True), slots, x.shape[-1]).min(-1)


def _first(on: Bool[Array, "B N"]) -> Int[Array, " B"]:
  slots = jnp.arange(on.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(on, slots, on.shape[-1]).min(-1)


def _last(on: Bool[Array, "B N"]) -> Int[Array, " B"]:
  slots = jnp.arange(on.shape[-1], dtype=jnp.int32)[None]
  return jnp.where(on, slots, -1).max(-1)


def _search(weight: Float[Array, "B N"], target: Float[Array, " B"]) -> tuple[Array, Array]:
  """(first index whose cumulative weight exceeds target, cumulative weight before it).

  Where rounding leaves none, the last index of positive weight: never one of weight zero.
  """
  total = jnp.cumsum(weight, -1)
  at = _first(total > target[:, None])
  at = jnp.where(at < weight.shape[-1], at, _last(weight > 0))
  before = jnp.take_along_axis(total - weight, at[:, None], -1)[:, 0]
  return at, before


def inverse_cdf(weight: Float[Array, "B V"], u: Float[Array, " B"]) -> Int[Array, " B"]:
  """The token at which the cumulative weight passes u times the total; u in [0, 1)."""
  rows, size = weight.shape
  width = max(1, math.isqrt(size))
  blocks = jnp.pad(weight, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
  sums = blocks.sum(-1)
  target = u * sums.sum(-1)
  block, before = _search(sums, target)
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return block * width + _search(inside, target - before)[0]


def kept(logits: Float[Array, "B V"], top_p: Float[Array, " B"],
         top_k: Int[Array, " B"]) -> Bool[Array, "B V"]:
  """Exact top-k, then top-p with the crossing token included; ties by index, one at least."""
  order = jnp.argsort(-logits, axis=-1, stable=True)
  ordered = jnp.take_along_axis(logits, order, -1)
  slots = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
  inside = (top_k[:, None] <= 0) | (slots < top_k[:, None])
  p = jax.nn.softmax(jnp.where(inside, ordered, -jnp.inf), axis=-1)
  # mass strictly before a rank under top_p keeps the token that crosses it
  inside &= (jnp.cumsum(p, -1) - p < top_p[:, None]) | (slots == 0) | (top_p[:, None] >= 1.0)
  rank = jnp.argsort(order, axis=-1)
  return jnp.take_along_axis(inside, rank, -1)


def draw(logits: Float[Array, "B V"], u: Float[Array, " B"], temperature: Float[Array, " B"],
         top_p: Float[Array, " B"], top_k: Int[Array, " B"]) -> Draw:
  """A token a row. temperature 0 takes the lowest index of the maximum; top_p 1, top_k 0: off."""
  logits = logits.astype(jnp.float32)
  peak = logits.max(-1, keepdims=True)
  centred = logits - peak
  e = jnp.exp(centred)
  z = e.sum(-1)
  entropy = jnp.log(z) - jnp.where(e > 0, e * jnp.where(e > 0, centred, 0.0), 0.0).sum(-1) / z

  greedy = temperature <= 0.0
  tempered = centred / jnp.where(greedy, 1.0, temperature)[:, None]
  cut = jnp.any((top_p < 1.0) | (top_k > 0))
  mask = jax.lax.cond(cut, lambda x: kept(x, top_p, top_k), lambda x: jnp.ones(x.shape, bool),
                      tempered)
  weight = jnp.where(mask, jnp.exp(tempered), 0.0)
  token = jnp.where(greedy, first_max(centred), inverse_cdf(weight, u)).astype(jnp.int32)
  mass = weight.sum(-1)
  inside = jnp.where(weight > 0, weight * jnp.where(weight > 0, tempered, 0.0), 0.0).sum(-1)
  at = lambda x: jnp.take_along_axis(x, token[:, None], -1)[:, 0]
  return Draw(token, at(centred) - jnp.log(z), entropy,
              jnp.where(greedy, 0.0, at(tempered) - jnp.log(mass)),
              jnp.where(greedy, 0.0, jnp.log(mass) - inside / mass))
