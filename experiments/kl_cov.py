"""KL-Cov: keep the tokens of the highest covariance near the policy that sampled them.

arXiv:2505.22617, equation 11.  loss = -A r + beta 1[top fraction by covariance] |log r|, no clip.
It acts from the second update of a rollout on: before that the ratio is 1.

  python -m entrolab.main --config=experiments/kl_cov.py:fraction=0.02,beta=1.0

The official fractions (2e-3, 2e-4) select under one token in a small batch: 0.02 here.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.476 [0.432, 0.520], pass@16 0.863
-> 0.812, entropy 0.310 -> 0.260 nats (GRPO: 0.242), 2 % of tokens changed.
Three seeds, 40 steps: entropy 0.282, GRPO 0.267.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, kl_cov, ppo
from entrolab.objective import Objective, Penalty, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               fraction: float | None = None, beta: float | None = None) -> Experiment:
  """A log ratio under 1e-6 is rounding between two programs, not a distance."""
  base = presets.get(preset)
  k = base.strengths("kl_cov", fraction=fraction, beta=beta)
  penalty = Penalty(k.beta, term(kl_cov.distance, tolerance=1e-6),
                    weight=term(kl_cov.top_mask, fraction=k.fraction))
  objective = Objective(reward=term(grpo.outcome), penalties=(penalty,),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.plain_ratio))
  return base.experiment("kl_cov", objective, seed=seed, steps=steps, taken=k.taken)
