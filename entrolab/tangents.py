"""How far statistics over the vocabulary move along a direction, without the logits in memory.

Along directions h' and W' of the hidden states and the head, logits and statistics move by

  z'_j = (h' . W_j + h . W'_j) / temperature        s' = sum_j (d s / d z_j) z'_j

with the gradients d s / d z_j of `fused`. One pass over the blocks gives the derivative of every
statistic of every row along one direction; a backward pass gives that of one sum of statistics
along all directions. `fused` has a backward pass of its own, which `jax.jvp` refuses.
"""

from functools import partial

import jax
import jax.numpy as jnp

from entrolab.fused import (
  Head,
  Hidden,
  PerRow,
  Tokens,
  block_logits,
  check_divides,
  dense_gradient,
  first_id_of,
  forward,
  local_index,
  nucleus_gradient,
  over_blocks,
  over_mesh,
  partition,
  sum_dtype,
)
from entrolab.nucleus import summed
from entrolab.sharding import Layout
from entrolab.statistics import Spec
from entrolab.typing import Array, Float, Int, exact


def _tangents(hidden: Hidden, d_hidden: Hidden, head: Head, d_head: Head, tokens: Tokens,
              spec: Spec, layout: Layout | None) -> tuple[dict[str, PerRow], dict[str, PerRow]]:
  """(statistics of spec.names, their derivatives along d_hidden and d_head), of the local rows."""
  axis = None if layout is None else layout.vocab
  out, stats = forward(hidden, head, tokens, spec, layout)
  first_id = first_id_of(head, axis)
  one = jnp.ones_like(stats["lse"])[:, None]

  def add_block(totals, block, first):
    d_block = jax.lax.dynamic_slice_in_dim(d_head, first, block.shape[0])
    z = block_logits(hidden, block, spec)
    dz = block_logits(d_hidden, block, spec) + block_logits(hidden, d_block, spec)

    def slope(name):  # d statistic / d z of every row, without its [j=y] term
      if name != "nucleus_entropy":
        return dense_gradient(z, stats, {name: one}, spec)
      ids = (first_id + first + jnp.arange(z.shape[-1], dtype=jnp.int32))[None]
      return -nucleus_gradient(z, ids, stats)

    return {name: total + (slope(name) * dz).sum(-1) for name, total in totals.items()}

  zeros = {name: jnp.zeros_like(stats["lse"]) for name in spec.names}
  totals = over_blocks(head, hidden.shape[0], spec.chunk, add_block, zeros)
  here, index = local_index(tokens, head, axis)
  dot = partial(jnp.einsum, "nd,nd->n", precision=exact(hidden),
                preferred_element_type=sum_dtype(hidden))
  dz_token = (dot(d_hidden, head[index]) + dot(hidden, d_head[index])) / spec.temperature
  dz_token = jnp.where(here, dz_token, 0.0)
  if "logp" in totals:
    totals["logp"] = totals["logp"] + dz_token
  if "tempered_logp" in totals:
    totals["tempered_logp"] = totals["tempered_logp"] + dz_token / spec.tempered
  return out, jax.tree.map(lambda total: summed(total, axis), totals)


def tangents(hidden: Float[Array, "*b D"], d_hidden: Float[Array, "*b D"],
             head: Float[Array, "V D"], d_head: Float[Array, "V D"], tokens: Int[Array, "*b"],
             spec: Spec, layout: Layout | None = None) -> tuple[dict[str, Array], dict[str, Array]]:
  """(`fused` of the same arguments, its derivative along d_hidden and d_head), each [*b] by name.

  d s = sum_j (d s / d z_j) d z_j, d z = (d_hidden head^T + hidden d_head^T) / temperature: what
  `jax.jvp` of `vocab.from_logits` gives, without the logits in memory. Raises as `fused`.
  """
  rows, states, entries = partition(layout)
  check_divides(hidden, head, layout)
  flat = lambda x: x.reshape(-1, x.shape[-1]).astype(hidden.dtype)
  local = partial(_tangents, spec=spec, layout=layout)
  fn = over_mesh(layout, local, (states, states, entries, entries, rows), (rows, rows))
  out = fn(flat(hidden), flat(d_hidden), flat(head), flat(d_head),
           tokens.reshape(-1).astype(jnp.int32))
  return jax.tree.map(lambda value: value.reshape(tokens.shape), out)
