"""Everything over the vocabulary: log-prob, exact entropy, nucleus entropy, moments; one file.

Two ways to the same numbers. From logits: plain functions, differentiated by jax. `fused`: from
hidden states and the head, in chunks of the vocabulary with running maximum and sums, recomputed
in the backward pass with analytic gradients, so that an array of tokens x vocabulary never lives.

Nats; float32 accumulation (float64 input stays float64); value and gradient finite for logits of
-inf. The nucleus is SIREN's (arXiv:2509.25133): tokens in descending order while the cumulative
mass stays strictly below top_p, so that the token that crosses it is excluded and a confident
row's nucleus is empty; `inclusive=True` takes the crossing token in. Equal logits: lowest index
first.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab.nucleus import Cut, cut_rows, inside
from entrolab.ranks import replicated
from entrolab.typing import Array, Bool, Float, Int

NAMES = ("logp", "entropy", "nucleus_entropy", "tempered_logp", "sum_p2", "sum_p2_logp")


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which statistics, and how: hashable, static under jit.

  names: of NAMES; top_p, inclusive: the nucleus; tempered: temperature of tempered_logp;
  temperature: divides the logits of every statistic; chunk: vocabulary entries at a time in
  `fused`, 0 for about 6 MB of logits.
  """
  names: tuple[str, ...] = ("entropy", "logp")
  top_p: float = 0.8
  inclusive: bool = False
  tempered: float = 1.0
  temperature: float = 1.0
  chunk: int = 0

  def __post_init__(self) -> None:
    unknown = [name for name in self.names if name not in NAMES]
    if unknown:
      raise TypeError(f"no statistic {unknown[0]!r}; have: {', '.join(NAMES)}")
    if not 0.0 < self.top_p <= 1.0 or self.tempered <= 0.0 or self.temperature <= 0.0:
      raise ValueError(f"{self}: 0 < top_p <= 1, temperatures above 0")


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where rows and vocabulary live: their mesh axes (None: not sharded).

  width: the one of the rows' axes that shards the width of the parameters (None: no axis does).
  """
  mesh: Mesh
  rows: tuple[str, ...] = ("data", "fsdp")
  vocab: str | None = "tensor"
  width: str | None = None


def _wide(x: Array) -> Array:
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def log_softmax(logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
  """Normalised log-probs; -inf stays -inf and gets no gradient."""
  logits = _wide(logits)
  finite = jnp.isfinite(logits)
  safe = jnp.where(finite, logits, 0.0)
  peak = jax.lax.stop_gradient(jnp.where(finite, logits, -jnp.inf).max(-1, keepdims=True))
  total = jnp.where(finite, jnp.exp(safe - peak), 0.0).sum(-1, keepdims=True)
  return jnp.where(finite, safe - peak - jnp.log(total), -jnp.inf)


def _expect(logp: Array, value: Array) -> Array:
  """sum_v p_v value_v, with p = 0 where logp is -inf."""
  finite = jnp.isfinite(logp)
  p = jnp.where(finite, jnp.exp(jnp.where(finite, logp, 0.0)), 0.0)
  return (p * jnp.where(finite, value, 0.0)).sum(-1)


def log_prob(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
  """log pi(token); a one-hot sum, since a gather along a sharded vocabulary is refused."""
  hot = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
  return jnp.where(hot, log_softmax(logits), 0.0).sum(-1)


def entropy(logits: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """H = -sum_v p log p, over the whole vocabulary."""
  logp = log_softmax(logits)
  return -_expect(logp, logp)


def nucleus_mask(logits: Float[Array, "*b V"], top_p: float,
                 inclusive: bool = False) -> Bool[Array, "*b V"]:
  """The tokens of the nucleus; constant for the gradient."""
  logits = jax.lax.stop_gradient(_wide(logits))
  flat = replicated(logits.reshape(-1, logits.shape[-1]), rows=True)
  cut = cut_rows(flat, top_p, inclusive)
  slots = jnp.arange(flat.shape[-1], dtype=jnp.int32)
  return inside(flat, slots[None], jax.tree.map(lambda x: x[:, None], cut)).reshape(logits.shape)


def nucleus_entropy(logits: Float[Array, "*b V"], top_p: float,
                    inclusive: bool = False) -> Float[Array, "*b"]:
  """Entropy of the renormalised nucleus; 0, without gradient, where it is empty."""
  on = nucleus_mask(logits, top_p, inclusive)
  some = on.any(-1, keepdims=True)
  logp = log_softmax(jnp.where(on, _wide(logits), jnp.where(some, -jnp.inf, 0.0)))
  return jnp.where(some[..., 0], -_expect(logp, logp), 0.0)


def from_logits(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"],
                spec: Spec) -> dict[str, Array]:
  """The statistics of spec.names, by name, from whole logits."""
  logits = _wide(logits) / spec.temperature
  logp = log_softmax(logits)
  make = dict(
      logp=lambda: log_prob(logits, tokens), entropy=lambda: -_expect(logp, logp),
      nucleus_entropy=lambda: nucleus_entropy(logits, spec.top_p, spec.inclusive),
      tempered_logp=lambda: log_prob(logits / spec.tempered, tokens),
      sum_p2=lambda: _expect(logp, jnp.exp(logp)),
      sum_p2_logp=lambda: _expect(logp, jnp.exp(logp) * jnp.where(jnp.isfinite(logp), logp, 0.0)))
  return {name: make[name]() for name in spec.names}


# The fused form. Residuals are the inputs and a handful of numbers a token.


def _reduce(x: Array, axis: str | None) -> Array:
  return x if axis is None else jax.lax.psum(x, axis)


def _chunks(head: Array, rows: int, chunk: int) -> tuple[Array, Array, int]:
  """Head as [n, C, D] padded with zeros, the first index of every chunk, C."""
  size, width = head.shape
  chunk = min(size, chunk or max(256, (6 << 20) // (4 * max(rows, 1)) // 128 * 128))
  count = math.ceil(size / chunk)
  padded = jnp.pad(head, ((0, count * chunk - size), (0, 0)))
  return padded.reshape(count, chunk, width), jnp.arange(count, dtype=jnp.int32) * chunk, chunk


def _logits(hidden: Array, block: Array, begin: Array, size: int, spec: Spec) -> Array:
  """Logits [N, C] of one chunk; -inf beyond the vocabulary."""
  z = jnp.einsum("nd,cd->nc", hidden, block, preferred_element_type=_acc(hidden))
  slots = begin + jnp.arange(block.shape[0], dtype=jnp.int32)
  return jnp.where((slots < size)[None], z * (1.0 / spec.temperature), -jnp.inf)


def _acc(x: Array):
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _forward(hidden, head, tokens, spec: Spec, axis: str | None):
  """(statistics, residual numbers) of local rows and the local part of the vocabulary."""
  size, names = head.shape[0], set(spec.names)
  offset = 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * size
  blocks, begins, _ = _chunks(head, hidden.shape[0], spec.chunk)
  kind = _acc(hidden)
  zero = jnp.zeros(hidden.shape[0], kind)
  moments = bool(names & {"sum_p2", "sum_p2_logp"})
  tempered = "tempered_logp" in names

  def one(carry, xs):
    m, s, u, s2, u2, st = carry
    block, start = xs
    z = _logits(hidden, block, start, size, spec)
    top = jnp.maximum(m, z.max(-1))
    d = jnp.where(jnp.isfinite(m), m - top, 0.0)  # first chunk: nothing to rescale
    k = jnp.exp(d)
    x = z - top[:, None]
    e = jnp.exp(x)
    ex = jnp.where(e > 0, e * x, 0.0)
    if moments:  # sums of e^2 and e^2 (z - m)
      s2, u2 = (k * k * s2 + (e * e).sum(-1), k * k * (u2 + d * s2) + (e * ex).sum(-1))
    if tempered:
      st = jnp.exp(d / spec.tempered) * st + jnp.exp(x / spec.tempered).sum(-1)
    return (top, k * s + e.sum(-1), k * (u + d * s) + ex.sum(-1), s2, u2, st), None

  carry = (zero - jnp.inf, zero, zero, zero, zero, zero)
  (m, s, u, s2, u2, st), _ = jax.lax.scan(one, carry, (blocks, begins))
  if axis is not None:  # one stacked reduction joins the shards
    top = jax.lax.pmax(m, axis)
    d = m - top
    k = jnp.exp(d)
    joined = jnp.stack([k * s, k * (u + d * s), k * k * s2, k * k * (u2 + d * s2),
                        jnp.exp(d / spec.tempered) * st])
    (s, u, s2, u2, st), m = jax.lax.psum(joined, axis), top
  lse = m + jnp.log(s)
  stats = {"lse": lse, "entropy": jnp.log(s) - u / s}
  own = tokens - offset
  here = (own >= 0) & (own < size)
  row = head[jnp.where(here, own, 0)]
  target = jnp.where(here, jnp.einsum("nd,nd->n", hidden, row, preferred_element_type=kind), 0.0)
  target = _reduce(target, axis) / spec.temperature
  stats["logp"] = target - lse
  if tempered:
    stats["lse_tempered"] = m / spec.tempered + jnp.log(st)
    stats["tempered_logp"] = target / spec.tempered - stats["lse_tempered"]
  if moments:  # p = e^(z - m) / s
    stats["sum_p2"] = s2 / (s * s)
    stats["sum_p2_logp"] = (u2 - jnp.log(s) * s2) / (s * s)
  if "nucleus_entropy" in names:
    stats |= _nucleus(hidden, head, spec, axis, offset)
  return {name: stats[name] for name in spec.names}, stats


def _nucleus(hidden, head, spec: Spec, axis: str | None, offset) -> dict[str, Array]:
  """Cut, log-sum and entropy of the nucleus, on blocks of whole rows."""
  rows, size = hidden.shape[0], head.shape[0]
  block = max(1, min(rows, (8 << 20) // (4 * size)))
  count = math.ceil(rows / block)
  padded = jnp.pad(hidden, ((0, count * block - rows), (0, 0)))
  slots = offset + jnp.arange(size, dtype=jnp.int32)

  def one(h):
    z = jnp.einsum("nd,vd->nv", h, head, preferred_element_type=_acc(h)) / spec.temperature
    cut = cut_rows(z, spec.top_p, spec.inclusive, slots, axis)
    on = inside(z, slots[None], jax.tree.map(lambda x: x[:, None], cut))
    peak = z.max(-1) if axis is None else jax.lax.pmax(z.max(-1), axis)
    x = jnp.where(on, z - peak[:, None], 0.0)
    e = jnp.where(on, jnp.exp(x), 0.0)
    s, u = _reduce(jnp.stack([e.sum(-1), (e * x).sum(-1)]), axis)
    some = s > 0
    safe = jnp.where(some, s, 1.0)
    return cut, peak + jnp.log(safe), jnp.where(some, jnp.log(safe) - u / safe, 0.0)

  out = jax.lax.map(one, padded.reshape(count, block, -1))
  cut, lse, h = jax.tree.map(lambda x: x.reshape(-1)[:rows], out)
  return {"cut": cut, "lse_nucleus": lse, "nucleus_entropy": h}


def _backward(hidden, head, tokens, stats, grads, spec: Spec, axis: str | None):
  """(d hidden, d head) of local rows and vocabulary: chunks recomputed, analytic gradients."""
  size = head.shape[0]
  offset = 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * size
  blocks, begins, chunk = _chunks(head, hidden.shape[0], spec.chunk)
  g = {name: grads[name][:, None] for name in spec.names}
  col = lambda name: stats[name][:, None]

  def one(dh, xs):
    block, begin = xs
    z = _logits(hidden, block, begin, size, spec)
    q = z - col("lse")
    p = jnp.exp(q)
    q = jnp.where(p > 0, q, 0.0)
    linear = 0.0  # what multiplies p
    if "logp" in g:
      linear = linear - g["logp"]
    if "entropy" in g:
      linear = linear - g["entropy"] * (q + col("entropy"))
    if "sum_p2" in g:
      linear = linear + g["sum_p2"] * 2.0 * (p - col("sum_p2"))
    if "sum_p2_logp" in g:
      tail = 2.0 * col("sum_p2_logp") + col("sum_p2")
      linear = linear + g["sum_p2_logp"] * (p * (2.0 * q + 1.0) - tail)
    d = p * linear
    if "tempered_logp" in g:
      pt = jnp.exp(z / spec.tempered - col("lse_tempered"))
      d = d - g["tempered_logp"] / spec.tempered * pt
    if "nucleus_entropy" in g:
      slots = (offset + begin + jnp.arange(chunk, dtype=jnp.int32))[None]
      on = inside(z, slots, jax.tree.map(lambda x: x[:, None], stats["cut"]))
      n = jnp.where(on, z - col("lse_nucleus"), 0.0)
      d = d - g["nucleus_entropy"] * jnp.where(on, jnp.exp(n) * (n + col("nucleus_entropy")), 0.0)
    d = d * (1.0 / spec.temperature)
    low = d.astype(hidden.dtype)
    dh = dh + jnp.einsum("nc,cd->nd", low, block, preferred_element_type=dh.dtype)
    return dh, jnp.einsum("nc,nd->cd", low, hidden, preferred_element_type=dh.dtype)

  dh, dw = jax.lax.scan(one, jnp.zeros(hidden.shape, _acc(hidden)), (blocks, begins))
  dw = dw.reshape(-1, head.shape[1])[:size]
  own = tokens - offset
  here = (own >= 0) & (own < size)
  gt = jnp.zeros_like(stats["lse"])  # the one-hot part
  gt = gt + (grads["logp"] if "logp" in g else 0.0)
  gt = gt + (grads["tempered_logp"] / spec.tempered if "tempered_logp" in g else 0.0)
  gt = (jnp.where(here, gt, 0.0) / spec.temperature)[:, None]
  at = jnp.where(here, own, 0)
  dh = dh + gt * head[at].astype(dh.dtype)
  dw = dw.at[at].add(gt * hidden.astype(dw.dtype))
  return _reduce(dh, axis), dw


def _sharded(layout: Layout | None, fn, inputs, outputs):
  """fn under shard_map with the given specs, or as it is without a layout."""
  if layout is None:
    return fn
  mapped = jax.shard_map(fn, mesh=layout.mesh, in_specs=inputs, out_specs=outputs,
                         check_vma=False)

  def run(*args):
    mesh = jax.typeof(args[0]).sharding.mesh
    if not (mesh.empty or mesh.are_all_axes_auto):  # explicit axes must match the specs
      place = lambda x, s: jax.sharding.reshard(x, NamedSharding(layout.mesh, s))
      args = [jax.tree.map(lambda x, s=spec: place(x, s), arg) for arg, spec in
              zip(args, inputs, strict=True)]
    return mapped(*args)

  return run


def _specs(layout: Layout | None) -> tuple[str | None, P, P]:
  """(vocabulary axis, spec of rows, spec of rows x width)."""
  if layout is None:
    return None, P(), P()
  return layout.vocab, P(layout.rows), P(layout.rows, None)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused(hidden, head, tokens, spec, layout):
  return _fused_fwd(hidden, head, tokens, spec, layout)[0]


def _fused_fwd(hidden, head, tokens, spec, layout):
  axis, rows, wide = _specs(layout)
  fn = _sharded(layout, partial(_forward, spec=spec, axis=axis), (wide, P(axis, None), rows),
                (rows, rows))
  out, stats = fn(hidden, head, tokens)
  return out, (hidden, head, tokens, stats)


def _fused_bwd(spec, layout, saved, grads):
  hidden, head, tokens, stats = saved
  axis, rows, wide = _specs(layout)

  def local(*args):
    dh, dw = _backward(*args, spec=spec, axis=axis)
    return dh, dw if layout is None else jax.lax.psum(dw, layout.rows)

  fn = _sharded(layout, local, (wide, P(axis, None), rows, rows, rows), (wide, P(axis, None)))
  dh, dw = fn(hidden, head, tokens, stats, grads)
  return dh.astype(hidden.dtype), dw.astype(head.dtype), None


_fused.defvjp(_fused_fwd, _fused_bwd)


def fused(hidden: Float[Array, "*b D"], head: Float[Array, "V D"], tokens: Int[Array, "*b"],
          spec: Spec, layout: Layout | None = None) -> dict[str, Array]:
  """The statistics of spec.names from hidden states and the head [V, D], all differentiable.

  layout: rows and vocabulary over a mesh; local scans, then one stacked reduction. Raises
  ValueError when rows or vocabulary do not divide by their axes.
  """
  flat = hidden.reshape(-1, hidden.shape[-1])
  if layout is not None:
    ways = math.prod(layout.mesh.shape[name] for name in layout.rows)
    cuts = layout.mesh.shape[layout.vocab] if layout.vocab else 1
    if head.shape[0] % cuts or flat.shape[0] % ways:
      raise ValueError(f"{flat.shape[0]} tokens over {ways} row shards and a vocabulary of "
                       f"{head.shape[0]} over {cuts}: both must divide")
  head = head.astype(hidden.dtype)
  out: Any = _fused(flat, head, tokens.reshape(-1).astype(jnp.int32), spec, layout)
  return {name: value.reshape(tokens.shape) for name, value in out.items()}


__all__ = ["Cut", "Layout", "NAMES", "Spec", "entropy", "from_logits", "fused", "log_prob",
           "log_softmax", "nucleus_entropy", "nucleus_mask"]
