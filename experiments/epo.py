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
from entrolab.follow import ALL_UPDATES, SAMPLES, TURNS
from entrolab.methods import bonus, epo, grpo, ppo
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout.multiturn import MultiTurn


def get_config(*, seed: int = 0, steps: int = 0, turns: int = 30, strength: float | None = None,
               low: float | None = None, high: float | None = None,
               alpha: float | None = None) -> Experiment:
  """strength: lambda; low, high: bounds of the corridor, in mean entropies; alpha: its slope."""
  base = presets.text_world(turns)
  k = base.strengths("epo", strength=strength, low=low, high=high, alpha=alpha)
  over_turns = term(epo.turn_mean, steps=TURNS)
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio),
      penalties=(Penalty(k.strength, term(bonus.negative_entropy), scale=over_turns),
                 Penalty("smooth", term(epo.corridor, low=k.low, high=k.high, alpha=k.alpha),
                         scale=over_turns)),
      control=(epo.History(strength=k.strength, steps=ALL_UPDATES.fill(base)),))
  return base.experiment("epo", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=MultiTurn(turns=turns, action=4))
