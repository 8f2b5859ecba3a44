"""GTPO and GRPO-S: rewards of tokens or rows, which grow with entropy where the answer is right.

arXiv:2508.04349, equations 3 to 9.  Right: x = 1 + a d H / sum H, wrong: x = -(1 + a h w / sum w),
w = 1 / H, over the d right and h wrong rows that are as long; A = (x - mean x) / std x over all
tokens of a group. GRPO-S: the same of a row's mean entropy, and the mean of its ratios.

  python -m entrolab.main --config=experiments/gtpo.py:form=sequence

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.483 [0.437, 0.530], pass@16 0.863
-> 0.789, entropy 0.310 -> 0.251 nats (GRPO: 0.242); split, sequence: unmeasured.
That entropy is above GRPO's at equal reward is not shown: 0.959 against 0.999 nats in a policy of
two tokens at success 0.6 (eight seeds; difference -0.040, standard error 0.021).
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, gtpo, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, form: str = "joint",
               bonus: float | None = None, floor: float | None = None) -> Experiment:
  """form: joint (GTPO), split (equation 6 as it is quoted) or sequence (GRPO-S); bonus: a; floor:
  of the entropies, nats."""
  base = presets.get(preset)
  k = base.strengths("gtpo", bonus=bonus, floor=floor)
  advantages = {"joint": gtpo.joint_advantage, "split": gtpo.split_advantage,
                "sequence": gtpo.sequence_advantage}
  if form not in advantages:
    raise ValueError(f"form={form!r}; choices: {', '.join(advantages)}")
  rows = form == "sequence"
  objective = Objective(
      reward=term(grpo.outcome),
      advantage=term(advantages[form], size=SAMPLES, bonus=k.bonus, floor=k.floor),
      surrogate=term(gtpo.mean_ratio if rows else ppo.clipped_ratio, low=0.2, high=0.28),
      aggregate=term(aggregate.sequence_mean if rows else aggregate.token_mean))
  return base.experiment("gtpo", objective, seed=seed, steps=steps, taken=k.taken)
