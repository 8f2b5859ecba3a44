"""Light-IF's TEA: an entropy term that weighs tokens by the covariance of advantage and log-prob.

arXiv:2508.03178.  loss = mean_t [ppo + 0.001 k3] - beta mean_t w H, w = min(10 softmax_t(cov), 5)
in each response, cov = (A - mean A)(log pi - mean log pi), without gradient. Clip [0, 2], dual 10.

  python -m entrolab.main --config=experiments/light_if.py:beta=0.03

The code has beta = 1 for 8192 tokens, where w is about 10 / 8192; short responses need less.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.483 [0.437, 0.530], pass@16 0.863
-> 0.797, entropy 0.310 -> 0.251 nats (GRPO: 0.242), 100 % of tokens changed.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import bonus, grpo, kl, light_if, ppo
from entrolab.objective import Objective, Penalty, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, beta: float | None = None,
               alpha: float | None = None, most: float | None = None) -> Experiment:
  """beta: of the entropy term, 0 for none; alpha, most: scale and cap of its weights."""
  base = presets.get(preset)
  k = base.strengths("light_if", beta=beta, alpha=alpha, most=most)
  tea = Penalty(k.beta, term(bonus.negative_entropy),
                weight=term(light_if.tea_weight, alpha=k.alpha, most=k.most))
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio, low=1.0, high=1.0, dual=10.0),
      penalties=((1e-3, term(kl.k3)), *((tea,) if k.beta else ())))
  return base.experiment("light_if", objective, seed=seed, steps=steps, taken=k.taken)
