"""T1: RLOO on hot samples, an entropy bonus, the KL to a moving anchor in the reward.

arXiv:2501.11651.  loss = mean_t [-A log pi] - alpha mean_t H. A = R less the mean R of the other
samples of the prompt. R = r' - beta (KL - mean KL), with r' = -1 for a broken output and the KL to
an anchor, which moves after every update: anchor <- decay anchor + (1 - decay) policy.

  python -m entrolab.main --config=experiments/t1.py:alpha=0.003

The paper samples 64 responses a prompt at a temperature of 1.2; `samples` sets their number.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.488 [0.443, 0.533], pass@16 0.863
-> 0.793, entropy 0.310 -> 0.239 nats (GRPO: 0.242), 100 % of tokens changed.
Three seeds, 40 steps: entropy 0.284 with alpha = 0.03, 0.271 with 0. That 16 samples a prompt keep
more of it than 4 is not shown at this size: 0.259 against 0.283, at four times the rows a step.
"""

from entrolab import presets
from entrolab.experiment import Experiment, Reference
from entrolab.follow import SAMPLES
from entrolab.methods import bonus, grpo, ppo, rloo, t1
from entrolab.objective import Objective, term


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, samples: int | None = None,
               temperature: float | None = None, alpha: float | None = None,
               beta: float | None = None, decay: float | None = None) -> Experiment:
  """samples: K a prompt, 0 for the preset's; alpha: nats; decay: of the anchor, an update."""
  base = presets.get(preset)
  k = base.strengths("t1", samples=samples, temperature=temperature, alpha=alpha, beta=beta,
                     decay=decay)
  objective = Objective(
      reward=(term(grpo.outcome), term(t1.broken_output), term(t1.kl_in_reward, beta=k.beta)),
      advantage=term(rloo.leave_one_out, size=SAMPLES, alone=0.0), surrogate=term(ppo.plain_ratio),
      penalties=((k.alpha, term(bonus.negative_entropy)),))
  return base.experiment("t1", objective, seed=seed, steps=steps, taken=k.taken,
                         reference=Reference(rule="ema", decay=k.decay),
                         sampling=dict(samples=k.samples or base.sampling.samples,
                                       temperature=k.temperature))
