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

from entrolab import nucleus
from entrolab.nucleus import Cut, cut_rows, inside, summed
from entrolab.ranks import replicated
from entrolab.typing import Array, Bool, Float, Int

NAMES = ("logp", "entropy", "nucleus_entropy", "tempered_logp", "sum_p2", "sum_p2_logp")


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which statistics, and how: hashable, static under jit.

  names: of NAMES; top_p, inclusive: the nucleus; tempered: temperature of tempered_logp;
  temperature: divides the logits of every statistic; chunk: vocabulary entries at a time in
  `fused`, 0 for what suits the device.
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


def _acc(x: Array):
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _over(head: Array, rows: int, chunk: int, one, carry):
  """carry after one(carry, block [C, D], its first index) for every block of the head.

  The last block may be smaller: nothing is padded, so that the head is never copied and no logit
  has to be masked. By default the logits of a block fill the second cache of a CPU; elsewhere C is
  large enough that a block's product is not bound by reading the hidden states again.
  """
  size = head.shape[0]

  def run(carry, c):
    c = min(size, c)
    step = lambda i, x: one(x, jax.lax.dynamic_slice_in_dim(head, i * c, c), i * c)
    carry = jax.lax.fori_loop(0, size // c, step, carry)
    rest = size % c
    return one(carry, head[size - rest:], jnp.int32(size - rest)) if rest else carry

  return run(carry, chunk) if chunk else jax.lax.platform_dependent(
      carry, cpu=partial(run, c=_fit(rows, 4 << 20, 256)),
      default=partial(run, c=_fit(rows, 64 << 20, 2048)))


def _fit(rows: int, budget: int, least: int) -> int:
  """Vocabulary entries at a time, whose logits take `budget` bytes."""
  return max(least, budget // (4 * max(rows, 1)) // 128 * 128)


def _logits(hidden: Array, block: Array, spec: Spec) -> Array:
  """Logits [N, C] of a block of the head."""
  z = jnp.einsum("nd,cd->nc", hidden, block, preferred_element_type=_acc(hidden))
  return z * (1.0 / spec.temperature)


def _sums(z: Array, m: Array, spec: Spec) -> dict[str, Array]:
  """Of some logits, per row, about m: s = sum e^x with x = z - m, u = sum e^x x; s2, u2: of squares
  e^2x; st: tempered. Logits are finite here, so that e^x x needs no guard."""
  x = z - m[:, None]
  e = jnp.exp(x)
  sums = {"s": e.sum(-1)}
  if "entropy" in spec.names:
    sums["u"] = (e * x).sum(-1)
  if {"sum_p2", "sum_p2_logp"} & set(spec.names):
    sums |= {"s2": (e * e).sum(-1), "u2": (e * (e * x)).sum(-1)}
  if "tempered_logp" in spec.names:
    sums["st"] = jnp.exp(x * (1.0 / spec.tempered)).sum(-1)
  return sums


def _moved(sums: dict[str, Array], d: Array, spec: Spec) -> dict[str, Array]:
  """The same sums about a maximum that is larger by -d."""
  k = jnp.exp(d)
  new = {"s": k * sums["s"]}
  if "u" in sums:
    new["u"] = k * (sums["u"] + d * sums["s"])
  if "s2" in sums:
    new |= {"s2": k * k * sums["s2"], "u2": k * k * (sums["u2"] + d * sums["s2"])}
  if "st" in sums:
    new["st"] = jnp.exp(d / spec.tempered) * sums["st"]
  return new


def _online(hidden, head, spec: Spec) -> tuple[Array, dict[str, Array]]:
  """(maximum, sums about it) of every row, block by block of the head."""
  def one(carry, block, begin):
    del begin
    m, sums = carry
    z = _logits(hidden, block, spec)
    top = jnp.maximum(m, z.max(-1))
    d = jnp.where(jnp.isfinite(m), m - top, 0.0)  # first block: nothing to move
    return top, jax.tree.map(jnp.add, _moved(sums, d, spec), _sums(z, top, spec))

  low = jnp.full(hidden.shape[0], -jnp.inf, _acc(hidden))
  sums = jax.eval_shape(lambda: _sums(low[:, None], low, spec))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
  return _over(head, hidden.shape[0], spec.chunk, one, (low, zero))


def _forward(hidden, head, tokens, spec: Spec, layout: Layout | None):
  """(statistics, residual numbers) of local rows and the local part of the vocabulary."""
  axis, size, names = None if layout is None else layout.vocab, head.shape[0], set(spec.names)
  offset = 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * size
  stats: dict[str, Any] = {}
  if "nucleus_entropy" in names:  # needs whole rows; the rest comes from the same logits
    m, sums, stats = _by_rows(hidden, head, spec, layout, offset)
  else:
    m, sums = _online(hidden, head, spec)
  if axis is not None:  # one stacked reduction joins the shards
    top = jax.lax.pmax(m, axis)
    moved = _moved(sums, m - top, spec)
    m, joined = top, jax.lax.psum(jnp.stack(list(moved.values())), axis)
    sums = dict(zip(moved, joined, strict=True))
  s = sums["s"]
  log_s = jnp.log(s)
  stats["lse"] = m + log_s
  own = tokens - offset
  here = (own >= 0) & (own < size)
  row = head[jnp.where(here, own, 0)]
  target = jnp.einsum("nd,nd->n", hidden, row, preferred_element_type=_acc(hidden))
  target = summed(jnp.where(here, target, 0.0), axis) / spec.temperature
  stats["logp"] = target - stats["lse"]
  if "entropy" in names:
    stats["entropy"] = log_s - sums["u"] / s
  if "tempered_logp" in names:
    stats["lse_tempered"] = m / spec.tempered + jnp.log(sums["st"])
    stats["tempered_logp"] = target / spec.tempered - stats["lse_tempered"]
  if names & {"sum_p2", "sum_p2_logp"}:  # p = e^(z - m) / s
    stats["sum_p2"] = sums["s2"] / (s * s)
    stats["sum_p2_logp"] = (sums["u2"] - log_s * sums["s2"]) / (s * s)
  return {name: stats[name] for name in spec.names}, stats


def _by_rows(hidden, head, spec: Spec, layout: Layout | None, offset):
  """(maximum, sums about it, nucleus: cut, log-sum, entropy), from whole rows of logits.

  All rows at once where the vocabulary is one block; else 4, of which a CPU's caches have room for
  several copies, or 16: the compiler for TPUs keeps a search over 16 rows on the chip, 8 not.
  """
  rows, size = hidden.shape[0], head.shape[0]
  axis = None if layout is None else layout.vocab
  everywhere = () if layout is None or axis is None else layout.mesh.axis_names

  def few_rows(z):
    m = z.max(-1)
    own = nucleus.of_rows(z, spec.top_p, spec.inclusive, offset, axis, everywhere)
    return m, _sums(z, m, spec), own

  run = partial(nucleus.by_rows, few_rows, lambda x: _logits(x, head, spec), size=size)
  return jax.lax.platform_dependent(
      hidden, cpu=partial(run, whole=size <= _fit(rows, 4 << 20, 256), few=4),
      default=partial(run, whole=size <= _fit(rows, 64 << 20, 2048), few=16))


def _backward(hidden, head, tokens, stats, grads, spec: Spec, axis: str | None):
  """(d hidden, d head) of local rows and vocabulary: chunks recomputed, analytic gradients."""
  size = head.shape[0]
  offset = 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * size
  g = {name: grads[name][:, None] for name in spec.names}
  col = lambda name: stats[name][:, None]

  def slope(z, begin):
    """d loss / d logits of a block, without the one-hot part."""
    q = z - col("lse")
    p = jnp.exp(q)
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
      slots = (offset + begin + jnp.arange(z.shape[-1], dtype=jnp.int32))[None]
      on = inside(z, slots, jax.tree.map(lambda x: x[:, None], stats["cut"]))
      n = jnp.where(on, z - col("lse_nucleus"), 0.0)
      d = d - g["nucleus_entropy"] * jnp.where(on, jnp.exp(n) * (n + col("nucleus_entropy")), 0.0)
    return (d * (1.0 / spec.temperature)).astype(hidden.dtype)

  def one(carry, block, begin):
    dh, dw = carry
    d = slope(_logits(hidden, block, spec), begin)
    dh = dh + jnp.einsum("nc,cd->nd", d, block, preferred_element_type=dh.dtype)
    own = jnp.einsum("nc,nd->cd", d, hidden, preferred_element_type=dw.dtype)
    return dh, jax.lax.dynamic_update_slice_in_dim(dw, own, begin, 0)

  zeros = lambda x: jnp.zeros(x.shape, _acc(hidden))
  dh, dw = _over(head, hidden.shape[0], spec.chunk, one, (zeros(hidden), zeros(head)))
  own = tokens - offset
  here = (own >= 0) & (own < size)
  gt = jnp.zeros_like(stats["lse"])  # the one-hot part
  gt = gt + (grads["logp"] if "logp" in g else 0.0)
  gt = gt + (grads["tempered_logp"] / spec.tempered if "tempered_logp" in g else 0.0)
  gt = (jnp.where(here, gt, 0.0) / spec.temperature)[:, None]
  at = jnp.where(here, own, 0)
  dh = dh + gt * head[at].astype(dh.dtype)
  dw = dw.at[at].add(gt * hidden.astype(dw.dtype))
  return summed(dh, axis), dw


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
  fn = _sharded(layout, partial(_forward, spec=spec, layout=layout), (wide, P(axis, None), rows),
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
