"""DAPO: clip-higher, token mean, groups of unequal rewards, a soft penalty for overlong answers.

DAPO, arXiv:2503.14476, equations 8 to 13.  clip [1 - 0.2, 1 + 0.28]; groups that are all right or
all wrong are replaced by further samples, at most `refills` batches of them.

  python -m entrolab.main --config=experiments/dapo.py:high=0.28

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.503 [0.456, 0.550], pass@16 0.863
-> 0.805, entropy 0.310 -> 0.232 nats (GRPO: 0.242).
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import BUFFER, MAX_TOKENS, SAMPLES
from entrolab.methods import dapo, grpo, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, high: float | None = None,
               refills: int | None = None) -> Experiment:
  """Responses may be a quarter longer than the preset's, as the paper's 20480 to 16384: the penalty
  falls on that quarter alone."""
  base = presets.get(preset)
  k = base.strengths("dapo", high=high, refills=refills)
  max_tokens = base.sampling.max_tokens + max(base.sampling.max_tokens // 4, 1)
  overlong = term(dapo.overlong, max_tokens=MAX_TOKENS, buffer=BUFFER)
  objective = Objective(reward=(term(grpo.outcome), overlong),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio, low=0.2, high=k.high, dual=10.0),
                        weights=(term(dapo.has_signal, size=SAMPLES),),
                        aggregate=term(aggregate.selected_mean))
  return base.experiment("dapo", objective, seed=seed, steps=steps, taken=k.taken,
                         sampling=dict(refills=k.refills, max_tokens=max_tokens))
