"""The domain of every number of an experiment: one table, checked when an experiment is built.

The rule: a number outside its domain is refused where the recipe is loaded, with its value, its
place and what may stand there. A field with a `Literal` type has the choices of its type, one of
type bool is true or false; every other number stands in `FIELDS` or, as a hyper-parameter of a
term, in `KNOBS`.
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from entrolab.terms import Term
from entrolab.typing import name_of

INF = math.inf


@dataclasses.dataclass(frozen=True)
class Domain:
  """An interval. Not-a-number is in none of them."""
  least: float = -INF  # the lower end
  most: float = INF  # the upper end
  whole: bool = False  # whether only integers are in it
  above: bool = False  # whether the lower end is outside
  below: bool = False  # whether the upper end is outside
  infinite: bool = False  # whether infinity is in it, where there is no end
  also: tuple[float, ...] = ()  # numbers that are in it besides
  each: bool = False  # whether it is that of each entry of a tuple
  why: str = ""  # what a special number means

  def __contains__(self, value: Any) -> bool:
    if self.each:
      one = dataclasses.replace(self, each=False)
      return isinstance(value, tuple) and all(entry in one for entry in value)
    if isinstance(value, bool) or not isinstance(
        value, numbers.Integral if self.whole else numbers.Real):
      return False
    number = float(value)
    if number in self.also:
      return True
    if math.isinf(number):
      return self.infinite and self.least <= number <= self.most
    low = number > self.least if self.above else number >= self.least
    return low and (number < self.most if self.below else number <= self.most)

  def __str__(self) -> str:
    kind = "whole number" if self.whole else "number"
    ends = []
    if self.least > -INF:
      ends.append(f"{'above' if self.above else 'at least'} {self.least:g}")
    if self.most < INF:
      ends.append(f"{'below' if self.below else 'at most'} {self.most:g}")
    kind = kind if ends or self.infinite else f"finite {kind}"
    text = " ".join([f"a {kind}", *([" and ".join(ends)] if ends else [])])
    text += "".join(f", or {number:g}" for number in self.also)
    return ("a tuple, each of it " if self.each else "") + text + f" ({self.why})" * bool(self.why)


COUNT = Domain(1, whole=True)
NATURAL = Domain(0, whole=True)
SEED = Domain(0, 2**32 - 1, whole=True)
NOT_NEGATIVE = Domain(0)
POSITIVE = Domain(0, above=True)
ANY = Domain()
SHARE = Domain(0, 1)
SHARE_ABOVE_0 = Domain(0, 1, above=True)
DECAY = Domain(0, 1, below=True)
MAYBE_INFINITE = Domain(infinite=True)
LIMIT = Domain(0, above=True, infinite=True)


def _of(kind: str, **domains: Domain) -> dict[str, Domain]:
  return {f"{kind}.{name}": domain for name, domain in domains.items()}


OFF = "0: none"
TEMPERATURE = dataclasses.replace(NOT_NEGATIVE, why="0: greedy")
TOP_P = dataclasses.replace(SHARE_ABOVE_0, why="1: all tokens")
# file.class.field: the numbers of whatever an experiment holds
FIELDS = {
    **_of("experiment.Experiment", seed=SEED),
    **_of("strategy.Sampling", prompts=COUNT, samples=COUNT, max_tokens=COUNT,
          temperature=TEMPERATURE, top_p=TOP_P, top_k=dataclasses.replace(NATURAL, why="0: all"),
          refills=dataclasses.replace(NATURAL, why=OFF),
          slots=dataclasses.replace(NATURAL, why="0: all rows at once"),
          ahead=dataclasses.replace(NATURAL, most=1, why="choices: 0 (responses of the current "
                                                         "policy), 1")),
    **_of("experiment.Training", steps=NATURAL, updates=COUNT, micro=COUNT, lr=NOT_NEGATIVE,
          warmup=NATURAL, clip_norm=dataclasses.replace(NOT_NEGATIVE, why="0: no clip"),
          weight_decay=NOT_NEGATIVE, b1=DECAY, b2=DECAY, eps=NOT_NEGATIVE,
          measure_every=dataclasses.replace(NATURAL, why=OFF)),
    **_of("experiment.Evaluation", problems=COUNT, samples=COUNT, every=NATURAL,
          ks=dataclasses.replace(COUNT, each=True), temperature=TEMPERATURE, top_p=TOP_P),
    **_of("experiment.Saving", every=NATURAL,
          keep=dataclasses.replace(COUNT, why="the last checkpoint always stays")),
    **_of("experiment.Ledger", every=dataclasses.replace(NATURAL, why=OFF), states=COUNT,
          probes=Domain(2, whole=True, also=(0,), why="0: none; the spread of two or more is the "
                                                      "standard error")),
    **_of("experiment.Mesh", data=dataclasses.replace(COUNT, also=(-1,), why="-1: all that are "
                                                                             "left"),
          fsdp=COUNT, tensor=COUNT),
    **_of("experiment.Reference", every=NATURAL, decay=SHARE),
    **_of("statistics.Spec", top_p=SHARE_ABOVE_0, tempered=POSITIVE, temperature=POSITIVE,
          chunk=NATURAL),
    **_of("objective.Penalty", beta=ANY),
    # controllers
    **_of("control.Gate", most=COUNT, start=COUNT, above=SHARE, memory=DECAY),
    **_of("control.Paced", start=dataclasses.replace(POSITIVE, each=True),
          target=dataclasses.replace(POSITIVE, each=True), kl=NOT_NEGATIVE, above=SHARE),
    **_of("aepo_arbitrary.Switch", target=NOT_NEGATIVE, hot=POSITIVE, cold=POSITIVE),
    **_of("bonus.Adaptive", target=NOT_NEGATIVE, step=NOT_NEGATIVE, start=ANY, low=ANY, high=ANY),
    **_of("canon.Cosine", updates=COUNT),
    **_of("epo.History", strength=ANY, gamma=NOT_NEGATIVE, steps=COUNT),
    **_of("kl.Adaptive", target=POSITIVE, start=NOT_NEGATIVE, rows=COUNT,
          horizon=dataclasses.replace(POSITIVE, infinite=True)),
    **_of("siren.Anchor", value=dataclasses.replace(ANY, why="below 0: measured")),
    **_of("spear.Curriculum", tools=COUNT, imitation=COUNT, strength=NOT_NEGATIVE, updates=COUNT),
    # strategies and their rules
    **_of("aepo_agentic.Branching", samples=COUNT, beam=COUNT, probability=SHARE, weight=ANY,
          penalty=NOT_NEGATIVE, calls=NATURAL),
    **_of("multiturn.MultiTurn", turns=COUNT, action=COUNT, chunk=NATURAL),
    **_of("agentic.Agentic", turns=COUNT, action=COUNT, chunk=NATURAL, initial=NATURAL,
          sharpness=ANY),
    **_of("branch.Cure", originals=COUNT, branches=NATURAL, most=COUNT, room=NATURAL),
    **_of("oversample.Oversample", size=COUNT),
    **_of("replay.Replay", prompts=COUNT),
    **_of("spear.Replay", size=COUNT, baseline=COUNT, tolerance=NATURAL, decay=SHARE),
    **_of("sft.SFT", copies=COUNT),
    **_of("switch.Switch", at=NATURAL),
    **_of("tempered.Tempered", one_in=COUNT),
    **_of("votes.Votes", votes=COUNT, size=COUNT),
    # tasks, environments, and models that are made when they are loaded
    **_of("arithmetic.Arithmetic", shots=NATURAL, max_prompt=COUNT),
    **_of("countdown.Countdown", smallest=COUNT, largest=COUNT, highest=COUNT, fixed=NATURAL,
          max_prompt=COUNT),
    **_of("countdown.Copies", copies=COUNT, max_prompt=COUNT,
          indices=dataclasses.replace(NATURAL, each=True)),
    **_of("gym.ReasoningGym", size=COUNT, max_prompt=COUNT),
    **_of("written.Jsonl", max_prompt=COUNT),
    **_of("written.Hub", max_prompt=COUNT),
    **_of("adapters.Gym", size=COUNT, max_prompt=COUNT, max_observation=COUNT),
    **_of("adapters.Attempts", tries=COUNT, max_observation=COUNT),
    **_of("calculator.WordProblems", highest=COUNT, max_prompt=COUNT, max_observation=COUNT),
    **_of("forms.Form", fields=COUNT, slips=SHARE),
    **_of("text_world.TextWorld", rooms=COUNT, things=COUNT, locked=SHARE),
    **_of("tools.Python", max_characters=COUNT),
    **_of("tools.ToolUse", calls=COUNT, max_observation=COUNT),
    **_of("cloned.Cloned", steps=NATURAL, batch=COUNT, turns=COUNT, length=COUNT, pool=COUNT,
          levels=NATURAL, width=COUNT, layers=COUNT, heads=COUNT, lr=NOT_NEGATIVE, seed=SEED),
}
# Hyper-parameters of terms: by file.function.name, else by name.
KNOBS = {
    "size": COUNT, "length": NATURAL, "max_tokens": COUNT, "buffer": COUNT, "steps": COUNT,
    "over": NATURAL, "n": COUNT, "times": dataclasses.replace(COUNT, least=2), "width": COUNT,
    "low": NOT_NEGATIVE, "high": NOT_NEGATIVE, "clip": NOT_NEGATIVE, "limit": LIMIT, "cap": LIMIT,
    "dual": Domain(1, above=True, also=(0,), why="0: no dual clip"),
    "eps": NOT_NEGATIVE,
    "std_eps": POSITIVE, "fraction": SHARE, "gamma": SHARE, "lam": SHARE, "mu": SHARE,
    "level": SHARE_ABOVE_0, "least": SHARE, "alpha": NOT_NEGATIVE, "beta": ANY, "coef": ANY,
    "coefficient": ANY, "kappa": Domain(1), "sharpness": ANY, "clarity": ANY, "zeta": ANY,
    "divisor": POSITIVE, "norm": POSITIVE, "factor": NOT_NEGATIVE, "target": NOT_NEGATIVE,
    "threshold": NOT_NEGATIVE, "tolerance": NOT_NEGATIVE, "positive": NOT_NEGATIVE,
    "base": ANY, "bonus": NOT_NEGATIVE, "floor": NOT_NEGATIVE, "each": NOT_NEGATIVE,
    "right": ANY, "wrong": ANY, "silent": ANY, "penalty": ANY, "bound": ANY, "alone": ANY,
    "most": LIMIT, "at": POSITIVE, "above": NOT_NEGATIVE, "under": NOT_NEGATIVE,
    "lower": MAYBE_INFINITE, "upper": MAYBE_INFINITE,
    "aepo_arbitrary.replaced_rows.limit": NATURAL,
    "aepo_arbitrary.dcpo.most": SHARE,
    "empo.class_share.low": MAYBE_INFINITE, "empo.class_share.high": MAYBE_INFINITE,
    "gtpo.joint_advantage.eps": POSITIVE, "gtpo.split_advantage.eps": POSITIVE,
    "gtpo.sequence_advantage.eps": POSITIVE,
    "pear.phase_reward.alpha": ANY, "pear.phase_reward.floor": MAYBE_INFINITE,
    "rollout_correction.keep_tokens.high": LIMIT, "rollout_correction.keep_rows.high": LIMIT,
    "sapo.soft_gate.positive": POSITIVE, "sapo.soft_gate.negative": POSITIVE,
    "soft_q.residual.alpha": POSITIVE, "soft_q.reference_residual.alpha": POSITIVE,
    "soft_q.bellman.alpha": POSITIVE,
    "spine.band_penalty.low": SHARE, "spine.band_penalty.high": SHARE,
    "steer.exponential.low": SHARE_ABOVE_0, "steer.exact_exponential.low": SHARE_ABOVE_0,
}


def domain_of_knob(function: str, knob: str) -> Domain | None:
  """The domain of a hyper-parameter of `file.function`; None where the table has none."""
  return KNOBS.get(f"{function}.{knob}", KNOBS.get(knob))


def check(node: Any, where: str = "") -> None:
  """Raises ValueError for the first number of nested records outside its domain.

  where: the place of `node` in an experiment, such as `training`.
  """
  for sentence in outside(node, where):
    raise ValueError(sentence)


def outside(node: Any, where: str = "") -> Iterator[str]:
  """A sentence for every number, choice or switch outside its domain: value, place, what may be."""
  if isinstance(node, Term):
    parameters = inspect.signature(node.fn).parameters
    for name, value in node.values.items():
      domain = domain_of_knob(node.name, name)
      said = _said(value, parameters[name].annotation, domain)
      if said:
        yield f"{node.name}({name}={value!r}){said}"
  elif type(node) is tuple:
    for at, entry in enumerate(node):
      yield from outside(entry, f"{where}.{at}")
  elif dataclasses.is_dataclass(node) and not isinstance(node, type):
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      place = f"{where}.{field.name}" if where else field.name
      said = _said(value, field.type, FIELDS.get(f"{name_of(type(node))}.{field.name}"))
      if said:
        yield f"{place}={value!r}{said}"
      yield from outside(value, place)


def _said(value: Any, kind: Any, domain: Domain | None) -> str:
  """What may stand in the place of a value; the empty string where it may."""
  if get_origin(kind) is Literal and value not in get_args(kind):
    return f"; choices: {', '.join(map(str, get_args(kind)))}"
  if kind is bool:
    return "" if isinstance(value, bool) else "; choices: True, False"
  if domain is None or value is None or isinstance(value, str) or value in domain:
    return ""
  return f": {domain}"
