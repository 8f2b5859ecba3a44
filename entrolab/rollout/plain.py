"""G responses to every prompt, verified; groups without a signal replaced, a bounded number of
times."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import data, sharding
from entrolab.models.transformer import Config
from entrolab.objective import Batch
from entrolab.rollout import sampler
from entrolab.tasks import Example
from entrolab.verify import Verdict, codes

Draw = Callable[[], Sequence[Example]]  # the next prompts of this step's data


@dataclasses.dataclass(frozen=True)
class Rollout:
  """A batch on the mesh and what the host knows of it, row by row; steps: decoded positions;
  refills: how often prompts were drawn again; sampled: rows that were generated in all."""
  batch: Batch
  examples: list[Example]
  texts: list[str]
  verdicts: list[Verdict]
  steps: int
  refills: int = 0
  sampled: int = 0


class Sampler:
  """Sampling for one model, task and mesh: prompts in, verified rows out."""

  def __init__(self, config: Config, tokenizer: Any, task: Any, mesh: jax.sharding.Mesh):
    self.config, self.tokenizer, self.task, self.mesh = config, tokenizer, task, mesh
    self.stop = np.asarray(data.stop_ids(task, tokenizer), np.int32)

  def rollout(self, params: Any, examples: Sequence[Example], key: jax.Array, step: int, *,
              samples: int, longest: int, temperature: float = 1.0, top_p: float = 1.0,
              top_k: int = 0) -> Rollout:
    """P examples -> B = P x samples verified rows, the rows of a prompt one after another."""
    prompts = [self.task.prompt(example, self.tokenizer) for example in examples]
    prompt, mask = data.padded(prompts, self.task.max_prompt, self.tokenizer.pad_id)
    ids = np.asarray([example.id for example in examples], np.int32)
    on_rows = sharding.rows(self.mesh)
    keys = sampler.row_keys(key, step, ids, samples)
    prompt, mask, keys = (jax.device_put(x, on_rows) for x in (prompt, mask, keys))
    out = sampler.sample(self.config, params, prompt, mask, keys, samples=samples, longest=longest,
                         temperature=np.float32(temperature), top_p=np.float32(top_p),
                         top_k=np.int32(top_k), stop_ids=self.stop,
                         pad_id=np.int32(self.tokenizer.pad_id))
    spread = lambda x: jnp.repeat(x, samples, 0)
    group = np.repeat(np.arange(len(examples), dtype=np.int32), samples)
    rows = [example for example in examples for _ in range(samples)]
    texts = self.texts(out)
    verdicts = self.task.verify(texts, rows)
    place = lambda x: jax.device_put(x, on_rows)
    batch = Batch(tokens=out.tokens, mask=out.mask, prompt=spread(prompt),
                  prompt_mask=spread(mask), group=place(group), row=jax.random.key_data(keys),
                  finished=out.finished, old_logp=out.logp, old_entropy=out.entropy,
                  sampled_logp=out.sampled_logp,
                  verdict=place(np.asarray(codes(verdicts), np.int32)))
    batch = jax.tree.map(place, batch)
    return Rollout(batch, rows, texts, verdicts, int(out.steps), sampled=len(rows))

  def texts(self, out: sampler.Samples) -> list[str]:
    """The responses as text, stop tokens left out where the tokenizer does."""
    tokens, mask = sharding.fetch((out.tokens, out.mask))
    return [self.tokenizer.decode(row[on].tolist()) for row, on in zip(tokens, mask, strict=True)]


def with_signal(rollout: Rollout, samples: int) -> np.ndarray:
  """bool [P]: groups whose verdicts are neither all right nor all not right."""
  right = np.asarray([v.status == "right" for v in rollout.verdicts]).reshape(-1, samples)
  return right.any(1) & ~right.all(1)


def filled(sample: Callable[[Sequence[Example]], Rollout], draw: Draw, samples: int,
           refills: int) -> Rollout:
  """A rollout whose groups without a signal are replaced by groups with one out of further draws.

  DAPO's dynamic sampling, bounded: after `refills` draws what is left stays as it is. The order of
  the kept groups is that of the draws, as if they had been filtered out of one long stream.
  """
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
  return Rollout(batch, take(flat("examples")), take(flat("texts")), take(flat("verdicts")),
                 sum(r.steps for r in got), len(got) - 1, sum(r.sampled for r in got))
