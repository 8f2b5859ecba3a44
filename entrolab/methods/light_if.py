"""LIGHT-IF: train on what fits worst and is least uncertain; then guard entropy where RL spends it.

Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex
Instruction Following (arXiv:2508.03178, 2025). Official code: Qihoo360/Light-IF,
coldstart/LLAMA-Factory/src/llamafactory/train/sft/custom_entropy_trainer.py and
rl/verl/verl/trainer/ppo/core_algos.py (compute_entropy_with_cov).
Acts on: surrogate, weights, penalty, reward.  State: none.
Differs from the official code: (1) the choice of tokens and the means behind the covariance are
those of the whole optimiser batch, theirs of each micro-batch and device (`scope="micro"`); (2) the
weights of the entropy term carry no gradient; theirs do, `tea_pull` with `pull` adds it; (3) the
term acts, in the release nothing reaches it; (4) the length reward is offered, theirs is logged.

Entropy-SFT: surrogate `cross_entropy`, weight `worst_fitted`, scale `aggregate.selected_mean`.
TEA: `Penalty(1.0, term(bonus.negative_entropy), weight=term(light_if.tea_weight))`, with
`ppo.clipped_ratio(low=1.0, high=1.0, dual=10.0)` and 0.001 `kl.k3`. The dense rewards of
instructions are `verify.constraints`.
"""

import math

import jax
import jax.numpy as jnp

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Penalty, Reward, Surrogate, Weight, real


@checked
def cross_entropy(logp: Float[Array, "B T"]) -> Surrogate:
  """-log p of the demonstrated token: supervised fine-tuning as an objective."""
  return -logp


@checked
def fit_score(logp: Float[Array, "B T"], entropy: Float[Array, "B T"], *,
              coef: float = 0.8) -> Float[Array, "B T"]:
  """-log p - coef H, nats: high where the token is unexpected though the model was sure."""
  return -logp - coef * entropy


@checked
def worst_fitted(logp: Float[Array, "B T"], entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
                 noise: Float[Array, "B T"], *, fraction: float = 0.8,
                 coef: float = 0.8) -> Weight:
  """1 on the max(floor(fraction N), 1) valid tokens of the largest `fit_score`, 0 elsewhere.

  Likely and uncertain tokens are skipped; H enters through the choice alone. Ties by noise.
  """
  count = jnp.maximum(jnp.floor(fraction * real(mask).sum()), 1.0)
  return real(ranks.top(fit_score(logp, entropy, coef=coef), mask, noise, count))


@checked
def covariance(logp: Float[Array, "B T"], adv: Float[Array, "B T"],
               mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
  """(A - mean A)(log pi - mean log pi) over all valid tokens; 0 outside the mask."""
  return ranks.centred(adv, mask) * ranks.centred(logp, mask)


@checked
def tea_weight(logp: Float[Array, "B T"], adv: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
               alpha: float = 10.0, most: float = 5.0, rows: bool = True) -> Weight:
  """min(alpha softmax_t(covariance), most): the entropy of rewarded, confident tokens counts more.

  rows: the softmax over each response; otherwise over all of them, times their number. Equal
  advantages leave alpha / length, a plain bonus that long responses hardly feel.
  """
  return jnp.minimum(alpha * _softmax(covariance(logp, adv, mask), mask, rows), most)


@checked
def tea_pull(logp: Float[Array, "B T"], entropy: Float[Array, "B T"], adv: Float[Array, "B T"],
             mask: Bool[Array, "B T"], *, alpha: float = 10.0, most: float = 5.0) -> Weight:
  """d (sum_s H_s w_s) / d log pi_t, w of `tea_weight`: what the code's weights pass on.

  alpha p_t (A - mean A)(c_t H_t - sum_s p_s c_s H_s), c = 1 under the cap, else 0. Goes with
  `Penalty(-1.0, term(light_if.pull), weight=...)` under the token mean.
  """
  p = _softmax(covariance(logp, adv, mask), mask, True)
  free = jnp.where(mask & (alpha * p < most), entropy, 0.0)
  return alpha * p * ranks.centred(adv, mask) * (free - (p * free).sum(1, keepdims=True))


@checked
def pull(logp: Float[Array, "B T"]) -> Penalty:
  """0 with the gradient of log pi."""
  return logp - jax.lax.stop_gradient(logp)


def length_reward(score: Array, length: Array, *, max_tokens: int = 8192,
                  passing: float = 0.2) -> Array:
  """2 score f where score >= passing, else -f; -2 from `max_tokens` tokens on.

  f = (1 - cos(pi length / max_tokens)) / 2: a good response gains by its length, a bad one pays.
  """
  f = (1.0 - jnp.cos(math.pi * length / max_tokens)) / 2.0
  return jnp.where(length >= max_tokens, -2.0, jnp.where(score >= passing, 2.0 * score * f, -f))


@checked
def with_length(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], *,
                max_tokens: int = 8192) -> Reward:
  """R + `length_reward`(R, tokens)."""
  return rewards + length_reward(rewards, real(mask).sum(-1), max_tokens=max_tokens)


def _softmax(x: Float[Array, "B T"], mask: Bool[Array, "B T"], rows: bool) -> Array:
  """softmax over the mask of each row, or of all rows times their number; 0 where empty."""
  if not rows:
    x, mask = ranks.replicated(x), ranks.replicated(mask)
  axis = -1 if rows else None
  peak = jnp.where(mask, x, -jnp.inf).max(axis, keepdims=True)
  e = jnp.where(mask, jnp.exp(x - jnp.where(jnp.isfinite(peak), peak, 0.0)), 0.0)
  total = e.sum(axis, keepdims=True)
  share = e / jnp.where(total > 0.0, total, 1.0)
  return share if rows else share * real(mask.any(-1)).sum().astype(x.dtype)
