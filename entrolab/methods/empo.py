"""EMPO: the reward of a response is the share of its group that gives the same answer.

Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization
(arXiv:2504.05812, 2025). Official code: QingyangZhang/EMPO, verl-empo/verl/utils/reward_score/empo/
compute_metrics.py and trl/src/open_r1/rewards.py, which differ.
Acts on: reward.  State: none.
Differs from the official code: (1) no answer earns `silent` (0, as TRL's mathematics; -0.5 is TRL's
natural reasoning, `None` pays verl's 1 / G); it stays in the denominator; (2) the gate is the
paper's, two-sided and off by default, and a group of G different answers counts as ln G whatever
rounding says; gated groups keep zero reward, hence zero advantage. Advantage: `grpo`; policy loss:
`gspo.clipped_sequence` with `aggregate.row_mean` (verl) or on-policy `ppo.plain_ratio` (TRL).
The expected gradient of this reward ascends sum_j p_j^2 / 2, not minus the Shannon entropy.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped
from entrolab.typing import Array, Bool, Float, Int, Reward, real


@checked
def frequency(cluster: Int[Array, " B"], *, size: int) -> Float[Array, "P G"]:
  """p of each response: the share of its group in its class; -1, no answer, is alone: 1 / G."""
  c = grouped(cluster, size)
  same = (c[:, :, None] == c[:, None]) & (c >= 0)[:, None]
  return jnp.maximum(real(same).sum(2), 1.0) / size


@checked
def semantic_entropy(cluster: Int[Array, " B"], *, size: int) -> Float[Array, " P"]:
  """H = -sum_j p_j ln p_j over the classes of a group, nats, in [0, ln G]."""
  return -jnp.log(frequency(cluster, size=size)).mean(1)


@checked
def inside_gate(cluster: Int[Array, " B"], *, size: int, low: float = -1.0,
                high: float = float("inf")) -> Bool[Array, " P"]:
  """low < H < high, equation 7; within 1e-6 nats of a bound is outside. The defaults let all in."""
  h = semantic_entropy(cluster, size=size)
  return (h > low + 1e-6) & (h < high - 1e-6)


@checked
def class_share(cluster: Int[Array, " B"], *, size: int, silent: float | None = 0.0,
                low: float = -1.0, high: float = float("inf"), least: float = 0.0) -> Reward:
  """r = p of the response's class, equation 6; 0 for a whole group outside (low, high) nats, or
  whose largest class is under `least`; `silent` for a response without an answer."""
  p, c = frequency(cluster, size=size), grouped(cluster, size)
  used = inside_gate(cluster, size=size, low=low, high=high) & (p.max(1) >= least)
  r = jnp.where(used[:, None], p, 0.0)
  if silent is not None:
    r = jnp.where(c < 0, silent, r)
  return r.reshape(cluster.shape)


@checked
def largest_class(cluster: Int[Array, " B"], *, size: int) -> Reward:
  """1 on every response whose class is a largest one, ties included: verl's "voting"."""
  p = frequency(cluster, size=size)
  return real(p == p.max(1, keepdims=True)).reshape(cluster.shape)
