"""GRPO with the KL penalty of its paper (k3 against the frozen initial policy), sequence mean.

DeepSeekMath, arXiv:2402.03300, equations 3 and 4.  loss = mean_b mean_t [ppo + beta k3].

  python -m entrolab.main --config=experiments/grpo.py:beta=0.01

Differs from verl's GRPO: the paper's mean over sequences; `norm` picks Dr.GRPO's advantage.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.486 [0.441, 0.531], pass@16 0.863
-> 0.828, entropy 0.310 -> 0.246 nats.
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.methods import grpo, kl, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, beta: float = 0.01,
               doctor: bool = False) -> Experiment:
  """doctor: Dr.GRPO, arXiv:2503.20783 (no deviation, constant denominator)."""
  base = presets.get(preset)
  advantage = grpo.centred_advantage if doctor else grpo.group_advantage
  scale = (term(aggregate.fixed_length, length=base.sampling.max_tokens) if doctor
           else term(aggregate.sequence_mean))
  objective = Objective(reward=term(grpo.outcome), advantage=term(advantage, size=base.samples),
                        surrogate=term(ppo.clipped_ratio), aggregate=scale,
                        penalties=((beta, term(kl.k3)),) if beta else ())
  return base.experiment("grpo", objective, seed=seed, steps=steps)
