"""SPINE: TTRL's reward, learned at forking tokens alone, whose entropy is kept in a band.

arXiv:2511.17938.  loss = mean over the top 20 % of tokens of [ppo + 0.01 k3 + band].

  python -m entrolab.main --config=experiments/spine.py:fraction=0.2

`labels=true` pays for right answers instead of the majority's.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.322 [0.274, 0.369], pass@16 0.863
-> 0.578, entropy 0.310 -> 0.207 nats (GRPO: 0.242), 100 % of tokens changed. As with TTRL, votes
mislead at this size; the band does not hold the entropy up.
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, kl, ppo, spine, ttrl
from entrolab.objective import Objective, Penalty, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               fraction: float | None = None, beta: float | None = None, band: float | None = None,
               labels: bool = False) -> Experiment:
  """fraction of a response's tokens that fork; beta: of the KL; band: of both its sides."""
  base = presets.get(preset)
  k = base.strengths("spine", fraction=fraction, beta=beta, band=band)
  fork = term(spine.fork_mask, fraction=k.fraction)
  hinges = term(spine.band_penalty, fraction=k.fraction, above=k.band, under=k.band)
  reward = term(grpo.outcome) if labels else term(ttrl.agreement, size=SAMPLES)
  objective = Objective(
      reward=reward, extra=() if labels else ("cluster",),
      advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio), weights=(fork,), aggregate=term(aggregate.selected_mean),
      penalties=(Penalty(k.beta, term(kl.k3), weight=fork), Penalty(1.0, hinges, weight=fork)))
  return base.experiment("spine", objective, seed=seed, steps=steps, taken=k.taken)
