"""ROLLOUT-CORRECTION: weights and rejections for the gap between sampler and trainer.

Your Efficient RL Framework Secretly Brings You Off-Policy RL Training, Yao et al. (2025,
https://fengyao.notion.site/off-policy-rl); truncated weights: Ionides (2008) and IMPALA, Espeholt
et al. (arXiv:1802.01561, 2018). Official code: volcengine/verl,
verl/trainer/ppo/rollout_corr_helper.py; modes of huggingface/trl.
Acts on: weights.  State: none.
Differs from the official code: (1) a rejection is a weight of zero; `aggregate.selected_mean`
takes the rejected tokens out of the denominator, as verl does by changing its mask; (2) means run
over the whole optimiser batch.

d = old_logp - sampled_logp: the trainer's log-probability of a token less the one the sampler
reported. To skip the correction ("bypass"), let old_logp be the sampler's.
"""

from typing import Literal

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import masked_mean
from entrolab.typing import Array, Bool, Float, Weight, real

LIMIT = 20.0  # nats


@checked
def token_weight(old_logp: Float[Array, "B T"], sampled_logp: Float[Array, "B T"],
                 mask: Bool[Array, "B T"], *, cap: float = 2.0,
                 over: Literal["cap", "drop"] = "cap",
                 norm: Literal["none", "mean"] = "none") -> Weight:
  """min(e^d, cap) of each token; no lower bound.

  over: ratios above the cap are cut to it, or dropped (weight 0, TRL's mask modes). norm: "mean"
  divides by the mean weight over valid tokens, after the cut.
  """
  w = _bounded(jnp.exp(_gap(old_logp, sampled_logp)), cap, over)
  return jnp.where(mask, w / _normaliser(masked_mean(w, mask), norm), 0.0)


@checked
def sequence_weight(old_logp: Float[Array, "B T"], sampled_logp: Float[Array, "B T"],
                    mask: Bool[Array, "B T"], *, cap: float = 2.0,
                    over: Literal["cap", "drop"] = "cap",
                    norm: Literal["none", "mean"] = "none") -> Weight:
  """min(e^(sum_t d), cap) of the row, on each of its tokens; norm: mean over non-empty rows."""
  total = jnp.where(mask, old_logp - sampled_logp, 0.0).sum(1, keepdims=True)
  w = _bounded(jnp.exp(jnp.clip(total, -LIMIT, LIMIT)), cap, over)
  w = w / _normaliser(masked_mean(w, mask.any(1, keepdims=True)), norm)
  return jnp.where(mask, w, 0.0)


@checked
def keep_tokens(old_logp: Float[Array, "B T"], sampled_logp: Float[Array, "B T"],
                mask: Bool[Array, "B T"], *, measure: Literal["k1", "k2", "k3"] = "k1",
                high: float = 2.0, low: float = 0.0) -> Weight:
  """1 on tokens whose statistic is in range, 0 on the others.

  k1: log(low) <= -d <= log(high), the ratio pi_sampler / pi_trainer in [low, high], where low = 0
  means 1 / high; k2: d^2 / 2 <= high; k3: e^d - 1 - d <= high.
  """
  return real(mask & _inside(_statistic(old_logp, sampled_logp, measure), measure, low, high))


@checked
def keep_rows(old_logp: Float[Array, "B T"], sampled_logp: Float[Array, "B T"],
              mask: Bool[Array, "B T"], *, measure: Literal["k1", "k2", "k3"] = "k1",
              by: Literal["sum", "mean", "max"] = "mean", high: float = 2.0,
              low: float = 0.0) -> Weight:
  """1 on rows whose statistic, summed, averaged or maximised over tokens, is in range.

  Ranges as for `keep_tokens`. Raises ValueError for the maximum of k1, which has a sign.
  """
  if by not in ("sum", "mean", "max") or (by == "max" and measure == "k1"):
    raise ValueError(f"keep_rows(by={by!r}, measure={measure!r}); choices: 'sum', 'mean' of any, "
                     "'max' of 'k2', 'k3'")
  x = jnp.where(mask, _statistic(old_logp, sampled_logp, measure), 0.0)  # k2, k3 are never negative
  row = {"sum": x.sum, "max": x.max}.get(by, lambda axis: masked_mean(x, mask, axis=axis))(axis=1)
  return real(mask & _inside(row[:, None], measure, low, high))


@checked
def mismatch(old_logp: Float[Array, "B T"], sampled_logp: Float[Array, "B T"],
             mask: Bool[Array, "B T"]) -> dict[str, Array]:
  """Diagnostics of the gap: KL estimates, chi-squared, perplexities; scalars for the log.

  Means over tokens, or over non-empty rows; the official code counts empty rows too. Every entry is
  0 where there is no token.
  """
  d = old_logp - sampled_logp
  mean = lambda x: masked_mean(x, mask)
  rows, full = (lambda x: masked_mean(x, mask, axis=1)), mask.any(1)
  over = lambda x: masked_mean(x[:, None], full[:, None])
  ours, theirs = -rows(old_logp), -rows(sampled_logp)
  total, some = jnp.where(mask, d, 0.0).sum(1), full.any()
  return {
      "kl": mean(-d), "k3_kl": mean(jnp.exp(d) - d - 1.0),
      "training_ppl": over(jnp.exp(ours)), "training_log_ppl": over(ours),
      "rollout_ppl": over(jnp.exp(theirs)), "rollout_log_ppl": over(theirs),
      "log_ppl_diff": over(ours - theirs), "log_ppl_abs_diff": over(jnp.abs(ours - theirs)),
      "log_ppl_diff_max": jnp.where(some, jnp.where(full, ours - theirs, -jnp.inf).max(), 0.0),
      "log_ppl_diff_min": jnp.where(some, jnp.where(full, ours - theirs, jnp.inf).min(), 0.0),
      "ppl_ratio": over(jnp.exp(ours - theirs)),
      "chi2_token": mean(jnp.exp(2.0 * jnp.clip(d, -LIMIT, LIMIT)) - 1.0),
      "chi2_seq": over(jnp.exp(2.0 * jnp.clip(total, -LIMIT, LIMIT)) - 1.0)}


def _gap(old_logp, sampled_logp):
  return jnp.clip(old_logp - sampled_logp, -LIMIT, LIMIT)


def _bounded(w, cap, over):
  if over not in ("cap", "drop"):
    raise ValueError(f"rollout_correction: over={over!r}; choices: 'cap', 'drop'")
  return jnp.minimum(w, cap) if over == "cap" else jnp.where(w <= cap, w, 0.0)


def _normaliser(mean, norm):
  if norm not in ("none", "mean"):
    raise ValueError(f"rollout_correction: norm={norm!r}; choices: 'none', 'mean'")
  return jnp.where(mean > 0.0, mean, 1.0) if norm == "mean" else jnp.ones_like(mean)


def _statistic(old_logp, sampled_logp, measure):
  d = _gap(old_logp, sampled_logp)
  if measure == "k1":
    return -d
  if measure == "k2":
    return jnp.square(d) / 2.0
  if measure == "k3":
    return jnp.exp(d) - 1.0 - d
  raise ValueError(f"rollout_correction: measure={measure!r}; choices: 'k1', 'k2', 'k3'")


def _inside(x, measure, low, high):
  if high <= 0.0 or low < 0.0:
    raise ValueError(f"rollout_correction: low={low}, high={high}: 0 <= low, 0 < high")
  if measure != "k1":
    return x <= high
  return (jnp.log(low or 1.0 / high) <= x) & (x <= jnp.log(high))
