"""EPO on a text world: an entropy bonus over whole episodes, inside a corridor around its history.

arXiv:2509.22576.  loss = L - lambda (L_H - beta_k L_smooth). L: the policy-gradient loss of GRPO
with PPO clip. L_H: mean entropy of tokens, then turns, then episodes. L_smooth: alpha relu(H - high
W), W the mean entropy of all earlier steps, aggregated alike. beta_k falls from 2 to 1. Up to 30
turns, reward at the end alone. The paper's lambda is 1e-3 and its alpha 0.1, over 125 steps; here
3e-3 and 1.

  python -m entrolab.main --config=experiments/epo.py:alpha=0.0

With alpha=0 it is the plain bonus.
Expect (seed 0, 16 worlds, 95 % intervals): pass@1 0.125 -> 0.121 [0.068, 0.174], pass@16 0.688 ->
0.688, entropy 0.322 -> 0.325 nats, its standard deviation over the steps 0.016; 20 steps of 32
episodes do not teach this decoder. 27 of the first 32 episodes take all 30 turns.
That the corridor steadies entropy is not shown at this size: standard deviation over the steps
0.0239, plain bonus 0.0259 (three seeds; difference 0.0020, standard error 0.0026).
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.methods import bonus, epo, grpo, ppo
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout.multiturn import MultiTurn


def get_config(*, seed: int = 0, steps: int = 0, turns: int = 30, strength: float = 3e-3,
               low: float = 0.0, high: float = 2.0, alpha: float = 1.0) -> Experiment:
  """strength: lambda; low, high: bounds of the corridor, in mean entropies; alpha: its slope."""
  base = presets.text_world(turns)
  over_turns = term(epo.turn_mean, steps=turns)
  total = (steps or base.training.steps) * base.training.updates
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=base.samples),
      surrogate=term(ppo.clipped_ratio),
      penalties=(Penalty(strength, term(bonus.negative_entropy), scale=over_turns),
                 Penalty("smooth", term(epo.corridor, low=low, high=high, alpha=alpha),
                         scale=over_turns)),
      control=(epo.History(strength=strength, steps=total),))
  return base.experiment("epo", objective, seed=seed, steps=steps,
                         rollout=MultiTurn(turns=turns, action=4))
