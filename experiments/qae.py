"""QAE: GRPO with the 0.4 quantile of a group's rewards as its baseline.

arXiv:2509.22611.  A = (R - Q_K) / std R, clip [0.8, 1.28], token mean.

  python -m entrolab.main --config=experiments/qae.py:level=0.4

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.480 [0.434, 0.526], pass@16 0.863
-> 0.801, entropy 0.310 -> 0.247 nats (GRPO: 0.242).
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, ppo, qae
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               level: float | None = None) -> Experiment:
  """level: K; higher punishes failures on more prompts."""
  base = presets.get(preset)
  k = base.strengths("qae", level=level)
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(qae.quantile_advantage, size=SAMPLES, level=k.level),
                        surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28))
  return base.experiment("qae", objective, seed=seed, steps=steps, taken=k.taken)
