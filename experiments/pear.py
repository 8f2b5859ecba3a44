"""PEAR: right answers lose reward for entropy in their thinking beyond that of their answer.

arXiv:2510.08026.  r = min(1, 1 - max(0, H_think - alpha H_answer)) if right, else 0; GRPO.

  python -m entrolab.main --config=experiments/pear.py:alpha=0.5

In countdown the first step stands for the thinking, what follows for the answer.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.499 [0.453, 0.545], pass@16 0.863
-> 0.785, entropy 0.310 -> 0.238 nats (GRPO: 0.242).
That alpha = 1 shortens responses, beside alpha = 0, is not shown at this size: 15.033 and 15.036
tokens (three seeds, 40 steps; standard error 0.007); every chain has three or four steps.
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, pear, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               alpha: float | None = None) -> Experiment:
  """alpha: coefficient of the answer's entropy."""
  base = presets.get(preset)
  k = base.strengths("pear", alpha=alpha)
  objective = Objective(reward=term(pear.phase_reward, alpha=k.alpha), extra=("think_end",),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio), aggregate=term(aggregate.sequence_mean))
  return base.experiment("pear", objective, seed=seed, steps=steps, taken=k.taken)
