"""Filling a booking form as an instruction says, with one reward for a form that is right.

  from=oslo to=rome depart=friday seats=two | seats=two | next from
  from=oslo    next to
  ...          next submit
  submit       ends the episode: reward 1 if every field is as asked

Nothing tells a wrong value from a right one before the end, so that with many open fields chance
never meets the reward. `eased` fills all but a few fields beforehand: the warm start of QWeb's
curriculum (Gur et al., Learning to Navigate the Web, arXiv:1812.09195), which a success gate
(`control.Gate`) takes back field by field.
"""

import dataclasses

import numpy as np

from entrolab.environments import Spoken
from entrolab.tasks.task import Example, Lazy, Step, part_of

CITIES = ("cairo", "lima", "oslo", "paris", "rome", "tokyo")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
NUMBERS = ("one", "two", "three", "four", "five", "six")
FIELDS = {"from": CITIES, "to": CITIES, "depart": DAYS, "return": DAYS, "seats": NUMBERS,
          "bags": NUMBERS, "class": ("first", "business", "economy"),
          "meal": ("fish", "meat", "vegan")}
Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class State:
  """What is asked, in the order of the instruction, and what the form holds."""
  asked: Pairs
  form: Pairs

  @property
  def right(self) -> bool:
    """Whether every field is as asked."""
    return dict(self.asked) == dict(self.form)

  @property
  def open(self) -> str:
    """The first field of the instruction that is not filled; empty when all are."""
    return next((field for field, _ in self.asked if field not in dict(self.form)), "")


@dataclasses.dataclass(frozen=True)
class Form(Spoken):
  """A form of the first `fields` fields, asked in any order. slips: chance that the expert, when
  it draws, writes another value: demonstrations of a clerk who half reads.

  Training and evaluation draw from different seeds. Raises ValueError for a number of fields that
  there are not.
  """
  fields: int = 7
  slips: float = 0.0

  def __post_init__(self) -> None:
    if not 1 <= self.fields <= len(FIELDS):
      raise ValueError(f"{self!r}: 1 to {len(FIELDS)} fields")

  @property
  def max_prompt(self) -> int:
    """The instruction, a form in which all but one field is filled, `next FIELD`."""
    return self.fields + max(self.fields - 1, 1) + 4

  @property
  def max_observation(self) -> int:
    """`next FIELD`."""
    return 2

  def words(self) -> tuple[str, ...]:
    """Every word that is said or understood here."""
    filled = [f"{field}={value}" for field, values in FIELDS.items() for value in values]
    return (*FIELDS, *filled, "|", "empty", "next", "submit")

  def examples(self, split: str, seed: int) -> Lazy:
    """A million empty forms for each (split, seed)."""
    part, name = part_of(split), f"{self!r}.examples({split!r}, {seed})"
    return Lazy(2**20, lambda i: self._make(part, seed, i), name)

  def _make(self, part: int, seed: int, index: int) -> Example:
    rng = np.random.default_rng([seed, part, index, 72])
    names = list(FIELDS)[:self.fields]
    asked = tuple((names[i], str(rng.choice(FIELDS[names[i]])))
                  for i in rng.permutation(self.fields))
    return Example(index, opening(State(asked, ())), spoken(asked), "form")

  def eased(self, example: Example, level: int) -> Example:
    """The example with all but `level` fields filled in, which ones by its id.

    Raises ValueError for a level outside 1 to the number of fields.
    """
    if not 1 <= level <= self.fields:
      raise ValueError(f"form of {self.fields} fields, level {level}: 1 to {self.fields} are open")
    state = self.reset(example)[0]
    kept = np.random.default_rng([example.id, 73]).permutation(self.fields)[level:]
    form = tuple(pair for at, pair in enumerate(state.asked) if at in kept)
    return dataclasses.replace(example, prompt=opening(State(state.asked, form)))

  def reset(self, example: Example) -> tuple[State, str]:
    """The form as the example's prompt shows it."""
    asked, form, _ = example.prompt.split(" | ")
    return State(pairs(asked), () if form == "empty" else pairs(form)), example.prompt

  def step(self, state: State, text: str) -> Step:
    """`FIELD=VALUE`, again for another value, or `submit`; anything else changes nothing."""
    field, _, value = text.strip().partition("=")
    if (field, value) == ("submit", ""):
      return state, following(state), float(state.right), True
    if value in FIELDS.get(field, ()):
      state = dataclasses.replace(state, form=tuple({**dict(state.form), field: value}.items()))
    return state, following(state), 0.0, False

  def expert(self, state: State, rng: np.random.Generator | None = None) -> str:
    """Fills the first open field of the instruction, or submits; with an rng, slips."""
    field = state.open
    if not field:
      return "submit"
    value = dict(state.asked)[field]
    if rng is not None and rng.random() < self.slips:
      value = str(rng.choice([v for v in FIELDS[field] if v != value]))
    return f"{field}={value}"


def spoken(filled: Pairs) -> str:
  """`from=oslo to=rome`"""
  return " ".join(f"{field}={value}" for field, value in filled)


def pairs(text: str) -> Pairs:
  """The inverse of `spoken`."""
  split = [word.partition("=") for word in text.split()]
  return tuple((field, value) for field, _, value in split)


def following(state: State) -> str:
  """What a page shows: the next open field."""
  return f"next {state.open or 'submit'}"


def opening(state: State) -> str:
  """Instruction, form, and what is next."""
  return f"{spoken(state.asked)} | {spoken(state.form) or 'empty'} | {following(state)}"
