"""The engine of a run: prompts in, verified rows out; and groups replaced where all agree."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.batch import Batch
from entrolab.models.transformer import Config
from entrolab.rollout import columns, continuous_batching, decode
from entrolab.rollout.decode import Decoding, Samples
from entrolab.rollout.strategy import Drawn, Prompted, Request, Rollout, Sampling, Strategy
from entrolab.tasks.prompts import padded, stop_ids
from entrolab.tasks.task import Example, Task, Tokenizer
from entrolab.typing import Array, Bool, Float, Key
from entrolab.verify import codes

row_keys = jax.jit(key_scheme.row_keys, static_argnums=3)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _assemble(samples: Samples, prompt: Array, prompt_mask: Array, keys: Array, size: int,
              on_rows: jax.sharding.NamedSharding) -> Batch:
  """The columns that need no verdict, `size` rows a group; prompts of the groups, or of the rows.
  """
  rows = samples.tokens.shape[0]
  spread = lambda x: jnp.repeat(x, rows // x.shape[0], 0)
  batch = Batch(tokens=samples.tokens, mask=samples.mask, prompt=spread(prompt),
                prompt_mask=spread(prompt_mask),
                group=spread(jnp.arange(rows // size, dtype=jnp.int32)),
                row=jax.random.key_data(keys), finished=samples.finished, old_logp=samples.logp,
                old_entropy=samples.entropy, sampled_logp=samples.sampled_logp)
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), batch)


class Engine:
  """Samples and verifies for one model, task and mesh.

  names: further columns of `columns.FILLERS` that every rollout is to have. Raises TypeError for
  another one. A `sampling` that a method takes is read for samples, max_tokens, temperature, top_p,
  top_k and slots; prompts are those that are given, and replacing groups is left to `refilled`.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer, task: Task, mesh: jax.sharding.Mesh,
               names: Sequence[str] = ()):
    self.config, self.tokenizer, self.task, self.mesh = config, tokenizer, task, mesh
    self.stop_ids = np.asarray(stop_ids(task, tokenizer), np.int32)
    self.fillers = columns.fillers(names)

  def answer(self, request: Request) -> Rollout:
    """The verified rows of the next prompts, and of further ones where the request allows it."""
    return refilled(lambda examples: self.rollout(
        request.params, examples, request.key, request.step, request.sampling), request)

  def rollout(self, params: Any, examples: Sequence[Example], key: Key[Array, ""], step: int,
              sampling: Sampling) -> Rollout:
    """P examples -> B = P x samples verified rows, the rows of a prompt one after another."""
    return self.judged(self.drawn(params, examples, key, step, sampling))

  def drawn(self, params: Any, examples: Sequence[Example], key: Key[Array, ""], step: int,
            sampling: Sampling) -> Drawn:
    """The rows of `rollout` before anybody reads them: returns while the devices draw."""
    prompted = self.prompted(examples)
    keys = row_keys(key, np.int32(step), prompted.ids, sampling.samples)
    return Drawn(prompted, keys, self.sample(params, prompted, keys, sampling))

  def prompted(self, examples: Sequence[Example]) -> Prompted:
    """Examples with their prompts, on the mesh."""
    prompts = [self.task.prompt(example, self.tokenizer) for example in examples]
    tokens, mask = padded(prompts, self.task.max_prompt, self.tokenizer.pad_id)
    ids = np.asarray([example.id for example in examples], np.int32)
    return Prompted(list(examples), *self.place((tokens, mask, ids)))

  def place(self, local: Any) -> Any:
    """Arrays whose rows are those of this process -> arrays on the mesh."""
    return sharding.place(local, sharding.rows(self.mesh))

  def sample(self, params: Any, prompted: Prompted, keys: Key[Array, " B"], sampling: Sampling, *,
             temperature: Float[Array, " B"] | None = None, keep: bool = False) -> Samples:
    """Responses to every prompt, a row a key.

    temperature: one a row, in place of sampling's; keep: with the caches that `decode.resume` goes
    on from. Raises ValueError for slots that keep, or that `continuous_batching.check` refuses.
    """
    args = (self.config, params, prompted.tokens, prompted.mask, keys,
            self.decoding(sampling, temperature))
    size = dict(samples=sampling.samples, max_tokens=sampling.max_tokens)
    if not sampling.slots:
      return decode.sample(*args, keep=keep, **size)
    if keep:
      raise ValueError(f"sampling.slots={sampling.slots}: a slot does not keep the cache of a row "
                       "that has ended; set sampling.slots=0")
    return continuous_batching.sample(*args, slots=sampling.slots, mesh=self.mesh, **size)

  def decoding(self, sampling: Sampling, temperature: Float[Array, " B"] | None = None) -> Decoding:
    """How tokens are drawn, with the task's stop tokens and the tokenizer's pad."""
    return Decoding.of(sampling.temperature if temperature is None else temperature,
                       sampling.top_p, sampling.top_k, self.stop_ids, self.tokenizer.pad_id)

  def rows(self, drawn: Drawn) -> Batch:
    """The columns that need no verdict."""
    prompted, keys, samples = drawn
    # caches are no column, and the program must not depend on whether they are there
    samples = dataclasses.replace(samples, trunk=None)
    size = samples.tokens.shape[0] // prompted.ids.shape[0]
    return _assemble(samples, prompted.tokens, prompted.mask, keys, size,
                     sharding.rows(self.mesh))

  def judged(self, drawn: Drawn, *, texts: list[str] | None = None, rows: Batch | None = None
             ) -> Rollout:
    """Verdicts, and with them all columns.

    The prompts may be of the examples, or of every row where those of a group differ. texts: what
    the verifier is to see instead of the responses; rows: what `rows` gave, where it is known.
    """
    batch = self.rows(drawn) if rows is None else rows
    texts = self.texts(drawn.samples) if texts is None else texts
    size = len(texts) // len(drawn.prompted.examples)
    examples = [example for example in drawn.prompted.examples for _ in range(size)]
    # the devices may score or draw other rows while the host is busy here
    begin = time.perf_counter()
    verdicts = self.task.verify(texts, examples)
    seconds = time.perf_counter() - begin
    batch = batch.replace(verdict=self.place(np.asarray(codes(verdicts), np.int32)),
                          **self.filled(texts, drawn.samples.tokens, drawn.samples.mask, size))
    return Rollout(batch, examples, texts, verdicts, int(drawn.samples.steps),
                   sampled=batch.tokens.shape[0], verify_seconds=seconds)

  def filled(self, texts: Sequence[str], tokens: Any, mask: Any, size: int) -> dict[str, Array]:
    """The further columns of rows in groups of `size`."""
    if not self.fillers:
      return {}
    tokens, mask = sharding.local((tokens, mask))
    responses = columns.Responses(texts, tokens, mask, size)
    return {name: self.place(fill(self.task, self.tokenizer, responses))
            for name, fill in self.fillers.items()}

  def texts(self, samples: Samples) -> list[str]:
    """The responses of this process as text, stop tokens left out where the tokenizer does."""
    tokens, mask = sharding.local((samples.tokens, samples.mask))
    return [self.tokenizer.decode(row[on].tolist()) for row, on in zip(tokens, mask, strict=True)]


class SingleTurn(Strategy):
  """A strategy whose rows are single responses: they come from `Engine` itself."""

  @property
  def engine(self) -> Callable[..., Engine]:
    """What samples and verifies, in training and in evaluation."""
    return Engine


def with_signal(rollout: Rollout, samples: int) -> Bool[np.ndarray, " P"]:
  """Groups whose verdicts are neither all right nor all not right."""
  right = np.asarray([v.status == "right" for v in rollout.verdicts]).reshape(-1, samples)
  return np.asarray(right.any(1) & ~right.all(1))


def refilled(rollout_of: Callable[[Sequence[Example]], Rollout], request: Request) -> Rollout:
  """A rollout whose groups without a signal are replaced by groups with one, of further prompts.

  DAPO's dynamic sampling, bounded: after `sampling.refills` further batches of prompts, what has no
  signal yet stays as it is. Groups stand in the order in which they were drawn, as if they had been
  filtered out of one long stream.
  """
  samples = request.sampling.samples
  rollouts = [rollout_of(request.next_prompts())]
  signals = [with_signal(rollouts[0], samples)]
  size = len(signals[0])
  while len(rollouts) <= request.sampling.refills and sum(s.sum() for s in signals) < size:
    rollouts.append(rollout_of(request.next_prompts()))
    signals.append(with_signal(rollouts[-1], samples))
  if len(rollouts) == 1:
    return rollouts[0]
  # (rollout, group in it), those with a signal first
  good = [(i, p) for i, signal in enumerate(signals) for p in np.flatnonzero(signal)]
  rest = [(i, p) for i, signal in enumerate(signals) for p in np.flatnonzero(~signal)]
  rows = np.asarray([(i * size + p) * samples + g
                     for i, p in (good + rest)[:size] for g in range(samples)])
  return _picked(rollouts, rows, samples)


def _picked(rollouts: Sequence[Rollout], rows: np.ndarray, samples: int) -> Rollout:
  """Of several rollouts one after another, these rows, which are whole groups."""
  first = rollouts[0].batch
  batch = jax.tree.map(lambda *columns: jnp.concatenate(columns)[rows],
                       *(rollout.batch for rollout in rollouts))
  group = jnp.repeat(jnp.arange(len(rows) // samples, dtype=jnp.int32), samples)
  # picking gathers the rows on one device: they go back to where rows lie
  batch = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding),
                       batch.replace(group=group), first)

  def of_rows(lists: Sequence[list[Any]]) -> list[Any]:
    together = [entry for entries in lists for entry in entries]
    return [together[row] for row in rows]

  return Rollout(
      batch, of_rows([r.examples for r in rollouts]), of_rows([r.texts for r in rollouts]),
      of_rows([r.verdicts for r in rollouts]), steps=sum(r.steps for r in rollouts),
      refills=len(rollouts) - 1, sampled=sum(r.sampled for r in rollouts),
      verify_seconds=sum(r.verify_seconds for r in rollouts),
      counts={name: sum(r.counts[name] for r in rollouts) for name in rollouts[0].counts})
