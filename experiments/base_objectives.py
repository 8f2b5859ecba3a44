"""The published policy gradients without an entropy part, one line each, on equal footing.

  python -m entrolab.main --config=experiments/base_objectives.py:objective=gspo

Names: cispo (arXiv:2506.13585), gmpo (2507.20673), gpg (2504.02546), gspo (2507.18071), lite_ppo
(2508.08221), opo (2505.23585), opsm (2512.02556), otb (2602.07078), passk (2503.19595),
reinforce_pp (2501.03262), remax (2310.10505), rloo (2402.14740), sapo (2511.20347); `corrected`
weighs GRPO by the sampler-trainer ratio. Expect (GSPO, seed 0, 256 problems, 95 % intervals):
pass@1 0.400 -> 0.472 [0.428, 0.516], pass@16 0.863 -> 0.828, entropy 0.310 -> 0.262 (GRPO: 0.242).
"""

from entrolab import aggregate, presets  # noqa: I001
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES
from entrolab.methods import (cispo, gae, gmpo, gpg, grpo, gspo, lite_ppo, opo, opsm, otb, passk,
                              ppo, reinforce_pp, remax, rloo, rollout_correction, sapo)
from entrolab.objective import Objective, term
from entrolab.rollout.greedy import Greedy
from entrolab.rollout.plain import Plain


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0,
               objective: str = "gspo", threshold: float | None = None) -> Experiment:
  """objective: one of the names above, else as GRPO with PPO's clip; threshold: OPSM's, nats."""
  base = presets.get(preset)
  k = base.strengths("base_objectives", threshold=threshold)
  group, rows = dict(size=SAMPLES), term(aggregate.sequence_mean)
  returns = (term(gae.last_token), term(gae.return_to_go))
  lines = {
      "cispo": dict(surrogate=term(cispo.clipped_weight)),
      "gmpo": dict(surrogate=term(gmpo.geometric_mean), aggregate=term(aggregate.row_mean)),
      "gpg": dict(advantage=term(gpg.scaled_advantage, **group), surrogate=term(ppo.reinforce)),
      "gspo": dict(surrogate=term(gspo.clipped_sequence), aggregate=rows),
      "lite_ppo": dict(advantage=term(lite_ppo.batch_scaled, **group)),
      "opo": dict(advantage=term(opo.length_baseline, **group)),
      "opsm": dict(weights=term(opsm.keep_rows, threshold=k.threshold)),
      "otb": dict(advantage=(*returns, term(otb.less_baseline, **group))),
      "passk": dict(advantage=term(passk.best_margin, **group)),
      "reinforce_pp": dict(advantage=(*returns, term(reinforce_pp.whitened))),
      "remax": dict(advantage=(*returns, term(remax.less_greedy)), extra=("greedy_rewards",)),
      "rloo": dict(advantage=term(rloo.leave_one_out, **group)),
      "sapo": dict(surrogate=term(sapo.soft_gate), aggregate=rows),
      "corrected": dict(weights=term(rollout_correction.token_weight)),
  }
  if objective not in lines:
    raise ValueError(f"objective={objective!r}; choices: {', '.join(lines)}")
  parts = dict(reward=term(grpo.outcome), surrogate=term(ppo.clipped_ratio),
               advantage=term(grpo.group_advantage, **group)) | lines[objective]
  return base.experiment(objective, Objective(**parts), seed=seed, steps=steps, taken=k.taken,
                         rollout=Greedy() if objective == "remax" else Plain())
