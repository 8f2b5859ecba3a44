"""REINFORCE++: returns whitened over the whole batch, with or without a group baseline.

REINFORCE++: Stabilizing Critic-Free Policy Optimization, Hu et al. (arXiv:2501.03262, 2025).
Official code: volcengine/verl, verl/trainer/ppo/core_algos.py.
Acts on: advantage.  State: none.
Differs from the official code: the mean and the variance divide by the number of valid tokens,
theirs by that number + 1e-8 (so that a batch of equal returns is 0 here and 1e-6 there).

REINFORCE++ is the chain `gae.last_token, gae.return_to_go(gamma=...), whitened`; with baseline it
is `grpo.centred_advantage, whitened`. A KL in the reward stands after `gae.last_token`.
"""

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.typing import Advantage, Array, Bool, Float


@checked
def whitened(adv: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Advantage:
  """(A - mean A) / sqrt(var A + 1e-8) over all valid tokens of the rollout.

  var divides by n - 1. Long responses weigh more; an all-equal group does not vanish.
  """
  return ranks.whitened(adv, mask)
