"""What a run is: one frozen value of all that its results depend on."""

import dataclasses
from typing import Any, Literal, Protocol

import jax

from entrolab import domains
from entrolab.follow import MAX_TOKENS, ROWS, SAMPLES, UPDATES, filled
from entrolab.objective import Objective
from entrolab.rollout.strategy import Sampling, Strategy, check
from entrolab.strengths import Taken
from entrolab.tasks.task import Task
from entrolab.typing import name_of


class Model(Protocol):
  """Where a decoder comes from: a frozen dataclass."""

  def load(self) -> tuple[Any, Any, Any]:
    """(model configuration, parameters, tokenizer)."""
    ...


@dataclasses.dataclass(frozen=True)
class Training:
  """How a step's responses are learned from."""
  steps: int = 60  # rollouts
  updates: int = 2  # optimiser steps a rollout
  micro: int = 1  # micro-batches an optimiser step
  lr: float = 5e-5  # after the warm-up
  # optimiser steps in which the learning rate rises from 0: update n of them, from 0, has the rate
  # lr n / warmup, so that the first one moves nothing, as in transformers and verl
  warmup: int = 10
  schedule: Literal["constant", "cosine", "linear"] = "constant"  # of the rate after the warm-up
  clip_norm: float = 1.0  # of the whole gradient; 0: no clip
  weight_decay: float = 0.0  # of AdamW
  b1: float = 0.9  # of AdamW: decay of the mean gradient
  b2: float = 0.999  # of AdamW: decay of the mean square
  eps: float = 1e-8  # of AdamW, beside the root of the mean square
  dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; parameters are float32
  # what layers compute again in the backward pass: nothing, all, or all but the matmuls
  remat: Literal["none", "block", "dots"] = "none"
  # recomputed by the trainer before the first update, or as the sampler reported it
  old_logp: Literal["trainer", "sampler"] = "trainer"
  measure_every: int = 1  # steps between measurements of the entropy change; 0: none
  # rows side by side in bins of a few static shapes, and micro-batches of nearly equal numbers of
  # tokens; the same result up to rounding
  packing: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What the policy is measured on, before and after training and in between."""
  problems: int = 64  # held-out ones
  samples: int = 16  # responses to each of them, besides a greedy one
  every: int = 0  # steps between evaluations; 0: only before and after
  ks: tuple[int, ...] = (1, 2, 4, 8, 16)  # of pass@k
  temperature: float = 1.0  # of the samples
  top_p: float = 1.0  # of the samples


@dataclasses.dataclass(frozen=True)
class Ledger:
  """When the change of entropy is accounted for, and on which states; changes nothing of a run."""
  every: int = 60  # steps between accounts, all updates of a step; 0: none
  # responses to held-out problems on whose states entropy is measured, rounded up to a whole number
  # a problem of sampling.prompts, and as many rows of an update beside them; the error of the
  # account falls with their square root
  states: int = 32
  # 1: the gradient of the entropy at the start of an update; 2: its mean at both ends, which leaves
  # less unexplained and takes another gradient an update
  order: Literal[1, 2] = 2
  # pairs of backward passes over the first update, of which locality is estimated; 0: it is not
  probes: int = 0


@dataclasses.dataclass(frozen=True)
class Saving:
  """When checkpoints are written."""
  every: int = 20  # steps between them; 0: only at the end and on interruption
  keep: int = 2  # how many of the newest stay


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis, data * fsdp * tensor of them."""
  data: int = -1  # with copies of the parameters; -1: all that are left
  fsdp: int = 1  # that share the parameters, and the rows of a batch
  tensor: int = 1  # that share heads, the feed-forward width and the vocabulary


@dataclasses.dataclass(frozen=True)
class Reference:
  """The policy behind `ref_logp`."""
  # as at the start, a copy of the policy every `every` steps, or a moving average
  rule: Literal["frozen", "every", "ema"] = "frozen"
  every: int = 0  # steps
  decay: float = 0.99  # of the average, at every optimiser step

  def __post_init__(self) -> None:
    if self.rule not in ("frozen", "every", "ema"):
      raise ValueError(f"reference rule {self.rule!r}; choices: frozen, every, ema")
    if self.rule == "every" and self.every < 1:
      raise ValueError(f"reference rule 'every' needs every >= 1 steps, not {self.every}")


# Hyper-parameters of terms and fields of controllers that repeat a number of the experiment, by
# name wherever they stand, or by file.class.name: which one, and why.
REPEATS = {"size": (SAMPLES, "a group is the samples of one prompt; write size=follow.SAMPLES"),
           "over": (SAMPLES, "a group is the samples of one prompt; write over=follow.SAMPLES"),
           "length": (MAX_TOKENS, "the most tokens of a response; write length=follow.MAX_TOKENS"),
           "max_tokens": (MAX_TOKENS, "the most tokens of a response; write "
                                      "max_tokens=follow.MAX_TOKENS"),
           "updates": (UPDATES, "optimiser steps of a rollout; write "
                                "updates=follow.UPDATES.fill(preset)"),
           "kl.Adaptive.rows": (ROWS, "responses of an optimiser step; write "
                                      "rows=follow.ROWS.fill(preset)")}
NONE_NAMED = {"length": 0, "over": 0}  # the width of the batch, the whole rollout


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole run. Raises ValueError where its parts do not fit together."""
  name: str  # of the run directory and the report
  objective: Objective  # the loss, from rewards to penalties
  model: Model  # the policy before training
  task: Task  # problems and verdicts
  rollout: Strategy  # how the rows of a step are made
  sampling: Sampling = Sampling()  # how many, and from which distribution
  training: Training = Training()  # optimiser and its schedule
  evaluation: Evaluation = Evaluation()  # on held-out problems
  saving: Saving = Saving()  # checkpoints
  ledger: Ledger = Ledger()  # what changes the entropy
  mesh: Mesh = Mesh()  # devices
  reference: Reference = Reference()  # the policy behind `ref_logp`, where a term reads it
  seed: int = 0  # of everything random: order of prompts, tokens, ties
  taken: tuple[Taken, ...] = ()  # what the recipe took from its preset, for --explain

  def __post_init__(self) -> None:
    s, t = self.sampling, self.training
    # before anything computes with them; the objective and the strategy get some numbers from here
    for part in ("sampling", "training", "evaluation", "saving", "ledger", "mesh", "reference"):
      domains.check(getattr(self, part), part)
    self._fill_in()
    domains.check(self)
    check(self.rollout, s, jax.process_count())
    self._check_ahead()
    if not 0 <= s.slots <= s.prompts * s.samples:
      raise ValueError(f"sampling.slots={s.slots}: 0 (all rows at once) to {s.prompts} prompts x "
                       f"{s.samples} samples = {s.prompts * s.samples} rows")
    if s.prompts % t.updates:
      choices = [u for u in range(1, s.prompts + 1) if s.prompts % u == 0]
      raise ValueError(f"training.updates={t.updates} does not divide {s.prompts} prompts into "
                       f"whole groups; choices: {choices}")
    rows = s.prompts // t.updates * s.samples
    if rows % t.micro:
      choices = [m for m in range(1, rows + 1) if rows % m == 0]
      raise ValueError(f"training.micro={t.micro} does not divide an update of {rows} rows; "
                       f"choices: {choices}")
    over = [k for k in self.evaluation.ks if k > self.evaluation.samples]
    if over:
      raise ValueError(f"evaluation.ks={self.evaluation.ks}: pass@{over[0]} needs at least that "
                       f"many samples, have {self.evaluation.samples}")
    self.rollout.further_rows(s.samples, t.updates, t.micro)

  def _fill_in(self) -> None:
    """Puts the numbers of this experiment where terms, controllers and strategy follow them.

    Raises ValueError for a number that is written out there and is another one.
    """
    for part in ("objective", "rollout"):
      object.__setattr__(self, part, filled(getattr(self, part), self))
    repeating = [(bound.name, bound.values) for _, bound in self.objective.terms()]
    repeating += [(name_of(type(c)), {f.name: getattr(c, f.name) for f in dataclasses.fields(c)})
                  for c in self.objective.control]
    for where, values in repeating:
      for name, value in values.items():
        repeated = REPEATS.get(f"{where}.{name}", REPEATS.get(name))
        if repeated is None or not isinstance(value, int | float):  # a word is a choice
          continue
        number, why = repeated
        want = number.fill(self)
        if value not in (want, NONE_NAMED.get(name)):
          raise ValueError(f"{where}({name}={value}) but {number}={want}: {why}")
    if self.rollout.samples not in (0, self.sampling.samples):
      raise ValueError(f"sampling.samples={self.sampling.samples} with "
                       f"{type(self.rollout).__name__}, whose groups have {self.rollout.samples} "
                       "rows: a group is the samples of one prompt")

  def evaluation_calls(self, ways: int) -> tuple[int, int]:
    """(problems of one call of the engine, slots or 0) of an evaluation; ways: devices of its rows.

    No more rows are decoded at once than in training: fewer problems a call, and where a problem
    a device is still too much, slots, if the strategy has them.
    """
    s, e = self.sampling, self.evaluation
    budget = s.slots or s.prompts * s.samples
    problems = min(s.prompts, budget // e.samples) // ways * ways or ways
    if s.slots:
      problems = s.prompts
    rows = problems * e.samples
    slots = min(budget, rows) if s.slots or rows > budget else 0
    return problems, slots if "slots" not in self.rollout.unsupported else 0

  def _check_ahead(self) -> None:
    """Raises ValueError for responses of the step before that nothing corrects."""
    s, t = self.sampling, self.training
    if s.ahead and t.old_logp == "trainer" and not any(
        slot == "weight" and "sampled_logp" in bound.reads
        for slot, bound in self.objective.terms()):
      raise ValueError("sampling.ahead=1: responses are of the policy of one step ago and nothing "
                       "corrects for it; add weights=term(rollout_correction.token_weight) to the "
                       "objective, as base_objectives.py:objective=corrected has it, or let the "
                       "ratio of the surrogate do it: training.old_logp=sampler")
