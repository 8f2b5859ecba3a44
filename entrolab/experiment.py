"""What a run is: one frozen value that names the objective, model, task, mesh and every number."""

import dataclasses
from typing import Any, Literal

from entrolab.objective import Objective


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a step's responses are made.

  prompts, samples: P and G; max_tokens: T, tokens; temperature, top_p, top_k of the draw; refills:
  further batches of P prompts that may be sampled to replace groups without a signal (0: none);
  slots: rows that are decoded at once, of which one that has ended makes room for the next of the
  P x G (0: all at once); devices that share the rows have equal parts of the slots and refill them
  from their own rows. The tokens are the same, statistics to rounding;
  weights: the model's, or their int8 forms, whose log-probs are off by `rollout/logp_gap`;
  ahead: 1 draws the responses of a step while the one before it is verified and learned from, so
  that they are of the policy of one step ago, never an older one (0: of the current policy).
  """
  prompts: int = 16
  samples: int = 8
  max_tokens: int = 40
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  refills: int = 0
  slots: int = 0
  weights: Literal["model", "int8"] = "model"
  ahead: int = 0


@dataclasses.dataclass(frozen=True)
class Training:
  """How a step's responses are learned from.

  steps: rollouts; updates: optimiser steps a rollout; micro: micro-batches an optimiser step;
  lr with `warmup` optimiser steps, then `schedule`; clip_norm: 0 for none; dtype of the forward
  pass (parameters stay float32); remat: what layers compute again in the backward pass, nothing,
  all, or all but the products with their matrices; old_logp: recomputed by the trainer before the
  first update, or as the sampler reported it; measure_every: steps between measurements of the
  entropy change; packing: rows side by side in bins of a few static shapes, and micro-batches of
  nearly equal numbers of tokens (the same numbers up to rounding).
  """
  steps: int = 60
  updates: int = 2
  micro: int = 1
  lr: float = 5e-5
  warmup: int = 10
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  clip_norm: float = 1.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block", "dots"] = "none"
  old_logp: Literal["trainer", "sampler"] = "trainer"
  measure_every: int = 1
  packing: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out problems before, after, and every `every` steps (0: only before and after)."""
  problems: int = 64
  samples: int = 16
  every: int = 0
  ks: tuple[int, ...] = (1, 2, 4, 8, 16)
  temperature: float = 1.0
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Saving:
  """Checkpoints every `every` steps (0: only at the end and on interruption), newest `keep`."""
  every: int = 20
  keep: int = 2


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis: data * fsdp * tensor of them; data=-1 takes all that are left."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Reference:
  """The policy behind `ref_logp`: frozen, a copy every `every` steps, or a moving average."""
  rule: Literal["frozen", "every", "ema"] = "frozen"
  every: int = 0
  decay: float = 0.99

  def __post_init__(self) -> None:
    if self.rule not in ("frozen", "every", "ema"):
      raise ValueError(f"reference rule {self.rule!r}; choices: frozen, every, ema")
    if self.rule == "every" and self.every < 1:
      raise ValueError(f"reference rule 'every' needs every >= 1 steps, not {self.every}")


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run, whole; rollout is a strategy.

  Raises ValueError where its numbers do not fit together.
  """
  name: str
  objective: Objective
  model: Any
  task: Any
  rollout: Any
  sampling: Sampling = Sampling()
  training: Training = Training()
  evaluation: Evaluation = Evaluation()
  saving: Saving = Saving()
  mesh: Mesh = Mesh()
  reference: Reference = Reference()
  seed: int = 0

  def __post_init__(self) -> None:
    s, t = self.sampling, self.training
    for name, value in (("sampling.prompts", s.prompts), ("sampling.samples", s.samples),
                        ("sampling.max_tokens", s.max_tokens), ("training.updates", t.updates),
                        ("training.micro", t.micro)):
      if value < 1:
        raise ValueError(f"{name}={value}: at least 1")
    if s.weights not in ("model", "int8"):
      raise ValueError(f"sampling.weights={s.weights!r}; choices: model, int8")
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
    for _, bound in self.objective.terms():
      size = dict(bound.knobs).get("size", s.samples)
      if size != s.samples:
        raise ValueError(f"{bound.name}(size={size}) but sampling.samples={s.samples}: a group is "
                         "the samples of one prompt")

  def _check_ahead(self) -> None:
    """Raises ValueError for responses of the step before that nothing corrects or that cannot be
    drawn without its verdicts."""
    s, t = self.sampling, self.training
    if s.ahead not in (0, 1):
      raise ValueError(f"sampling.ahead={s.ahead}; choices: 0 (responses of the current policy), 1")
    if not s.ahead:
      return
    if not hasattr(self.rollout, "begin") or s.refills:
      raise ValueError(f"sampling.ahead=1 with {type(self.rollout).__name__} and sampling.refills="
                       f"{s.refills}: only `Plain` without refills draws responses without the "
                       "verdicts of the step before")
    if t.old_logp == "trainer" and not any(
        slot == "weight" and "sampled_logp" in bound.reads
        for slot, bound in self.objective.terms()):
      raise ValueError("sampling.ahead=1: responses are of the policy of one step ago and nothing "
                       "corrects for it; add weights=term(rollout_correction.token_weight) to the "
                       "objective, as base_objectives.py:objective=corrected has it, or let the "
                       "surrogate's own ratio do it: training.old_logp=sampler")
