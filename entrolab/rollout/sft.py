"""Responses that are given, not sampled: supervised fine-tuning in the loop of everything else."""

import dataclasses
from typing import ClassVar

import numpy as np

from entrolab.rollout import plain
from entrolab.rollout.decode import Samples


@dataclasses.dataclass(frozen=True)
class SFT:
  """The solution of every prompt, `task.solution(example)`, and a stop token, as its one response.

  Nobody sampled them: the rows have no log-probs but those of the policy in training. Raises
  TypeError for a task without solutions, ValueError for several samples a prompt, for refills, and
  for a solution that is longer than a response may be.
  """
  engine: ClassVar[type[plain.Sampler]] = plain.Sampler
  columns: ClassVar[tuple[str, ...]] = ()

  def __call__(self, sampler: plain.Sampler, ask: plain.Request) -> plain.Rollout:
    """The rows of one step; none of them counts as sampled."""
    samples, max_tokens = ask.knobs["samples"], ask.knobs["max_tokens"]
    if samples != 1 or ask.refills:
      raise ValueError(f"sampling.samples={samples}, sampling.refills={ask.refills}: a prompt has "
                       "one demonstration; set them to 1 and 0")
    asked = sampler.asked(ask.draw())
    texts = [sampler.task.solution(example) for example in asked.examples]
    tokens = np.full((len(texts), max_tokens), sampler.tokenizer.pad_id, np.int32)
    mask = np.zeros((len(texts), max_tokens), bool)
    for row, (text, example) in enumerate(zip(texts, asked.examples, strict=True)):
      ids = [*sampler.tokenizer.encode(text), int(sampler.stop[0])]
      if len(ids) > max_tokens:
        raise ValueError(f"the solution of example {example.id} has {len(ids)} tokens with its "
                         f"stop token, and sampling.max_tokens={max_tokens}")
      tokens[row, :len(ids)], mask[row, :len(ids)] = ids, True
    place = sampler.place
    out = Samples(*place((tokens, mask)), finished=place(np.ones(len(texts), bool)), steps=0)
    keys = plain.row_keys(ask.key, np.int32(ask.step), asked.ids, 1)
    return dataclasses.replace(sampler.judged(asked, keys, out, 1, texts=texts), sampled=0)
