"""ENT-ADV: advantages raised by the entropy of their token, by at most half of themselves.

arXiv:2506.14758, equation 4.  A' = A + min(alpha H, |A| / kappa), H of the current policy, no
gradient; loss = clip(-A' r), token mean.

  python -m entrolab.main --config=experiments/ent_adv.py:alpha=0.4,kappa=2.0

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.496 [0.450, 0.541], pass@16 0.863
-> 0.812, entropy 0.310 -> 0.240 nats (GRPO: 0.242), share of tokens changed 87 % -> 52 %.
That it keeps more entropy than GRPO is not shown at this size: 0.266 against 0.267 (three seeds, 40
steps; difference -0.0013, standard error 0.0019).
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import ent_adv, grpo, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, alpha: float | None = None,
               kappa: float | None = None) -> Experiment:
  """alpha: advantage a nat; kappa: an advantage moves by 1 / kappa of itself at most."""
  base = presets.get(preset)
  k = base.strengths("ent_adv", alpha=alpha, kappa=kappa)
  objective = Objective(reward=term(grpo.outcome),
                        advantage=(term(grpo.group_advantage, size=SAMPLES),
                                   term(ent_adv.shaped, alpha=k.alpha, kappa=k.kappa)),
                        surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28))
  return base.experiment("ent_adv", objective, seed=seed, steps=steps, taken=k.taken)
