"""A block of further groups at a controlled temperature, beside the groups of every step.

Arbitrary Entropy Policy Optimization learns from right answers drawn hotter or colder than the
policy; see `methods.aepo_arbitrary`. The first prompts of a step are sampled once more at the
temperature that the controller sets; how many is fixed, so that shapes never change, and what of
them is used is the objective's choice.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from entrolab import sharding
from entrolab.rollout.engine import Engine, SingleTurn, row_keys
from entrolab.rollout.strategy import Drawn, Feature, Request, Rollout


@dataclasses.dataclass(frozen=True)
class Tempered(SingleTurn):
  """P groups as `Plain`, and after them P / one_in groups of the first of these prompts, drawn at
  the controlled value `control`.

  Column `tempered` bool [B] marks the further rows. Their keys have branch 1. They form
  separate groups, so that an advantage compares a tempered row with tempered ones. All rows are
  drawn in one call. Raises ValueError where P is under one_in or the groups do not divide over the
  mesh, TypeError where no controller has the value.
  """
  one_in: int = 4  # P over the further groups
  control: str = "temperature"  # the controlled value that is their temperature
  columns = ("tempered",)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also refills."""
    return {**super().unsupported,
            "refills": "tempered groups are not drawn again; set sampling.refills=0"}

  def groups(self, prompts: int) -> int:
    """Groups in the batch of a step of `prompts` prompts."""
    return prompts + prompts // self.one_in

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified rows of one step, tempered groups last."""
    if self.control not in request.control:
      raise TypeError(f"Tempered(control={self.control!r}): no controller has it; choices: "
                      f"{', '.join(request.control) or 'none'}")
    sampling = request.sampling
    examples = engine.everyones(list(request.next_prompts()))
    count, further = len(examples), self.groups(len(examples)) - len(examples)
    self._check_groups(engine, count, further)
    # the further groups come last in the batch, so that the prompts of a group of processes are
    # others than those that it has read
    places = engine.groups.places(count + further)
    prompted = engine.prompted([examples[place % count] for place in places])
    branch = (places >= count).astype(np.int32)
    keys = row_keys(request.key, np.int32(request.step), prompted.ids, sampling.samples,
                    branch=engine.place(branch))
    tempered = np.repeat(branch == 1, sampling.samples)
    # one temperature a row, so that a change of the controlled value never recompiles
    temperature = np.where(tempered, float(request.control[self.control]), sampling.temperature)
    samples = engine.sample(request.params, prompted, keys, sampling,
                            temperature=engine.place(temperature.astype(np.float32)))
    rollout = engine.judged(Drawn(prompted, keys, samples))
    batch = rollout.batch.replace(tempered=engine.place(tempered))
    return dataclasses.replace(rollout, batch=batch)

  def _check_groups(self, engine: Engine, count: int, further: int) -> None:
    """Raises ValueError for no further group, or for groups that do not divide over the mesh."""
    if not further:
      raise ValueError(f"Tempered(one_in={self.one_in}) with {count} prompts: no group to draw "
                       f"again; one_in at most {count}")
    ways = sharding.row_devices(engine.mesh)
    if (count + further) % ways:
      raise ValueError(f"{count} + {further} groups do not divide over data x fsdp={ways}; "
                       "change sampling.prompts or one_in")
