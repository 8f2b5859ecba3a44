"""ARPO: copies of episodes that have just heard from a tool and have become less certain.

arXiv:2507.19849.  m of n episodes start at once; after the answer of a tool an episode is copied
with probability clip(0.5 + weight dH, 0, 1), dH the rise of the entropy of its segments since its
first one, until there are n; what is left starts anew. GRPO with PPO clip, one group an example:
what copies share sees the mean of their advantages. Word problems with a calculator.

  python -m entrolab.main --config=experiments/arpo.py:initial=6

The policy is cloned, when it starts, on few steps of an expert.
Expect (seed 0, 64 problems, 95 % intervals): pass@1 0.318 [0.256, 0.381] -> 0.509 [0.430, 0.588],
pass@16 0.828 -> 0.812, entropy 0.401 -> 0.243 nats; of 128 episodes a step 40 are branches, of 40
sources; tokens changed 0 %, since only the choice of episodes differs from GRPO.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import aepo_agentic, grpo, ppo
from entrolab.objective import Objective, term
from entrolab.rollout.agentic import Agentic


def get_config(*, seed: int = 0, steps: int = 0, initial: int | None = None,
               weight: float | None = None, probability: float | None = None) -> Experiment:
  """initial: m; weight: of dH; probability: where dH is 0."""
  base = presets.word_problems()
  k = base.strengths("arpo", initial=initial, weight=weight, probability=probability)
  rule = aepo_agentic.Branching(samples=SAMPLES.fill(base), weight=k.weight,
                                probability=k.probability, test=aepo_agentic.arpo_test, scope="own")
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio, dual=3.0))
  return base.experiment("arpo", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=Agentic(action=12, rule=rule, initial=k.initial))
