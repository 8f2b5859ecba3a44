"""Clip-Cov: golden parity and the count of dropped tokens."""

import jax.numpy as jnp
import numpy as np

from entrolab.methods import clip_cov, grpo, ppo
from entrolab.objective import Objective, term
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Weight
from tests import adapters


def drawn(corr: Array) -> Weight:
  """The official draw, as a weight."""
  return corr


def golden(case):
  config, logits, mask = case.config, case["logits"], case["response_mask"]
  low, high = config["clip_ratio_low"], config["clip_ratio_high"]
  columns = {**case.columns(), **case.live(logits)}
  args = [columns[k] for k in ("logp", "old_logp", "adv", "mask")]
  case.compare("logprobs", columns["logp"], where=mask)
  case.compare("cov", clip_cov.covariance(columns["logp"], columns["adv"], mask))
  clipped = ppo.is_clipped(*args[:3], low=low, high=high, limit=float("inf"))
  case.compare("clipped_by_ppo", clipped & mask)
  knobs = dict(lower=config["clip_cov_lb"], upper=config["clip_cov_ub"], low=low, high=high)
  pool = clip_cov.candidates(*args, **knobs)
  case.compare("candidate_mask", pool)
  keep = clip_cov.keep_mask(*args, columns["noise"], fraction=config["clip_cov_ratio"], **knobs)
  corr, dropped = case.raw("corr"), np.asarray(keep) == 0.0
  case.require(dropped.sum() == ((corr == 0.0) & np.asarray(mask)).sum(),
               "another number of dropped tokens than ours")
  case.require(not (dropped & ~np.asarray(pool)).any(), "a dropped token is no candidate")
  count = max(int(config["clip_cov_ratio"] * float(np.asarray(mask).sum())), 1)
  case.compare("clip_num", np.asarray(count))
  if case.raw("deterministic"):
    case.compare("corr", keep, where=mask)
  # the loss and its gradient, given the tokens that the official generator drew
  objective = Objective(
      surrogate=term(ppo.clipped_ratio, low=low, high=high, limit=float("inf")),
      advantage=term(grpo.group_advantage, size=2), weights=term(drawn), extra=("corr",),
      aggregate=adapters.aggregation(config, "loss_agg_mode", width=mask.shape[1]))
  loss, grad = adapters.loss_and_grad(objective, case, logits, corr=jnp.asarray(corr))
  case.compare("loss", loss)
  case.compare("grad_logits", grad)
  ours = {"actor/pg_clipfrac": masked_mean(jnp.asarray(dropped, float), mask),
          "actor/ppo_kl": masked_mean(columns["old_logp"] - columns["logp"], mask),
          "actor/pg_clipfrac_lower": 0.0}
  for key, want in case.text("metrics").items():
    case.require(key in ours, f"no metric of ours is {key}")
    case.add(adapters.Row(key, abs(float(ours[key]) - want) / (abs(want) + 1e-3), adapters.VALUE))


def test_the_number_of_dropped_tokens_is_exact_and_the_draw_is_keyed():
  rng = np.random.default_rng(0)
  shape = (8, 32)
  logp, noise = jnp.asarray(-rng.exponential(size=shape)), jnp.asarray(rng.random(shape))
  adv = jnp.asarray(rng.normal(size=shape))
  mask = jnp.asarray(rng.random(shape) < 0.8)
  args = (logp, logp, adv, mask)
  pool = clip_cov.candidates(*args, lower=0.1)
  for fraction in (1e-4, 0.01, 0.05, 0.9):
    keep = clip_cov.keep_mask(*args, noise, fraction=fraction, lower=0.1)
    want = min(max(int(fraction * int(mask.sum())), 1), int(pool.sum()))
    assert int((np.asarray(keep) == 0).sum()) == want
  other = clip_cov.keep_mask(*args, noise[::-1], fraction=0.01, lower=0.1)
  assert (np.asarray(other) != np.asarray(clip_cov.keep_mask(
      *args, noise, fraction=0.01, lower=0.1))).any()
