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
from entrolab import row_groups, sharding
from entrolab.batch import Batch
from entrolab.models.transformer import Config
from entrolab.rollout import columns, continuous_batching, decode
from entrolab.rollout.decode import Decoding, Samples
from entrolab.rollout.strategy import Drawn, Prompted, Request, Rollout, Sampling, Strategy
from entrolab.tasks import spelling
from entrolab.tasks.prompts import padded
from entrolab.tasks.task import Example, Task, Tokenizer, check_sizes, opened, within
from entrolab.typing import Array, Bool, Float, Key
from entrolab.verify import RIGHT, WRONG, Verdict, codes
from entrolab.verify.extract import MAX_OPENED
from entrolab.verify.extract import opened as left_open

row_keys = jax.jit(key_scheme.row_keys, static_argnums=3)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _assemble(samples: Samples, prompt: Array, prompt_mask: Array, keys: Array, size: int,
              on_rows: jax.sharding.NamedSharding) -> Batch:
  """The columns that need no verdict, `size` rows a group; prompts of the groups, or of the rows.
  """
  rows = samples.tokens.shape[0]
  # one prompt a group is repeated for each of its rows; one prompt a row stays as it is
  spread = lambda x: jnp.repeat(x, rows // x.shape[0], 0)
  batch = Batch(tokens=samples.tokens, mask=samples.mask, prompt=spread(prompt),
                prompt_mask=spread(prompt_mask),
                group=spread(jnp.arange(rows // size, dtype=jnp.int32)),
                row=jax.random.key_data(keys), finished=samples.finished, old_logp=samples.logp,
                old_entropy=samples.entropy, sampled_logp=samples.sampled_logp)
  # the trainer's programs expect rows over data and fsdp, wherever the sampler has left them
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), batch)


class Engine:
  """Samples and verifies for one model, task and mesh.

  names: further columns of `columns.FILLERS` that every rollout is to have. Raises TypeError for
  another name. Of a `sampling`, methods read samples, max_tokens, temperature, top_p, top_k and
  slots. They draw for exactly the examples that are given; `refilled` replaces groups.

  With several processes, examples and all lists are those of the rows of this process's group
  (`groups`); arrays on the mesh are of all rows.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer, task: Task, mesh: jax.sharding.Mesh,
               names: Sequence[str] = ()):
    self.config, self.tokenizer, self.task, self.mesh = config, tokenizer, task, mesh
    self.groups = row_groups.of(mesh)
    check_sizes(tokenizer, config.vocab_size)
    found, self.stops = spelling.stops(task.stop, tokenizer, config.vocab_size)
    self.stop_ids = np.asarray(tuple(dict.fromkeys((*tokenizer.stop_ids, *found))), np.int32)
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
    """The rows of `rollout`, not verified; returns while the devices draw them."""
    prompted = self.prompted(examples)
    # a row's key names run, step, prompt and sample, not its place in the batch: it gets the same
    # tokens in every batch and on every mesh
    keys = row_keys(key, np.int32(step), prompted.ids, sampling.samples)
    return Drawn(prompted, keys, self.sample(params, prompted, keys, sampling))

  def prompted(self, examples: Sequence[Example]) -> Prompted:
    """Examples with their prompts, on the mesh."""
    # always of max_prompt positions, so that no batch compiles the sampler again
    prompts = []
    for example in examples:
      ids = opened(self.tokenizer, self.task.prompt(example, self.tokenizer))
      within(ids, self.config.vocab_size, f"the prompt of example {example.id}")
      prompts.append(ids)
    tokens, mask = padded(prompts, self.task.max_prompt, self.tokenizer.pad_id)
    ids = np.asarray([example.id for example in examples], np.int32)
    return Prompted(list(examples), *self.place((tokens, mask, ids)))

  def place(self, local: Any) -> Any:
    """Arrays whose rows are those of this process's group -> arrays on the mesh."""
    return sharding.place(local, sharding.rows(self.mesh))

  def everyones(self, examples: Sequence[Example]) -> list[Example]:
    """The examples of this group -> those of all groups, by their places in the step's list."""
    if self.groups.count == 1:
      return list(examples)
    records = self.groups.of_all([dataclasses.asdict(example) for example in examples])
    return [Example(**record) for record in records]

  def sample(self, params: Any, prompted: Prompted, keys: Key[Array, " B"], sampling: Sampling, *,
             temperature: Float[Array, " B"] | None = None, keep: bool = False) -> Samples:
    """Responses to every prompt, a row a key.

    temperature: one a row, in place of sampling's; keep: with the caches that `decode.resume` goes
    on from. Raises ValueError for keep with slots, and as `continuous_batching.check`.
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
    """How tokens are drawn, with the task's stop strings and the tokenizer's stop tokens and pad.
    """
    return Decoding.of(sampling.temperature if temperature is None else temperature,
                       sampling.top_p, sampling.top_k, self.stop_ids, self.tokenizer.pad_id,
                       self.stops)

  def rows(self, drawn: Drawn) -> Batch:
    """The columns that need no verdict."""
    prompted, keys, samples = drawn
    # without the caches, which are no column: with them this would be another program
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
    texts = self.texts(drawn.samples, drawn.prompted) if texts is None else texts
    size = len(texts) // len(drawn.prompted.examples)
    # `texts` are of this group alone, and so are the examples: a group verifies its rows
    examples = [example for example in drawn.prompted.examples for _ in range(size)]
    # the devices go on meanwhile: with log-probs of these rows, or with the rows of the next step
    started = time.perf_counter()
    verdicts = self.verdicts(texts, examples)
    seconds = time.perf_counter() - started
    batch = batch.replace(verdict=self.place(np.asarray(codes(verdicts), np.int32)),
                          **self.filled(texts, drawn.samples.tokens, drawn.samples.mask, size))
    return Rollout(batch, examples, texts, verdicts, int(drawn.samples.steps),
                   sampled=batch.tokens.shape[0], verify_seconds=seconds)

  def verdicts(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
    """On the responses of this group: of its one verifier."""
    # as records, since they may come from another process
    records = self.groups.of_lead(
        lambda: [dataclasses.asdict(verdict) for verdict in self.task.verify(texts, examples)])
    return [Verdict(**record) for record in records]

  def filled(self, texts: Sequence[str], tokens: Any, mask: Any, size: int) -> dict[str, Array]:
    """The further columns of rows in groups of `size`."""
    if not self.fillers:
      return {}
    # fillers read text and task, which only the host has: tokens come down, columns go back up
    total = tokens.shape[0]
    tokens, mask = sharding.local((tokens, mask))
    responses = columns.Responses(texts, tokens, mask, size, self.groups.places(total))
    return self.place(self.groups.arrays_of_lead(
        lambda: {name: fill(self.task, self.tokenizer, responses)
                 for name, fill in self.fillers.items()}))

  def texts(self, samples: Samples, prompted: Prompted) -> list[str]:
    """The responses of this group as text; stop tokens are up to the tokenizer.

    Each begins with what its prompt leaves open.
    """
    tokens, mask = sharding.local((samples.tokens, samples.mask))
    begun = self.opened(prompted)
    size = len(tokens) // len(begun)
    return [begun[at // size] + self.tokenizer.decode(row[on].tolist())
            for at, (row, on) in enumerate(zip(tokens, mask, strict=True))]

  def opened(self, prompted: Prompted) -> list[str]:
    """What the end of each prompt of this group leaves open, such as <think>: a verifier reads
    it before the response."""
    tokens, mask = sharding.local((prompted.tokens, prompted.mask))
    return [left_open(self.tokenizer.decode(row[on][-MAX_OPENED:].tolist()))
            for row, on in zip(tokens, mask, strict=True)]


class SingleTurn(Strategy):
  """A strategy whose rows are single responses: they come from `Engine` itself."""

  @property
  def engine(self) -> Callable[..., Engine]:
    """What samples and verifies, in training and in evaluation."""
    return Engine


def with_signal(rollout: Rollout, samples: int) -> Bool[np.ndarray, " P"]:
  """Groups of all processes with a learning signal: some verdicts are right and some are wrong.
  Unknown is neither."""
  verdict = row_groups.everywhere(rollout.batch.verdict).reshape(-1, samples)
  return np.asarray((verdict == RIGHT).any(1) & (verdict == WRONG).any(1))


def refilled(rollout_of: Callable[[Sequence[Example]], Rollout], request: Request) -> Rollout:
  """A rollout whose groups without a learning signal are replaced by groups of further prompts.

  DAPO's dynamic sampling, bounded: at most `sampling.refills` further batches of prompts are drawn.
  Groups with a signal come first, each kind in the order in which it was drawn; if there are too
  few, groups without one fill the batch. Every process knows the verdicts of all rows, and so
  decides alike.
  """
  samples = request.sampling.samples
  rollouts = [rollout_of(request.next_prompts())]
  if not request.sampling.refills:
    return rollouts[0]
  signals = [with_signal(rollouts[0], samples)]
  size = len(signals[0])  # groups of a batch
  while len(rollouts) <= request.sampling.refills and sum(s.sum() for s in signals) < size:
    rollouts.append(rollout_of(request.next_prompts()))
    signals.append(with_signal(rollouts[-1], samples))
  if len(rollouts) == 1:
    return rollouts[0]
  # each group as (rollout, group in it); the batch is filled with those with a signal first
  good = [(i, p) for i, signal in enumerate(signals) for p in np.flatnonzero(signal)]
  rest = [(i, p) for i, signal in enumerate(signals) for p in np.flatnonzero(~signal)]
  # their rows, counted over all rollouts one after another
  rows = np.asarray([(i * size + p) * samples + g
                     for i, p in (good + rest)[:size] for g in range(samples)])
  return _picked(rollouts, rows, samples)


def _picked(rollouts: Sequence[Rollout], rows: np.ndarray, samples: int) -> Rollout:
  """The rows with these indices, which are whole groups, of several rollouts one after another."""
  # every rollout counted its groups from 0: picked together, they are counted anew
  group = np.arange(len(rows), dtype=np.int32) // samples
  first, tree = jax.tree.flatten(rollouts[0].batch)
  # the rows lie on the mesh as those of the first rollout do, whatever devices they come from
  batch = _taken(tree, tuple(x.sharding for x in first))(
      [rollout.batch for rollout in rollouts], rows, group)

  # texts and examples of rows that another group drew come from there
  together = [row for rollout in rollouts for row in _everyones(rollout)]
  mine = row_groups.of_array(first[0]).places(len(rows))
  examples, texts, verdicts = map(list, zip(*(together[rows[at]] for at in mine), strict=True))
  return Rollout(
      batch, examples, texts, verdicts, steps=sum(r.steps for r in rollouts),
      refills=len(rollouts) - 1, sampled=sum(r.sampled for r in rollouts),
      verify_seconds=sum(r.verify_seconds for r in rollouts),
      counts={name: sum(r.counts[name] for r in rollouts) for name in rollouts[0].counts})


@functools.lru_cache(maxsize=8)
def _taken(tree: Any, shardings: tuple[jax.sharding.Sharding, ...]) -> Callable[..., Batch]:
  """The jitted function (batches, rows, group) -> the batch of these rows, sharded so."""
  def taken(batches: list[Batch], rows: Array, group: Array) -> Batch:
    batch = jax.tree.map(lambda *columns: jnp.concatenate(columns)[rows], *batches)
    return batch.replace(group=group)

  return jax.jit(taken, out_shardings=jax.tree.unflatten(tree, shardings))


def _everyones(rollout: Rollout) -> list[tuple[Example, str, Verdict]]:
  """(example, text, verdict) of all rows of a rollout, by their places."""
  mine = list(zip(rollout.examples, rollout.texts, rollout.verdicts, strict=True))
  groups = row_groups.of_array(rollout.batch.tokens)
  if groups.count == 1:
    return mine
  records = groups.of_all([[dataclasses.asdict(example), text, dataclasses.asdict(verdict)]
                           for example, text, verdict in mine])
  return [(Example(**example), text, Verdict(**verdict)) for example, text, verdict in records]
