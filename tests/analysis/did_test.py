"""DID: golden parity, and where DPO ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.analysis import did


def golden(case):
  config = case.config
  beta = config["beta"]
  pairs, width, entries = case.raw("logits_w").shape
  config.expect(
      N=pairs, T=width, V=entries, S=len(case.raw("ref_pmf")), K=len(case.raw("samples_pi")),
      units="nats", estimators="from pi: log w = -log ref; from ref: log w = log pi - 2 log ref; "
                               "H = log mean w - sum wbar*log(pi/ref)")
  total = {}
  for side in "wl":
    mask = case[f"mask_{side}"] > 0
    total[side] = lambda z, s=side, on=mask: jnp.where(
        on, vocab.from_logits(z, case[f"tokens_{s}"], vocab.Spec(names=("logp",)))["logp"],
        0.0).sum(1)
    case.compare(f"logp_{side}", total[side](case[f"logits_{side}"]))

  def margin(w, low):
    return did.dpo_margin(total["w"](w), total["l"](low), case["ref_logp_w"], case["ref_logp_l"],
                          beta=beta)

  args = case["logits_w"], case["logits_l"]
  case.compare("margin", margin(*args))
  case.compare("accuracy", (margin(*args) > 0).mean(dtype=float))
  for side, z in zip("wl", args, strict=True):
    case.compare(f"reward_{side}", beta * (total[side](z) - case[f"ref_logp_{side}"]))
  loss, grads = jax.value_and_grad(lambda w, low: did.dpo_loss(margin(w, low)), (0, 1))(*args)
  case.compare("loss", loss)
  case.compare("grad_logits_w", grads[0])
  case.compare("grad_logits_l", grads[1])
  target, ref = jnp.log(case["target_pmf"]), jnp.log(case["ref_pmf"])
  log_q, log_z = did.differential(target, ref)
  case.compare("did", jnp.exp(log_q))
  case.compare("did_log_z", log_z)
  case.compare("did_entropy", did.entropy(log_q))
  case.compare("did_entropy_identity", log_z - (jnp.exp(log_q) * (target - ref)).sum())
  case.compare("reverse_did", jnp.exp(did.differential(ref, target)[0]))
  case.compare("rejected_pmf", jnp.exp(did.ideal_rejected(target, ref, beta=beta)))
  wins = did.preference(target, ref, beta=beta)
  case.compare("preference", wins)
  case.compare("kl_target_ref", (jnp.exp(target) * (target - ref)).sum())
  weight = case["pop_weight"]
  loss = lambda log_pi: did.population_loss(log_pi, ref, wins, weight, beta=beta)
  of_theta = lambda theta: loss(jax.nn.log_softmax(theta))
  case.compare("pop_loss", of_theta(case["pop_theta"]))
  case.compare("pop_grad", jax.grad(of_theta)(case["pop_theta"]), tolerance=1e-5)
  case.compare("pop_loss_at_target", loss(target))
  for source in ("pi", "ref"):
    at = case[f"samples_{source}"]
    h, log_z, size = did.entropy_estimate(target[at], ref[at], drawn_from=source)
    case.compare(f"entropy_est_{source}", h)
    case.compare(f"logz_est_{source}", log_z)
    case.compare(f"ess_{source}", size)


def test_it_is_uniform_exactly_when_nothing_was_learned():
  ref = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (12,)))
  assert abs(float(did.entropy(did.differential(ref, ref)[0])) - np.log(12)) < 1e-6
  moved = jax.nn.log_softmax(ref + jax.random.normal(jax.random.key(1), (12,)))
  assert float(did.entropy(did.differential(moved, ref)[0])) < np.log(12) - 0.05


def test_the_target_is_stationary_for_dpo():
  key = jax.random.key(2)
  ref, target = (jax.nn.log_softmax(jax.random.normal(k, (12,))) for k in jax.random.split(key))
  wins = did.preference(target, ref, beta=0.5)
  weight = jnp.full((12, 12), 1.0 / 144.0)
  grad = jax.grad(lambda t: did.population_loss(jax.nn.log_softmax(t), ref, wins, weight,
                                                beta=0.5))
  assert float(jnp.abs(grad(target)).max()) < 1e-6
  assert float(jnp.abs(grad(ref)).max()) > 1e-3


def test_what_never_occurs_adds_nothing_and_nothing_has_no_loss():
  log_q = jnp.log(jnp.asarray([0.5, 0.5, 0.0]))
  assert abs(float(did.entropy(log_q)) - np.log(2.0)) < 1e-6
  assert np.isfinite(jax.grad(lambda x: did.entropy(x))(log_q)).all()
  assert float(did.dpo_loss(jnp.zeros(0))) == 0.0
  with pytest.raises(ValueError, match="at least one sample"):
    did.entropy_estimate(jnp.zeros(0), jnp.zeros(0))
