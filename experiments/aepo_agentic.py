"""AEPO-AGENTIC: trees of tool use within a budget, and clipped tokens that keep a gradient.

arXiv:2510.14545.  m of n episodes start at once, floor(n sigmoid((H_root - H_avg) / 2)) + 1; the
others are copies of those that have just heard from a tool, with probability 0.5 + 0.2 dH, less
after every round in a row with new ones, or start when none is left to copy. A' = A max(1 + coef
z(H), 0), z over all valid tokens; PPO whose upper bound is (1 + high) r / stop(r): equal in value,
while the gradient of a token clipped from above stays. Word problems with a calculator.

  python -m entrolab.main --config=experiments/aepo_agentic.py:initial=4

The policy is cloned, when it starts, on few steps of an expert. scope: a round of other prompts
does not end a streak (own), or does, as officially (prompt), or it is the path's (path).
Expect (seed 0, 64 problems, 95 % intervals): pass@1 0.318 [0.256, 0.381] -> 0.454 [0.381, 0.527],
pass@16 0.828 -> 0.812, entropy 0.401 -> 0.262 nats, share of tokens changed 75 % -> 63 %; of 128
episodes a step 38 are branches, of 38 sources, and 75 start at once.
"""

from typing import Literal

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import aepo_agentic, grpo
from entrolab.objective import Objective, term
from entrolab.rollout.agentic import Agentic


def get_config(*, seed: int = 0, steps: int = 0, initial: int | None = None,
               penalty: float | None = None, scope: Literal["own", "prompt", "path"] = "own",
               coef: float | None = None, high: float | None = None) -> Experiment:
  """initial: m, 0 for the budget; coef: change of an advantage a standard deviation of entropy;
  high: upper clip."""
  base = presets.word_problems()
  k = base.strengths("aepo_agentic", initial=initial, penalty=penalty, coef=coef, high=high)
  rule = aepo_agentic.Branching(samples=SAMPLES.fill(base), penalty=k.penalty, scope=scope)
  objective = Objective(reward=term(grpo.outcome),
                        advantage=(term(grpo.group_advantage, size=SAMPLES),
                                   term(aepo_agentic.entropy_aware, coef=k.coef)),
                        surrogate=term(aepo_agentic.balanced_clip, high=k.high))
  return base.experiment("aepo_agentic", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=Agentic(action=12, rule=rule, initial=k.initial))
