"""AEPO: right answers drawn hotter or colder than the policy steer its entropy to a target.

arXiv:2510.08141.  loss = GRPO - alpha mean_t [R log pi], the second mean over P / 4 further groups
drawn at T = `hot` while the last entropy is at or under `target` nats, and at `cold` above it.

  python -m entrolab.main --config=experiments/aepo_arbitrary.py:target=0.4

The repository's replacement of on-policy rows has alpha = n / (P G), the share of tempered rows in
use. Entropy, accuracy and learning signal of the progress line are over all rows, with the
tempered ones.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.486 [0.441, 0.530], pass@16 0.863
-> 0.816, entropy 0.310 -> 0.243 nats (GRPO: 0.242), share of tokens changed 19 % -> 21 %.
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import aepo_arbitrary, grpo, ppo
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout.tempered import Tempered


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, target: float | None = None,
               alpha: float | None = None, hot: float | None = None,
               cold: float | None = None) -> Experiment:
  """target: nats a token, of the exact entropy; hot, cold: temperatures of the further groups."""
  base = presets.get(preset)
  k = base.strengths("aepo_arbitrary", target=target, alpha=alpha, hot=hot, cold=cold)
  steer = Penalty(k.alpha, term(aepo_arbitrary.right_answers),
                  scale=term(aepo_arbitrary.tempered_mean))
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio, dual=3.0), extra=("tempered",), penalties=(steer,),
      weights=(term(aepo_arbitrary.on_policy),), aggregate=term(aggregate.selected_mean),
      control=(aepo_arbitrary.Switch(k.target, hot=k.hot, cold=k.cold),))
  return base.experiment("aepo_arbitrary", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=Tempered())
