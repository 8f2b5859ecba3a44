"""Tangents of the statistics over the vocabulary: those of jax.jvp of the plain definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab import vocab
from entrolab.statistics import NAMES
from entrolab.tangents import tangents
from tests import adapters

N, D, V = 16, 8, 96


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  spread = np.geomspace(0.05, 4.0, N)[:, None]  # entropy from near log V to near 0
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (normal(N, D) * spread.astype(np.float32), normal(N, D), normal(V, D), normal(V, D),
          rng.integers(0, V, N).astype(np.int32))


def plain(hidden, d_hidden, head, d_head, tokens, spec):
  """The same by jax.jvp of `vocab.from_logits`."""
  of = lambda h, w: vocab.from_logits(jnp.einsum("nd,vd->nv", h, w), tokens, spec)
  return jax.jvp(of, (hidden, head), (d_hidden, d_head))


def close(got, want, rtol=2e-5, atol=5e-4):
  """atol: a probability e^q with q = -30 has 2e-6 of rounding, and is multiplied by q and dz, some
  of which are over 10 in these rows; float64 below tells the formulas from rounding."""
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("chunk", [0, 96, 40, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tangents_are_those_of_the_definitions(chunk, temperature):
  spec = vocab.Spec(NAMES, tempered=1.7, temperature=temperature, chunk=chunk)
  args = inputs()
  stats, moved = jax.jit(lambda *a: tangents(*a, spec))(*args)
  want_stats, want = plain(*args, spec)
  close(stats, want_stats)
  close(moved, want)
  assert np.abs(np.asarray(want["nucleus_entropy"])).max() > 0.1  # the case is not empty


def test_tangents_in_float64_agree_to_ten_digits():
  with adapters.double():
    args = [jnp.asarray(x, jnp.float64) for x in inputs()[:4]] + [jnp.asarray(inputs()[4])]
    spec = vocab.Spec(NAMES, tempered=1.7, chunk=40)
    close(tangents(*args, spec)[1], plain(*args, spec)[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (1, 4)])
def test_tangents_over_a_mesh_are_those_of_one_device(shape):
  mesh = jax.make_mesh(shape, ("data", "tensor"), devices=jax.devices()[:4],
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)
  layout = vocab.Layout(mesh, rows=("data",), vocab="tensor")
  spec = vocab.Spec(NAMES, tempered=1.7, chunk=16)
  args = inputs(1)
  rows, entries = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("tensor"))
  placed = [jax.device_put(x, on)
            for x, on in zip(args, (rows, rows, entries, entries, rows), strict=True)]
  stats, moved = jax.jit(lambda *a: tangents(*a, spec, layout))(*placed)
  want_stats, want = tangents(*args, spec)
  close(stats, want_stats)
  close(moved, want)


def test_a_direction_along_the_gradient_gives_its_square():
  """Forward and backward mode are of one function: <g, g> by either."""
  hidden, _, head, _, tokens = inputs(2)
  spec = vocab.Spec(NAMES, tempered=1.3)
  total = lambda h, w: sum(x.sum() for x in vocab.fused(h, w, tokens, spec).values())
  d_hidden, d_head = jax.grad(total, argnums=(0, 1))(jnp.asarray(hidden), jnp.asarray(head))
  _, moved = tangents(hidden, d_hidden, head, d_head, tokens, spec)
  square = float((d_hidden**2).sum() + (d_head**2).sum())
  assert float(sum(x.sum() for x in moved.values())) == pytest.approx(square, rel=1e-5)


def test_a_layout_that_does_not_divide_is_refused():
  hidden, d_hidden, head, d_head, tokens = inputs()
  mesh = jax.make_mesh((2, 2), ("data", "tensor"), devices=jax.devices()[:4])
  with pytest.raises(ValueError, match="both must divide"):
    tangents(hidden, d_hidden, head[:95], d_head[:95], tokens, vocab.Spec(),
             vocab.Layout(mesh, rows=("data",), vocab="tensor"))
