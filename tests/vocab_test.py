"""Statistics over the vocabulary: fused equals plain, sharded equals whole, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import nucleus, vocab
from tests import adapters

N, D, V = 16, 8, 96


def inputs(scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  spread = np.geomspace(0.05, 8.0, N)[:, None]  # entropy from near log V to near 0
  hidden = (rng.normal(size=(N, D)) * spread * scale).astype(np.float32)
  return hidden, rng.normal(size=(V, D)).astype(np.float32), rng.integers(0, V, N).astype(np.int32)


def objective(spec, weights, layout=None, plain=False):
  def run(hidden, head, tokens):
    if plain:
      logits = jnp.einsum("nd,vd->nv", hidden, head)
      out = vocab.from_logits(logits, tokens, spec)
    else:
      out = vocab.fused(hidden, head, tokens, spec, layout)
    return sum((out[name] * w).sum() for name, w in zip(spec.names, weights, strict=True)), out

  return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))


def reference(logits, top_p, inclusive):
  """Sorted, in float64: (entropy, nucleus entropy, nucleus mask)."""
  z = logits.astype(np.float64)
  p = np.exp(z - z.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  h = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)
  mask = np.zeros(p.shape, bool)
  for row in range(len(p)):
    order = np.argsort(-p[row], kind="stable")
    cut = int((np.cumsum(p[row][order]) < top_p).sum()) + inclusive
    mask[row, order[:cut]] = True
  q = np.where(mask, p, 0.0)
  q = q / np.maximum(q.sum(-1, keepdims=True), 1e-300)
  return h, -np.where(q > 0, q * np.log(np.where(q > 0, q, 1.0)), 0.0).sum(-1), mask


@pytest.mark.parametrize("inclusive", [False, True])
def test_plain_against_a_sorted_float64_reference(inclusive):
  hidden, head, _ = inputs()
  logits = hidden @ head.T
  h, n, mask = reference(logits, 0.8, inclusive)
  np.testing.assert_allclose(vocab.entropy(logits), h, rtol=2e-5, atol=2e-6)
  got = np.asarray(vocab.nucleus_mask(jnp.asarray(logits), 0.8, inclusive))
  np.testing.assert_array_equal(got, mask)
  np.testing.assert_allclose(vocab.nucleus_entropy(jnp.asarray(logits), 0.8, inclusive), n,
                             rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [0, 32, 40])
@pytest.mark.parametrize("name", vocab.NAMES)
def test_fused_equals_plain(name, chunk):
  spec = vocab.Spec(names=(name,), chunk=chunk, tempered=1.7, temperature=0.9)
  args = tuple(map(jnp.asarray, inputs()))
  weights = (np.random.default_rng(1).normal(size=N).astype(np.float32),)
  with adapters.double():
    wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs()]
    (_, want), want_grads = objective(spec, (weights[0].astype(np.float64),), plain=True)(
        *map(jnp.asarray, wide))
  (_, got), grads = objective(spec, weights)(*args)
  np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=2e-6)
  # a logit of 60 is rounded to 4e-6 and so is every probability of its row, whatever is done later
  hidden, head, _ = inputs()
  rounded = np.spacing(np.abs(hidden @ head.T).max()) * max(np.abs(hidden).max(),
                                                            np.abs(head).max())
  for a, b in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=2 * rounded + 5e-5 * np.abs(b).max())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("axis", ["tensor", None], ids=["sharded", "whole"])
def test_sharded_equals_single(kind, axis):
  spec = vocab.Spec(names=vocab.NAMES, chunk=32)
  hidden, head, tokens = inputs()
  head[7] = head[3]  # equal logits in every row
  weights = tuple(jnp.asarray(w, jnp.float32) for w in
                  np.random.default_rng(1).normal(size=(len(vocab.NAMES), N)))
  (_, want), want_grads = objective(spec, weights)(hidden, head, tokens)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)
  place = lambda x, *s: jax.device_put(x, NamedSharding(mesh, P(*s)))
  layout = vocab.Layout(mesh, rows=("data",), vocab=axis)
  with jax.set_mesh(mesh):
    weights = tuple(place(np.asarray(w), "data") for w in weights)
    (_, got), grads = objective(spec, weights, layout)(
        place(hidden, "data", None), place(head, axis, None), place(tokens, "data"))
  for name in vocab.NAMES:
    np.testing.assert_allclose(np.asarray(got[name]), want[name], rtol=1e-5, atol=2e-6)
  for a, b in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(np.asarray(a), b, atol=2e-5 * np.abs(b).max())


def test_layout_that_does_not_divide_is_refused():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  hidden, head, tokens = inputs()
  with pytest.raises(ValueError, match="must divide"):
    vocab.fused(hidden, head[:95], tokens, vocab.Spec(), vocab.Layout(mesh, rows=("data",)))


def test_equal_logits_are_split_by_index():
  for size, top_p in ((24, 0.8), (7, 0.5)):
    row = jnp.zeros((1, size))
    for inclusive in (False, True):
      want = reference(np.zeros((1, size)), top_p, inclusive)[2]
      np.testing.assert_array_equal(vocab.nucleus_mask(row, top_p, inclusive), want)


def test_minus_infinity_is_finite_in_value_and_gradient():
  logits = jnp.asarray([[0.0, -jnp.inf, 1.0, -jnp.inf], [-jnp.inf, 5.0, -jnp.inf, -jnp.inf]])
  tokens = jnp.asarray([2, 1])
  spec = vocab.Spec(names=vocab.NAMES)
  for name in vocab.NAMES:
    value, grad = jax.value_and_grad(
        lambda z, n=name: vocab.from_logits(z, tokens, spec)[n].sum())(logits)
    assert np.isfinite(value) and np.isfinite(grad).all(), name
    assert (np.asarray(grad)[~np.isfinite(logits)] == 0.0).all(), name


def test_bfloat16_gives_float32():
  logits = jnp.asarray(inputs()[0] @ inputs()[1].T).astype(jnp.bfloat16)
  out = vocab.from_logits(logits, jnp.asarray(inputs()[2]), vocab.Spec(names=vocab.NAMES))
  assert {x.dtype for x in out.values()} == {jnp.dtype("float32")}


def test_no_tokens_by_vocabulary_array_in_the_backward_pass():
  shape = jax.ShapeDtypeStruct
  loss = lambda h, w, t: sum(x.sum() for x in vocab.fused(h, w, t, vocab.Spec()).values())
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
      shape((2048, 576), jnp.float32), shape((49152, 576), jnp.float32),
      shape((2048,), jnp.int32)).compile()
  whole, padding = 4 * 2048 * 49152, 4 * 49152 * 576
  # the head's gradient is an output; the scan may keep the head once more, padded
  assert compiled.memory_analysis().temp_size_in_bytes < 64e6 + 2.1 * padding < whole


def rows_of_many_kinds(rng, size):
  """Logits whose nuclei hold from one token to all of them; ties inside, at the cut, throughout."""
  spread = rng.normal(size=(40, size)) * np.geomspace(0.01, 12.0, 40)[:, None]
  tied = np.round(rng.normal(size=(40, size)) * 3.0 * 4) / 4
  steps = -np.arange(size) * np.geomspace(1e-3, 1.0, 8)[:, None]
  zipf = -np.log(np.arange(size) + 1.0)[None] + np.asarray([[0.0], [30.0], [-50.0]])
  half = np.where(rng.random((4, size)) < 0.5, 0.0, -np.inf)
  flat = np.asarray([[0.0], [-7.25], [80.0]]) * np.ones((1, size))
  one = np.where(np.arange(size)[None] == size // 3, 20.0, -20.0)
  rows = np.concatenate([spread, tied, rng.permuted(steps, axis=1), zipf, half, flat, one])
  return rows.astype(np.float32)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.8, 0.95, 0.999])
def test_the_search_finds_the_sorted_set(top_p, inclusive):
  for size in (5, 333, 4096):
    logits = rows_of_many_kinds(np.random.default_rng(size), size)
    got = np.asarray(vocab.nucleus_mask(jnp.asarray(logits), top_p, inclusive))
    want = reference(logits, top_p, inclusive)[2]
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row in np.flatnonzero((got != want).any(1)):
      # one token more or less, and float32 cannot tell on which side of top_p the mass is
      less, more = sorted((got[row], want[row]), key=np.sum)
      assert more.sum() == less.sum() + 1 and (less <= more).all(), (row, size)
      mass = p[row][less if inclusive else more].sum()
      assert abs(mass - top_p) < 1e-6, (row, size)


def test_everything_is_in_a_nucleus_of_one():
  logits = rows_of_many_kinds(np.random.default_rng(3), 200)
  got = np.asarray(vocab.nucleus_mask(jnp.asarray(logits), 1.0, True))
  heavy = logits - logits.max(-1, keepdims=True) > -10.0
  assert got[heavy].all() and not got[np.isneginf(logits)].any()


def hostile(size):
  """Rows on which a search might not end: distinct logits that crowd in the order of floats."""
  rng = np.random.default_rng(0)
  up = lambda x: np.arange(size, dtype=np.int32) + np.float32(x).view(np.int32)
  adjacent = up(1.0).view(np.float32)
  tiny = np.geomspace(2e-38, 1.0, size)
  crowd = np.concatenate([tiny[: size // 2], -tiny[: size - size // 2]])
  far = -np.geomspace(1e-30, 1e30, size)
  lone = np.where(np.arange(size) == size // 3, 1.0, -np.inf)
  huge = np.resize([3e38, -3e38, 1e38, 0.0], size)
  rows = [adjacent, -adjacent, up(3e38 * 0.9).view(np.float32), up(1.2e-38).view(np.float32), crowd,
          far, lone, lone * 1e30, huge, np.full(size, -3.4e38),
          np.resize([2.68e8, 2.68e8 - 16], size)]
  return rng.permuted(np.asarray(rows, np.float32), axis=1)


@pytest.mark.parametrize("top_p", [0.3, 0.999, 0.9999999])
def test_the_search_ends_at_the_sorted_set_on_hostile_rows(top_p):
  logits = hostile(3000)
  slots = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
  order = np.argsort(-logits, axis=1, kind="stable")
  with np.errstate(over="ignore"):
    p = np.exp(np.take_along_axis(logits, order, 1).astype(np.float64) - logits.max(1)[:, None])
  mass = np.cumsum(np.pad(p, ((0, 0), (1, 0))), 1) / p.sum(1, keepdims=True)
  for inclusive in (False, True):
    cut = jax.jit(nucleus.cut_rows, static_argnums=(1, 2))(jnp.asarray(logits), top_p, inclusive)
    on = np.asarray(nucleus.inside(logits, slots, jax.tree.map(lambda x: x[:, None], cut)))
    kept = np.take_along_axis(on, order, 1)
    count = kept.sum(1)
    np.testing.assert_array_equal(kept, np.arange(kept.shape[1]) < count[:, None])
    at = lambda i: np.take_along_axis(mass, i[:, None], 1)[:, 0]
    assert (at(count - inclusive) < top_p + 1e-6).all()
    assert (at(np.minimum(count + 1 - inclusive, kept.shape[1])) > top_p - 1e-6).all()


def test_neighbouring_floats_are_told_apart():
  """The mean of two neighbours is one of them: the cut must not move it to the other side."""
  low = np.concatenate([np.asarray([1.0, -1.0, 2e-38, 1e-3], np.float32).view(np.int32) + i
                        for i in (0, 1)]).view(np.float32)  # even and odd last bits
  high = np.nextafter(low, np.float32(np.inf))
  rows = jnp.asarray(np.stack([low, high, high, low], 1))
  mask = jax.jit(vocab.nucleus_mask, static_argnums=(1, 2))
  for top_p, inclusive, want in ((0.1, False, []), (0.4, False, [1]), (0.6, False, [1, 2]),
                                 (0.6, True, [0, 1, 2]), (0.3, True, [1, 2])):
    for row in np.asarray(mask(rows, top_p, inclusive)):
      assert np.flatnonzero(row).tolist() == want, (top_p, inclusive)


@pytest.mark.parametrize("name", vocab.NAMES)
def test_gradients_by_finite_differences(name):
  spec = vocab.Spec(names=(name,), chunk=32, tempered=1.7, temperature=0.9)
  rng = np.random.default_rng(2)
  with adapters.double():
    hidden, head = (jnp.asarray(x, jnp.float64) for x in inputs()[:2])
    tokens, up = jnp.asarray(inputs()[2]), jnp.asarray(rng.normal(size=N))
    loss = jax.jit(lambda h, w: (vocab.fused(h, w, tokens, spec)[name] * up).sum())
    grads = jax.grad(loss, (0, 1))(hidden, head)
    for _ in range(3):
      way = [jnp.asarray(rng.normal(size=x.shape)) for x in (hidden, head)]
      move = lambda eps, way=way: loss(hidden + eps * way[0], head + eps * way[1])
      want = (move(1e-6) - move(-1e-6)) / 2e-6
      got = sum((a * b).sum() for a, b in zip(grads, way, strict=True))
      np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_the_nucleus_of_a_sharded_vocabulary(kind):
  """Every device takes the same number of rounds, although rows need different ones."""
  mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind,) * 2)
  layout = vocab.Layout(mesh, rows=("data",))
  logits = rows_of_many_kinds(np.random.default_rng(0), 96)
  logits = np.where(np.isneginf(logits), -80.0, logits)
  logits = np.concatenate([logits, hostile(96)[:2]]).astype(np.float32)
  logits = logits[:len(logits) // 2 * 2]
  tokens = np.zeros(len(logits), np.int32)
  place = lambda x, *s: jax.device_put(x, NamedSharding(mesh, P(*s)))
  for top_p, inclusive in ((0.5, False), (0.8, True)):
    spec = vocab.Spec(names=("nucleus_entropy",), top_p=top_p, inclusive=inclusive)
    with jax.set_mesh(mesh):  # the head is the identity: hidden states are logits
      got = jax.jit(lambda h, w, t, s=spec: vocab.fused(h, w, t, s, layout))(
          place(logits, "data", None), place(np.eye(96, dtype=np.float32), "tensor", None),
          place(tokens, "data"))["nucleus_entropy"]
    want = vocab.nucleus_entropy(jnp.asarray(logits), top_p, inclusive)
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5, atol=1e-5)
