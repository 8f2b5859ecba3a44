"""Gradient over an optimiser batch in parts, the same for every number of parts.

Each part keeps the rows of its device: [B, ...] splits along the inner axis. What a method ranks
or averages over the whole batch comes from a gradient-free pass before the first part, which is
left out whenever one part, or columns of the rollout, suffice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entrolab.batch import Batch
from entrolab.objective import Columns, Objective
from entrolab.typing import Array, Int

# the caller's forward pass: (params, rows of a part) -> their statistics [B / M, T] by name
Statistics = Callable[[Any, Batch], dict[str, Array]]


class Gradient(NamedTuple):
  """What an optimiser batch gives."""

  grads: Any  # a tree like params
  metrics: dict[str, Array]  # sums over the batch: train/loss, term/*
  statistics: dict[str, Array]  # of the policy, [B, T], without gradient
  scored: dict[str, Any]  # what `Objective.score` gave: adv, weights and scales [B, T], scalars


def gradient(objective: Objective, statistics: Statistics, params: Any, batch: Batch,
             control: Columns | None = None, *, micro: int = 1,
             order: Int[Array, "ways R"] | None = None) -> Gradient:
  """Gradient over an optimiser batch, the same for every number of micro-batches.

  statistics(params, rows) -> the columns of `objective.statistics` for these rows of the batch.
  order [ways, B / ways]: in which the rows of each device are split; None: as they stand.
  Raises ValueError when the rows do not split into `micro` parts.
  """
  _check_split(batch.tokens.shape[0], micro)
  control = control or {}
  # `score` is called part by part where one part is the whole batch, or with scope="micro";
  # otherwise weights and scales of the whole batch are known before the first part
  alone = micro == 1 or objective.scope == "micro"

  def loss(params, part, scored):
    live = statistics(params, part)  # the gradient flows back through these columns, and only these
    columns = {**part.columns(), **control, **live}
    if alone:
      scored = objective.score(columns)
    value, metrics = objective.loss(columns, scored, fraction=1.0 / micro,
                                    share=1.0 / micro if alone else 1.0)
    return value, (metrics, jax.lax.stop_gradient(live), scored)

  slope = jax.grad(loss, has_aux=True)
  if micro == 1:
    grads, (metrics, live, scored) = slope(params, batch, {})
    return Gradient(grads, metrics, live, scored)

  parts = split(batch, micro, order)
  whole = {}
  if not alone:
    whole = _scored_whole(objective, statistics, params, batch, control, parts, order)
  by_row = {name: x for name, x in whole.items() if x is not None and x.ndim}
  scalars = {name: x for name, x in whole.items() if name not in by_row}

  def add_part(total, part_and_scored):
    part, scored = part_and_scored
    grads, aux = slope(params, part, {**scalars, **scored})
    return jax.tree.map(jnp.add, total, grads), aux

  zero = jax.tree.map(jnp.zeros_like, params)
  grads, (metrics, live, scored) = jax.lax.scan(
      add_part, zero, (parts, split(by_row, micro, order)))
  return Gradient(grads, jax.tree.map(lambda x: x.sum(0), metrics), merge(live, order),
                  {name: _rejoined(x, order) for name, x in scored.items()})


def _check_split(rows: int, micro: int) -> None:
  if micro < 1 or rows % micro:
    choices = [m for m in range(1, rows + 1) if rows % m == 0]
    raise ValueError(f"{rows} rows do not split into {micro} micro-batches; choices: {choices}")


def _scored_whole(objective: Objective, statistics: Statistics, params: Any, batch: Batch,
                  control: Columns, parts: Batch, order: Array | None) -> dict[str, Any]:
  """`objective.score` of the whole batch, with statistics of the policy where it reads them."""
  live = {}
  if objective.needs_score_pass:
    fixed = jax.lax.stop_gradient(params)
    live = merge(jax.lax.map(lambda part: statistics(fixed, part), parts), order)
  return objective.score({**batch.columns(), **control, **live})


def _rejoined(x: Array | None, order: Array | None) -> Array | None:
  """What was scored part by part: rows are put back in order, scalars become their mean."""
  if x is None:
    return None
  return merge(x, order) if x.ndim > 1 else x.mean(0)


def split(tree: Any, micro: int, order: Int[Array, "ways R"] | None = None) -> Any:
  """[B, ...] -> [M, B / M, ...] of every leaf, along the inner axis: devices keep their rows.

  order [ways, B / ways]: the rows of each device are put into it before.
  """
  tree = tree if order is None else _ordered(tree, order)
  return jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), tree)


def merge(tree: Any, order: Int[Array, "ways R"] | None = None) -> Any:
  """The inverse of `split`."""
  tree = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
  return tree if order is None else _ordered(tree, jnp.argsort(order, axis=1))


def _ordered(tree: Any, order: Int[Array, "ways R"]) -> Any:
  """Rows of each device in another order."""
  take = jax.vmap(lambda rows, at: rows[at])
  return jax.tree.map(lambda x: take(x.reshape(*order.shape, *x.shape[1:]), order).reshape(x.shape),
                      tree)
