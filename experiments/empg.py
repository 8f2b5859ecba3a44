"""EMPG on a text world: advantages of a turn scaled by how certain it was, a bonus for clear turns.

arXiv:2509.09265.  A_s = A g(H_s) + zeta f(H_{s+1}), less its mean over all turns of the batch;
g = exp(-k h) / mean exp(-k h), f = exp(-k' h), h the turn's mean entropy scaled to [0, 1] over the
batch. A is GRPO's. Up to 30 turns, reward at the end alone.

  python -m entrolab.main --config=experiments/empg.py:zeta=0.1

Expect (seed 0, 16 worlds, 95 % intervals): pass@1 0.125 -> 0.145 [0.081, 0.208], pass@16 0.688 ->
0.688, entropy 0.322 -> 0.322 nats; 20 steps of 32 episodes do not teach this decoder.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES, TURNS
from entrolab.methods import empg, grpo, ppo
from entrolab.objective import Objective, term
from entrolab.rollout.multiturn import MultiTurn


def get_config(*, seed: int = 0, steps: int = 0, turns: int = 30, sharpness: float | None = None,
               clarity: float | None = None, zeta: float | None = None) -> Experiment:
  """sharpness: k; clarity: k'; zeta: of the bonus. With sharpness=0, zeta=0: GRPO, recentred."""
  base = presets.text_world(turns)
  k = base.strengths("empg", sharpness=sharpness, clarity=clarity, zeta=zeta)
  modulate = term(empg.modulate, steps=TURNS, sharpness=k.sharpness, clarity=k.clarity, zeta=k.zeta)
  objective = Objective(
      reward=term(grpo.outcome),
      advantage=(term(grpo.group_advantage, size=SAMPLES), modulate),
      surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28))
  return base.experiment("empg", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=MultiTurn(turns=turns, action=4))
