"""Locality where it is known: 1 in a table, 1 / N where N tokens share a state, and in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.ledger.locality import locality
from tests import adapters

B, T, V = 4, 3, 5
rng = np.random.default_rng(0)
TOKENS = rng.integers(0, V, (B, T))
ADV = rng.normal(size=(B, T))
SPEC = vocab.Spec(names=("entropy", "logp"))


def per_token(logits_of):
  """(H, -A log p) of a policy given by params, rows -> logits."""
  def run(params, rows):
    stats = vocab.from_logits(logits_of(params, rows), rows["tokens"], SPEC)
    return stats["entropy"], -rows["adv"] * stats["logp"]
  return run


def parts(count):
  index = np.arange(B * T).reshape(B, T)
  rows = {"tokens": jnp.asarray(TOKENS), "adv": jnp.asarray(ADV), "state": jnp.asarray(index)}
  return jax.tree.map(lambda x: x.reshape(count, B // count, T), rows)


@pytest.mark.parametrize("count", [1, 2])
def test_a_table_is_local(count):
  """Every token has logits of its own: K is diagonal, whatever the preconditioner, and every probe
  gives its trace without error."""
  with adapters.double():
    table = jnp.asarray(rng.normal(size=(B * T, V)))
    found = locality(per_token(lambda p, rows: p[rows["state"]]), table, parts(count),
                     jnp.asarray(rng.uniform(1.0, 2.0, (B * T, V))), jax.random.key(0), 4)
    assert float(found.share) == pytest.approx(1.0, rel=1e-12)
    assert float(found.error) == pytest.approx(0.0, abs=1e-12)


def test_one_state_shared_by_n_tokens_has_locality_one_over_n():
  """K_ij does not depend on i: the trace is the N-th part of the sum."""
  with adapters.double():
    logits = jnp.asarray(rng.normal(size=V))
    found = locality(per_token(lambda p, rows: jnp.broadcast_to(p, (*rows["tokens"].shape, V))),
                     logits, parts(1), jnp.ones(V), jax.random.key(0), 4000)
    assert abs(float(found.share) - 1.0 / (B * T)) < 4.0 * float(found.error)
    assert 0.0 < float(found.error) < 0.1


def test_shared_features_lie_where_the_whole_matrix_says():
  """A linear policy: K is computed entry by entry, and the estimate lies within its error."""
  with adapters.double():
    features = jnp.asarray(rng.normal(size=(B * T, 2)) + 1.0)
    weights = jnp.asarray(rng.normal(size=(2, V)))
    scale = jnp.asarray(rng.uniform(0.5, 2.0, (2, V)))
    fn = per_token(lambda p, rows: features[rows["state"]] @ p)
    whole = jax.tree.map(lambda x: x[0], parts(1))
    entropy, loss = jax.jacobian(lambda p: fn(p, whole))(weights)
    k = jnp.einsum("idv,dv,jdv->ij", entropy.reshape(-1, 2, V), scale, loss.reshape(-1, 2, V))
    want = float(jnp.trace(k) / k.sum())
    found = locality(fn, weights, parts(2), scale, jax.random.key(1), 3000)
    assert abs(want - 1.0) > 0.2  # neither of the cases above
    assert abs(float(found.share) - want) < 4.0 * float(found.error) < abs(want)


def test_one_probe_has_no_error_and_is_refused():
  with pytest.raises(ValueError, match="probes=1"):
    locality(per_token(lambda p, rows: p[rows["state"]]), jnp.zeros((B * T, V)), parts(1),
             jnp.ones((B * T, V)), jax.random.key(0), 1)
