"""The plain entropy bonus, fixed or with a coefficient that adapts to a target entropy.

loss = L - coef H, L the policy-gradient loss of GRPO with PPO clip, H the mean entropy of tokens.
Adaptive: coef moves by 0.005 an update towards the target and acts only while H <= target
(Skywork-OR1, arXiv:2505.22312, equation 12).

  python -m entrolab.main --config=experiments/entropy_bonus.py:beta=0.03
  python -m entrolab.main --config=experiments/entropy_bonus.py:target=0.35

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.481 [0.436, 0.527], pass@16 0.863
-> 0.809, entropy 0.310 -> 0.257 nats (GRPO: 0.242).
Three seeds, 40 steps: entropy 0.276, GRPO 0.267.
"""

from entrolab import presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import bonus, grpo, ppo
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, beta: float | None = None,
               target: float | None = None) -> Experiment:
  """target: nats a token for the adaptive coefficient; 0 keeps beta fixed."""
  base = presets.get(preset)
  k = base.strengths("entropy_bonus", beta=beta, target=target)
  control = (bonus.Adaptive(k.target),) if k.target else ()
  objective = Objective(reward=term(grpo.outcome), control=control,
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio),
                        penalties=(("coef" if k.target else k.beta, term(bonus.negative_entropy)),))
  return base.experiment("entropy_bonus", objective, seed=seed, steps=steps, taken=k.taken)
