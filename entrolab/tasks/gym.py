"""The generators of reasoning-gym, with the scorers of that library."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from entrolab.tasks.task import Example, Lazy, Task, opened, part_of
from entrolab.verify import Verdict


@dataclasses.dataclass(frozen=True)
class ReasoningGym(Task):
  """A generator of reasoning-gym (extra [tasks]); right where its scorer gives at least 0.99.

  Training and evaluation have different seeds; a generator of few problems may still give both the
  same one. Raises ValueError for game_of_life_halting, whose scorer rewards meaningless text;
  `examples` raises what the generator raises for its options.
  """
  name: str  # of the generator
  size: int = 5000  # examples of a split
  options: tuple[tuple[str, Any], ...] = ()  # (name, value) pairs of the generator's configuration
  max_prompt: int = 256  # tokens; longer prompts are left out
  stop: tuple[str, ...] = ()  # strings that end a response

  def __post_init__(self) -> None:
    if self.name == "game_of_life_halting":
      raise ValueError("game_of_life_halting: its scorer rewards meaningless text; choose another "
                       "generator")

  def examples(self, split: str, seed: int) -> Lazy:
    """`size` rows, deterministic in (seed, split)."""
    data = _gym(self.name, self.size, 2 * seed + part_of(split), self.options)
    source = f"{self.name}/{split}/{seed}"
    make = lambda i: Example(i, data[i]["question"], str(data[i]["answer"]), source)
    return Lazy(self.size, make, f"{self!r}.examples({split!r}, {seed})", listed=True)

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the question in the chat format."""
    text = tokenizer.chat([{"role": "user", "content": example.prompt}])
    return opened(tokenizer, tokenizer.encode(text))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the generator's scorer, on the last <answer>...</answer>, else on the whole response.

    Where the scorer raises, the response is wrong, with the exception's name as the reason.
    """
    verdicts = []
    for text, example in zip(texts, examples, strict=True):
      # the source names split and seed, so that a verdict needs no state of this object
      split, seed = example.source.split("/")[1:]
      data = _gym(self.name, self.size, 2 * int(seed) + part_of(split), self.options)
      answer = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
      try:
        score = float(data.score_answer(answer, data[example.id]))
      except Exception as error:  # the library has a hundred scorers, which fail in many ways
        verdicts.append(Verdict("wrong", f"the scorer raised {type(error).__name__}"))
        continue
      verdicts.append(Verdict("right" if score >= 0.99 else "wrong", f"score {score:.2f}"))
    return verdicts


@functools.lru_cache(maxsize=8)
def _gym(name: str, size: int, seed: int, options: tuple[tuple[str, Any], ...]):
  """A data set of reasoning-gym. Raises ImportError without the library."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise ImportError("reasoning-gym tasks need `pip install 'entrolab[tasks]'`") from error
  return reasoning_gym.create_dataset(name, size=size, seed=seed, **dict(options))
