"""SOFT-Q: the log-probability of a response is fitted to its reward, whoever sampled it.

arXiv:2502.00288 in token form.  A = R - alpha log pi(y)/pi_ref(y) less its mean over the group;
loss = -A log pi(y).  Fixed point: pi = pi_ref exp(R / alpha) / Z, so that alpha sets the entropy.

  python -m entrolab.main --config=experiments/soft_q.py:alpha=0.1
  python -m entrolab.main --config=experiments/soft_q.py:reference=false

Without a reference the fixed point is uniform over all right chains of the same reward.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.459 [0.415, 0.503], pass@16 0.863
-> 0.820, entropy 0.310 -> 0.271 nats (GRPO: 0.242).
Three seeds, 40 steps: entropy 0.296 with alpha = 0.3, 0.276 with 0.03.
"""

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import grpo, ppo, soft_q
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, alpha: float | None = None,
               reference: bool = True) -> Experiment:
  """alpha: reward a nat; the gradient has no importance weight and needs none."""
  base = presets.get(preset)
  k = base.strengths("soft_q", alpha=alpha)
  fit = soft_q.reference_residual if reference else soft_q.residual
  objective = Objective(reward=term(grpo.outcome),
                        advantage=term(fit, size=SAMPLES, alpha=k.alpha),
                        surrogate=term(ppo.reinforce), aggregate=term(aggregate.sequence_sum))
  return base.experiment("soft_q", objective, seed=seed, steps=steps, taken=k.taken)
