"""G responses to every prompt, verified; groups without a signal replaced, a bounded number of
times."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.batch import Batch
from entrolab.models.transformer import Config
from entrolab.rollout import continuous_batching, decode
from entrolab.tasks.prompts import padded, stop_ids
from entrolab.tasks.task import Example, Task, Tokenizer
from entrolab.verify import Verdict, codes, vote

Draw = Callable[[], Sequence[Example]]  # the next prompts of this step's data


@dataclasses.dataclass(frozen=True)
class Rollout:
  """A batch on the mesh and what the host knows of it, row by row; steps: decoded positions;
  refills: how often prompts were drawn again; sampled: rows that were generated in all; counts:
  what else the strategy counted; replay: further rows to train on, which were not drawn now;
  learned: the batch that was trained on -> what the strategy is to find in the next request."""
  batch: Batch
  examples: list[Example]
  texts: list[str]
  verdicts: list[Verdict]
  steps: int
  refills: int = 0
  sampled: int = 0
  verify_seconds: float = 0.0
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  replay: Batch | None = None
  learned: Callable[[Batch], Mapping[str, np.ndarray]] | None = None


class Asked(NamedTuple):
  """P examples and, on the mesh, their left-padded prompts and mask [P, L] and their ids [P]."""
  examples: list[Example]
  prompt: jax.Array
  mask: jax.Array
  ids: jax.Array


class Drawn(NamedTuple):
  """Responses that may still be on their way: what was asked, the keys of the rows, the samples."""
  asked: Asked
  keys: jax.Array
  out: decode.Samples


row_keys = jax.jit(key_scheme.row_keys, static_argnums=3)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _assemble(out, prompt, mask, keys, samples, on_rows):
  rows = out.tokens.shape[0]
  spread = lambda x: jnp.repeat(x, rows // x.shape[0], 0)
  batch = Batch(tokens=out.tokens, mask=out.mask, prompt=spread(prompt), prompt_mask=spread(mask),
                group=spread(jnp.arange(rows // samples, dtype=jnp.int32)),
                row=jax.random.key_data(keys), finished=out.finished, old_logp=out.logp,
                old_entropy=out.entropy, sampled_logp=out.sampled_logp)
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), batch)


@dataclasses.dataclass(frozen=True)
class Request:
  """What a strategy is asked for at one step.

  draw: the next prompts of the data; control: the controlled values by name; knobs: samples,
  max_tokens, temperature, top_p, top_k, slots of `Sampler.rollout`; refills: further draws that are
  allowed;
  host: what the strategy kept of earlier steps, empty at first.
  """
  params: Any
  draw: Draw
  key: jax.Array
  step: int
  control: Mapping[str, Any]
  knobs: Mapping[str, Any]
  refills: int = 0
  host: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Sampler:
  """Sampling for one model, task and mesh: prompts in, verified rows out.

  extra: further columns, of those in FILLS. Raises TypeError for another one.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer, task: Task, mesh: jax.sharding.Mesh,
               extra: Sequence[str] = ()):
    self.config, self.tokenizer, self.task, self.mesh = config, tokenizer, task, mesh
    self.stop = np.asarray(stop_ids(task, tokenizer), np.int32)
    self.extra = {name: FILLS[name] for name in extra if name in FILLS}
    for name in extra:
      if name not in FILLS:
        raise TypeError(f"the rollout fills no column {name!r}; choices: {', '.join(FILLS)}")

  def rollout(self, params: Any, examples: Sequence[Example], key: jax.Array, step: int,
              **knobs: Any) -> Rollout:
    """P examples -> B = P x samples verified rows, the rows of a prompt one after another; knobs as
    in `drawn`."""
    return self.judged(*self.drawn(params, examples, key, step, **knobs), knobs["samples"])

  def drawn(self, params: Any, examples: Sequence[Example], key: jax.Array, step: int, *,
            samples: int, max_tokens: int, temperature: float = 1.0, top_p: float = 1.0,
            top_k: int = 0, slots: int = 0) -> Drawn:
    """The rows of `rollout` before anybody reads them: returns while the devices draw."""
    asked = self.asked(examples)
    keys = row_keys(key, np.int32(step), asked.ids, samples)
    return Drawn(asked, keys, self.sample(
        params, asked, keys, samples=samples, max_tokens=max_tokens, temperature=temperature,
        top_p=top_p, top_k=top_k, slots=slots))

  def place(self, local: Any) -> Any:
    """Rows of this process -> arrays on the mesh."""
    return sharding.place(local, sharding.rows(self.mesh))

  def asked(self, examples: Sequence[Example]) -> Asked:
    """The prompts of some examples, on the mesh."""
    prompts = [self.task.prompt(example, self.tokenizer) for example in examples]
    prompt, mask = padded(prompts, self.task.max_prompt, self.tokenizer.pad_id)
    ids = np.asarray([example.id for example in examples], np.int32)
    return Asked(list(examples), *self.place((prompt, mask, ids)))

  def sample(self, params: Any, asked: Asked, keys: jax.Array, *, samples: int, max_tokens: int,
             temperature: Any = 1.0, top_p: float = 1.0, top_k: int = 0, keep: bool = False,
             slots: int = 0) -> decode.Samples:
    """`samples` responses to every prompt; temperature: a number, or [B] on the mesh; slots: as in
    `refill.sample`, 0 for all rows at once.

    Raises ValueError for slots and keep, and as `refill.check`.
    """
    args = (self.config, params, asked.prompt, asked.mask, keys,
            self.decoding(temperature, top_p, top_k))
    size = dict(samples=samples, max_tokens=max_tokens)
    if not slots:
      return decode.sample(*args, keep=keep, **size)
    if keep:
      raise ValueError(f"sampling.slots={slots}: a slot does not keep the cache of a row that has "
                       "ended, and this strategy goes on from it; set sampling.slots=0")
    return continuous_batching.sample(*args, slots=slots, mesh=self.mesh, **size)

  def decoding(self, temperature: Any, top_p: float, top_k: int) -> decode.Decoding:
    """How tokens are drawn, with the task's stop tokens and the tokenizer's pad."""
    return decode.Decoding.of(temperature, top_p, top_k, self.stop, self.tokenizer.pad_id)

  def rows(self, asked: Asked, keys: jax.Array, out: decode.Samples, samples: int) -> Batch:
    """The columns that need no verdict, `samples` rows a group."""
    return _assemble(dataclasses.replace(out, trunk=None), asked.prompt, asked.mask, keys, samples,
                     sharding.rows(self.mesh))

  def judged(self, asked: Asked, keys: jax.Array, out: decode.Samples, samples: int, *,
             texts: list[str] | None = None, rows: Batch | None = None) -> Rollout:
    """Verdicts, and the columns of a batch: B rows of the examples, `samples` a group.

    asked: prompts of the examples, or of every row; texts: what the verifier is to see instead
    of the responses; rows: what `rows` gave, where it is known.
    """
    batch = self.rows(asked, keys, out, samples) if rows is None else rows
    texts = self.texts(out) if texts is None else texts
    each = len(texts) // len(asked.examples)
    examples = [example for example in asked.examples for _ in range(each)]
    begin = time.perf_counter()
    verdicts = self.task.verify(texts, examples)
    seconds = time.perf_counter() - begin
    batch = batch.replace(verdict=self.place(np.asarray(codes(verdicts), np.int32)), **{
        name: self.place(fill(self, texts, out, samples)) for name, fill in self.extra.items()})
    return Rollout(batch, examples, texts, verdicts, int(out.steps), sampled=batch.tokens.shape[0],
                   verify_seconds=seconds)

  def texts(self, out: decode.Samples) -> list[str]:
    """The responses as text, stop tokens left out where the tokenizer does."""
    tokens, mask = sharding.local((out.tokens, out.mask))
    return [self.tokenizer.decode(row[on].tolist()) for row, on in zip(tokens, mask, strict=True)]


def cluster(sampler: Sampler, texts: list[str], out: Any, samples: int) -> np.ndarray:
  """int32 [B]: rows of a group with equal answers have equal ids; -1 without an answer."""
  del out
  ids = []
  for at in range(0, len(texts), samples):
    classes = vote.cluster([sampler.task.key(text) for text in texts[at:at + samples]])
    ids += [-1 if c is None else c for c in classes]
  return np.asarray(ids, np.int32)


def think_end(sampler: Sampler, texts: list[str], out: Any, samples: int) -> np.ndarray:
  """int32 [B]: position of the first token that ends the thinking (task.think_end); -1 without."""
  del texts, samples
  end = sampler.task.think_end
  tokens, mask = sharding.local((out.tokens, out.mask))
  pieces = {t: sampler.tokenizer.decode([int(t)]) for t in np.unique(tokens)}
  ends = np.asarray([[end in pieces[t] for t in row] for row in tokens]) & mask
  return np.where(ends.any(1), ends.argmax(1), -1).astype(np.int32)


def phase(sampler: Sampler, texts: list[str], out: Any, samples: int) -> np.ndarray:
  """int32 [B, T]: the step of every token; a token with task.step_end in it is the last of its own.
  """
  del texts, samples
  end = sampler.task.step_end
  tokens, mask = sharding.local((out.tokens, out.mask))
  ends = np.asarray([t for t in np.unique(tokens) if end in sampler.tokenizer.decode([int(t)])])
  after = np.cumsum(np.isin(tokens, ends) & mask, axis=1)
  return np.pad(after[:, :-1], ((0, 0), (1, 0))).astype(np.int32)


def trajectory(sampler: Sampler, texts: list[str], out: Any, samples: int) -> np.ndarray:
  """int32 [B]: every row is a trajectory of its own."""
  del sampler, out, samples
  first = jax.process_index() * len(texts)
  return np.arange(first, first + len(texts), dtype=np.int32)


FILLS = {"cluster": cluster, "think_end": think_end, "phase": phase, "trajectory": trajectory}


@dataclasses.dataclass(frozen=True)
class Plain:
  """G independent responses to every prompt.

  A strategy is a frozen dataclass: `engine` makes what samples, in training and in evaluation;
  `columns` are those it fills itself; a call answers one request. One that has `begin` can be
  asked before the verdicts of the step before are there.
  """
  engine: ClassVar[type[Sampler]] = Sampler
  columns: ClassVar[tuple[str, ...]] = ()

  def begin(self, sampler: Sampler, ask: Request) -> Drawn:
    """The rows of one step before anybody verified them, for a request without refills."""
    return sampler.drawn(ask.params, ask.draw(), ask.key, ask.step, **ask.knobs)

  def __call__(self, sampler: Sampler, ask: Request) -> Rollout:
    """The verified rows of one step, refilled where the request allows it."""
    return answered(sampler, ask)


def answered(sampler: Sampler, ask: Request) -> Rollout:
  """The sampler's rollout of one step, refilled where the request allows it."""
  sample = lambda examples: sampler.rollout(ask.params, examples, ask.key, ask.step, **ask.knobs)
  return filled(sample, ask.draw, ask.knobs["samples"], ask.refills)


def with_signal(rollout: Rollout, samples: int) -> np.ndarray:
  """bool [P]: groups whose verdicts are neither all right nor all not right."""
  right = np.asarray([v.status == "right" for v in rollout.verdicts]).reshape(-1, samples)
  return np.asarray(right.any(1) & ~right.all(1))


def filled(sample: Callable[[Sequence[Example]], Rollout], draw: Draw, samples: int,
           refills: int) -> Rollout:
  """A rollout whose groups without a signal are replaced by groups with one out of further draws.

  DAPO's dynamic sampling, bounded: after `refills` draws what is left stays as it is. The order of
  the kept groups is that of the draws, as if they had been filtered out of one long stream.
  Raises NotImplementedError for refills with several processes.
  """
  if refills and jax.process_count() > 1:
    raise NotImplementedError(f"sampling.refills={refills} with {jax.process_count()} processes: "
                              "groups are exchanged on one host only; set sampling.refills=0")
  got = [sample(draw())]
  size = len(got[0].examples) // samples
  kept = [with_signal(got[0], samples)]
  while len(got) <= refills and sum(k.sum() for k in kept) < size:
    got.append(sample(draw()))
    kept.append(with_signal(got[-1], samples))
  if len(got) == 1:
    return got[0]
  good = [(i, p) for i, k in enumerate(kept) for p in np.flatnonzero(k)]
  rest = [(i, p) for i, k in enumerate(kept) for p in np.flatnonzero(~k)]
  chosen = (good + rest)[:size]
  rows = np.asarray([(i * size + p) * samples + g for i, p in chosen for g in range(samples)])
  pick = lambda *xs: jnp.concatenate(xs)[rows]
  batch = jax.tree.map(pick, *(r.batch for r in got))
  group = jnp.repeat(jnp.arange(size, dtype=jnp.int32), samples)
  batch = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding),
                       batch.replace(group=group), got[0].batch)
  flat = lambda name: [x for r in got for x in getattr(r, name)]
  take = lambda xs: [xs[row] for row in rows]
  counts = {name: sum(r.counts[name] for r in got) for name in got[0].counts}
  return Rollout(batch, take(flat("examples")), take(flat("texts")), take(flat("verdicts")),
                 sum(r.steps for r in got), len(got) - 1, sum(r.sampled for r in got),
                 sum(r.verify_seconds for r in got), counts)


def local_rows(batch: Batch, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """(entropy, mask) [rows, T] of the first rows that this process holds."""
  entropy, mask = sharding.local((batch.old_entropy, batch.mask))
  return entropy[:rows], mask[:rows]
