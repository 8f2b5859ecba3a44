"""Filling in a booking form as an instruction says, with a single reward for a right form.

  from=oslo to=rome depart=friday seats=two | seats=two | next from
  from=oslo    next to
  ...          next submit
  submit       ends the episode: reward 1 if every field is as the instruction says

No observation before the end depends on whether a value is right, so that with many open fields
random actions never earn the reward. `eased` fills in all but a few fields beforehand: the warm
start of QWeb's curriculum (Gur et al., Learning to Navigate the Web, arXiv:1812.09195), from which
a success gate (`control.Gate`) opens further fields.
"""

import dataclasses

import numpy as np

from entrolab.environments import Spoken
from entrolab.tasks.task import Example, Generated, Step, drawn, held_out, operands

CITIES = ("cairo", "lima", "oslo", "paris", "rome", "tokyo")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
NUMBERS = ("one", "two", "three", "four", "five", "six")
FIELDS = {"from": CITIES, "to": CITIES, "depart": DAYS, "return": DAYS, "seats": NUMBERS,
          "bags": NUMBERS, "class": ("first", "business", "economy"),
          "meal": ("fish", "meat", "vegan")}
Pairs = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class State:
  """An instruction and the form so far."""
  instruction: Pairs  # (field, value) pairs, in the order of the text
  form: Pairs  # (field, value) pairs of the fields that are filled in

  @property
  def right(self) -> bool:
    """Whether every field is as the instruction says."""
    return dict(self.instruction) == dict(self.form)

  @property
  def open(self) -> str:
    """The first field of the instruction that is not filled in; empty when all are."""
    filled = dict(self.form)
    return next((field for field, _ in self.instruction if field not in filled), "")


@dataclasses.dataclass(frozen=True)
class Form(Generated, Spoken):
  """A form whose instruction names its fields in random order.

  One instruction in four, by its fields and values in sorted order, is for evaluation. Raises
  ValueError for `fields` out of range.
  """
  fields: int = 7  # the first so many of FIELDS
  slips: float = 0.0  # probability that the expert, if it draws, writes another value

  def __post_init__(self) -> None:
    if not 1 <= self.fields <= len(FIELDS):
      raise ValueError(f"{self!r}: 1 to {len(FIELDS)} fields")

  @property
  def max_prompt(self) -> int:
    """Words of the instruction, a form with all but one field filled in, and `next FIELD`."""
    return self.fields + max(self.fields - 1, 1) + 4

  @property
  def max_observation(self) -> int:
    """Words of `next FIELD`."""
    return 2

  def words(self) -> tuple[str, ...]:
    """Every word of prompts, observations and actions."""
    filled = [f"{field}={value}" for field, values in FIELDS.items() for value in values]
    return (*FIELDS, *filled, "|", "empty", "next", "submit")

  def draw(self, part: int, seed: int, index: int) -> Example:
    """An empty form with an instruction of the part."""
    rng = np.random.default_rng([seed, part, index, 72])
    names = list(FIELDS)[:self.fields]

    def instruction() -> Pairs:
      return tuple((names[i], str(rng.choice(FIELDS[names[i]])))
                   for i in rng.permutation(self.fields))

    found = drawn(instruction, lambda made: held_out(operands(spoken(made)), 4) == bool(part),
                  repr(self))
    return Example(index, opening(State(found, ())), spoken(found), "form")

  def question(self, example: Example) -> str:
    """The fields and values of the instruction in sorted order: what is held out."""
    return operands(example.answer)

  def eased(self, example: Example, level: int) -> Example:
    """The example with all but `level` fields filled in; its id decides which.

    Raises ValueError for a level outside 1 to the number of fields.
    """
    if not 1 <= level <= self.fields:
      raise ValueError(f"form of {self.fields} fields, level {level}: 1 to {self.fields} are open")
    state, _ = self.reset(example)
    filled = np.random.default_rng([example.id, 73]).permutation(self.fields)[level:]
    form = tuple(pair for at, pair in enumerate(state.instruction) if at in filled)
    return dataclasses.replace(example, prompt=opening(State(state.instruction, form)))

  def reset(self, example: Example) -> tuple[State, str]:
    """The instruction and the form as the example's prompt shows them."""
    instruction, form, _ = example.prompt.split(" | ")
    filled = () if form == "empty" else pairs(form)
    return State(pairs(instruction), filled), example.prompt

  def step(self, state: State, text: str) -> Step:
    """`FIELD=VALUE`, which also replaces a value, or `submit`; other texts change nothing."""
    field, _, value = text.strip().partition("=")
    if (field, value) == ("submit", ""):
      return state, following(state), float(state.right), True
    if value in FIELDS.get(field, ()):
      form = {**dict(state.form), field: value}
      state = dataclasses.replace(state, form=tuple(form.items()))
    return state, following(state), 0.0, False

  def expert(self, state: State, rng: np.random.Generator | None = None) -> str:
    """Fills in the first open field of the instruction, or submits; with an rng it may slip."""
    field = state.open
    if not field:
      return "submit"
    value = dict(state.instruction)[field]
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
  """The observation: the next open field."""
  return f"next {state.open or 'submit'}"


def opening(state: State) -> str:
  """The prompt: instruction, form, and the next open field."""
  return f"{spoken(state.instruction)} | {spoken(state.form) or 'empty'} | {following(state)}"
