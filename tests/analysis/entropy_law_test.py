"""The entropy law: golden parity, recovery of a known law, first order of the covariance form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.analysis import entropy_change, entropy_law
from entrolab.methods import steer
from entrolab.ranks import masked_mean


def _fit(case):
  h, r, config = case.raw("H"), case.raw("R"), case.config
  config.expect(ordering="training order", natural_log=True)
  whole = entropy_law.fit(h, r)
  for name in ("a", "b", "rmse", "r2", "ceiling"):
    case.compare(f"{name}_full", getattr(whole, name))
  early, count, rest, last = entropy_law.prefix(h, r, fraction=config["prefix_fraction"])
  case.compare("prefix_n", count)
  for name in ("a", "b", "ceiling"):
    case.compare(f"{name}_prefix", getattr(early, name))
  case.compare("rmse_prefix_on_rest", rest)
  case.compare("abs_err_final", last)
  for name in ("true_a", "true_b"):
    case.ignore(name, "how the points were made; the fit recovers it only up to their noise")


def _group(case):
  case.config.expect(
      group_cov="population covariance (divide by K) of length-normalised log-prob and advantage "
                "inside each prompt group, then mean over prompts",
      token_cov="(logp-mean)(A-mean) over all valid tokens of the batch")
  logp, mask, adv = case["logprobs"], case["response_mask"], case["advantages"]
  flat = lambda x: x.reshape(-1, x.shape[-1])
  mean = masked_mean(flat(logp), flat(mask), axis=1).reshape(adv.shape)
  case.compare("seq_mean_logprob", mean)
  cov = entropy_law.group_covariance(mean, adv)
  case.compare("group_cov", cov)
  case.compare("group_cov_mean", cov.mean())
  spread = jnp.broadcast_to(adv[..., None], logp.shape)
  token = entropy_law.token_covariance(flat(logp), flat(spread), flat(mask))
  case.compare("token_cov", token.reshape(logp.shape))
  case.compare("token_cov_mean", masked_mean(token, flat(mask)))


def _dynamics(case):
  case.config.expect(
      definitions="cov over a~pi per state; dH_* rows follow etas; dH_sample: step "
                  "eta*ratio*adv*(onehot-pi)")
  z, adv, etas = case["logits"], case["adv"], case["etas"]
  p = jax.nn.softmax(z)
  case.compare("probs", p)
  case.compare("adv", case["Q"] - (p * case["Q"]).sum(-1, keepdims=True))
  h = vocab.entropy(z)
  case.compare("entropy", h)
  case.compare("dH_dz", entropy_law.entropy_slope(z))
  for name, natural in (("pg", False), ("npg", True)):
    change = entropy_law.policy_gradient_change(z, adv, natural=natural)
    case.compare(f"cov_{name}", -change)
    case.compare(f"pred_{name}", etas[:, None] * change[None])
    step = adv if natural else p * adv
    # a difference of two entropies: rounding of H over the change
    case.compare(f"dH_{name}", jnp.stack([vocab.entropy(z + e * step) - h for e in etas]),
                 tolerance=1e-5)
  action, weight = case["action"], case["ratio"] * case["sample_adv"]
  one_hot = jax.nn.one_hot(action, z.shape[1])
  dz = weight[:, None] * (one_hot - p)
  case.compare("dH_sample", jnp.stack([vocab.entropy(z + e * dz) - h for e in etas]),
               tolerance=1e-5)
  spec = vocab.Spec(names=("logp", "entropy", "sum_p2", "sum_p2_logp"))
  live = vocab.from_logits(z, action, spec)
  case.compare("pred_sample_exact", entropy_change.one_sample_change(
      weight, *(live[n] for n in ("logp", "entropy", "sum_p2", "sum_p2_logp"))))
  own = weight * (1.0 - jnp.exp(live["logp"]))
  slope = jnp.take_along_axis(entropy_law.entropy_slope(z), action[:, None], 1)[:, 0]
  case.compare("pred_sample_own_logit", own * slope)
  omega = steer.change(live["logp"], h, jnp.log(case["old_prob"]), h, case["sample_adv"])
  case.compare("omega_code", omega)


def golden(case):
  for name, run in (("H", _fit), ("logprobs", _group), ("etas", _dynamics)):
    if name in case:
      run(case)


def test_the_fit_recovers_a_law_under_noise_and_says_when_there_is_none():
  rng = np.random.default_rng(0)
  h = np.linspace(1.2, 0.05, 200)
  r = -0.25 * np.exp(h) + 0.8 + 0.005 * rng.normal(size=200)
  found = entropy_law.fit(h, r)
  assert abs(found.a - 0.25) < 0.005 and abs(found.ceiling - 0.55) < 0.005 and found.r2 > 0.98
  assert np.isnan(entropy_law.fit(np.full(9, 0.4), r[:9]).a)
  with pytest.raises(ValueError, match="at least 3 points, not 2"):
    entropy_law.fit(h[:2], r[:2])


def test_the_covariance_is_exact_to_first_order():
  key = jax.random.key(0)
  z, adv = (jax.random.normal(k, (8, 12)) for k in jax.random.split(key))
  adv = adv - (jax.nn.softmax(z) * adv).sum(-1, keepdims=True)
  want = entropy_law.policy_gradient_change(z, adv)
  errors = []
  for eta in (0.3, 0.03):
    change = (vocab.entropy(z + eta * jax.nn.softmax(z) * adv) - vocab.entropy(z)) / eta
    errors.append(float(jnp.abs(change - want).max()))
  assert errors[1] < 0.2 * errors[0] < 0.2


def test_confident_right_answers_lower_the_entropy():
  """A covariance above zero is a fall of entropy."""
  z = jnp.asarray([[3.0, 1.0, 0.0, 0.0]])
  p = jax.nn.softmax(z)
  for best, sign in ((0, -1), (2, 1)):
    adv = jax.nn.one_hot(jnp.asarray([best]), 4) - p[:, best:best + 1]
    assert np.sign(float(entropy_law.policy_gradient_change(z, adv)[0])) == sign


def test_a_prefix_that_is_everything_has_no_error_on_the_rest():
  rng = np.random.default_rng(0)
  _, count, rest, last = entropy_law.prefix(rng.random(3), rng.random(3))
  assert count == 3 and np.isnan(rest) and np.isfinite(last)
