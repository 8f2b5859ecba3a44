"""The generators of reasoning-gym, with the scorers of that library.

Problems are made and answers scored in confined workers alone (`verify.reasoning`).
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from entrolab.tasks.task import Example, Lazy, Task, opened, part_of, without
from entrolab.verify import Verdict
from entrolab.verify.sandbox import values
from entrolab.verify.workers import pool

MAX_CHARACTERS = 100_000  # of an answer
SECONDS = 5.0  # in which an answer must be scored
MAKE_SECONDS = 120.0  # in which a problem must be made


@dataclasses.dataclass(frozen=True)
class ReasoningGym(Task):
  """A generator of reasoning-gym (extra [tasks]); right where its scorer gives at least 0.99.

  Evaluation is the same for every seed of a run. A generator of few problems gives both splits the
  same one: its row is left out of training. Raises ValueError for game_of_life_halting, whose
  scorer rewards meaningless text; `examples` raises RuntimeError with what the generator says of
  its options, ImportError without the library.
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
    if part_of(split):
      return self._rows("eval", 0)
    left = without(self._rows("train", seed), _held_out(self), self.question)
    if not len(left):
      raise ValueError(f"{self!r}: all {self.size} rows of training are problems of the "
                       "evaluation; set a larger size, or other options")
    return left

  def _rows(self, split: str, seed: int) -> Lazy:
    """The rows that the generator makes."""
    source = f"{self.name}/{split}/{seed}"
    context = json.dumps(self._context(source, None))
    _problem(context, 0)  # the options are checked here, not when a row is drawn
    make = lambda i: Example(i, *_problem(context, i), source)
    return Lazy(self.size, make, f"{self!r}.examples({split!r}, {seed})", listed=True)

  def _seed(self, split: str, seed: int) -> int:
    """The generator's seed. It makes row i from seed + i, so that seeds lie `size` apart: else a
    row of one split, or of one run, would be another row of the other."""
    return 0 if part_of(split) else self.size * (seed + 1)

  def question(self, example: Example) -> str:
    """The problem, whatever its blanks. Its words in sorted order would be those of another one:
    cubes, grids and strings differ in the order of their signs alone."""
    return " ".join(example.prompt.split())

  def prompt(self, example: Example, tokenizer) -> list[int]:
    """Token ids of the question in the chat format."""
    text = tokenizer.chat([{"role": "user", "content": example.prompt}])
    return opened(tokenizer, tokenizer.encode(text))

  def verify(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """By the generator's scorer, on the last <answer>...</answer>, else on the whole response.

    Where the scorer raises, the response is wrong, with the exception's name as the reason. It is
    unknown where the scorer takes more time or memory than it may, where it ends its process,
    where its score is not finite, and where the generator makes another problem of the example than
    before. Raises SandboxError where the scorer cannot be confined.
    """
    verdicts: dict[int, Verdict] = {}  # by row
    # the rows of each (source, problem, reference, answer)
    jobs: dict[tuple[str, int, str, str], list[int]] = {}
    for row, (text, example) in enumerate(zip(texts, examples, strict=True)):
      answer = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
      if len(answer) > MAX_CHARACTERS:
        why = f"an answer of {len(answer)} characters, at most {MAX_CHARACTERS} are scored"
        verdicts[row] = Verdict("unknown", why)
      else:
        job = example.source, example.id, example.answer, answer
        jobs.setdefault(job, []).append(row)
    # the rows of a group stand together: a worker prepares a problem once for all of them
    asked = [pool.Job(self._context(source, problem), (answer, reference))
             for source, problem, reference, answer in jobs]
    for rows, result in zip(jobs.values(), workers().run(asked, seconds=SECONDS), strict=True):
      verdict = Verdict("unknown", result.lost) if result.lost else Verdict(*result.value)
      verdicts.update(dict.fromkeys(rows, verdict))
    return [verdicts[row] for row in range(len(texts))]

  def _context(self, source: str, problem: int | None) -> list:
    """What `reasoning.prepare` makes a problem from."""
    # the source names split and seed, so that a verdict needs no state of this object
    split, seed = source.split("/")[1:]
    options = values.plain(self.options)
    return [self.name, self.size, self._seed(split, int(seed)), options, problem]


def workers() -> pool.Pool:
  """The workers of this process that make problems and score."""
  return pool.shared("entrolab.verify.reasoning", batch_seconds=600.0, grace=120.0)


@functools.lru_cache(maxsize=2**14)
def _problem(context: str, index: int) -> tuple[str, str]:
  """(question, answer) of a problem. Raises RuntimeError where the generator does not make it."""
  job = pool.Job(json.loads(context), (index,))
  result, = workers().run([job], seconds=MAKE_SECONDS, batch_seconds=2 * MAKE_SECONDS)
  if result.lost:
    raise RuntimeError(f"problem {index} of {context}: {result.lost}")
  question, answer = result.value
  return question, answer


@functools.lru_cache(maxsize=8)
def _held_out(task: ReasoningGym) -> frozenset[str]:
  """The questions of evaluation; made once, since every row is."""
  return frozenset(map(task.question, task.examples("eval", 0)))
