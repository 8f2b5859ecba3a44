"""A form of seven fields, one reward for all of it: sparse reward alone, and a gated warm start.

QWeb, arXiv:1812.09195.  Training starts on forms with all but one field filled in; whenever the
running success rate reaches `above`, one more field is left open. Evaluation is on empty forms.
GRPO, the row a whole episode: answers of the page are in its context and not in its loss.

  python -m entrolab.main --config=experiments/form_curriculum.py
  python -m entrolab.main --config=experiments/form_curriculum.py:sparse=true

The policy is cloned, when it starts, on a clerk who writes six values of ten wrong.
Expect (seed 0, 32 empty forms, 95 % intervals): pass@1 0.000 -> 0.072 [0.032, 0.113], pass@16
0.000 -> 0.406 with the gate, which opens the second field at step 22 of 40; both 0.000 -> 0.000
with sparse reward, which pays 5 of 5120 episodes.
Three seeds: 0.072, 0.033, 0.064 with the gate, which ends at two open fields; 0.000 each without.
"""

from entrolab import aggregate, control, presets
from entrolab.experiment import Experiment
from entrolab.follow import SAMPLES, Number
from entrolab.methods import grpo, ppo
from entrolab.objective import Objective, Penalty, term
from entrolab.rollout.multiturn import MultiTurn

FIELDS = Number("task.fields", lambda e: e.task.fields)
TURNS = Number("task.fields + 2", lambda e: e.task.fields + 2)


def get_config(*, seed: int = 0, steps: int = 0, fields: int = 7, above: float = 0.6,
               sparse: bool = False) -> Experiment:
  """above: success rate that opens a field; sparse: empty forms from the first step on."""
  base = presets.form(fields)
  success = Penalty(0.0, term(aggregate.right), scale=term(aggregate.row_mean))  # for the gate
  objective = Objective(
      reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=SAMPLES),
      surrogate=term(ppo.clipped_ratio), penalties=(success,),
      control=(control.Gate(most=FIELDS.fill(base), start=FIELDS.fill(base) if sparse else 1,
                            above=above),))
  rollout = MultiTurn(turns=TURNS.fill(base), action=4, level="level")
  return base.experiment("form_curriculum", objective, seed=seed, steps=steps, rollout=rollout)
