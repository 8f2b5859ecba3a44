"""GRPO on the embedded model: pass@1 rises, entropy collapses, pass@16 stops growing.

DeepSeekMath, arXiv:2402.03300.  A = (R - mean_group R) / std_group R, PPO clip 0.2, token mean.

  python -m entrolab.main --config=experiments/toy.py

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.355 -> 0.452 [0.407, 0.498], pass@16 0.852
-> 0.789, entropy 0.322 -> 0.250 nats, different right answers of 16: 3.35 -> 3.11.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, low: float | None = None,
               high: float | None = None) -> Experiment:
  """The plain baseline that every intervention is compared with."""
  base = presets.get(preset)
  k = base.strengths("toy", low=low, high=high)
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio, low=k.low, high=k.high))
  return base.experiment("toy", objective, seed=seed, steps=steps, taken=k.taken)
