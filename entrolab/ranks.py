"""Masked means, quantiles, top-k and group regrouping, alike on every kind of mesh.

Rankings run over the whole optimiser batch. [B, T] floats of a million tokens are 4 MB, so they
are gathered before they are sorted. Ties are broken by a noise column, random in (run seed, step,
prompt, sample, position), and so not by the order of rows.

A reward that nobody knows, since the verdict is unknown, is NaN: statistics of rewards leave it
out as if the row were not there, and its advantage is 0. A group of several rows of which fewer
than two are known has nothing to compare, and all its advantages are 0.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Int, real


def replicated(x: Array, *, rows: bool = False) -> Array:
  """x gathered on every device where its mesh has explicit axes; left to the compiler elsewhere.

  rows: gathers the last axis alone, so that rows stay where they are.
  """
  sharding = jax.typeof(x).sharding
  if sharding.mesh.empty or sharding.mesh.are_all_axes_auto:
    return x
  spec = PartitionSpec(*tuple(sharding.spec)[:-1], None) if rows else PartitionSpec()
  return jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


@checked
def masked_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
                axis: int | None = None) -> Array:
  """Mean of x over the mask, of the whole array or along an axis; 0 for an empty mask."""
  total = jnp.where(mask, x, 0.0).sum(axis)
  return total / jnp.maximum(real(mask).sum(axis), 1.0).astype(x.dtype)


def known_mean(x: Array, *, axis: int | None = None, less: int = 0) -> Array:
  """sum(x) / (n - less) over the n entries that are known, of all or along an axis, kept with 1.

  An entry that is not known is NaN (`known_rows`) and left out; none at all, or no more than
  `less`, divide by 1. Where all are known it is the sum over a constant, to the bit.
  """
  known = ~jnp.isnan(x)
  keep = axis is not None
  total = jnp.where(known, x, 0.0).sum(axis, keepdims=keep)
  size = x.size if axis is None else x.shape[axis]
  count = real(known).sum(axis, keepdims=keep).astype(x.dtype) - less
  # a compiler may turn the division by a constant into a product, which rounds otherwise
  return jnp.where(known.all(axis, keepdims=keep), total / max(size - less, 1),
                   total / jnp.maximum(count, 1.0))


@checked
def known_std(r: Float[Array, "P G"]) -> Float[Array, "P 1"]:
  """Deviation of the known entries of each group, over n - 1; 0 for fewer than two of them."""
  whole = jnp.std(r, axis=1, ddof=1, keepdims=True)
  part = jnp.sqrt(known_mean(jnp.square(r - known_mean(r, axis=1)), axis=1, less=1))
  return jnp.where(jnp.isnan(r).any(1, keepdims=True), part, whole)


@checked
def all_equal(r: Float[Array, "P G"]) -> Bool[Array, "P 1"]:
  """Whether the known entries of a group are equal; so are fewer than two of them."""
  known = ~jnp.isnan(r)
  least = jnp.where(known, r, jnp.inf).min(1, keepdims=True)
  return (~known | (r == least)).all(1, keepdims=True)


@checked
def centred(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """x less its mean over the mask; 0 outside."""
  return jnp.where(mask, x - masked_mean(x, mask), 0.0)


@checked
def whitened(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """(x - mean) / sqrt(variance + 1e-8) over the mask, variance with n - 1; 0 outside."""
  middle = centred(x, mask)
  count = real(mask).sum().astype(x.dtype)
  variance = jnp.square(middle).sum() / jnp.maximum(count - 1.0, 1.0)
  return middle * jax.lax.rsqrt(variance + 1e-8)


@checked
def ranks(x: Float[Array, "B T"], mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *,
          rows: bool = False) -> Int[Array, "B T"]:
  """Descending rank of every valid entry over the whole array: 0 for the largest.

  Equal entries are ordered by noise, then by position; entries outside the mask come last.
  rows: rank within each row. No gradient.
  """
  mask = replicated(mask)
  keys = [jnp.where(mask, replicated(jax.lax.stop_gradient(key)), jnp.inf) for key in (-x, noise)]
  if rows:
    positions = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1)
    order = jax.lax.sort([*keys, positions], dimension=1, num_keys=2, is_stable=True)[-1]
    return jnp.argsort(order, axis=1).astype(jnp.int32)
  positions = jnp.arange(x.size, dtype=jnp.int32)
  flat_keys = [key.ravel() for key in keys]
  order = jax.lax.sort([*flat_keys, positions], num_keys=2, is_stable=True)[-1]
  rank = jnp.zeros(x.size, jnp.int32).at[order].set(positions)
  return rank.reshape(x.shape)


@checked
def top(x: Float[Array, "B T"], mask: Bool[Array, "B T"], noise: Float[Array, "B T"],
        k: Array | int, *, rows: bool = False) -> Bool[Array, "B T"]:
  """Exactly min(k, valid) entries, the largest of x inside the mask; k may be traced.

  rows: that many in each row, k a number for all rows or one a row [B, 1].
  """
  return mask & (ranks(x, mask, noise, rows=rows) < jnp.asarray(k).astype(jnp.int32))


@checked
def quantile(x: Float[Array, "B T"], mask: Bool[Array, "B T"], q: float, *,
             rows: bool = False) -> Array:
  """Quantile over the mask with linear interpolation at q * (n - 1); 0 for an empty mask.

  rows: one quantile a row, [B, 1]; otherwise one for the whole array, [].
  """
  if not 0.0 <= q <= 1.0:
    raise ValueError(f"quantile(q={q}): a fraction in [0, 1]")
  mask = replicated(mask)
  flat = jnp.where(mask, replicated(x), jnp.inf)
  flat, mask = (flat, mask) if rows else (flat.reshape(1, -1), mask.reshape(1, -1))
  ordered = jnp.sort(jax.lax.stop_gradient(flat), axis=-1)
  at = q * jnp.maximum(real(mask).sum(-1, keepdims=True) - 1.0, 0.0)
  low = jnp.floor(at)
  pick = [jnp.take_along_axis(ordered, i.astype(jnp.int32), axis=-1)
          for i in (low, jnp.ceil(at))]
  # both ends are equal where the index is whole, so that inf - inf cannot arise
  value = jnp.where(pick[0] == pick[1], pick[0],
                    pick[0] + (at - low).astype(x.dtype) * (pick[1] - pick[0]))
  value = jnp.where(mask.any(-1, keepdims=True), value, 0.0)
  return value if rows else value[0, 0]


def grouped(x: Array, size: int) -> Array:
  """[B, ...] -> [P, G, ...], groups contiguous. Raises ValueError when B does not split into
  groups of `size`."""
  rows = x.shape[0]
  if size < 1 or rows % size:
    choices = [g for g in range(2, rows + 1) if rows % g == 0]
    raise ValueError(f"batch of {rows} sequences does not split into groups of {size}; "
                     f"sizes that do: {choices}")
  return replicated(x).reshape(-1, size, *x.shape[1:])


@checked
def step_sums(x: Float[Array, "B T"], phase: Int[Array, "B T"], mask: Bool[Array, "B T"], *,
              steps: int) -> Float[Array, "S B"]:
  """Sum of x over the valid tokens of every step s < steps of every row."""
  sums_of = lambda s: jnp.where(mask & (phase == s), x, 0.0).sum(-1)
  return jax.vmap(sums_of)(jnp.arange(steps, dtype=phase.dtype))
