"""A block of further groups at a controlled temperature, beside the groups of every step.

Arbitrary Entropy Policy Optimization learns from right answers drawn hotter or colder than the
policy; see `methods.aepo_arbitrary`. The first prompts of a step are asked once more at the
temperature that the controller holds; how many is fixed, so that shapes never change, and what of
them is used is the objective's choice.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from entrolab import sharding
from entrolab.rollout.plain import Request, Rollout, Sampler, row_keys


@dataclasses.dataclass(frozen=True)
class Tempered:
  """P groups as `Plain`, and after them (per process) P / one_in groups of the first of these
  prompts, drawn at `control`, a controlled value.

  Column `tempered` bool [B] marks the further rows. Their keys have branch 1, and their groups are
  their own, so that an advantage compares a tempered row with tempered ones. All rows are drawn in
  one call. Raises ValueError where P is under one_in or refills are asked for, TypeError where no
  controller holds the value.
  """
  one_in: int = 4
  control: str = "temperature"
  engine: ClassVar[type[Sampler]] = Sampler
  columns: ClassVar[tuple[str, ...]] = ("tempered",)

  def groups(self, prompts: int) -> int:
    """Groups in the batch of a step of `prompts` prompts."""
    return prompts + prompts // self.one_in

  def __call__(self, sampler: Sampler, ask: Request) -> Rollout:
    """The verified rows of one step, tempered groups last."""
    if ask.refills:
      raise ValueError(f"sampling.refills={ask.refills}: tempered groups are not drawn again; "
                       "set sampling.refills=0")
    if self.control not in ask.control:
      raise TypeError(f"Tempered(control={self.control!r}): no controller holds it; have: "
                      f"{', '.join(ask.control) or 'none'}")
    examples, samples = list(ask.draw()), ask.knobs["samples"]
    count = len(examples)
    again = examples[:count // self.one_in]
    if not again:
      raise ValueError(f"Tempered(one_in={self.one_in}) with {count} prompts: no group to draw "
                       f"again; one_in at most {count}")
    ways = sharding.row_devices(sampler.mesh) // jax.process_count()
    if (count + len(again)) % max(ways, 1):
      raise ValueError(f"{count} + {len(again)} groups do not divide over data x fsdp={ways}; "
                       "change sampling.prompts or one_in")
    asked = sampler.asked(examples + again)
    branch = np.repeat([0, 1], [count, len(again)])
    keys = row_keys(ask.key, np.int32(ask.step), asked.ids, samples,
                    branch=sampler.place(branch.astype(np.int32)))
    hot = np.repeat(branch == 1, samples)
    heat = np.where(hot, float(ask.control[self.control]), ask.knobs["temperature"])
    knobs = {**ask.knobs, "temperature": sampler.place(heat.astype(np.float32))}
    out = sampler.sample(ask.params, asked, keys, **knobs)
    made = sampler.judged(asked, keys, out, samples)
    return dataclasses.replace(made, batch=made.batch.replace(tempered=sampler.place(hot)))
