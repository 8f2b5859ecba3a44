"""CANON: halves of each group by entropy, compared with each other (mu = 1) or within (mu = 0).

arXiv:2509.23962, equations 5 and 8.  A = mu A_inter + (1 - mu) A_intra, no deviation, token sums
divided by max_tokens.

  python -m entrolab.main --config=experiments/canon.py:mu=0.0
  python -m entrolab.main --config=experiments/canon.py:schedule=accuracy

Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.489 [0.443, 0.534], pass@16 0.863
-> 0.789, entropy 0.310 -> 0.247 nats (GRPO: 0.242).
That mu = 0 keeps more entropy than mu = 1 is not shown at this size: 0.269 against 0.270 (three
seeds, 40 steps; difference -0.0011, standard error 0.0020).
"""

from typing import Literal

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES, UPDATES, Number
from entrolab.methods import canon, grpo, ppo
from entrolab.objective import Objective, term

Schedule = Literal["none", "accuracy", "cosine", "reverse"]
MOST = Number("float(sampling.max_tokens)", lambda e: float(e.sampling.max_tokens))


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               metric: Literal["entropy", "length"] = "entropy", mu: float | None = None,
               alpha: float | None = None, schedule: Schedule = "none") -> Experiment:
  """metric: entropy or length; schedule: none, accuracy, cosine or reverse (of the mix)."""
  base = presets.get(preset)
  k = base.strengths("canon", mu=mu, alpha=alpha)
  knobs = dict(size=SAMPLES, divisor=MOST)
  choices = {"none": term({"entropy": canon.by_entropy, "length": canon.by_length}[metric],
                          mu=k.mu, alpha=k.alpha, **knobs),
             "accuracy": term(canon.by_accuracy, **knobs),
             "cosine": term(canon.scheduled, **knobs), "reverse": term(canon.scheduled, **knobs)}
  moving = schedule in ("cosine", "reverse")
  control = (canon.Cosine(UPDATES.fill(base), schedule == "reverse"),) if moving else ()
  objective = Objective(
      reward=term(grpo.outcome), advantage=choices[schedule], control=control,
      surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28, dual=3.0),
      aggregate=term(aggregate.sequence_sum))
  return base.experiment("canon", objective, seed=seed, steps=steps, taken=k.taken)
