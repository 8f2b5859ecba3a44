"""Responses that are given, not sampled: supervised fine-tuning in the loop of everything else."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from entrolab.rollout.decode import Samples
from entrolab.rollout.engine import Engine, SingleTurn, row_keys
from entrolab.rollout.strategy import Drawn, Feature, Request, Rollout
from entrolab.tasks.task import Example, within


@dataclasses.dataclass(frozen=True)
class SFT(SingleTurn):
  """The solution of every prompt, `task.solution(example)`, and a stop token, as its one response.

  Nobody sampled them: the rows have no log-probs but those of the policy in training. Raises
  TypeError for a task without solutions, ValueError where a prompt has other samples than copies,
  and for a solution that is longer than a response may be.
  """
  copies: int = 1  # rows of a prompt, all of them its demonstration

  @property
  def samples(self) -> int:
    """Rows of a group."""
    return self.copies

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also refills and slots: nothing is drawn."""
    return {**super().unsupported,
            "refills": "a prompt has one demonstration, which is right; set sampling.refills=0",
            "slots": "demonstrations are not decoded; set sampling.slots=0"}

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The rows of one step; none of them counts as sampled."""
    sampling = request.sampling
    if sampling.samples != self.copies:
      raise ValueError(f"sampling.samples={sampling.samples}: a prompt has one demonstration; set "
                       f"sampling.samples={self.copies}, or SFT(copies={sampling.samples})")
    prompted = engine.prompted(request.next_prompts())
    examples = [example for example in prompted.examples for _ in range(self.copies)]
    texts = [engine.task.solution(example) for example in examples]
    tokens, mask = self._encoded(engine, examples, texts, sampling.max_tokens)
    samples = Samples(*engine.place((tokens, mask)),
                      finished=engine.place(np.ones(len(texts), bool)), steps=0)
    # the rows have the keys that sampled ones would have: ties of rankings are broken by them
    keys = row_keys(request.key, np.int32(request.step), prompted.ids, self.copies)
    rollout = engine.judged(Drawn(prompted, keys, samples), texts=texts)
    return dataclasses.replace(rollout, sampled=0)

  def _encoded(self, engine: Engine, examples: list[Example], texts: list[str], max_tokens: int
               ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 and mask bool [P, T] of the solutions, each with a stop token."""
    tokens = np.full((len(texts), max_tokens), engine.tokenizer.pad_id, np.int32)
    mask = np.zeros((len(texts), max_tokens), bool)
    for row, (text, example) in enumerate(zip(texts, examples, strict=True)):
      ids = [*engine.tokenizer.encode(text), int(engine.stop_ids[0])]
      within(ids, engine.config.vocab_size, f"the solution of example {example.id}")
      if len(ids) > max_tokens:
        raise ValueError(f"the solution of example {example.id} has {len(ids)} tokens with its "
                         f"stop token, and sampling.max_tokens={max_tokens}")
      tokens[row, :len(ids)] = ids
      mask[row, :len(ids)] = True
    return tokens, mask
