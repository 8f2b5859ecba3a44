"""Gradient over an optimiser batch in parts, the same for every number of parts.

Each part keeps the rows of its device: [B, ...] splits along the inner axis. What a method ranks
or averages over the whole batch comes from a gradient-free pass before the first part, which is
left out whenever one part, or columns of the rollout, suffice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entrolab.batch import Batch
from entrolab.objective import Columns, Objective
from entrolab.typing import Array


def gradient(objective: Objective, statistics: Callable[[Any, Batch], dict[str, Array]],
             params: Any, batch: Batch, control: Columns | None = None, *, micro: int = 1,
             order: Array | None = None
             ) -> tuple[Any, dict[str, Array], dict[str, Array], dict[str, Any]]:
  """Gradient over an optimiser batch, the same for every number of micro-batches.

  statistics(params, rows) -> the columns of `objective.statistics` for these rows of the batch.
  order [ways, B / ways]: of the rows of each device when they are split; None for theirs.
  Returns (gradient like params, metrics, statistics [B, T], what `score` gave).
  Raises ValueError when the rows do not split into `micro` parts.
  """
  control, rows = control or {}, batch.tokens.shape[0]
  if micro < 1 or rows % micro:
    choices = [m for m in range(1, rows + 1) if rows % m == 0]
    raise ValueError(f"{rows} rows do not split into {micro} micro-batches; choices: {choices}")
  alone = micro == 1 or objective.scope == "micro"

  def loss(params, part, scored):
    live = statistics(params, part)
    columns = {**part.columns(), **control, **live}
    scored = objective.score(columns) if alone else scored
    value, metrics = objective.loss(columns, scored, fraction=1.0 / micro,
                                    share=1.0 / micro if alone else 1.0)
    return value, (metrics, jax.lax.stop_gradient(live), scored)

  if micro == 1:
    grads, aux = jax.grad(loss, has_aux=True)(params, batch, {})
    return grads, *aux
  parts, whole = split(batch, micro, order), {}
  if not alone:
    live = {}
    if objective.needs_score_pass:
      fixed = jax.lax.stop_gradient(params)
      live = merge(jax.lax.map(lambda part: statistics(fixed, part), parts), order)
    whole = objective.score({**batch.columns(), **control, **live})
  by_row = {k: v for k, v in whole.items() if v is not None and v.ndim}
  rest = {k: v for k, v in whole.items() if k not in by_row}

  def one(total, xs):
    part, scored = xs
    grads, aux = jax.grad(loss, has_aux=True)(params, part, {**rest, **scored})
    return jax.tree.map(jnp.add, total, grads), aux

  zero = jax.tree.map(jnp.zeros_like, params)
  grads, (metrics, live, scored) = jax.lax.scan(
      one, zero, (parts, split(by_row, micro, order)))
  # what was scored part by part: rows are put back in order, scalars become their mean
  scored = {k: None if v is None else merge(v, order) if v.ndim > 1 else v.mean(0)
            for k, v in scored.items()}
  return grads, jax.tree.map(lambda x: x.sum(0), metrics), merge(live, order), scored


def split(tree: Any, micro: int, order: Array | None = None) -> Any:
  """[B, ...] -> [M, B / M, ...] of every leaf, along the inner axis: devices keep their rows.

  order [ways, B / ways]: the rows of each device are put into it before.
  """
  tree = tree if order is None else _ordered(tree, order)
  return jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), tree)


def merge(tree: Any, order: Array | None = None) -> Any:
  """The inverse of `split`."""
  tree = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
  return tree if order is None else _ordered(tree, jnp.argsort(order, axis=1))


def _ordered(tree: Any, order: Array) -> Any:
  """Rows of each device in another order."""
  take = jax.vmap(lambda x, at: x[at])
  return jax.tree.map(lambda x: take(x.reshape(*order.shape, *x.shape[1:]), order).reshape(x.shape),
                      tree)
