"""The plan of a run before it runs: arithmetic, memory, and terms that cannot act here."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import control as controls
from entrolab import vocab
from entrolab.batch import COLUMNS
from entrolab.experiment import Experiment, Training
from entrolab.models import parameters
from entrolab.models.transformer import Config
from entrolab.objective import Objective, Term


def batch_sentence(experiment: Experiment) -> str:
  """'16 prompts x 8 samples = 128 responses; 2 updates of 64 responses, each in 1 micro-batch'."""
  s = experiment.sampling
  t = experiment.training
  responses = s.prompts * s.samples
  drawn = f", {s.slots} decoded at once" if s.slots else ""
  drawn += ", drawn one step ahead" if s.ahead else ""
  replayed = experiment.rollout.further_rows(s.samples, t.updates, t.micro)
  again = f" and {replayed} replayed ones" if replayed else ""
  return (f"{s.prompts} prompts x {s.samples} samples = {responses} responses{drawn}; {t.updates} "
          f"update{'s' * (t.updates > 1)} of {responses // t.updates} responses{again}, each in "
          f"{t.micro} micro-batch{'es' * (t.micro > 1)}")


def memory(experiment: Experiment, config: Config, prompt_length: int) -> dict[str, int]:
  """Bytes of what is large: parameters, optimiser, key-value cache, and the logits avoided."""
  s = experiment.sampling
  t = experiment.training
  width = 2 if t.dtype == "bfloat16" else 4  # bytes of a float in the cache
  # positions in the cache: of the rows that are decoded at once, and of the prompts that wait for
  # a slot
  positions = (s.slots or s.prompts * s.samples) * (prompt_length + s.max_tokens)
  positions += s.prompts * prompt_length if s.slots else 0
  rows = s.prompts * s.samples // t.updates
  rows += experiment.rollout.further_rows(s.samples, t.updates, t.micro)
  count = parameters.count(config)
  position = 2 * config.layers * config.kv_heads * config.head_dim * width
  problems, slots = experiment.evaluation_calls(max(experiment.mesh.data, 1) * experiment.mesh.fsdp)
  evaluated = (slots or problems * experiment.evaluation.samples) * (prompt_length + s.max_tokens)
  evaluated += problems * prompt_length if slots else 0
  return {"parameters": 4 * count, "optimiser": 8 * count,
          "key-value cache": position * positions,
          "key-value cache of an evaluation": position * evaluated,
          "logits that are never stored": 4 * rows // t.micro * s.max_tokens * config.vocab_size}


def _probe(objective: Objective, size: int) -> dict[str, jax.Array]:
  """Random columns at which the current policy IS the policy that sampled."""
  rng, rows, time = np.random.default_rng(0), 4 * size, 16
  shape = (rows, time)
  mask = np.arange(time) < rng.integers(2, time + 1, rows)[:, None]
  columns = {name: jnp.asarray(rng.random(shape), jnp.float32) for name in
             {*COLUMNS, *objective.extra, *vocab.NAMES}}
  logp = -jnp.asarray(rng.exponential(size=shape), jnp.float32)
  reference = logp + 0.1 * jnp.asarray(rng.normal(size=shape), jnp.float32)
  verdict = jnp.asarray(rng.integers(0, 2, rows), jnp.int32)
  columns.update(
      mask=jnp.asarray(mask), logp=logp, old_logp=logp, sampled_logp=logp, ref_logp=reference,
      verdict=verdict, rewards=verdict.astype(jnp.float32), finished=jnp.ones(rows, bool),
      tokens=jnp.zeros(shape, jnp.int32), phase=jnp.zeros(shape, jnp.int32),
      group=jnp.arange(rows, dtype=jnp.int32) // size, row=jnp.zeros((rows, 2), jnp.uint32),
      mean=jnp.asarray(0.5), weight=jnp.ones(shape))
  columns["old_entropy"] = columns["entropy"]
  state = controls.begin(objective.control, controls.init(objective.control),
                         {e.value.name: jnp.asarray(0.4) for e in objective.penalties})
  return {**columns, **state}


def _is_zero(bound: Term, columns: Mapping[str, jax.Array]) -> bool:
  """Whether a penalty and its gradient by the log-prob vanish on the probe."""
  rest = {k: v for k, v in columns.items() if k != "logp"}
  value, grad = jax.value_and_grad(lambda x: jnp.where(
      columns["mask"], bound({**rest, "logp": x}), 0.0).sum())(columns["logp"])
  silent = {"entropy", "nucleus_entropy", "tempered_logp"} & set(bound.reads)
  return bool(value == 0.0) and not bool(jnp.any(grad)) and not silent


def another_distribution(experiment: Experiment) -> list[str]:
  """What is said where responses are drawn from another distribution than the one whose log-probs
  the objective reads; nothing where they are the same."""
  s = experiment.sampling
  measured = experiment.objective.vocab.temperature
  other = []
  if s.temperature != measured:
    other.append(f"sampling.temperature={s.temperature:g}")
  if s.top_p != 1.0:
    other.append(f"sampling.top_p={s.top_p:g}")
  if s.top_k:
    other.append(f"sampling.top_k={s.top_k}")
  if not other:
    return []
  return [f"{', '.join(other)}: responses are drawn from another distribution than the one that is "
          f"learned, which has temperature {measured:g} and all tokens; log-probs, ratios, clips, "
          "entropies and the gradient are those of the latter. objective.vocab.temperature sets "
          "its temperature"]


def warnings(experiment: Experiment) -> list[str]:
  """Sentences about parts of the objective that cannot act in this setting."""
  objective, s, t = experiment.objective, experiment.sampling, experiment.training
  found = []
  if s.samples == 1 and "adv" in objective.reads:
    found.append("groups of size 1: an advantage relative to the group has no baseline; "
                 "set sampling.samples >= 2")
  found += another_distribution(experiment)
  columns = _probe(objective, s.samples)
  # what the trainer recomputes before the only update is of the very same policy; what the sampler
  # reported differs by rounding, or by int8, and replayed rows are of other policies
  recomputed = t.old_logp == "trainer" and not experiment.rollout.further_rows(
      s.samples, t.updates, t.micro)
  if t.updates == 1 and recomputed:
    for entry in objective.penalties:
      if _is_zero(entry.value, columns):
        found.append(f"{entry.value.name} is identically zero with one update a rollout (the "
                     "current policy is the one that sampled); set training.updates >= 2")
    if "old_logp" in objective.surrogate.reads:
      found.append(f"{objective.surrogate.name}: every ratio is exactly 1 with one update a "
                   "rollout, so no clip acts")
  tokens = s.prompts * s.samples // t.updates * s.max_tokens  # of an update, at most
  for slot, bound in objective.terms():
    fraction = bound.values.get("fraction")
    if slot in ("weight", "scale") and fraction is not None and fraction * tokens < 1.0:
      found.append(f"{bound.name}(fraction={fraction}) selects less than one of at most {tokens} "
                   f"tokens of an update; {1.0 / tokens:.1e} is one token")
  if t.micro > 1:
    takes = "takes one more" if objective.needs_score_pass else "needs no further"
    found.append(f"{t.micro} micro-batches: what the objective ranks or averages over the batch "
                 f"{takes} forward pass over it, without gradient")
  return found


def lengths(experiment: Experiment, config: Config) -> list[str]:
  """A sentence about rows that may be longer than the model's positions."""
  prompt, response = experiment.task.max_prompt, experiment.sampling.max_tokens
  most, longest = experiment.rollout.positions(prompt, response), config.max_length
  if most <= longest:
    return []
  fits = next((n for n in range(response, 0, -1)
               if experiment.rollout.positions(prompt, n) <= longest), 0)
  mend = f"set sampling.max_tokens={fits} or less" if fits else "set a shorter task.max_prompt"
  return [f"prompts of {prompt} and responses of {response} tokens are up to {most} positions, and "
          f"the model was made for max_length={longest}: what lies beyond is extrapolated; {mend}"]


def rates(t: Training) -> str:
  """The learning rate of the first and of later updates, as `trainer.optimiser` has it."""
  then = "constant" if t.schedule == "constant" else f"falling to 0 ({t.schedule})"
  if not t.warmup:
    return f"learning rate: {t.lr:g} from the first update, {then}"
  return (f"learning rate: 0 at the first of {t.steps * t.updates} updates, which moves nothing, "
          f"{t.lr:g} after {t.warmup}, then {then}")


def acts(objective: Objective) -> str:
  """Where the objective acts beyond its rewards and its surrogate, as method/tokens_changed counts
  it."""
  def of(*slots):
    return [term for slot, term in objective.terms() if slot in slots]

  of_policy = [t for t in of("advantage") if set(t.reads) & set(vocab.NAMES)]
  parts = [t.name for t in (*of_policy, *of("weight", "penalty"))]
  if parts:
    return (f"acts on single tokens through {', '.join(parts)}; method/tokens_changed is the share "
            "of tokens on which it does")
  named = (t.name for t in of("reward", "advantage", "surrogate"))
  return (f"acts through {', '.join(named)} alone: no weight, penalty or advantage of the current "
          "policy, so that method/tokens_changed is 0")


def plan(experiment: Experiment, config: Config, data: Sequence[str] = ()) -> str:
  """The whole plan as text: batch, data, model, memory, statistics, objective, warnings.

  data: `data.Facts.sentences` of the run.
  """
  prompt_length = experiment.task.max_prompt
  layout = ("packed into bins of 1, 2 or 4 rows" if experiment.training.packing else
            "every row padded to both")
  sizes = memory(experiment, config, prompt_length).items()
  lines = [f"{experiment.name}: {batch_sentence(experiment)}", *data,
           f"model: {parameters.count(config) / 1e6:.2f} M parameters, {config.layers} layers of "
           f"width {config.width}, vocabulary {config.vocab_size}",
           f"lengths: prompt {prompt_length} + response {experiment.sampling.max_tokens} tokens at "
           f"most ({layout})",
           rates(experiment.training),
           "memory: " + ", ".join(f"{name} {_bytes(size)}" for name, size in sizes),
           "statistics of the policy at every token: "
           + ", ".join(experiment.objective.statistics.names),
           "objective:"]
  for field in dataclasses.fields(experiment.objective):
    value = getattr(experiment.objective, field.name)
    if value not in ((), None):
      lines.append(f"  {field.name} = {value!r}")
  lines.append(acts(experiment.objective))
  if experiment.taken:
    lines += ["hyper-parameters of the recipe:", *(f"  {taken}" for taken in experiment.taken)]
  notes = [*warnings(experiment), *lengths(experiment, config)]
  lines += [f"note: {sentence}" for sentence in notes]
  return "\n".join(lines)


def _bytes(size: int) -> str:
  power = min(max(len(str(size)) - 1, 0) // 3, 3)
  return f"{size / 1000 ** power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB')[power]}"
