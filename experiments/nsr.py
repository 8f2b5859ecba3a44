"""NSR: learn from wrong answers alone, from right ones alone, or weigh the two.

arXiv:2506.01347.  A = lambda on right answers, -1 on wrong ones, no baseline; lambda = 0 is NSR,
0.1 the paper's weighted REINFORCE; PSR learns from right answers alone.  loss = clip(-A r).

  python -m entrolab.main --config=experiments/nsr.py:positive=0.1
  python -m entrolab.main --config=experiments/nsr.py:part=positive

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.440 [0.397, 0.483], pass@16 0.863
-> 0.805, entropy 0.310 -> 0.283 nats (GRPO: 0.242).
Three seeds, 40 steps: entropy 0.292, PSR 0.263.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.methods import grpo, nsr, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, part: str = "negative",
               positive: float | None = None) -> Experiment:
  """part: negative (NSR), positive (PSR) or weighted (by `positive`, the paper's lambda)."""
  base = presets.get(preset)
  k = base.strengths("nsr", positive=positive)
  parts = {"negative": term(nsr.negative), "positive": term(nsr.positive),
           "weighted": term(nsr.weighted, positive=k.positive)}
  if part not in parts:
    raise ValueError(f"part={part!r}; choices: {', '.join(parts)}")
  objective = Objective(reward=term(grpo.outcome), advantage=parts[part],
                        surrogate=term(ppo.clipped_ratio))
  return base.experiment("nsr", objective, seed=seed, steps=steps, taken=k.taken)
