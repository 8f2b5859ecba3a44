"""Statistics over the vocabulary from hidden states and the head, without their logits in memory.

Logits of N rows are made in blocks [N, C] of C vocabulary entries, in the forward pass and again in
the backward pass; what is saved between the two are the inputs and a few floats a row.

Of a row with hidden state h and head W, y the sampled token:

  z_j = h . W_j / temperature     lse = log sum_i e^z_i     q_j = z_j - lse     p_j = e^q_j

Forward. Every statistic but the entropy of a nucleus follows from sums over the vocabulary that can
be extended block by block and joined over shards (`statistics.py`). A nucleus needs the ranks of
its row, hence whole rows of logits: a few rows at a time, `nucleus.of_rows` finds its set S, as a
cut between logits, and lse_nucleus = log sum_S e^z.

Backward. Since d lse / d z_j = p_j, with [i=j] being 1 if i = j and 0 otherwise,

  d q_i / d z_j = [i=j] - p_j         d p_i / d z_j = p_i ([i=j] - p_j)

  logp           q_y
    d / d z_j  = [j=y] - p_j

  entropy        H = -sum_i p_i q_i
    d / d z_j  = -sum_i p_i ([i=j] - p_j) q_i - sum_i p_i ([i=j] - p_j)
               = -(p_j q_j + p_j H) - 0 = -p_j (q_j + H)

  sum_p2         A = sum_i p_i^2
    d / d z_j  = sum_i 2 p_i p_i ([i=j] - p_j) = 2 p_j (p_j - A)

  sum_p2_logp    B = sum_i p_i^2 q_i
    d / d z_j  = sum_i (2 p_i q_i p_i + p_i^2) ([i=j] - p_j)
               = p_j (p_j (2 q_j + 1) - 2 B - A)

  tempered_logp  z_y / tempered - lse_tempered;  r_j = e^(z_j / tempered - lse_tempered)
    d / d z_j  = ([j=y] - r_j) / tempered

  nucleus_entropy  H_S = -sum_S e^n_i n_i,  n_i = z_i - lse_nucleus
    d / d z_j  = -e^n_j (n_j + H_S) in S, 0 outside: as entropy, of S alone, which is constant

The cotangent g of each statistic multiplies its line; the sum over statistics is d loss / d z_j.
With dz = (d loss / d z) / temperature, of row n and entry j:

  d loss / d h_n = sum_j dz_nj W_j    d loss / d W_j = sum_n dz_nj h_n

The terms with [j=y] are left out of the blocks, since they touch one entry of a row: afterwards
(g_logp + g_tempered_logp / tempered) / temperature times W_y is added to the gradient of h, and
times h to that of W_y.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import nucleus
from entrolab.arguments import checked
from entrolab.nucleus import inside, summed
from entrolab.sharding import Layout
from entrolab.statistics import Spec, Sums, from_sums, moved, sums_about
from entrolab.typing import Array, Bool, Float, Int, exact

# N rows; V vocabulary entries, or those of a shard; C entries of a block; D the width of the model
PerRow = Float[Array, " N"]
Tokens = Int[Array, " N"]
Logits = Float[Array, "N C"]
Hidden = Float[Array, "N D"]
Head = Float[Array, "V D"]


class Budget(NamedTuple):
  """How large a block of logits may be, and how many rows the search for a nucleus takes."""
  block_bytes: int  # of the logits of a block
  least_entries: int  # vocabulary entries that a block has at least
  search_rows: int  # rows of a search at a time, where the vocabulary is more than one block


# A block of 4 MB fills the second cache of a CPU, and its caches have room for several copies of
# 4 whole rows. Elsewhere a block is large enough that its matmul is not bound by reading the hidden
# states again, and the compiler for TPUs leaves a search over 16 rows on the chip, over 8 not.
CPU = Budget(block_bytes=4 << 20, least_entries=256, search_rows=4)
ACCELERATOR = Budget(block_bytes=64 << 20, least_entries=2048, search_rows=16)


def _block_entries(rows: int, budget: Budget) -> int:
  """Vocabulary entries of a block of float32 logits of `rows` rows, in whole 128s."""
  fitting = budget.block_bytes // (4 * max(rows, 1))
  return max(budget.least_entries, fitting // 128 * 128)


def sum_dtype(x: Array) -> Any:
  """The type of logits and sums: float64 for float64, float32 for everything else."""
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _on_device(run: Callable, carry: Any) -> Any:
  """run(carry, budget) with the budget of the platform that the program is compiled for."""
  return jax.lax.platform_dependent(carry, cpu=partial(run, budget=CPU),
                                    default=partial(run, budget=ACCELERATOR))


def over_blocks(head: Array, rows: int, chunk: int, add_block: Callable, carry: Any) -> Any:
  """carry after add_block(carry, block [C, D], index of its first entry) for the whole head.

  The last block may be smaller: nothing is padded, so that the head is never copied and no logit
  has to be masked. chunk: the C to use; 0 takes what suits the device that the program runs on.
  """
  size = head.shape[0]

  def run(carry, entries):
    entries = min(size, entries)

    def step(number, carry):
      first = number * entries
      return add_block(carry, jax.lax.dynamic_slice_in_dim(head, first, entries), first)

    carry = jax.lax.fori_loop(0, size // entries, step, carry)
    rest = size % entries
    return add_block(carry, head[size - rest:], jnp.int32(size - rest)) if rest else carry

  if chunk:
    return run(carry, chunk)
  return _on_device(lambda carry, budget: run(carry, _block_entries(rows, budget)), carry)


def block_logits(hidden: Hidden, block: Float[Array, "C D"], spec: Spec) -> Logits:
  """Logits of a block of the head, at spec.temperature."""
  z = jnp.einsum("nd,cd->nc", hidden, block, precision=exact(hidden),
                 preferred_element_type=sum_dtype(hidden))
  return z * (1.0 / spec.temperature)


def first_id_of(head: Array, axis: str | None) -> int | Array:
  """Index in the whole vocabulary of the first entry of this shard's part of the head."""
  return 0 if axis is None else jax.lax.axis_index(axis).astype(jnp.int32) * head.shape[0]


def local_index(tokens: Tokens, head: Array, axis: str | None) -> tuple[Bool[Array, " N"], Tokens]:
  """(whether this shard has the token's entry, its index in this part of the head, else 0)."""
  index = tokens - first_id_of(head, axis)
  here = (index >= 0) & (index < head.shape[0])
  return here, jnp.where(here, index, 0)


# Forward: sums about a running peak


def _online(hidden: Hidden, head: Head, spec: Spec) -> tuple[PerRow, Sums]:
  """(largest logit, sums about it) of every row, block by block of the head."""
  def add_block(carry, block, first):
    del first  # sums do not depend on where in the vocabulary a logit stands
    peak, sums = carry
    z = block_logits(hidden, block, spec)
    new_peak = jnp.maximum(peak, z.max(-1))
    # before the first block the peak is -inf and every sum 0, and -inf * 0 is nan: no shift then
    shift = jnp.where(jnp.isfinite(peak), peak - new_peak, 0.0)
    return new_peak, jax.tree.map(jnp.add, moved(sums, shift, spec), sums_about(new_peak, z, spec))

  lowest = jnp.full(hidden.shape[0], -jnp.inf, sum_dtype(hidden))
  shapes = jax.eval_shape(lambda: sums_about(lowest, lowest[:, None], spec))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return over_blocks(head, hidden.shape[0], spec.chunk, add_block, (lowest, zeros))


def _whole_rows(hidden: Hidden, head: Head, spec: Spec, layout: Layout | None
                ) -> tuple[PerRow, Sums, dict[str, Any]]:
  """(largest logit, sums about it, what `nucleus.of_rows` returns), from whole rows of logits.

  All rows at once where the vocabulary is one block, else a few at a time.
  """
  axis = None if layout is None else layout.vocab
  # a round of a sharded search has a collective: all devices must take equally many rounds
  everywhere = () if layout is None or axis is None else layout.mesh.axis_names
  first_id = first_id_of(head, axis)

  def few_rows(z):
    peak = z.max(-1)
    of_nucleus = nucleus.of_rows(z, spec.top_p, spec.inclusive, first_id, axis, everywhere)
    return peak, sums_about(peak, z, spec), of_nucleus

  def run(hidden, budget):
    whole = head.shape[0] <= _block_entries(hidden.shape[0], budget)
    return nucleus.by_rows(few_rows, lambda rows: block_logits(rows, head, spec), hidden,
                           size=head.shape[0], whole=whole, few=budget.search_rows)

  return _on_device(run, hidden)


def _joined(peak: PerRow, sums: Sums, spec: Spec, axis: str | None) -> tuple[PerRow, Sums]:
  """(peak, sums) of the whole vocabulary from those of every shard's part."""
  if axis is None:
    return peak, sums
  highest = jax.lax.pmax(peak, axis)
  aligned = moved(sums, peak - highest, spec)  # sums add up about one peak alone
  # stacked, so that one collective joins all of them
  total = jax.lax.psum(jnp.stack(jax.tree.leaves(aligned)), axis)
  return highest, jax.tree.unflatten(jax.tree.structure(aligned), list(total))


def _token_logit(hidden: Hidden, head: Head, tokens: Tokens, spec: Spec,
                 axis: str | None) -> PerRow:
  """z_y of every row; the shard that has the entry of y contributes it, all others 0."""
  here, index = local_index(tokens, head, axis)
  z = jnp.einsum("nd,nd->n", hidden, head[index], precision=exact(hidden),
                 preferred_element_type=sum_dtype(hidden))
  return summed(jnp.where(here, z, 0.0), axis) / spec.temperature


def forward(hidden: Hidden, head: Head, tokens: Tokens, spec: Spec, layout: Layout | None
             ) -> tuple[dict[str, PerRow], dict[str, Any]]:
  """(statistics of spec.names, all that the backward pass reads), of the local rows."""
  axis = None if layout is None else layout.vocab
  of_nucleus: dict[str, Any] = {}
  if "nucleus_entropy" in spec.names:  # the sums then come from the same logits: one matmul
    peak, sums, of_nucleus = _whole_rows(hidden, head, spec, layout)
  else:
    peak, sums = _online(hidden, head, spec)
  peak, sums = _joined(peak, sums, spec, axis)
  token_logit = _token_logit(hidden, head, tokens, spec, axis)
  stats = of_nucleus | from_sums(peak, sums, token_logit, spec)
  return {name: stats[name] for name in spec.names}, stats


# Backward: logits again, and their gradients block by block


def dense_gradient(z: Logits, stats: dict[str, Any], grads: dict[str, Float[Array, "N 1"]],
                    spec: Spec) -> Logits:
  """d loss / d z of a block from every statistic but nucleus_entropy, without the [j=y] terms.

  grads: the cotangent of every statistic of spec.names.
  """
  column = lambda name: stats[name][:, None]
  q = z - column("lse")
  p = jnp.exp(q)
  # every line but that of tempered_logp is p_j times something: one multiplication for all
  factor = 0.0
  if "logp" in grads:
    factor = factor - grads["logp"]
  if "entropy" in grads:
    factor = factor - grads["entropy"] * (q + column("entropy"))
  if "sum_p2" in grads:
    factor = factor + grads["sum_p2"] * 2.0 * (p - column("sum_p2"))
  if "sum_p2_logp" in grads:
    mean = 2.0 * column("sum_p2_logp") + column("sum_p2")  # of p (2 q + 1), under p
    factor = factor + grads["sum_p2_logp"] * (p * (2.0 * q + 1.0) - mean)
  gradient = p * factor
  if "tempered_logp" in grads:
    tempered_p = jnp.exp(z / spec.tempered - column("lse_tempered"))
    gradient = gradient - grads["tempered_logp"] / spec.tempered * tempered_p
  return gradient


def nucleus_gradient(z: Logits, ids: Int[Array, "1 C"], stats: dict[str, Any]) -> Logits:
  """-d nucleus_entropy / d z of a block whose entries have these ids in the whole vocabulary."""
  # made again in other blocks, logits may be rounded differently: the cut lies clear of them
  on = inside(z, ids, jax.tree.map(lambda x: x[:, None], stats["cut"]))
  n = jnp.where(on, z - stats["lse_nucleus"][:, None], 0.0)
  return jnp.where(on, jnp.exp(n) * (n + stats["nucleus_entropy"][:, None]), 0.0)


def _token_gradient(here: Bool[Array, " N"], stats: dict[str, Any], grads: dict[str, PerRow],
                    spec: Spec) -> Float[Array, "N 1"]:
  """dz_y of the [j=y] terms of logp and tempered_logp; 0 where y is not `here`, on this shard."""
  total = jnp.zeros_like(stats["lse"])
  if "logp" in spec.names:
    total = total + grads["logp"]
  if "tempered_logp" in spec.names:
    total = total + grads["tempered_logp"] / spec.tempered
  return (jnp.where(here, total, 0.0) / spec.temperature)[:, None]


def _backward(hidden: Hidden, head: Head, tokens: Tokens, stats: dict[str, Any],
              grads: dict[str, PerRow], spec: Spec, axis: str | None) -> tuple[Hidden, Head]:
  """(d hidden, d head) of the local rows and the local part of the head, in `sum_dtype`.

  d hidden is summed over the shards of the vocabulary; d head is not summed over those of rows.
  """
  first_id = first_id_of(head, axis)
  columns = {name: grads[name][:, None] for name in spec.names}

  def add_block(carry, block, first):
    d_hidden, d_head = carry
    z = block_logits(hidden, block, spec)
    dz = dense_gradient(z, stats, columns, spec)
    if "nucleus_entropy" in columns:
      ids = (first_id + first + jnp.arange(z.shape[-1], dtype=jnp.int32))[None]
      dz = dz - columns["nucleus_entropy"] * nucleus_gradient(z, ids, stats)
    # in the type of the inputs, whose matmuls are the fast ones; these still sum in sum_dtype
    dz = (dz * (1.0 / spec.temperature)).astype(hidden.dtype)
    product = partial(jnp.einsum, precision=exact(hidden),
                      preferred_element_type=sum_dtype(hidden))
    d_hidden = d_hidden + product("nc,cd->nd", dz, block)
    d_block = product("nc,nd->cd", dz, hidden)
    # every entry of the head is in one block: its gradient is written, not added
    return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_head, d_block, first, 0)

  zeros = lambda x: jnp.zeros(x.shape, sum_dtype(hidden))
  d_hidden, d_head = over_blocks(head, hidden.shape[0], spec.chunk, add_block,
                                  (zeros(hidden), zeros(head)))
  here, index = local_index(tokens, head, axis)
  dz_token = _token_gradient(here, stats, grads, spec)
  d_hidden = d_hidden + dz_token * head[index].astype(d_hidden.dtype)
  # several rows may have sampled one token: `add` sums over repeated indices
  d_head = d_head.at[index].add(dz_token * hidden.astype(d_head.dtype))
  return summed(d_hidden, axis), d_head


# Over a mesh, and as a function with this derivative


def over_mesh(layout: Layout | None, fn: Callable, inputs: tuple, outputs: tuple) -> Callable:
  """fn under shard_map with the given specs, or as it is without a layout."""
  if layout is None:
    return fn
  mapped = jax.shard_map(fn, mesh=layout.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

  def run(*args):
    mesh = jax.typeof(args[0]).sharding.mesh
    if mesh.empty or mesh.are_all_axes_auto:
      return mapped(*args)
    # explicit axes are part of an array's type, and shard_map refuses other axes than its specs
    placed = []
    for arg, spec in zip(args, inputs, strict=True):
      sharding = NamedSharding(layout.mesh, spec)
      placed.append(jax.tree.map(lambda x, s=sharding: jax.sharding.reshard(x, s), arg))
    return mapped(*placed)

  return run


def partition(layout: Layout | None) -> tuple[P, P, P]:
  """Specs of a column [N], of hidden states [N, D] and of the head [V, D]."""
  if layout is None:
    return P(), P(), P()
  return P(layout.rows), P(layout.rows, None), P(layout.vocab, None)


def check_divides(hidden: Array, head: Array, layout: Layout | None) -> None:
  """Raises ValueError when rows or vocabulary do not divide by their axes."""
  if layout is None:
    return
  rows = math.prod(hidden.shape[:-1])
  row_shards = math.prod(layout.mesh.shape[name] for name in layout.rows)
  vocab_shards = layout.mesh.shape[layout.vocab] if layout.vocab else 1
  if head.shape[0] % vocab_shards or rows % row_shards:
    raise ValueError(f"{rows} tokens over {row_shards} row shards and a vocabulary of "
                     f"{head.shape[0]} over {vocab_shards}: both must divide")


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused(hidden, head, tokens, spec, layout):
  """`fused` of rows [N, D], spec and layout being static.

  The head is cast to the type of the states here, inside of what has the derivative: its gradient
  is summed over devices, and returned, in the type that the head has.
  """
  return _fused_fwd(hidden, head, tokens, spec, layout)[0]


def _fused_fwd(hidden, head, tokens, spec, layout):
  rows, states, entries = partition(layout)
  local = partial(forward, spec=spec, layout=layout)
  of_type = jnp.zeros((), head.dtype)
  head = head.astype(hidden.dtype)
  # P(rows) is a prefix: it holds for every array of both dicts
  fn = over_mesh(layout, local, (states, entries, rows), (rows, rows))
  out, stats = fn(hidden, head, tokens)
  return out, (hidden, head, tokens, stats, of_type)


def _fused_bwd(spec, layout, saved, grads):
  hidden, head, tokens, stats, of_type = saved
  rows, states, entries = partition(layout)

  def local(*args):
    axis = None if layout is None else layout.vocab
    d_hidden, d_head = _backward(*args, spec=spec, axis=axis)
    # each shard of rows has the gradient of the head from its rows alone
    return d_hidden, d_head if layout is None else jax.lax.psum(d_head, layout.rows)

  fn = over_mesh(layout, local, (states, entries, rows, rows, rows), (states, entries))
  d_hidden, d_head = fn(hidden, head, tokens, stats, grads)
  return d_hidden.astype(hidden.dtype), d_head.astype(of_type.dtype), None  # tokens have none


_fused.defvjp(_fused_fwd, _fused_bwd)


@checked
def fused(hidden: Float[Array, "*b D"], head: Float[Array, "V D"], tokens: Int[Array, "*b"],
          spec: Spec, layout: Layout | None = None) -> dict[str, Array]:
  """The statistics of spec.names by name, each [*b] in nats, differentiable in hidden and head.

  Those of z = hidden head^T / temperature, by the formulas of `statistics.py`; float64 for float64
  input, else float32. layout: rows and vocabulary over a mesh, every shard scanning its part.
  Raises ValueError when rows or vocabulary do not divide by their axes.
  """
  check_divides(hidden, head, layout)
  rows = hidden.reshape(-1, hidden.shape[-1])
  flat_tokens = tokens.reshape(-1).astype(jnp.int32)
  out: Any = _fused(rows, head, flat_tokens, spec, layout)
  return {name: value.reshape(tokens.shape) for name, value in out.items()}
