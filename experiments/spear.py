"""SPEAR: good trajectories are stored, and imitated again once they beat the median of today.

arXiv:2509.22601.  loss = L(new rows) + c(step) L(replayed rows), whose advantage is R - median of
the stored group means; c grows from 0 to `strength` over `imitation` steps. L: the policy-gradient
loss of Dr.GRPO with clip-higher, without the quarter of the groups whose rewards differ least and
`fraction` of the tokens with a covariance in [1, 40]. R is 1 or -1.

  python -m entrolab.main --config=experiments/spear.py:size=64

The official buffer replays 2048 rows, as many as a step has; 64 of 256 here, and a ramp of 50 steps
for one of 200 to 300. Countdown has no tools: the reward for calling them is left out.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.472 [0.427, 0.517], pass@16 0.863
-> 0.805, entropy 0.310 -> 0.270 nats (GRPO: 0.242); 2 % of tokens changed, 22 % with a replay.
Three seeds, 40 steps, imitation=20: with replay (22 steps of them) entropy 0.275, pass@1 0.450,
pass@16 0.818; with strength=0 0.307, 0.401, 0.833: imitation buys accuracy with entropy.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import MAX_TOKENS, SAMPLES, UPDATES
from entrolab.methods import clip_cov, grpo, ppo, spear
from entrolab.objective import Objective, term
from entrolab.rollout.replay import Replay, groups_for


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, size: int | None = None,
               prompts: int = 0, tolerance: int | None = None, strength: float | None = None,
               imitation: int | None = None, fraction: float | None = None) -> Experiment:
  """size: rows replayed at most, in `prompts` further groups, 0 for as many as they need;
  tolerance: steps until one is stale."""
  base = presets.get(preset)
  k = base.strengths("spear", size=size, tolerance=tolerance, strength=strength,
                     imitation=imitation, fraction=fraction)
  clip = dict(low=0.2, high=0.28)
  keep = term(clip_cov.keep_mask, fraction=k.fraction, lower=1.0, upper=40.0, **clip)
  objective = Objective(
      reward=term(grpo.outcome, right=1.0, wrong=-1.0),
      advantage=(term(grpo.centred_advantage, size=SAMPLES),
                 term(spear.of_widest_groups, size=SAMPLES)),
      weights=(term(spear.usable_rows), keep, term(spear.replay_weight)),
      surrogate=term(ppo.clipped_ratio, **clip),
      aggregate=term(spear.own_mean, length=MAX_TOKENS),
      control=(spear.Curriculum(imitation=k.imitation, strength=k.strength,
                                updates=UPDATES.fill(base)),),
      extra=("replayed", "usable"))
  rollout = Replay(buffer=spear.Replay(size=k.size, tolerance=k.tolerance, tools=False),
                   prompts=prompts or groups_for(k.size).fill(base))
  return base.experiment("spear", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=rollout)
