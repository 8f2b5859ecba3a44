"""REMAX: the reward of the greedy response to the same prompt as baseline.

ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method, Li et al.
(arXiv:2310.10505, 2023). Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: none known. The chain is `gae.last_token, gae.return_to_go,
less_greedy`; the rollout fills `greedy_rewards` from one more, greedy, response a prompt.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Advantage, Array, Bool, Float


@checked
def less_greedy(adv: Float[Array, "B T"], mask: Bool[Array, "B T"],
                greedy_rewards: Float[Array, " B"]) -> Advantage:
  """A_t = G_t - R(greedy response); adv holds the returns G. 0 on padding.

  greedy_rewards is NaN where that is not known: the rollout marks such rows as not `known`.
  """
  return jnp.where(mask, adv - greedy_rewards[:, None], 0.0)
