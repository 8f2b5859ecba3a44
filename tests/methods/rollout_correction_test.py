"""Rollout correction: verl's golden file, and that weights and rejections close the gap."""

import re

import jax.numpy as jnp
import numpy as np

from entrolab.methods import ppo, rollout_correction
from entrolab.objective import Objective, term
from tests import adapters


def golden(case):
  mask = case["response_mask"]
  args = case["old_logprobs"], case["rollout_logprobs"], mask
  for name in list(case.arrays):
    if found := re.fullmatch(r"is_(token|sequence)_([0-9.]+)_(raw|bn)", name):
      level, cap, norm = found.groups()
      fn = dict(token=rollout_correction.token_weight,
                sequence=rollout_correction.sequence_weight)[level]
      case.compare(name, fn(*args, cap=float(cap), norm=dict(raw="none", bn="mean")[norm]))
    elif name.startswith("metrics_is_"):
      case.ignore(name, "statistics for a log, which the weights do not need")
    elif found := re.fullmatch(r"rs_((?:token|seq)_.*?)_([0-9].*)", name):
      keep = mask
      options, thresholds = (g.split("-") for g in found.groups())
      for option, threshold in zip(options, thresholds, strict=True):
        keep = keep & (_rejection(option, threshold, args) > 0)
      case.compare(name, keep)
  case.config.expect(log_ratio="old_logprobs - rollout_logprobs",
                     safety_bound=rollout_correction.LIMIT)
  ours = _over_all_rows(rollout_correction.mismatch(*args), mask)
  for key, want in case.text("offpolicy_metrics").items():
    error = abs(float(ours[key]) - want) / (abs(want) + 1e-3)
    case.add(adapters.Row(f"offpolicy:{key}", error, 1e-5))  # theirs are float32
  objective = Objective(surrogate=term(ppo.clipped_ratio, dual=3.0),
                        weights=(term(rollout_correction.token_weight, cap=2.0),))
  loss, grad = adapters.loss_and_grad(objective, case, case["logits"])
  case.compare("loss_ppo_tis2", loss)
  case.compare("grad_ppo_tis2", grad)


def _over_all_rows(gap, mask):
  """Theirs averages over all rows, where an empty one has perplexity and ratio 1."""
  share = float(mask.any(1).mean())
  for key in gap.keys() - {"kl", "k3_kl", "chi2_token"}:
    empty = 1.0 if key in ("training_ppl", "rollout_ppl", "ppl_ratio") else 0.0
    if key.endswith(("_max", "_min")):
      clip = jnp.maximum if key.endswith("_max") else jnp.minimum
      gap[key] = clip(gap[key], 0.0) if share < 1.0 else gap[key]
    else:
      gap[key] = share * gap[key] + (1.0 - share) * empty
  return gap


def _rejection(option, threshold, args):
  level, *rest = option.split("_")
  low, high = ([0.0, *map(float, threshold.split("_"))])[-2:]
  knobs = dict(measure=rest[-1], low=low, high=high)
  if level == "token":
    return rollout_correction.keep_tokens(*args, **knobs)
  return rollout_correction.keep_rows(*args, by=rest[0], **knobs)


def test_correction_weights_make_the_sampler_s_batch_the_trainer_s():
  """Mean of w f over tokens of the sampler = mean of f under the trainer, with a cap never met."""
  rng = np.random.default_rng(3)
  theirs, ours = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.25, 0.35])
  tokens = rng.choice(3, p=theirs, size=(400, 100))
  old, sampled = (jnp.asarray(np.log(p)[tokens], jnp.float32) for p in (ours, theirs))
  mask = jnp.ones(tokens.shape, bool)
  w = rollout_correction.token_weight(old, sampled, mask)
  for token in range(3):
    assert abs(float(jnp.where(tokens == token, w, 0.0).mean()) - ours[token]) < 0.01
  dropped = rollout_correction.token_weight(old, sampled, mask, cap=1.2, over="drop")
  np.testing.assert_array_equal(dropped == 0.0, tokens == 2)  # 0.35 / 0.2
  normal = rollout_correction.token_weight(old, sampled, mask, cap=1.2, norm="mean")
  assert abs(float(normal.mean()) - 1.0) < 1e-6


def test_rejections_close_in_on_the_sampler():
  rng = np.random.default_rng(4)
  sampled = jnp.asarray(-rng.exponential(size=(8, 6)), jnp.float32)
  old = sampled + jnp.asarray(rng.normal(size=(8, 6)) * 0.3, jnp.float32)
  mask = jnp.asarray(rng.random((8, 6)) < 0.8)
  for measure, bounds in dict(k1=(1.01, 1.2, 9.0), k2=(1e-3, 0.05, 9.0),
                              k3=(1e-3, 0.05, 9.0)).items():
    kept = [float(rollout_correction.keep_tokens(old, sampled, mask, measure=measure,
                                                 high=h).sum()) for h in bounds]
    assert kept[0] < kept[1] < kept[2] == float(mask.sum())
  same = rollout_correction.keep_rows(sampled, sampled, mask, measure="k3", high=1e-6)
  np.testing.assert_array_equal(same > 0, mask)


def test_without_a_token_there_is_no_mismatch():
  x = jnp.ones((3, 4))
  gap = rollout_correction.mismatch(x, 2 * x, jnp.zeros((3, 4), bool))
  assert {key: float(value) for key, value in gap.items()} == dict.fromkeys(gap, 0.0)
