"""EMPO: no labels; a response earns the share of its group that gives the same answer.

arXiv:2504.05812, equations 6 and 7.  r = |class| / G inside the gate low < H < high; GSPO.

  python -m entrolab.main --config=experiments/empo.py:high=1.9

In countdown an answer is the whole chain: the vote sharpens the policy on what it says most often.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.432 [0.387, 0.477], pass@16 0.863
-> 0.773, entropy 0.310 -> 0.239 nats (GRPO: 0.242).
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import empo, grpo, gspo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, low: float | None = None,
               high: float | None = None) -> Experiment:
  """low, high: nats of semantic entropy between which a group is used; the defaults use all."""
  base = presets.get(preset)
  k = base.strengths("empo", low=low, high=high)
  objective = Objective(
      reward=term(empo.class_share, size=SAMPLES, low=k.low, high=k.high), extra=("cluster",),
      advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(gspo.clipped_sequence), aggregate=term(aggregate.row_mean))
  return base.experiment("empo", objective, seed=seed, steps=steps, taken=k.taken)
