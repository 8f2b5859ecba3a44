"""Laws that every function of entrolab/methods obeys, generated from its signature.

Each function stands in the slot that its return type names, in an objective over a softmax policy
whose parameters are the logits; the laws are on the loss and on the gradient.

The docstring of a law says what usually breaks it, and is printed below a failure.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import microbatch, vocab
from entrolab import objective as objectives
from entrolab.batch import COLUMNS, Batch
from entrolab.objective import Objective, term
from entrolab.typing import (
    Advantage,
    Array,
    Bool,
    Float,
    Int,
    Penalty,
    Scale,
    Surrogate,
    Weight,
    real,
    slot_of,
)
from tests import adapters, probe

FUNCTIONS = probe.functions()


# a surrogate, a penalty or an outer function sees no group: its laws on groups are tried slowly
BY_TOKEN = ("surrogate", "penalty", "outer")
GROUPS_FIRST = [pytest.param(fn, marks=pytest.mark.slow)
                if slot_of(inspect.signature(fn).return_annotation) in BY_TOKEN else fn
                for fn in FUNCTIONS]


def law(test, functions=FUNCTIONS):
  """Runs a test for every function; its docstring is added to a failure as the hint."""
  @functools.wraps(test)
  def hinted(**arguments):
    try:
      test(**arguments)
    except Exception as error:
      hint = inspect.cleandoc(test.__doc__)
      error.add_note(f"\nThe law that {probe.label(arguments['fn'])} breaks: {hint}")
      raise

  # scope: the laws of one function run one after another, while its programs are still there
  return pytest.mark.parametrize("fn", functions, ids=probe.label, scope="module")(hinted)


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


traced = []  # an entry for every time that `compiled` is traced


def run_traced(objective, columns, logits, *, micro=1, dtype=None):
  """`run`, counted each time that jax traces it."""
  traced.append(objective)
  return run(objective, columns, logits, micro=micro, dtype=dtype)


# laws are about the program, not about how well it is compiled
compiled = jax.jit(run_traced, static_argnums=0, static_argnames=("micro", "dtype"),
                   compiler_options=adapters.QUICK)


def jitted(fn, columns, logits, size=probe.G, **more):
  return compiled(probe.objective(fn, size), columns, logits, **more)


@functools.lru_cache(maxsize=4)
def baseline(fn):
  """(columns, logits, (loss, gradient)) of the function on one device: what the laws compare with.

  The arrays are shared by the laws of a function, so that none of them can be written to.
  """
  columns, logits = probe.batch(fn)
  want = jax.tree.map(np.asarray, jitted(fn, columns, logits))
  assert np.isfinite(want[0]) and np.isfinite(want[1]).all(), (
      f"{probe.label(fn)}: the loss or its gradient is not finite on an ordinary batch")
  for array in (*columns.values(), logits):
    if isinstance(array, np.ndarray):
      array.flags.writeable = False
  return columns, logits, want


def close(got, want, tolerance=2e-6):
  scale = np.abs(np.asarray(want[1])).max() + 1e-8
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(np.asarray(got[1]) / scale, np.asarray(want[1]) / scale,
                             atol=tolerance)


def test_every_method_file_has_functions():
  files = {fn.__module__ for fn in FUNCTIONS}
  assert {"entrolab.methods.ppo", "entrolab.methods.siren", "entrolab.aggregate"} <= files


@law
def test_eager_equals_jit(fn):
  """Operation by operation and compiled, a function gives the same loss and gradient.

  Usual causes: (1) a difference of almost equal values, such as (R - mean) / std, which each
  program rounds in its own way; (2) something outside the arguments, such as a global or numpy's
  random numbers, which a compiled function reads once.
  """
  columns, logits, want = baseline(fn)
  columns = jax.tree.map(jnp.asarray, columns)
  close(run(probe.objective(fn), columns, jnp.asarray(logits)), want)


@law
@pytest.mark.parametrize("vocabulary", [None, "tensor"], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_equals_single(fn, kind, vocabulary):
  """Rows sharded over devices give the loss and gradient of one device, on both kinds of mesh.

  Usual causes: (1) a sort, a gather or a reshape over rows without `ranks.replicated`, which
  `ranks.grouped` and `ranks.top` call; (2) equal rewards of a group that are not exactly 0 after
  `r - r.mean()`, since the rounding depends on the program and 1 / (std + eps) enlarges it: test
  for equality first, as `grpo._centred` does.
  """
  columns, logits, want = baseline(fn)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)

  def place(x):
    rows = np.ndim(x) > 0
    spec = P("data", *[None] * (np.ndim(x) - 1)) if rows else P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  z = jax.device_put(logits, NamedSharding(mesh, P("data", None, vocabulary)))
  with jax.set_mesh(mesh):
    got = jitted(fn, jax.tree.map(place, columns), z)
  close(jax.tree.map(np.asarray, got), want)


@law
def test_gradient_does_not_depend_on_micro_batches(fn):
  """One gradient, whatever the number of micro-batches that the batch is split into.

  Usual causes: (1) a mean, a rank or a maximum over rows in a `Surrogate` or `Penalty`, which sees
  one micro-batch: it belongs into an `Advantage`, `Weight` or `Scale`, which see the whole batch;
  (2) a division by a number of rows or tokens outside the `Scale`.
  """
  columns, logits, want = baseline(fn)
  for micro in (2, 4):
    close(jitted(fn, columns, logits, micro=micro), want)


@law
def test_padding_may_hold_nan(fn):
  """NaN on padding changes nothing.

  Usual causes: (1) `x * mask` in place of `jnp.where(mask, x, 0.0)`: 0 * NaN is NaN; (2) a column
  that reaches the function around `Objective`, which sets padding to 0.
  """
  columns, logits, want = baseline(fn)
  mask = columns["mask"]
  dirty = {k: np.where(mask, v, np.nan) if getattr(v, "dtype", None) == np.float32
           and np.shape(v) == mask.shape else v for k, v in columns.items()}
  assert any(np.isnan(v).any() for v in dirty.values() if v.dtype == np.float32)
  close(jitted(fn, dirty, logits), want, tolerance=0)


@law
def test_empty_rows_and_equal_groups_are_finite(fn):
  """Rows without a token, batches without a token and equal groups: finite, and 0 on padding.

  Usual causes: (1) a mean whose count may be 0: `jnp.maximum(count, 1.0)`, or `ranks.masked_mean`;
  (2) a square root, a logarithm or a division at 0, whose gradient is not finite even where
  `jnp.where` leaves its value out: put a harmless argument in before.
  """
  mask = np.arange(probe.T) < np.array([0, 3, probe.T, 1] * (probe.B // 4))[:, None]
  nothing = np.zeros_like(mask)
  for verdict in (0, 1, -1):
    for m in (mask, nothing):
      columns, logits = probe.batch(fn, verdict=np.full(probe.B, verdict, np.int32), mask=m)
      loss, grad = jitted(fn, columns, logits)
      assert np.isfinite(loss) and np.isfinite(grad).all()
      assert (np.asarray(grad)[~m] == 0.0).all()


@law
def test_order_of_groups_and_of_rows_in_them(fn):
  """Groups in another order, and rows in another order within them, move the gradient with them.

  Usual causes: (1) ties that the position decides: `ranks.top(x, mask, noise, k)` breaks them by
  noise that belongs to the row; (2) the number of a row used as a value, such as `jnp.arange(B)`;
  (3) a difference that should be 0 and is a rounding error, over a small deviation.
  """
  columns, logits, want = baseline(fn)
  rng = np.random.default_rng(5)
  groups = rng.permutation(probe.B // probe.G)
  order = np.concatenate([g * probe.G + rng.permutation(probe.G) for g in groups])
  moved = {k: v[order] if np.ndim(v) else v for k, v in columns.items()}
  if "parent" in moved:  # a place in the group: it names the same row after the rows have moved
    place = np.argsort(order.reshape(-1, probe.G) % probe.G, axis=1)
    old = moved["parent"].reshape(-1, probe.G)
    moved["parent"] = np.take_along_axis(place, old, 1).astype(np.int32).reshape(-1)
  close(jitted(fn, moved, logits[order]), (want[0], want[1][order]))


def without_rows(columns, rows):
  """The columns without one row of every group; what names other rows names them as before."""
  left = {k: np.delete(v, rows, 0) if np.ndim(v) else v for k, v in columns.items()}
  if "parent" in left:  # a place in the group; that of a row that has gone is named by nobody
    gone = np.repeat(rows % probe.G, probe.G - 1)
    later = left["parent"] > gone
    left["parent"] = np.where(left["parent"] == gone, -1, left["parent"] - later).astype(np.int32)
  if "trajectory" in left:  # ids in [0, B)
    left["trajectory"] = np.unique(left["trajectory"], return_inverse=True)[1].astype(np.int32)
  return left


@functools.partial(law, functions=GROUPS_FIRST)
def test_an_unknown_row_is_as_if_it_were_not_there(fn):
  """A batch with rows of unknown verdict has the loss and the gradient of one without these rows.

  Usual causes: (1) a mean, a rank or a quantile of rewards that takes NaN, the reward of an unknown
  verdict, for a number: `ranks.known_mean`, `known_std` and `all_equal` leave it out; (2) a number
  of rows out of `mask.shape[0]`: `aggregate.per_row` counts those of the column `known`.
  """
  columns, logits, _ = baseline(fn)
  rng = np.random.default_rng(7)
  rows = np.arange(0, probe.B, probe.G) + rng.integers(0, probe.G, probe.B // probe.G)
  verdict = np.tile(np.array([1, 0], np.int32), probe.B // 2)  # both are left in every group
  verdict[rows] = -1
  columns = {**columns, "verdict": verdict}
  got = jitted(fn, columns, logits)
  if "verdict" not in probe.objective(fn).reads:  # nobody asks for it, so that it decides nothing
    wrong = {**columns, "verdict": np.maximum(verdict, 0)}
    close(got, jitted(fn, wrong, logits), tolerance=0)
    return
  left = without_rows(columns, rows)
  loss, grad = jitted(fn, left, np.delete(logits, rows, 0), size=probe.G - 1)
  assert (np.asarray(got[1])[rows] == 0.0).all()
  close((got[0], np.delete(np.asarray(got[1]), rows, 0)), (loss, grad))


@law
def test_bfloat16_logits_give_float32(fn):
  """With logits in bfloat16 the loss is float32, and it and its gradient are finite.

  Usual causes: (1) a cast to another type than that of the columns; (2) a logarithm or a division
  that overflows once a probability is rounded to 1, such as log(1 - exp(logp)).
  """
  columns, logits, _ = baseline(fn)
  loss, grad = jitted(fn, columns, logits, dtype=jnp.bfloat16)
  assert loss.dtype == jnp.float32 and np.isfinite(loss) and np.isfinite(grad).all()


@law
def test_one_trace_for_equal_shapes(fn):
  """An objective that is built again, on another batch of the same shapes, compiles nothing.

  Usual causes: (1) a hyper-parameter that does not equal itself when it is built again, such as a
  lambda or NaN; (2) a column whose type depends on its values.
  """
  columns, logits, _ = baseline(fn)
  jitted(fn, columns, logits)
  before = len(traced)
  jitted(fn, *probe.batch(fn, seed=1))
  assert len(traced) == before, f"traced again for {traced[-1]}"


@law
def test_wrong_slot_and_unknown_knob_are_refused(fn):
  """A misspelt hyper-parameter and a place of another slot are errors when they are written.

  Usual causes, both in objective.py: (1) `term` does not compare names with the keyword-only
  parameters of the function; (2) `Objective` does not compare the slot of a term with its place.
  """
  it = probe.bound(fn)
  with pytest.raises(TypeError, match="unknown knob"):
    term(fn, no_such_knob=1)
  if it.slot != "surrogate":
    with pytest.raises(TypeError, match="takes a surrogate"):
      Objective(surrogate=it, advantage=term(probe.grpo.group_advantage, size=4))


LAWS = [test for name, test in list(globals().items())
        if name.startswith("test_") and hasattr(test, "__wrapped__")]


@pytest.mark.parametrize("test", LAWS, ids=lambda test: test.__name__)
def test_every_law_names_two_usual_causes(test):
  assert "Usual causes" in test.__doc__ and test.__doc__.count("(1)") == 1 == test.__doc__.count(
      "(2)")


CALLS = itertools.count(1)


def counts_its_calls(adv: Float[Array, "B T"]) -> Advantage:
  return adv * float(next(CALLS))


def sorts_sharded_rows(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Weight:
  return jnp.where(mask, jnp.sort(entropy, axis=0), 0.0)


def centres_in_the_surrogate(logp: Float[Array, "B T"], adv: Float[Array, "B T"]) -> Surrogate:
  return -adv * jnp.exp(logp - logp.mean())


def multiplies_by_the_mask(entropy: Float[Array, "B T"], ref_logp: Float[Array, "B T"],
                           mask: Bool[Array, "B T"]) -> Penalty:
  return jnp.cumsum(ref_logp * real(mask), axis=1) * entropy


def divides_by_nothing(adv: Float[Array, "B T"]) -> Advantage:
  return adv / jnp.abs(adv).sum()


def weighs_by_row_number(rewards: Float[Array, " B"]) -> Advantage:
  return rewards * real(jnp.arange(rewards.shape[0]))


def counts_every_row(mask: Bool[Array, "B T"]) -> Scale:
  return real(mask) / mask.shape[0]


def rounds_to_bfloat16(entropy: Float[Array, "B T"]) -> Penalty:
  return -entropy.astype(jnp.bfloat16)


@pytest.mark.parametrize("test, fn, more, says", [
    (test_eager_equals_jit, counts_its_calls, {}, "outside the arguments"),
    (test_sharded_equals_single, sorts_sharded_rows,
     dict(kind=AxisType.Explicit, vocabulary=None), "without `ranks.replicated`"),
    (test_gradient_does_not_depend_on_micro_batches, centres_in_the_surrogate, {},
     "belongs into an `Advantage`"),
    (test_padding_may_hold_nan, multiplies_by_the_mask, {}, "0 * NaN is NaN"),
    (test_empty_rows_and_equal_groups_are_finite, divides_by_nothing, {}, "whose count may be 0"),
    (test_order_of_groups_and_of_rows_in_them, weighs_by_row_number, {}, "number of a row"),
    (test_an_unknown_row_is_as_if_it_were_not_there, counts_every_row, {}, "`mask.shape[0]`"),
    (test_bfloat16_logits_give_float32, rounds_to_bfloat16, {}, "cast to another type"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_law_fails_and_says_what_usually_breaks_it(test, fn, more, says, monkeypatch):
  if fn is multiplies_by_the_mask:  # else Objective sets padding to 0 before a function sees it
    monkeypatch.setattr(objectives, "_clean", dict)
  with pytest.raises(Exception) as failure:
    test(fn=fn, **more)
  note = failure.value.__notes__[-1]  # jax adds its own before
  assert f"laws_test.{fn.__name__} breaks" in note and says in note


def test_a_second_trace_is_seen(monkeypatch):
  built = itertools.count(1)
  made = probe.objective
  monkeypatch.setattr(probe, "objective", lambda fn, *size: made(
      fn, *size, vocab=vocab.Spec(temperature=1.0 + next(built))))
  with pytest.raises(AssertionError, match=r"traced again for Objective\(") as failure:
    test_one_trace_for_equal_shapes(fn=FUNCTIONS[0])
  assert "does not equal itself" in failure.value.__notes__[-1]


def lacks_a_column(verdict: Int[Array, " B"], confidence: Float[Array, " B"]) -> Advantage:
  return real(verdict) * confidence


def lacks_a_default(verdict: Int[Array, " B"], *, strength: float) -> Advantage:
  return strength * real(verdict)


@pytest.mark.parametrize("make, fn, says", [
    (probe.batch, lacks_a_column, "COLUMNS = dict(confidence=lambda rng: ...)"),
    (probe.bound, lacks_a_default, "KNOBS = dict(strength=...)"),
], ids=["column", "knob"])
def test_what_a_new_method_lacks_is_named_with_its_place(make, fn, says):
  with pytest.raises(AssertionError) as failure:
    make(fn)
  assert f"Add to tests/methods/laws_test_test.py: {says}" in str(failure.value)
