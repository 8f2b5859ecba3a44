"""CURE: sample, cut at an uncertain token, sample on from there; later on plain DAPO.

arXiv:2508.11016.  Stage 1: n1 responses to a prompt and n2 continuations of each of them are one
group; stage 2 begins after `until` steps and draws n1 (1 + n2) responses to the prompt. The loss
of both is DAPO's: clip [1 - 0.2, 1 + 0.28], dual clip 10, token mean, rewards of 1 and -1, a soft
penalty for overlong answers, groups without a learning signal replaced.

  python -m entrolab.main --config=experiments/cure.py:until=30

Officially the verifier reads the continuation alone, and cuts are at words of two letters or more.
In countdown a chain needs its first steps, and each sign is one: there verify=whole, cuts=signs.
Expect (seed 0, 256 problems, 95 % intervals): pass@1 0.400 -> 0.476 [0.431, 0.521], pass@16 0.863
-> 0.820, entropy 0.310 -> 0.261 nats (GRPO: 0.242).
Three seeds, without refills, after 112,507 sampled tokens: held-out entropy 0.283 in stage 1, 0.273
in stage 2 alone (difference 0.010, standard error 0.004); pass@1 0.390 and 0.397.
"""

import dataclasses

from entrolab import aggregate, presets
from entrolab.experiment import Experiment
from entrolab.follow import BUFFER, MAX_TOKENS, SAMPLES
from entrolab.methods import dapo, grpo, ppo
from entrolab.objective import Objective, term
from entrolab.rollout.branch import CUTS, PREFIX, Choose, Cure, Cuts, Verify, originals_of
from entrolab.rollout.switch import Switch


def get_config(*, preset: str = "tiny", seed: int = 0, steps: int = 0, originals: int | None = None,
               branches: int | None = None, most: int | None = None, until: int | None = None,
               choose: Choose = "entropy", verify: Verify | None = None, cuts: Cuts | None = None,
               refills: int | None = None) -> Experiment:
  base = presets.get(preset)
  k = base.strengths("cure", originals=originals, branches=branches, most=most, until=until,
                     verify=verify, cuts=cuts, refills=refills)
  longest = base.sampling.max_tokens + max(base.sampling.max_tokens // 4, 1)
  sampling = dict(samples=k.originals * (1 + k.branches), refills=k.refills, max_tokens=longest)
  base = dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **sampling))
  stage1 = Cure(originals_of(k.branches).fill(base), k.branches, most=k.most, choose=choose,
                verify=k.verify, admissible=CUTS[k.cuts], room=PREFIX.fill(base))
  stage2 = dataclasses.replace(stage1, originals=SAMPLES.fill(base), branches=0)
  overlong = term(dapo.overlong, max_tokens=MAX_TOKENS, buffer=BUFFER)
  objective = Objective(reward=(term(grpo.outcome, wrong=-1.0), overlong),
                        advantage=term(grpo.group_advantage, size=SAMPLES),
                        surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28, dual=10.0),
                        weights=(term(dapo.has_signal, size=SAMPLES),),
                        aggregate=term(aggregate.selected_mean))
  steps = steps or (36 if preset == "tiny" else 0)  # in two minutes: three programs to compile
  return base.experiment("cure", objective, seed=seed, steps=steps, taken=k.taken,
                         rollout=Switch(stage1, stage2, k.until))
