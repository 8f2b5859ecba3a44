"""HIGHENT-TOKENS: the policy gradient on the fifth of the tokens with the highest entropy.

arXiv:2506.01939.  loss = mean over the chosen tokens of DAPO's clipped ratio; the choice is over
the whole optimiser batch, by the entropy of the current policy.

  python -m entrolab.main --config=experiments/highent_tokens.py:fraction=0.2
  python -m entrolab.main --config=experiments/highent_tokens.py:keep=rest

`keep=rest` is the paper's ablation: the other tokens alone.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.471 [0.426, 0.515], pass@16 0.863
-> 0.824, entropy 0.310 -> 0.261 nats (GRPO: 0.242), 80 % of tokens changed.
That the chosen fifth teaches more than the rest is not shown at this size: training reward 0.474
against 0.481 (three seeds, 40 steps; difference -0.007, standard error 0.005).
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, highent_tokens, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               fraction: float | None = None, keep: str = "top") -> Experiment:
  """fraction of all tokens that are chosen; keep: top, or rest for the others."""
  base = presets.get(preset)
  k = base.strengths("highent_tokens", fraction=fraction)
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28),
      weights=term(highent_tokens.top_mask, fraction=k.fraction, keep=keep),
      aggregate=term(aggregate.selected_mean))
  return base.experiment("highent_tokens", objective, seed=seed, steps=steps, taken=k.taken)
