"""The interface of rollout strategies: their request, their rollout, and what they may override.

At every step a strategy gets an engine (`engine.Engine`, which samples and verifies) and a
`Request`, and answers with a `Rollout`. It is a frozen dataclass that subclasses `Strategy`, and it
says in `unsupported` what a run cannot combine it with; `check` refuses such a run before it
starts.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from entrolab.batch import Batch
from entrolab.tasks.task import Example
from entrolab.typing import Array, Bool, Int, Key
from entrolab.verify import Verdict


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a step's responses are made."""
  prompts: int = 16  # P, of a step
  samples: int = 8  # G, rows of a prompt
  max_tokens: int = 40  # T, the most tokens of a response
  temperature: float = 1.0  # of the distribution that is drawn from; 0: greedy
  top_p: float = 1.0  # probability of the likeliest tokens that are drawn from; 1: of all tokens
  top_k: int = 0  # how many of the likeliest tokens are drawn from; 0: all
  # further batches of P prompts that may be sampled to replace groups without a learning signal;
  # 0: none
  refills: int = 0
  # rows that are decoded at once, of which one that has ended makes room for the next of the P x G;
  # devices that share the rows have equal parts of the slots, each for its rows; the tokens are
  # the same, statistics to rounding; 0: all rows at once
  slots: int = 0
  # the model's, or their int8 forms, whose log-probs are off by `sampling/logp_difference/max`
  weights: Literal["model", "int8"] = "model"
  # 1: the responses of a step are drawn while the step before it is verified and learned from, so
  # that they are of the policy of one step ago, never of an older one; 0: of the current policy
  ahead: int = 0


Prompts = Callable[[], Sequence[Example]]  # the next prompts of the data, at every call


class Prompted(NamedTuple):
  """P examples and their prompts."""
  # those at the places of this process's group (`row_groups`), where P is of the step
  examples: list[Example]
  tokens: Int[Array, "P L"]  # left-padded
  mask: Bool[Array, "P L"]  # real tokens
  ids: Int[Array, " P"]  # of the examples, which sampling keys fold in


class Drawn(NamedTuple):
  """Responses before anybody verified them; the devices may still be at work on them."""
  prompted: Prompted  # what the rows follow
  keys: Key[Array, " B"]  # of the rows
  # `decode.Samples` of B = P x G rows, those of a prompt one after another; its type is not named,
  # so that what only describes a run does not import the decoder
  samples: Any


@dataclasses.dataclass(frozen=True)
class Request:
  """All that a strategy gets for one step."""
  params: Any  # of the policy, as they are served for sampling
  # called once for a batch of P prompts, again for each refill; gives those of this process's group
  next_prompts: Prompts
  key: Key[Array, ""]  # of the run
  step: int  # rollouts before this one
  control: Mapping[str, Array | np.generic]  # the controlled values by name
  sampling: Sampling  # how responses are made
  # what the strategy stored on the host after the step before (`Rollout.learned`); empty at first
  host: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rollout:
  """The verified rows of one step; lists have an entry for each row of this
  process's group (`row_groups`), everything else is of all rows."""
  batch: Batch  # on the mesh
  examples: list[Example]  # the problem of each row
  texts: list[str]  # its response
  verdicts: list[Verdict]  # on its response
  steps: int  # positions that were decoded one after another
  refills: int = 0  # how often further prompts were sampled
  sampled: int = 0  # rows that were generated, with those that are not in the batch
  verify_seconds: float = 0.0  # of the host, for verdicts or for environments
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # logged as rollout/NAME
  replay: Batch | None = None  # rows of earlier steps that are trained on beside those of `batch`
  # the batch that was trained on -> the `host` of the next request
  learned: Callable[[Batch], Mapping[str, np.ndarray]] | None = None


Feature = Literal["refills", "slots", "processes", "ahead"]
FEATURES: tuple[Feature, ...] = ("refills", "slots", "processes", "ahead")


class Strategy(Protocol):
  """How the rows of a step are made.

  A strategy subclasses it, as a frozen dataclass, and defines `engine` and `__call__`; one whose
  rows are single responses subclasses `engine.SingleTurn`, which has the engine. The other members
  have the defaults that stand here.
  """
  columns: tuple[str, ...] = ()  # names of the columns of `Rollout.batch` that only it fills
  samples: int = 0  # rows of a group, where it fixes them; 0: as many as sampling.samples

  @property
  def engine(self) -> Callable[..., Any]:
    """(model configuration, tokenizer, task, mesh, names of further columns) -> the engine, for
    training and for evaluation."""
    ...

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Features that it cannot be combined with: why, and what to set instead."""
    return {"ahead": "its rows wait for the verdicts of the step before; set sampling.ahead=0, or "
                     "use `Plain` without refills"}

  def further_rows(self, samples: int, updates: int, micro: int) -> int:
    """Rows of `Rollout.replay` in every update. Raises ValueError where they do not divide into
    groups of `samples`, `updates` updates and `micro` micro-batches."""
    del samples, updates, micro
    return 0

  def groups(self, prompts: int) -> int:
    """Groups in the batch of a step of `prompts` prompts."""
    return prompts

  def positions(self, prompt: int, response: int) -> int:
    """Positions of a row at most, where a prompt and a response have these numbers of tokens."""
    return prompt + response

  def dispatch(self, engine: Any, request: Request) -> Drawn:
    """The rows of one step, not verified; returns while the devices draw them.

    Only of a strategy that supports "ahead"; raises TypeError for others.
    """
    del engine, request
    raise TypeError(f"{type(self).__name__} does not draw its rows apart from verifying them")

  def __call__(self, engine: Any, request: Request) -> Rollout:
    """The verified rows of one step."""
    ...


def check(strategy: Strategy, sampling: Sampling, processes: int = 1) -> None:
  """Raises an error for a feature that the run uses and the strategy does not support:
  NotImplementedError for several processes, ValueError otherwise."""
  used: dict[Feature, str] = {}
  if sampling.refills:
    used["refills"] = f"sampling.refills={sampling.refills}"
  if sampling.slots:
    used["slots"] = f"sampling.slots={sampling.slots}"
  if processes > 1:
    used["processes"] = f"{processes} processes"
  if sampling.ahead:
    used["ahead"] = f"sampling.ahead={sampling.ahead}"

  for feature, value in used.items():
    if feature in strategy.unsupported:
      error = NotImplementedError if feature == "processes" else ValueError
      raise error(f"{value} with {type(strategy).__name__}: {strategy.unsupported[feature]}")
  # whatever the strategy, the groups of further prompts are chosen by verdicts
  if "refills" in used and "ahead" in used:
    raise ValueError(f"{used['ahead']} with {used['refills']}: groups are replaced by "
                     "their verdicts; set one of the two to 0")
