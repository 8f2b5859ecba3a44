"""Statistics over the vocabulary: fused equals plain, sharded equals whole, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import vocab
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
