"""What a run trains on and what it is evaluated on: both numbers wherever something is left out."""

import dataclasses
from typing import Any

from entrolab.tasks.task import Lazy, Task


@dataclasses.dataclass(frozen=True)
class Facts:
  """The problems of a run, for people (`sentences`) and for config.json (`as_json`)."""

  training: Lazy  # an epoch
  evaluation: Lazy  # every evaluation
  wanted: int  # problems of an evaluation that were asked for
  per_step: int  # prompts of a step
  both: int  # problems of the evaluation that are trained on, by the user's choice

  @classmethod
  def of(cls, task: Task, training: Lazy, evaluation: Lazy, wanted: int, per_step: int) -> "Facts":
    """Counts the problems in both; only rows of a list can be, since drawn ones are held out."""
    both = 0
    if training.listed:
      questions = set(map(task.question, training))
      both = sum(task.question(example) in questions for example in evaluation)
    return cls(training, evaluation, wanted, per_step, both)

  def sentences(self) -> list[str]:
    """What is trained on; what is evaluated on; what is wrong with that."""
    rest = len(self.training) % self.per_step
    epoch = (f"; a step takes {self.per_step}, so that every epoch leaves out {rest} of "
             f"{len(self.training)}, others each time") if rest else ""
    count = len(self.evaluation)
    fewer = f" of the {self.wanted} of evaluation.problems" if count < self.wanted else ""
    found = [f"training: {_counted(self.training)}{epoch}",
             f"evaluation: {count} different problems{fewer}{_left_out(self.evaluation)}"]
    if self.both:
      found.append(f"evaluation: {self.both} of {count} problems are trained on, too")
    return found

  def as_json(self) -> dict[str, Any]:
    """The same numbers by name."""
    return {"training": {"problems": len(self.training), "left_out": self.training.left_out},
            "evaluation": {"problems": len(self.evaluation), "wanted": self.wanted,
                           "left_out": self.evaluation.left_out, "trained_on": self.both}}


def _counted(source: Lazy) -> str:
  """'90 of 100 rows (7 are problems of the evaluation, 3 have ...)'."""
  total = len(source) + sum(source.left_out.values())
  kind = "rows" if source.listed else "draws"
  if not source.left_out:
    return f"{total} {kind}"
  return f"{len(source)} of {total} {kind}{_left_out(source)}"


def _left_out(source: Lazy) -> str:
  reasons = ", ".join(f"{count} {reason}" for reason, count in source.left_out.items())
  return f" ({reasons})" if reasons else ""
