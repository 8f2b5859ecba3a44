"""AEPO-AGENTIC: advantages that grow with entropy, and clipped tokens that keep a gradient.

arXiv:2510.14545.  A' = A max(1 + coef z(H), 0), z over all valid tokens; PPO whose upper bound is
(1 + high) r / stop(r): equal in value, while the gradient of a token clipped from above stays.

  python -m entrolab.main --config=experiments/aepo_agentic.py:coef=0.2

These are its losses, on independent responses: countdown has no tools at which to branch.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.512 [0.464, 0.559], pass@16 0.863
-> 0.781, entropy 0.310 -> 0.221 nats (GRPO: 0.215), share of tokens touched 87 % -> 57 %.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.methods import aepo_agentic, grpo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, coef: float = 0.2,
               high: float = 0.2) -> Experiment:
  """coef: change of an advantage a standard deviation of entropy; high: upper clip."""
  base = presets.get(preset)
  objective = Objective(reward=term(grpo.outcome),
                        advantage=(term(grpo.group_advantage, size=base.samples),
                                   term(aepo_agentic.entropy_aware, coef=coef)),
                        surrogate=term(aepo_agentic.balanced_clip, high=high))
  return base.experiment("aepo_agentic", objective, seed=seed, steps=steps)
