"""Laws that every function of entrolab/methods obeys, generated from its signature.

Each function stands in the slot that its return type names, in an objective over a softmax policy
whose parameters are the logits; the laws are on the loss and on the gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import microbatch, vocab
from entrolab.batch import COLUMNS, Batch
from tests import adapters, probe

FUNCTIONS = probe.functions()
each = pytest.mark.parametrize("fn", FUNCTIONS, ids=probe.label)


def as_batch(columns):
  return Batch(**{k: v for k, v in columns.items() if k in COLUMNS})


def run(objective, columns, logits, *, micro=1, dtype=None):
  """(loss, gradient by logits), through the whole path: prepare, score, loss, micro-batches."""
  control = {k: v for k, v in columns.items() if k in objective.extra and np.ndim(v) == 0}
  rows = {k: v for k, v in columns.items() if k in objective.extra and np.ndim(v) > 0}
  batch = objective.prepare(as_batch(columns).replace(**rows), control)
  spec = objective.statistics

  def statistics(z, part):
    z = z[part.extra["index"]] if micro > 1 else z
    return vocab.from_logits(z if dtype is None else z.astype(dtype), part.tokens, spec)

  if micro > 1:
    batch = batch.replace(index=jnp.arange(batch.tokens.shape[0]))
  grads, metrics, _, _ = microbatch.gradient(objective, statistics, logits, batch, control,
                                             micro=micro)
  return metrics["train/loss"], grads


# laws are about the program, not about how well it is compiled
compiled = jax.jit(run, static_argnums=0, static_argnames=("micro", "dtype"),
                   compiler_options=adapters.QUICK)


def jitted(fn, columns, logits, **more):
  return compiled(probe.objective(fn), columns, logits, **more)


def close(got, want, tolerance=2e-6):
  scale = np.abs(np.asarray(want[1])).max() + 1e-8
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(np.asarray(got[1]) / scale, np.asarray(want[1]) / scale,
                             atol=tolerance)


def test_every_method_file_has_functions():
  files = {fn.__module__ for fn in FUNCTIONS}
  assert {"entrolab.methods.ppo", "entrolab.methods.siren", "entrolab.aggregate"} <= files


@each
def test_eager_equals_jit(fn):
  columns, logits = probe.batch(fn)
  columns = jax.tree.map(jnp.asarray, columns)
  close(run(probe.objective(fn), columns, jnp.asarray(logits)), jitted(fn, columns, logits))


@each
@pytest.mark.parametrize("vocabulary", [None, "tensor"], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_equals_single(fn, kind, vocabulary):
  columns, logits = probe.batch(fn)
  want = jitted(fn, columns, logits)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)

  def place(x):
    rows = np.ndim(x) > 0
    spec = P("data", *[None] * (np.ndim(x) - 1)) if rows else P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  z = jax.device_put(logits, NamedSharding(mesh, P("data", None, vocabulary)))
  with jax.set_mesh(mesh):
    got = jitted(fn, jax.tree.map(place, columns), z)
  close(jax.tree.map(np.asarray, got), want)


@each
def test_gradient_does_not_depend_on_micro_batches(fn):
  columns, logits = probe.batch(fn)
  want = jitted(fn, columns, logits)
  for micro in (2, 4):
    close(jitted(fn, columns, logits, micro=micro), want)


@each
def test_padding_may_hold_nan(fn):
  columns, logits = probe.batch(fn)
  want = jitted(fn, columns, logits)
  mask = columns["mask"]
  dirty = {k: np.where(mask, v, np.nan) if getattr(v, "dtype", None) == np.float32
           and np.shape(v) == mask.shape else v for k, v in columns.items()}
  assert any(np.isnan(v).any() for v in dirty.values() if v.dtype == np.float32)
  close(jitted(fn, dirty, logits), want, tolerance=0)


@each
def test_empty_rows_and_equal_groups_are_finite(fn):
  mask = np.arange(probe.T) < np.array([0, 3, probe.T, 1] * (probe.B // 4))[:, None]
  nothing = np.zeros_like(mask)
  for verdict in (0, 1, -1):
    for m in (mask, nothing):
      columns, logits = probe.batch(fn, verdict=np.full(probe.B, verdict, np.int32), mask=m)
      loss, grad = jitted(fn, columns, logits)
      assert np.isfinite(loss) and np.isfinite(grad).all()
      assert (np.asarray(grad)[~m] == 0.0).all()


@each
def test_order_of_groups_and_of_rows_in_them(fn):
  columns, logits = probe.batch(fn)
  rng = np.random.default_rng(5)
  groups = rng.permutation(probe.B // probe.G)
  order = np.concatenate([g * probe.G + rng.permutation(probe.G) for g in groups])
  moved = {k: v[order] if np.ndim(v) else v for k, v in columns.items()}
  if "parent" in moved:  # a place in the group: it names the same row after the rows have moved
    place = np.argsort(order.reshape(-1, probe.G) % probe.G, axis=1)
    old = moved["parent"].reshape(-1, probe.G)
    moved["parent"] = np.take_along_axis(place, old, 1).astype(np.int32).reshape(-1)
  want = jitted(fn, columns, logits)
  close(jitted(fn, moved, logits[order]), (want[0], np.asarray(want[1])[order]))


@each
def test_bfloat16_logits_give_float32(fn):
  columns, logits = probe.batch(fn)
  loss, grad = jitted(fn, columns, logits, dtype=jnp.bfloat16)
  assert loss.dtype == jnp.float32 and np.isfinite(loss) and np.isfinite(grad).all()


@each
def test_one_trace_for_equal_shapes(fn):
  objective, traces = probe.objective(fn), []

  @functools.partial(jax.jit, compiler_options=adapters.QUICK)
  def step(columns, logits):
    traces.append(1)
    return run(objective, columns, logits)

  for seed in (0, 1):
    step(*probe.batch(fn, seed))
  assert len(traces) == 1


@each
def test_wrong_slot_and_unknown_knob_are_refused(fn):
  from entrolab.objective import Objective, term
  it = probe.bound(fn)
  with pytest.raises(TypeError, match="unknown knob"):
    term(fn, no_such_knob=1)
  if it.slot != "surrogate":
    with pytest.raises(TypeError, match="takes a surrogate"):
      Objective(surrogate=it, advantage=term(probe.grpo.group_advantage, size=4))
