"""TTRL: the most frequent answer of a group is its label; agreement with it is the reward.

TTRL: Test-Time Reinforcement Learning (arXiv:2504.16084, 2025). Official code: PRIME-RL/TTRL,
verl/verl/workers/reward_manager/ttrl.py, verl/verl/utils/reward_score/ttrl/ttt_metrics.py.
Acts on: reward.  State: none.
Differs from the official code: (1) votes are counted over classes of equal answers, theirs over
strings, although they reward by equality; (2) a response without an answer has no vote and no
reward: theirs may elect the lack of an answer (`silent=True`). The rollout may let more samples
vote than are trained on, which are the first ones. Advantage and loss are GRPO's with a dual clip
of 3 and `kl.k3`. The classes come from `verify.vote`.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.ranks import grouped
from entrolab.typing import Array, Bool, Float, Int, Reward, real


@checked
def votes(cluster: Int[Array, " B"], *, size: int, silent: bool = False) -> Int[Array, "P G"]:
  """How many of the group's answers are of each response's class; cluster -1: no answer, 0 votes.

  silent: responses without an answer are a class like any other, as in the official code.
  """
  c = grouped(cluster, size)
  same = (c[:, :, None] == c[:, None]).sum(2, dtype=jnp.int32)
  return same if silent else jnp.where(c >= 0, same, 0)


@checked
def label(cluster: Int[Array, " B"], *, size: int, silent: bool = False) -> Int[Array, " P"]:
  """The class with most votes, on ties the one that appears first; -1 where nobody votes."""
  count = votes(cluster, size=size, silent=silent)
  first = jnp.argmax(count, axis=1)[:, None]  # the lowest index of the maximum
  elected = jnp.take_along_axis(grouped(cluster, size), first, axis=1)[:, 0]
  return jnp.where(count.max(1) > 0, elected, -1)


@checked
def agreement(cluster: Int[Array, " B"], *, size: int, silent: bool = False) -> Reward:
  """1 where the response's class is the elected one, 0 elsewhere."""
  elected = label(cluster, size=size, silent=silent)[:, None]
  c = grouped(cluster, size)
  won = (c == elected) & ((c >= 0) | silent)
  return real(won).reshape(cluster.shape)


@checked
def majority_share(cluster: Int[Array, " B"], *, size: int,
                   silent: bool = False) -> Float[Array, " P"]:
  """Largest number of votes over G: 1 when everybody agrees. A collapse shows here first."""
  return real(votes(cluster, size=size, silent=silent).max(1)) / size


@checked
def voted(elected: Bool[Array, " B"]) -> Reward:
  """1 where the response's answer won the vote of all samples, 0 elsewhere: `agreement` when
  more vote than are trained on."""
  return real(elected)
