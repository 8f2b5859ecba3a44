"""Rotary positions of a config.json: read as transformers 5 reads them, or refused.

The object under rope_scaling or rope_parameters, completed by the entries beside it, is one
reading. Every entry of it acts; an entry that would not act, two places with different values, and
two objects with different readings are refused. So are kinds whose rates depend on the longest
sequence of a batch (dynamic, longrope): a row's tokens would depend on who else is there.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from entrolab.models.parameters import Linear, Llama3, Proportional, Stretch, Yarn

PLACES = ("rope_scaling", "rope_parameters")  # names of older and of newer files
THETA, PART, ORIGINAL = "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"
# what is taken from beside the object where the object does not have it
BESIDE = (THETA, PART, ORIGINAL)
ANY = {"rope_type", "type", THETA, PART}  # entries that an object of any kind may have
# the fields of a record here, and their names in config.json
NAMES = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
         "original": ORIGINAL, "gain": "attention_factor", "fast": "beta_fast",
         "slow": "beta_slow", "truncate": "truncate", "part": PART}


class _Reader:
  """The entries of one object; what it refuses is named with the file, the object and the choices.
  """

  def __init__(self, entries: Mapping[str, Any], longest: int, refuse: Callable[[str], ValueError]):
    self.entries, self.longest, self.refuse = entries, longest, refuse

  def number(self, key: str, default: float | None = None, *, least: float = 0.0,
             most: float = math.inf) -> float:
    """A finite number from `least` to `most`; null and a missing one are the default."""
    value = self.entries.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not (
        least <= value <= most and math.isfinite(value)):
      upto = "" if most == math.inf else f" to {most:g}"
      raise self.refuse(f"{key}={value!r} must be a number of at least {least:g}{upto}")
    return float(value)

  def original(self) -> int:
    """Tokens of context before the change: those of the model where nothing else is said."""
    value = self.number(ORIGINAL, self.longest, least=1.0)
    if value != int(value):
      raise self.refuse(f"{ORIGINAL}={value!r} must be a whole number")
    return int(value)


def _linear(reader: _Reader) -> Linear:
  return Linear(reader.number("factor", least=1.0))


def _llama3(reader: _Reader) -> Llama3:
  low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
  if not 0.0 < low < high:
    raise reader.refuse(f"low_freq_factor={low} must be over 0 and below high_freq_factor={high}")
  return Llama3(reader.number("factor", least=1.0), low, high, reader.original())


def _yarn(reader: _Reader) -> Yarn:
  original, entries = reader.original(), reader.entries
  if "factor" not in entries:
    raise reader.refuse("no factor")
  # null: the ratio of the two lengths
  factor = reader.number("factor", reader.longest / original, least=1.0)
  fast, slow = reader.number("beta_fast", 32.0), reader.number("beta_slow", 1.0)
  if not 0.0 < slow <= fast:
    raise reader.refuse(f"beta_slow={slow} must be over 0 and at most beta_fast={fast}")
  truncate = entries.get("truncate", True)
  if not isinstance(truncate, bool):
    raise reader.refuse(f"truncate={truncate!r}; choices: true, false")
  scales = [key for key in ("mscale", "mscale_all_dim") if entries.get(key) is not None]
  gain = _mscale(factor)
  if scales:
    if len(scales) < 2 or entries.get("attention_factor") is not None:
      raise reader.refuse(f"{scales[0]} acts beside the other of mscale and mscale_all_dim, and "
                          "without attention_factor")
    over, under = (reader.number(key, least=1e-6) for key in scales)
    gain = _mscale(factor, over) / _mscale(factor, under)
  gain = reader.number("attention_factor", gain, least=1e-6)
  return Yarn(factor, original, gain, fast, slow, truncate)


def _mscale(factor: float, scale: float = 1.0) -> float:
  return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def _proportional(reader: _Reader) -> Proportional:
  return Proportional(reader.number(PART, 1.0, most=1.0), reader.number("factor", 1.0, least=1e-6))


# kind -> (its further entries, what makes the record of them)
KINDS: dict[str, tuple[frozenset[str], Callable[[_Reader], Stretch | None]]] = {
    "default": (frozenset(), lambda reader: None),
    "linear": (frozenset({"factor"}), _linear),
    "llama3": (frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL}), _llama3),
    "yarn": (frozenset({"factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale",
                        "mscale_all_dim", "truncate"}), _yarn),
    "proportional": (frozenset({"factor"}), _proportional)}


def read(facts: Mapping[str, Any], longest: int, where: str) -> tuple[float, Stretch | None]:
  """(theta, stretch) of a config.json, whose model has `longest` positions.

  Raises ValueError with the value, the place and the choices.
  """
  objects = {place: facts[place] for place in PLACES if facts.get(place) not in (None, {})}
  if not objects:
    return _reading(facts, longest, PLACES[-1], {}, where)
  first, *others = [_reading(facts, longest, place, given, where)
                    for place, given in objects.items()]
  if others and others[0] != first:
    raise ValueError(f"{where}: rope_scaling={objects[PLACES[0]]} and rope_parameters="
                     f"{objects[PLACES[1]]} are two different rotations; leave one of them")
  return first


def _reading(facts: Mapping[str, Any], longest: int, place: str, given: Any, where: str
             ) -> tuple[float, Stretch | None]:
  """(theta, stretch) by the object at a place and the entries beside it."""
  def refuse(why: str) -> ValueError:
    known = ", ".join(f"{kind} ({', '.join(sorted(names))})" if names else kind
                      for kind, (names, _) in KINDS.items())
    return ValueError(f"{where}: {place}={given} is not supported: {why}; known: {known}")

  if not isinstance(given, dict):
    raise refuse("it must be an object")
  kind, *again = [given[key] for key in ("rope_type", "type") if key in given] or ["default"]
  if again not in ([], [kind]) or not isinstance(kind, str) or kind not in KINDS:
    raise refuse(f"rope_type {' and '.join(map(repr, (kind, *again)))}")
  names, make = KINDS[kind]
  unknown = sorted(given.keys() - ANY - names)
  if unknown:
    raise refuse(f"{unknown[0]} does nothing in {kind}")

  entries = dict(given)
  for key in BESIDE:
    if key not in facts or key == ORIGINAL and key not in names:
      continue
    if key in given and given[key] != facts[key]:
      raise ValueError(f"{where}: two values of {key}: {facts[key]!r}, and {given[key]!r} in "
                       f"{place}; leave one of them")
    entries[key] = facts[key]
  reader = _Reader(entries, longest, refuse)
  theta = 1e4
  if THETA in entries:
    theta = reader.number(THETA, entries[THETA])
    if theta <= 1.0:
      raise refuse(f"{THETA}={theta!r} must be over 1")
  if kind != "proportional" and reader.number(PART, 1.0) != 1.0:
    raise ValueError(f"{where}: {PART}={entries[PART]!r} is not supported; {kind} positions rotate "
                     "whole heads, and rope_type proportional a part of them")
  return theta, make(reader)


def describe(theta: float, stretch: Stretch | None) -> dict[str, Any]:
  """The entries of a config.json that `read` reads."""
  if stretch is None:
    return {THETA: theta}
  kind = type(stretch).__name__.lower()
  values = {NAMES[name]: value for name, value in dataclasses.asdict(stretch).items()}
  return {THETA: theta, "rope_scaling": {"rope_type": kind, **values}}
