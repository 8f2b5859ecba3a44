"""TTRL: no labels; agreement with the most frequent answer of the group is the reward.

arXiv:2504.16084.  r = 1[answer = majority], GRPO with dual clip 3, 0.001 k3 to the first policy.

  python -m entrolab.main --config=experiments/ttrl.py

In countdown an answer is the whole chain.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.354 [0.308, 0.400], pass@16 0.863
-> 0.703, entropy 0.310 -> 0.217 nats (GRPO: 0.242), 100 % of tokens changed. The majority of 8
chains is too often wrong here: agreement rises, accuracy falls.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, kl, ppo, ttrl
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               beta: float | None = None) -> Experiment:
  """beta: of the KL to the policy before adaptation."""
  base = presets.get(preset)
  k = base.strengths("ttrl", beta=beta)
  objective = Objective(reward=term(ttrl.agreement, size=SAMPLES), extra=("cluster",),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio, dual=3.0),
                        penalties=((k.beta, term(kl.k3)),))
  return base.experiment("ttrl", objective, seed=seed, steps=steps, taken=k.taken)
