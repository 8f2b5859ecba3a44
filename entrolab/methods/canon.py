"""CANON: split a group in halves by entropy or length, and compare across and within the halves.

Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models
(arXiv:2509.23962, 2025). Official code: biuboomc/CANON, verl/trainer/ppo/core_algos.py.
Acts on: advantage, controller.  State: weight of the comparison within halves.
Differs from the official code: (1) equal metrics are ordered by the noise column, theirs by row
order; (2) sizes are those of `size`, one for the batch. As there, alpha favours the high half by
entropy and the SHORT half by length, and an odd group has the larger half on top. The advantage is
divided by `divisor`, the most tokens of a response, where the loss is a mean over rows of token
sums (`aggregate.sequence_sum`, the official setting); with another aggregation it is 1.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.ranks import grouped, known_mean
from entrolab.typing import Advantage, Array, Bool, Float, real

TOTAL, WARM, CYCLES = 150, 30, 3  # steps of the official schedules


@checked
def upper_half(metric: Float[Array, " B"], noise: Float[Array, "B T"], *, size: int,
               rewards: Float[Array, " B"] | None = None) -> Bool[Array, "P G"]:
  """True on the G - G // 2 rows of each group with the largest metric, ties by noise.

  rewards: rows whose reward is not known (NaN) are in no half, and G counts the others.
  """
  known = grouped(jnp.ones_like(metric, bool) if rewards is None else ~jnp.isnan(rewards), size)
  x, n = grouped(metric, size), grouped(noise[:, 0], size)
  places = jnp.arange(size)
  less = x[:, None] < x[:, :, None]
  tie = (x[:, None] == x[:, :, None]) & ((n[:, None] < n[:, :, None]) | (
      (n[:, None] == n[:, :, None]) & (places[None, None] < places[None, :, None])))
  below = ((less | tie) & known[:, None]).sum(2)
  return known & (below >= known.sum(1, keepdims=True) // 2)


@checked
def conditional(rewards: Float[Array, " B"], upper: Bool[Array, "P G"], mu: Array | float, *,
                size: int, alpha: float = 1.0, beta: float = 0.0, favoured: str = "upper",
                divisor: float = 1.0) -> Float[Array, " B"]:
  """mu A_inter + (1 - mu) A_intra over `divisor`, equations 5 and 8.

  inter: R - alpha M_other in the favoured half, alpha R - M_other in the other one, + beta in the
  upper half and - beta in the lower; intra: R - M_own. M: mean reward of a half. A reward that is
  not known (NaN) is in no mean and has advantage 0.
  """
  if favoured not in ("upper", "lower"):
    raise ValueError(f"favoured={favoured!r}; choices: 'upper', 'lower'")
  r = grouped(rewards, size)
  known = ~jnp.isnan(r)
  # a group of one has no mean to compare with
  low, high = _mean(r, known & ~upper), _mean(r, known & upper & (size > 1))
  other_mean, own_mean = jnp.where(upper, low, high), jnp.where(upper, high, low)
  liked = upper == (favoured == "upper")
  inter = jnp.where(liked, r - alpha * other_mean, alpha * r - other_mean)
  inter = inter + jnp.where(upper, beta, -beta)
  adv = (mu * inter + (1.0 - mu) * (r - own_mean)) / divisor
  compared = known & ((known.sum(1, keepdims=True) > 1) | (size == 1))
  return jnp.where(compared, adv, 0.0).reshape(rewards.shape)


@checked
def by_entropy(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
               mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *, size: int,
               mu: float = 1.0, alpha: float = 1.0, beta: float = 0.0,
               divisor: float = 1.0) -> Advantage:
  """Halves by the mean entropy of the policy that sampled, nats; alpha < 1 favours the high one.

  mu = 1: between halves; 0: within them; 1/2 with even groups and alpha = 1 is Dr.GRPO.
  """
  upper = upper_half(mean_entropy(old_entropy, mask), noise, size=size, rewards=rewards)
  return conditional(rewards, upper, mu, size=size, alpha=alpha, beta=beta, divisor=divisor)


@checked
def by_length(rewards: Float[Array, " B"], mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *,
              size: int, mu: float = 1.0, alpha: float = 1.0, beta: float = 0.0,
              divisor: float = 1.0) -> Advantage:
  """Halves by length in tokens; alpha < 1 favours the short one: pressure towards brevity."""
  upper = upper_half(real(mask).sum(1), noise, size=size, rewards=rewards)
  return conditional(rewards, upper, mu, size=size, alpha=alpha, beta=beta, favoured="lower",
                     divisor=divisor)


@checked
def scheduled(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
              mask: Bool[Array, "B T"], noise: Float[Array, "B T"], intra: Float[Array, ""], *,
              size: int, divisor: float = 1.0) -> Advantage:
  """`by_entropy` with mu = 1 - intra, a controlled value (`Cosine`)."""
  upper = upper_half(mean_entropy(old_entropy, mask), noise, size=size, rewards=rewards)
  return conditional(rewards, upper, 1.0 - intra, size=size, divisor=divisor)


@checked
def by_accuracy(rewards: Float[Array, " B"], old_entropy: Float[Array, "B T"],
                mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *, size: int,
                divisor: float = 1.0) -> Advantage:
  """`by_entropy` with mu = the batch's mean reward (0 / 1): within halves first, between later."""
  upper = upper_half(mean_entropy(old_entropy, mask), noise, size=size, rewards=rewards)
  return conditional(rewards, upper, known_mean(rewards), size=size, divisor=divisor)


@checked
def mean_entropy(old_entropy: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
  """Nats a token of each row; 0 for an empty one."""
  return jnp.where(mask, old_entropy, 0.0).sum(1) / (real(mask).sum(1) + 1e-8)


def cosine_weight(step: Array, *, reverse: bool = False, total: int = TOTAL, warm: int = WARM,
                  cycles: int = CYCLES) -> Array:
  """Weight of the comparison within halves at steps counted from 1: three restarts after 30 steps.

  It falls from 0.6 to 0 in each cycle of (total - warm) / cycles = 40; `reverse`: from 0 (after 1)
  up to 0.6. Raises ValueError unless 0 < warm < total and cycles >= 1.
  """
  if not 0 < warm < total or cycles < 1:
    raise ValueError(f"cosine_weight(total={total}, warm={warm}, cycles={cycles}): 0 < warm < "
                     "total, at least one cycle")
  s = real(step)
  length = (total - warm) / cycles
  wave = 0.3 * (1.0 + jnp.cos(jnp.pi * jnp.mod(s - warm, length) / length))
  if reverse:
    return jnp.where(s < warm, 1.0 - (s + 1.0) / warm, 1.0 - (0.4 + wave))
  return jnp.where(s < warm, 0.6 * (s + 1.0) / warm, wave)


@dataclasses.dataclass(frozen=True)
class Cosine(Controller):
  """`intra` follows `cosine_weight`, one step of it every `updates` optimiser steps."""
  updates: int = 1  # optimiser steps a rollout
  reverse: bool = False  # as in `cosine_weight`

  def init(self) -> State:
    first = cosine_weight(jnp.asarray(1), reverse=self.reverse)
    return {"intra": first, "intra_updates": jnp.zeros((), jnp.int32)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    del metrics
    done = state["intra_updates"] + 1
    return {"intra": cosine_weight(done // self.updates + 1, reverse=self.reverse),
            "intra_updates": done}


def _mean(r: Float[Array, "P G"], on: Bool[Array, "P G"]) -> Float[Array, "P 1"]:
  count = jnp.maximum(real(on).sum(1, keepdims=True), 1.0).astype(r.dtype)
  return jnp.where(on, r, 0.0).sum(1, keepdims=True) / count
