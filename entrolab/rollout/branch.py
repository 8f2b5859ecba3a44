"""Branching: responses, and continuations of each of them from one of its uncertain tokens.

CURE, stage 1; see `methods.cure` for the rule. A continuation pays for its own tokens alone: the
cache of what it shares with its parent is copied, not computed again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.methods import cure
from entrolab.rollout.decode import Samples, resume
from entrolab.rollout.plain import Asked, Request, Rollout, Sampler, filled, row_keys
from entrolab.tasks.task import Example

Choose = Literal["entropy", "random"]
Overflow = Literal["move", "skip"]


def visible(texts: Sequence[str], special: Iterable[int] = ()) -> np.ndarray:
  """bool [V]: every token with a text that is not blank; for vocabularies whose every sign is a
  step of its own, where `cure.admissible` would leave nothing but long numbers."""
  allowed = np.asarray([bool(text.strip()) for text in texts], bool)
  allowed[list(special)] = False
  return allowed


@functools.lru_cache(maxsize=4)
def _table(tokenizer: Any, special: tuple[int, ...], admissible: Callable) -> np.ndarray:
  texts = [tokenizer.decode([at]) for at in range(tokenizer.vocab_size)]
  return admissible(texts, special)


@functools.partial(jax.jit, static_argnames=("width", "most", "choose", "overflow"))
def _cut(out: Samples, prompt, mask, keys, allowed, *, width: int, most: int, choose: Choose,
         overflow: Overflow):
  """Of every row: (where it is cut [B], its prompt and mask, those of its continuations [B, W]).

  Ranked by the entropy of the distribution drawn from: that of the untruncated one at the
  temperature of the draw where nothing is cut off.
  """
  rows, length = out.tokens.shape
  uniform = key_scheme.cut_uniform(keys, length)
  level = out.sampled_entropy if choose == "entropy" else uniform[:, 1:]
  choices = cure.candidates(level, out.tokens, out.mask, allowed, most=most)
  at = cure.branch_point(choices, uniform[:, 0])
  wide = lambda x: jnp.pad(jnp.repeat(x, rows // x.shape[0], 0),
                           [(0, 0), (width - x.shape[1], 0)])
  prompt, mask = wide(prompt), wide(mask)
  longer, valid, _ = cure.reprompt(prompt, mask, out.tokens, at, overflow=overflow)
  cut = valid.sum(1, dtype=jnp.int32) - mask.sum(1, dtype=jnp.int32)
  return cut, (prompt, mask), (longer, valid)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _groups(originals, continued, count, on_rows):
  """Trees of rows [P n1, ...] and, if any, [P n1 n2, ...] -> the rows of whole groups."""
  if continued is not None:
    join = functools.partial(cure.regroup, originals=count)
    originals = jax.tree.map(join, originals, continued)
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), originals)


@dataclasses.dataclass(frozen=True)
class Cure:
  """`originals` responses to every prompt and `branches` continuations of each of them, as one
  group of originals (1 + branches) rows, originals first.

  most: candidates a response, the admissible tokens of highest entropy (or any of them: choose=
  "random"), of which one is cut at, all alike; admissible: (token texts, special ids) -> bool [V].
  room: tokens of a prefix that fit into a prompt, 0 for a whole response; what does not fit moves
  the cut forward, or with overflow="skip" to the start. verify: the verifier sees the
  continuation alone, as officially, or the whole response. branches=0 is `Plain` in the shapes of
  a branching stage, for `Switch`.

  Columns [B]: row_kind 0 original, 1 continuation; parent: its place in the group; branch: tokens
  of the parent that stand in the row's prompt. A row's key folds (prompt, sample, branch), so that
  a continuation is the same whatever else is in the batch. Raises ValueError for other numbers
  or choices, and where a group is not the samples of the experiment.
  """
  originals: int = 4
  branches: int = 3
  most: int = 20
  room: int = 0
  choose: Choose = "entropy"
  overflow: Overflow = "move"
  verify: Literal["continuation", "whole"] = "continuation"
  admissible: Callable[[Sequence[str], Iterable[int]], np.ndarray] = cure.admissible
  engine: ClassVar[type[Sampler]] = Sampler
  columns: ClassVar[tuple[str, ...]] = ("row_kind", "parent", "branch")

  def __post_init__(self) -> None:
    if self.originals < 1 or self.branches < 0 or self.most < 1 or self.room < 0:
      raise ValueError(f"{self!r}: needs originals >= 1, branches >= 0, most >= 1, room >= 0")
    for name, choices in (("choose", ("entropy", "random")), ("overflow", ("move", "skip")),
                          ("verify", ("continuation", "whole"))):
      if getattr(self, name) not in choices:
        raise ValueError(f"Cure({name}={getattr(self, name)!r}); choices: {', '.join(choices)}")

  @property
  def samples(self) -> int:
    """Rows of a group."""
    return self.originals * (1 + self.branches)

  def __call__(self, sampler: Sampler, ask: Request) -> Rollout:
    """The verified groups of one step, refilled where the request allows it."""
    if ask.knobs["samples"] != self.samples:
      raise ValueError(f"sampling.samples={ask.knobs['samples']}, but {self.originals} originals "
                       f"with {self.branches} branches each are groups of {self.samples}")
    return filled(lambda examples: self.groups(sampler, ask, examples), ask.draw, self.samples,
                  ask.refills)

  def groups(self, sampler: Sampler, ask: Request, examples: Sequence[Example]) -> Rollout:
    """The verified groups of some examples. counts: prefill_tokens that went through the model,
    reused_tokens of a context whose cache was copied instead."""
    asked, n1, n2 = sampler.asked(examples), self.originals, self.branches
    fold = functools.partial(row_keys, ask.key, np.int32(ask.step), asked.ids, n1)
    knobs = {name: ask.knobs[name] for name in ("temperature", "top_p", "top_k")}
    max_tokens, keys = ask.knobs["max_tokens"], fold()
    out = sampler.sample(ask.params, asked, keys, samples=n1, max_tokens=max_tokens, keep=n2 > 0,
                         slots=ask.knobs.get("slots", 0), **knobs)
    special = tuple(int(t) for t in (*sampler.stop, sampler.tokenizer.pad_id) if t >= 0)
    cut, own, longer = _cut(
        dataclasses.replace(out, trunk=None), asked.prompt, asked.mask, keys,
        _table(sampler.tokenizer, special, self.admissible), most=self.most, choose=self.choose,
        overflow=self.overflow, width=asked.prompt.shape[1] + (self.room or max_tokens))
    first = (dataclasses.replace(out, trunk=None, steps=None), keys, *own, jnp.zeros_like(cut))
    second, steps = None, int(out.steps)
    if n2:
      more = jnp.stack([fold(branch=np.int32(1 + j)) for j in range(n2)], 1).reshape(-1)
      new = resume(sampler.config, ask.params, out.trunk, cut, more, sampler.decoding(**knobs),
                   copies=n2, max_tokens=max_tokens)
      steps += int(new.steps)
      second = (dataclasses.replace(new, steps=None), more,
                *(jnp.repeat(x, n2, 0) for x in (*longer, cut)))
    rows = _groups(first, second, n1, sharding.rows(sampler.mesh))
    return self._judged(sampler, asked, rows, steps)

  def _judged(self, sampler: Sampler, asked: Asked, rows: Any, steps: int) -> Rollout:
    """Verdicts and columns of the rows of whole groups."""
    out, keys, prompt, mask, branch = rows
    kind, parent = cure.family(self.originals, self.branches)
    texts = self._whole(sampler, out, branch, parent) if self.verify == "whole" else None
    got = sampler.judged(asked._replace(prompt=prompt, mask=mask), keys,
                         dataclasses.replace(out, steps=steps), self.samples, texts=texts)
    groups = len(asked.examples)
    tiled = lambda x: sampler.place(np.tile(x.astype(np.int32), groups))
    batch = got.batch.replace(row_kind=tiled(kind), parent=tiled(parent), branch=branch)
    reused = int(jnp.where(batch.extra["row_kind"] == 1, batch.prompt_mask.sum(1), 0).sum())
    return dataclasses.replace(got, batch=batch, counts={
        "prefill_tokens": int(asked.mask.sum()), "reused_tokens": reused})

  def _whole(self, sampler: Sampler, out: Samples, branch: jax.Array, parent: np.ndarray
             ) -> list[str]:
    """The texts of prefix and continuation together."""
    tokens, mask, branch = sharding.local((out.tokens, out.mask, branch))
    of = np.arange(len(tokens)) // self.samples * self.samples + np.tile(
        parent, len(tokens) // self.samples)
    return [sampler.tokenizer.decode([*tokens[p][:at].tolist(), *row[on].tolist()])
            for p, at, row, on in zip(of, branch, tokens, mask, strict=True)]
