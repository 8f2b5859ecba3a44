"""GRPO with the KL penalty of its paper (k3 against the frozen initial policy), sequence mean.

DeepSeekMath, arXiv:2402.03300, equations 3 and 4.  loss = mean_b mean_t [ppo + beta k3].

  python -m entrolab.main --config=experiments/grpo.py:beta=0.01

Differs from verl's GRPO: the paper's mean over sequences. Dr.GRPO (arXiv:2503.20783) is
`norm=none,mean=fixed_length`: no deviation, and a constant denominator.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.486 [0.441, 0.531], pass@16 0.863
-> 0.828, entropy 0.310 -> 0.246 nats.
"""

from typing import Literal

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import MAX_TOKENS, SAMPLES
from entrolab.methods import grpo, kl, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, beta: float | None = None,
               norm: Literal["std", "none"] = "std",
               mean: Literal["sequence", "token", "fixed_length"] = "sequence") -> Experiment:
  """norm: whether a group's deviation divides its advantages; mean: how the tokens add up."""
  base = presets.get(preset)
  k = base.strengths("grpo", beta=beta)
  advantages = {"std": grpo.group_advantage, "none": grpo.centred_advantage}
  scales = {"sequence": term(aggregate.sequence_mean), "token": term(aggregate.token_mean),
            "fixed_length": term(aggregate.fixed_length, length=MAX_TOKENS)}
  if norm not in advantages or mean not in scales:
    raise ValueError(f"norm={norm!r}, mean={mean!r}; choices: norm={', '.join(advantages)}; "
                     f"mean={', '.join(scales)}")
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(advantages[norm], size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio), aggregate=scales[mean],
                        penalties=((k.beta, term(kl.k3)),) if k.beta else ())
  return base.experiment("grpo", objective, seed=seed, steps=steps, taken=k.taken)
