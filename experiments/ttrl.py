"""TTRL: no labels; agreement with the most frequent answer of the group is the reward.

arXiv:2504.16084.  r = 1[answer = majority], GRPO with dual clip 3, 0.001 k3 to the first policy.

  python -m entrolab.main --config=experiments/ttrl.py

In countdown an answer is the whole chain.
Expect: FIGURES
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.methods import grpo, kl, ppo, ttrl
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               beta: float = 1e-3) -> Experiment:
  """beta: of the KL to the policy before adaptation."""
  base = presets.get(preset)
  objective = Objective(reward=term(ttrl.agreement, size=base.samples), extra=("cluster",),
                        advantage=term(grpo.group_advantage, size=base.samples),
                        surrogate=term(ppo.clipped_ratio, dual=3.0),
                        penalties=((beta, term(kl.k3)),))
  return base.experiment("ttrl", objective, seed=seed, steps=steps)
