"""The choices of a question, in every shape that public data sets have."""

import itertools
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHAPES = ('a list of texts; an object, letter -> text; {"text": [...], "label": [...]}; a list of '
          '{"label": letter, "text": text}')
Pairs = list[tuple[str, str]]


def letters() -> Iterator[str]:
  """A, B, ... Z, AA, AB, ...: any number of them."""
  for size in itertools.count(1):
    yield from map("".join, itertools.product(string.ascii_uppercase, repeat=size))


def pairs(choices: Any, where: str) -> Pairs:
  """(letter, text) of every choice, in their order; none for null and for what is empty.

  Letters are those that the data name, else A, B, C and on. A null of an object is a choice that
  this question does not have, as tables of many questions store it; in a list it would shift the
  letters. Raises ValueError, naming `where`, for any other shape: no choice is lost in silence.
  """
  if choices is None:
    return []
  if isinstance(choices, Mapping):
    found = _of_object(choices, where)
  elif isinstance(choices, list | tuple):
    found = _of_list(choices, where)
  else:
    raise ValueError(f"{where}: choices {_shown(choices)}; shapes: {SHAPES}")
  names = [letter for letter, _ in found]
  repeated = [name for name in names if names.count(name) > 1]
  if repeated:
    raise ValueError(f"{where}: two choices have the letter {repeated[0]!r}")
  return found


def lettered(problem: str, choices: Any, where: str) -> str:
  """The problem with a line `A. text` below it for every choice. Raises ValueError as `pairs`."""
  return "\n".join([problem, *(f"{letter}. {text}" for letter, text in pairs(choices, where))])


def _of_object(choices: Mapping[Any, Any], where: str) -> Pairs:
  columns = {"text", "label"} & choices.keys()
  if not columns or any(isinstance(choices[name], str) for name in columns):
    if columns:  # one choice that stands alone
      raise ValueError(f"{where}: choices {_shown(choices)}; shapes: {SHAPES}")
    return [(_letter(letter, where), _text(text, letter, where))
            for letter, text in choices.items() if text is not None]
  texts, labels = choices.get("text"), choices.get("label")
  if texts is None and labels is None:
    return []
  if not isinstance(texts, list | tuple) or choices.keys() - {"text", "label"}:
    raise ValueError(f"{where}: choices {_shown(choices)}; shapes: {SHAPES}")
  if labels is None:
    return _of_list(texts, where)
  if not isinstance(labels, list | tuple) or len(labels) != len(texts):
    raise ValueError(f"{where}: {len(texts)} choices and labels {_shown(labels)}")
  return [(_letter(label, where), _text(text, label, where))
          for label, text in zip(labels, texts, strict=True)]


def _of_list(choices: Sequence[Any], where: str) -> Pairs:
  objects = [choice for choice in choices if isinstance(choice, Mapping)]
  if not objects:
    return [(letter, _text(text, letter, where))
            for letter, text in zip(letters(), choices, strict=False)]
  if len(objects) != len(choices) or any(o.keys() != {"text", "label"} for o in objects):
    raise ValueError(f"{where}: choices {_shown(choices)}; shapes: {SHAPES}")
  return [(_letter(o["label"], where), _text(o["text"], o["label"], where)) for o in objects]


def _letter(label: Any, where: str) -> str:
  name = str(label).strip() if isinstance(label, str | int) and not isinstance(label, bool) else ""
  if not name:
    raise ValueError(f"{where}: {_shown(label)} is no letter of a choice")
  return name


def _text(text: Any, letter: Any, where: str) -> str:
  if isinstance(text, str):
    return text
  if isinstance(text, int | float):  # numbers, and true and false, as JSON spells them
    return json.dumps(text)
  raise ValueError(f"{where}: choice {letter} must be a text and is {_shown(text)}")


def _shown(value: Any) -> str:
  return repr(value)[:60]
