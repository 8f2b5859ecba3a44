"""SPEAR: pay for tool calls at first, then imitate good trajectories of earlier steps.

Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic
Reinforcement Learning (arXiv:2509.22601, 2025). Official code: TencentYoutuResearch/SPEAR,
verl/verl/trainer/ppo/ray_trainer_hybrid.py, verl/recipe/spear/reward.py.
Acts on: reward, weights, replay, controller.  State: schedules, buffer (host).
Differs from the official code: (1) rules of its maths tree, whose replay has no covariance
bounds; here it has those of the agent tree; (2) group means follow the groups, theirs break
when rows are balanced over devices; (3) rows and groups are left out by weight 0; (4) replayed
rows may share a step with new ones (`replay_weight`), theirs follow in separate steps.

The advantage is `grpo.centred_advantage`, dropping by covariance `clip_cov.keep_mask(
fraction=0.02, lower=1.0, upper=40.0, low=0.2, high=0.28)`, without a dual clip.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.typing import Advantage, Array, Bool, Float, Int, Reward, Scale, Weight, real

Rows = dict[str, np.ndarray]


def growing(step: Array | float, *, length: float = 200) -> Array:
  """(1 - cos(pi step / length)) / 2, then 1: the weight of self-imitation."""
  at = jnp.asarray(step, float)
  share = jnp.where(at < length, at / max(length, 1e-30), 1.0)  # a length of 0 is over at once
  return (1.0 - jnp.cos(math.pi * share)) / 2.0


def fading(step: Array | float, *, length: float = 200) -> Array:
  """(1 + cos(pi step / length)) / 2, then 0: the weight of the tool reward. Steps count from 1."""
  return 1.0 - growing(step, length=length)


@dataclasses.dataclass(frozen=True)
class Curriculum(Controller):
  """`tool_weight` falls from 1 to 0, `sil_weight` grows from 0 to `strength`."""
  tools: int = 200  # rollouts until the reward for tools is gone
  imitation: int = 200  # rollouts until self-imitation has its full weight
  strength: float = 1.0  # that weight
  updates: int = 1  # optimiser steps a rollout

  def init(self) -> State:
    return self._at(jnp.zeros((), float))

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    return self._at(state["curriculum_count"] + 1.0)

  def _at(self, count: Array) -> State:
    step = jnp.floor(count / self.updates) + 1.0
    return {"curriculum_count": count, "tool_weight": fading(step, length=self.tools),
            "sil_weight": self.strength * growing(step, length=self.imitation)}


@checked
def tool_reward(rewards: Float[Array, " B"], tool_calls: Int[Array, " B"],
                tool_weight: Float[Array, ""], *, each: float = 0.1, once: bool = False) -> Reward:
  """R + c min(1, each n), n the number of messages that call a tool.

  c: `tool_weight`. once: a right answer (R > 0) is paid c for its first call and no more, the
  variant for Qwen3.
  """
  paid = jnp.minimum(1.0, each * real(tool_calls))
  if once:
    paid = jnp.where(rewards > 0.0, real(tool_calls > 0), paid)
  return rewards + (tool_weight.astype(paid.dtype) * paid).astype(rewards.dtype)


@checked
def usable_rows(usable: Bool[Array, " B"], mask: Bool[Array, "B T"]) -> Weight:
  """0 on rows that are incomplete, overlong, repetitive or unreadable; they still count in the
  mean reward of their group."""
  return real(mask & usable[:, None])


@checked
def widest_groups(rewards: Float[Array, " B"], mask: Bool[Array, "B T"],
                  noise: Float[Array, "B T"], *, size: int, fraction: float = 0.75) -> Weight:
  """1 on the floor(fraction P) groups whose rewards deviate most, 0 elsewhere; ties by noise.

  A reward that is not known (NaN) deviates from nothing.
  """
  r = ranks.grouped(rewards, size)
  middle = jnp.where(jnp.isnan(r), 0.0, r - ranks.known_mean(r, axis=1))
  spread = jnp.square(middle).sum(1, keepdims=True)
  equal = ranks.all_equal(r)  # the mean may round away from its members
  order = ranks.grouped(noise[:, 0], size).min(1, keepdims=True)
  spread = jnp.where(equal, 0.0, spread)
  widest = ranks.top(spread, jnp.ones_like(equal), order, int(fraction * r.shape[0]))
  return real(mask & jnp.broadcast_to(widest, r.shape).reshape(-1, 1))


@checked
def of_widest_groups(adv: Float[Array, "B T"], rewards: Float[Array, " B"],
                     mask: Bool[Array, "B T"], noise: Float[Array, "B T"], *, size: int,
                     fraction: float = 0.75) -> Advantage:
  """A in the `widest_groups`, 0 elsewhere: the filter over the rollout, before any replay."""
  return adv * widest_groups(rewards, mask, noise, size=size, fraction=fraction).astype(adv.dtype)


@checked
def replay_weight(replayed: Bool[Array, " B"], sil_weight: Float[Array, ""],
                  mask: Bool[Array, "B T"]) -> Weight:
  """`sil_weight` on replayed rows, 1 on new ones."""
  rows = jnp.where(replayed, sil_weight, jnp.ones_like(sil_weight))
  return jnp.where(mask, rows[:, None], 0.0)


@checked
def own_mean(mask: Bool[Array, "B T"], replayed: Bool[Array, " B"], *, length: int = 0) -> Scale:
  """`aggregate.fixed_length` of new and of replayed rows apart: sum / (rows of the kind * length).

  With `replay_weight` the loss is on-policy + c SIL, and that of the new rows does not depend on
  how many are replayed. Rows without a token are not counted; length 0 takes T.
  """
  count = lambda rows: jnp.maximum(real(mask.any(1) & rows).sum(), 1.0)
  rows = jnp.where(replayed, count(replayed), count(~replayed))
  return real(mask) / (rows[:, None] * (length or mask.shape[1]))


def repeats(tokens: np.ndarray, *, n: int = 20, times: int = 10) -> bool:
  """Whether some n-gram of one response stands at `times` or more places. Host."""
  if len(tokens) < n:
    return False
  grams = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n)
  return bool(np.unique(grams, axis=0, return_counts=True)[1].max() >= times)


@dataclasses.dataclass(frozen=True)
class Replay:
  """The buffer of good trajectories, numpy on the host; state in, state out.

  Once more than 1.5 `size` trajectories beat the median of the stored group means, the buffer is
  replayed and emptied.
  """
  size: int = 2048  # most rows of a replay
  baseline: int = 10_240  # most group means that are stored; then the oldest step leaves
  tolerance: int = 5  # steps, at most 10, behind the newest row after which a row leaves
  decay: float = 0.0  # of a row's first advantage; 0: the advantage is taken anew from the median
  by_std: bool = False  # whether it is divided by the median of the groups' deviations
  tools: bool = True  # whether only trajectories that called a tool are admitted

  def init(self) -> dict[str, Any]:
    """No rows; group means and deviations with their steps."""
    return {"rows": {}, "groups": {"step": np.zeros(0, int), "mean": np.zeros(0),
                                   "std": np.zeros(0)}}

  def recalibrated(self, state: dict[str, Any]) -> np.ndarray:
    """A~ [N] = R - median of the group means: the advantage of each stored row today.

    An empty buffer has no rows: N = 0.
    """
    rows, groups = state["rows"], state["groups"]
    if not rows:
      return np.zeros(0)
    if self.decay:
      return rows["row_adv"] * self.decay
    adv = rows["rewards"] - np.median(groups["mean"])
    return adv / (np.median(groups["std"]) + 1e-6) if self.by_std else adv

  def replay(self, state: dict[str, Any],
             shuffle: Callable[[int], np.ndarray]) -> tuple[Rows | None, dict[str, Any]]:
    """(rows with A~ > 0 and `row_adv` = A~, the emptied state), or (None, state) when not due.

    Their number is a power of two, at most `size`. shuffle: n -> a permutation of n, such as
    `np.random.default_rng(seed).permutation`.
    """
    adv = self.recalibrated(state)
    better = np.flatnonzero(adv > 0)  # than the median of today
    if len(better) <= 1.5 * self.size:
      return None, state
    power = 1 << (len(better).bit_length() - 1) if len(better) > 1 else 0
    taken = better[shuffle(len(better))[:min(power, self.size)]]
    rows = {k: v[taken] for k, v in state["rows"].items()}
    return {**rows, "row_adv": adv[taken]}, {**state, "rows": {}}

  def admit(self, state: dict[str, Any], step: int, rows: Rows, *, size: int) -> dict[str, Any]:
    """The state after this step was trained on: stale rows leave, then its good ones come.

    rows: `rewards`, `row_adv` and `tool_calls` [B], `usable` [B] (any token in the mask), and
    whatever else is to be stored by row; groups of `size` contiguous. NaN: of unknown verdict.
    """
    usable = np.asarray(rows["usable"], bool)
    good = (rows["row_adv"] > 0) & usable & ((rows["tool_calls"] > 0) | (not self.tools))
    good = good & ~np.isnan(rows["rewards"])
    new = {**{k: v[good] for k, v in rows.items()}, "step": np.full(good.sum(), step)}
    old = state["rows"]
    if old and len(old["step"]):
      fresh = old["step"].max() - old["step"] <= min(self.tolerance, 10)
      new = {k: np.concatenate([old[k][fresh], new[k]]) for k in new}
    groups, r = state["groups"], rows["rewards"].reshape(-1, size)
    while len(groups["step"]) > self.baseline:
      later = groups["step"] > groups["step"].min()
      groups = {k: v[later] for k, v in groups.items()}
    some = ~np.isnan(r).all(1)  # of a group in which nothing is known there is no mean
    r = r[some]
    latest = {"step": np.full(len(r), step), "mean": np.nanmean(r, 1), "std": _deviation(r)}
    return {"rows": new, "groups": {k: np.concatenate([groups[k], latest[k]]) for k in latest}}


def _deviation(r: np.ndarray) -> np.ndarray:
  """Of the known rewards of each group [P, G], over n - 1; 0 for one alone."""
  square = np.nansum(np.square(r - np.nanmean(r, 1, keepdims=True)), 1)
  part = np.sqrt(square / np.maximum((~np.isnan(r)).sum(1) - 1, 1))
  return np.where(np.isnan(r).any(1), part, r.std(1, ddof=int(r.shape[1] > 1)))
