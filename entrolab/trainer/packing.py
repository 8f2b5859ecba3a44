"""Whole rows side by side in bins, so that a forward pass computes few positions of padding.

A bin has W = k (L + T) positions, k = 1, 2 or 4, filled with the real tokens of whole rows (prompt
and response) one after another. Segment ids tell the rows of a bin apart; positions begin anew in
every row. The states that predict a response token that counts are gathered into a list, and the
vocabulary is evaluated on that list alone. Its statistics return as columns [B, T], zero off the
mask, as without packing. A row stays on its device, in bins of its part of the batch.

Shapes are static. Where rows lie is decided on the host from their lengths alone, never from what
came before, so that a resumed run packs alike. The number of bins, and that of tokens in the list,
are rounded up to eighths (from 2/8) of what no padding at all could need; a batch whose counts fall
into another eighth compiles once more.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.batch import Batch
from entrolab.typing import Array, Bool, Float, Int

START = "packed_start"  # column [B] of a batch: where a row begins in the bins of its device
WIDTHS = (1, 2, 4)  # k: rows of full length that fit into a bin
EIGHTHS = range(2, 9)  # of the most bins, or listed tokens, that a plan could need


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
  """Where the rows of a batch lie; on the host as numpy arrays, on the mesh once it is placed."""

  start: Int[Array, " B"]  # where a row begins in the flattened bins of its device
  order: Int[Array, "ways R"]  # R = B / ways rows of a device as parts take them
  # static, of one device and part
  bins: int = dataclasses.field(metadata=dict(static=True))
  width: int = dataclasses.field(metadata=dict(static=True))  # W, positions of a bin
  tokens: int = dataclasses.field(metadata=dict(static=True))  # places in the list of states

  @property
  def shape(self) -> tuple[int, int, int]:
    """What a program is compiled for."""
    return self.bins, self.width, self.tokens


def make(tokens: np.ndarray, counted: np.ndarray, *, length: int, max_tokens: int, ways: int,
         parts: int, attention: float, balanced: bool) -> Plan:
  """The plan of B rows in `parts` parts over `ways` devices, by first fit of the longest rows.

  tokens, counted: [B], tokens of a row in all, and those of its response that count.
  length: L + T.
  max_tokens: T.
  attention: cost of one attended position, as a share of all else that a position costs.
  balanced: whether rows are dealt so that parts have nearly equal numbers of tokens; otherwise they
    stay in the order of `microbatch.split`.

  Of the widths of a bin it takes the one that costs least, at most what rows with their padding
  cost. Raises ValueError for a row that is longer than `length`.
  """
  if tokens.max(initial=0) > length:
    raise ValueError(f"a row of {tokens.max()} tokens; rows have {length} positions")
  rows = len(tokens) // ways  # of a device
  size = rows // parts  # rows of a device in one part
  order: Any = np.stack([dealt(of_device, parts) if balanced else np.arange(rows)
                         for of_device in tokens.reshape(ways, rows)])
  # [ways * parts, size]: the rows, by their place in the batch, of every device and part
  first_row = rows * np.arange(ways)[:, None, None]
  cells = (order.reshape(ways, size, parts).swapaxes(1, 2) + first_row).reshape(-1, size)

  found = []
  for k in WIDTHS:
    width = k * length
    start = np.zeros(len(tokens), np.int32)
    most_bins = 0
    for cell in cells:
      start[cell], used = first_fit(tokens[cell], width)
      most_bins = max(most_bins, used)
    bins = rounded(most_bins, size / k)
    cost = bins * k * (1.0 + attention * width)
    found.append((cost, width, bins, start))
  _, width, bins, start = min(found, key=lambda plan: plan[:2])
  listed = rounded(int(counted[cells].sum(1).max()), size * max_tokens)
  return Plan(start, order.astype(np.int32), bins, width, listed)


def padded_share(tokens: np.ndarray, positions: int) -> float:
  """Share of the positions of a forward pass that are padding; tokens [B]: the real ones."""
  return 1.0 - float(tokens.sum()) / positions


def with_start(batch: Batch, plan: Plan | None) -> tuple[Batch, Int[Array, "ways R"] | None]:
  """(the batch with the column START, the order in which it is split into parts, or None)."""
  if plan is None:
    return batch, None
  return batch.replace(**{START: plan.start}), plan.order


def dealt(lengths: np.ndarray, parts: int) -> np.ndarray:
  """Rows in the order that `microbatch.split` deals into `parts` parts of as many rows each: the
  longest first, each to the part with the fewest tokens that has room."""
  if parts == 1:
    return np.arange(len(lengths))
  members: list[list[int]] = [[] for _ in range(parts)]
  total = np.zeros(parts)
  for row in np.argsort(-lengths, kind="stable"):
    part = int(np.argmin(total))
    members[part].append(int(row))
    total[part] += lengths[row]
    if len(members[part]) == len(lengths) // parts:
      total[part] = np.inf  # full
  return np.asarray(members).T.ravel()


def first_fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, int]:
  """(where every row begins in the flattened bins, bins used): the longest rows first, each into
  the first bin with room."""
  room = np.full(len(lengths), width)
  start = np.zeros(len(lengths), np.int32)
  for row in np.argsort(-lengths, kind="stable"):
    at = int(np.argmax(room >= lengths[row]))
    start[row] = (at + 1) * width - room[at]
    room[at] -= lengths[row]
  return start, int((room < width).sum())


def rounded(count: int, most: float) -> int:
  """The least of the eighths of `most` that is not under count."""
  return next(n for n in (math.ceil(e * most / 8) for e in EIGHTHS) if n >= count)


@dataclasses.dataclass(frozen=True)
class Laid:
  """Rows of one part in bins: N = ways * bins of them, W wide, and R listed tokens a device."""

  tokens: Int[Array, "N W"]  # zero where a bin is empty
  positions: Int[Array, "N W"]  # of a token in its row
  segment_ids: Int[Array, "N W"]  # the row of a token, from 1; 0 where a bin is empty
  before: Int[Array, "ways R"]  # places in the bins of the states that predict
  target: Int[Array, "ways R"]  # the tokens that they predict
  place: Int[Array, "B T"]  # of a response token in the list of its device


def lay(plan: Plan, start: Int[Array, " B"], tokens: Int[Array, "B S"], valid: Bool[Array, "B S"],
        mask: Bool[Array, "B T"]) -> Laid:
  """Rows of one part [B, L + T] -> bins. A token that counts must follow a valid one."""
  ways = plan.order.shape[0]
  max_tokens = mask.shape[1]

  def on_device(start, tokens, valid, mask):
    position = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    bin_place = start[:, None] + position  # of every token, in the flattened bins of the device
    row = jnp.broadcast_to(jnp.arange(1, 1 + len(start), dtype=jnp.int32)[:, None], bin_place.shape)
    bins = _scattered(plan.bins * plan.width, valid, bin_place, tokens, position, row)
    # the list of the tokens that count, one row after another; the state that predicts a token is
    # that of the token before it
    place = (jnp.cumsum(mask.ravel(), dtype=jnp.int32) - 1).reshape(mask.shape)
    listed = _scattered(plan.tokens, mask, place, bin_place[:, -max_tokens:] - 1,
                        tokens[:, -max_tokens:])
    return bins, listed, jnp.where(mask, place, 0)

  by_device = lambda x: x.reshape(ways, -1, *x.shape[1:])
  bins, listed, place = jax.vmap(on_device)(*map(by_device, (start, tokens, valid, mask)))
  bins = bins.reshape(ways * plan.bins, plan.width, 3)
  return Laid(tokens=bins[..., 0], positions=bins[..., 1], segment_ids=bins[..., 2],
              before=listed[..., 0], target=listed[..., 1], place=place.reshape(mask.shape))


def _scattered(size: int, on: Array, place: Array, *values: Array) -> Int[Array, "n v"]:
  """[size, values]: the values where `on` is true, each at its place; zero elsewhere."""
  flat = jnp.stack([x.ravel().astype(jnp.int32) for x in values], axis=-1)
  place = jnp.where(on, place, size).ravel()  # `size` is out of range: dropped
  return jnp.zeros((size, len(values)), jnp.int32).at[place].set(flat, mode="drop")


def states(laid: Laid, hidden: Float[Array, "N W D"]) -> Float[Array, "ways R D"]:
  """The states that predict the tokens of the list."""
  flat = hidden.reshape(laid.before.shape[0], -1, hidden.shape[-1])
  return _taken(flat, laid.before)


def columns(laid: Laid, mask: Bool[Array, "B T"], listed: dict[str, Array]) -> dict[str, Array]:
  """Statistics of the list [ways, R] -> columns [B, T], zero off the mask."""
  place = laid.place.reshape(laid.before.shape[0], -1)
  return {name: jnp.where(mask, _taken(x, place).reshape(mask.shape), 0.0)
          for name, x in listed.items()}


def _taken(x: Array, index: Array) -> Array:
  """x [ways, n, ...], index [ways, m] -> [ways, m, ...]: no device reads from another."""
  return jax.vmap(lambda of_device, at: of_device[at])(x, index)
