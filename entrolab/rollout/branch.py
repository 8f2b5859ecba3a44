"""Branching: responses, and continuations of each of them from one of its uncertain tokens.

CURE, stage 1; see `methods.cure` for the rule. A continuation costs its new tokens alone: the
cache of what it shares with its parent is copied, not computed again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.follow import BUFFER, Number
from entrolab.methods import cure
from entrolab.rollout.decode import Samples, resume
from entrolab.rollout.engine import Engine, SingleTurn, refilled, row_keys
from entrolab.rollout.strategy import Drawn, Feature, Prompted, Request, Rollout
from entrolab.tasks.task import Example, Tokenizer
from entrolab.typing import Array, Bool, Int, Key

Choose = Literal["entropy", "random"]
Overflow = Literal["move", "skip"]
Cuts = Literal["words", "signs"]
Verify = Literal["continuation", "whole"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
  """N rows of one kind, originals or continuations."""
  samples: Samples  # without what is of no row: its steps and its trunk
  keys: Key[Array, " N"]  # of the rows
  prompt: Int[Array, "N L"]  # what a response follows: of a continuation, with its prefix
  prompt_mask: Bool[Array, "N L"]  # real tokens of it
  branch: Int[Array, " N"]  # tokens of the prefix


def originals_of(branches: int) -> Number:
  """The originals of a group of sampling.samples rows, each with its branches. Raises ValueError
  where they do not fill it."""
  def of(experiment: Any) -> int:
    samples = experiment.sampling.samples
    if samples % (1 + branches):
      raise ValueError(f"sampling.samples={samples}: groups of originals with {branches} branches "
                       f"each; choices: multiples of {1 + branches}")
    return samples // (1 + branches)

  return Number(f"sampling.samples // {1 + branches}", of)


# tokens of a prefix: two thirds of what a response may have without a penalty for its length
PREFIX = Number("2 * (sampling.max_tokens - max(sampling.max_tokens // 5, 1)) // 3",
                lambda e: max(2 * (e.sampling.max_tokens - BUFFER.of(e)) // 3, 1))


def visible(texts: Sequence[str], special: Iterable[int] = ()) -> np.ndarray:
  """bool [V]: every token with a text that is not blank; for vocabularies whose every sign is one
  step, where `cure.admissible` would leave nothing but numbers of several digits."""
  allowed = np.asarray([bool(text.strip()) for text in texts], bool)
  allowed[list(special)] = False
  return allowed


# the tokens that may be cut at, by name
CUTS: dict[Cuts, Callable] = {"words": cure.admissible, "signs": visible}


@functools.lru_cache(maxsize=4)
def _table(tokenizer: Tokenizer, special: tuple[int, ...], admissible: Callable) -> np.ndarray:
  """`admissible` of every token; read once, as a vocabulary may be large."""
  texts = [tokenizer.decode([at]) for at in range(tokenizer.vocab_size)]
  return admissible(texts, special)


@functools.partial(jax.jit, static_argnames=("width", "most", "choose", "overflow"))
def _cut(samples: Samples, prompt: Array, mask: Array, keys: Array, allowed: Array, *, width: int,
         most: int, choose: Choose, overflow: Overflow
         ) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
  """Of every row: (where it is cut [B], its prompt and mask, those of its continuations [B, W]).

  Ranked by the entropy of the distribution drawn from: that of the untruncated one at the
  temperature of the draw where nothing is cut off.
  """
  rows, length = samples.tokens.shape
  uniform = key_scheme.cut_uniform(keys, length)
  level = samples.sampled_entropy if choose == "entropy" else uniform[:, 1:]
  choices = cure.candidates(level, samples.tokens, samples.mask, allowed, most=most)
  at = cure.branch_point(choices, uniform[:, 0])
  # all prompts get the width of the longest prefix, so that both kinds of rows have one shape
  wide = lambda x: jnp.pad(jnp.repeat(x, rows // x.shape[0], 0),
                           [(0, 0), (width - x.shape[1], 0)])
  prompt, mask = wide(prompt), wide(mask)
  longer, valid, _ = cure.reprompt(prompt, mask, samples.tokens, at, overflow=overflow)
  cut = valid.sum(1, dtype=jnp.int32) - mask.sum(1, dtype=jnp.int32)
  return cut, (prompt, mask), (longer, valid)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _groups(originals: _Rows, continued: _Rows | None, count: int,
            on_rows: jax.sharding.NamedSharding) -> _Rows:
  """Rows [P n1, ...] and, if any, [P n1 n2, ...] -> the rows of whole groups."""
  if continued is not None:
    join = functools.partial(cure.regroup, originals=count)
    originals = jax.tree.map(join, originals, continued)
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), originals)


@dataclasses.dataclass(frozen=True)
class Cure(SingleTurn):
  """`originals` responses to every prompt and `branches` continuations of each of them, as one
  group of originals (1 + branches) rows, originals first.

  A response is cut at one of its candidates, all of them equally likely. branches=0 is `Plain` in
  the shapes of a branching stage, for `Switch`.

  Columns [B]: row_kind, 0 original, 1 continuation; parent, place of the parent in the group;
  branch, tokens of the parent that stand in the row's prompt. A row's key folds (prompt, sample,
  branch), so that a continuation is the same whatever else is in the batch. Raises ValueError for
  sizes out of range, other choices, and where a group is not the samples of the experiment.
  """
  originals: int = 4  # n1, responses to a prompt
  branches: int = 3  # n2, continuations of each of them
  most: int = 20  # candidates of a response at most
  room: int = 0  # tokens of a prefix that fit into a prompt; 0: a whole response
  choose: Choose = "entropy"  # candidates: admissible tokens of highest entropy, or any of them
  overflow: Overflow = "move"  # a prefix that does not fit: cut earlier, or ("skip") at the start
  verify: Verify = "continuation"  # what the verifier sees: that alone, as officially, or "whole"
  # (texts of all tokens, special ids) -> bool [V], the tokens that may be cut at
  admissible: Callable[[Sequence[str], Iterable[int]], np.ndarray] = cure.admissible
  columns = ("row_kind", "parent", "branch")

  def __post_init__(self) -> None:
    if self.originals < 1 or self.branches < 0 or self.most < 1 or self.room < 0:
      raise ValueError(f"{self!r}: needs originals >= 1, branches >= 0, most >= 1, room >= 0")
    for name, value, choices in (("choose", self.choose, get_args(Choose)),
                                 ("overflow", self.overflow, get_args(Overflow)),
                                 ("verify", self.verify, get_args(Verify))):
      if value not in choices:
        raise ValueError(f"Cure({name}={value!r}); choices: {', '.join(choices)}")

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also slots, where there are branches."""
    if not self.branches:
      return super().unsupported
    return {**super().unsupported, "slots": "a slot does not keep the cache of a row that has ended"
            ", from which branches go on; set sampling.slots=0"}

  def positions(self, prompt: int, response: int) -> int:
    """Those of a continuation: it has as many new tokens as a response, behind a prefix."""
    # `decode.resume` goes on behind the whole prefix, also where not all of it fits into the prompt
    return prompt + (2 * response - 1 if self.branches else response)

  @property
  def samples(self) -> int:
    """Rows of a group."""
    return self.originals * (1 + self.branches)

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified groups of one step, replaced where the request allows it.

    counts: prefill_tokens that went through the model, reused_tokens of a context whose cache was
    copied instead.
    """
    samples = request.sampling.samples
    if samples != self.samples:
      raise ValueError(f"sampling.samples={samples}, but {self.originals} originals with "
                       f"{self.branches} branches each are groups of {self.samples}")
    return refilled(lambda examples: self._grown(engine, request, examples), request)

  def _grown(self, engine: Engine, request: Request, examples: Sequence[Example]) -> Rollout:
    """The verified groups of some examples."""
    prompted = engine.prompted(examples)
    keys_of_branch = functools.partial(row_keys, request.key, np.int32(request.step), prompted.ids,
                                       self.originals)
    sampling = dataclasses.replace(request.sampling, samples=self.originals)
    keys = keys_of_branch()
    samples = engine.sample(request.params, prompted, keys, sampling, keep=self.branches > 0)
    steps = int(samples.steps)
    cut, prompts, longer = self._cut(engine, prompted, samples, keys, sampling.max_tokens)
    bare = lambda x: dataclasses.replace(x, trunk=None, steps=None)
    originals = _Rows(bare(samples), keys, *prompts, jnp.zeros_like(cut))
    continued = None
    if self.branches:
      # branch ids count from 1, as an original has 0; those of a parent stand next to each other
      more = jnp.stack([keys_of_branch(branch=np.int32(1 + b)) for b in range(self.branches)], 1)
      more = more.reshape(-1)
      grown = resume(engine.config, request.params, samples.trunk, cut, more,
                     engine.decoding(sampling), copies=self.branches,
                     max_tokens=sampling.max_tokens)
      steps += int(grown.steps)
      continued = _Rows(bare(grown), more,
                        *(jnp.repeat(x, self.branches, 0) for x in (*longer, cut)))
    rows = _groups(originals, continued, self.originals, sharding.rows(engine.mesh))
    return self._judged(engine, prompted, rows, steps)

  def _cut(self, engine: Engine, prompted: Prompted, samples: Samples, keys: Array,
           max_tokens: int) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """`_cut` of the originals, by the choices of this strategy."""
    special = tuple(int(t) for t in (*engine.stop_ids, engine.tokenizer.pad_id) if t >= 0)
    return _cut(dataclasses.replace(samples, trunk=None), prompted.tokens, prompted.mask, keys,
                _table(engine.tokenizer, special, self.admissible), most=self.most,
                choose=self.choose, overflow=self.overflow,
                width=prompted.tokens.shape[1] + (self.room or max_tokens))

  def _judged(self, engine: Engine, prompted: Prompted, rows: _Rows, steps: int) -> Rollout:
    """Verdicts and columns of the rows of whole groups."""
    kind, parent = cure.family(self.originals, self.branches)
    texts = (self._whole_texts(engine, prompted, rows, parent) if self.verify == "whole"
             else None)
    each = prompted._replace(tokens=rows.prompt, mask=rows.prompt_mask)  # a prompt a row
    samples = dataclasses.replace(rows.samples, steps=steps)
    rollout = engine.judged(Drawn(each, rows.keys, samples), texts=texts)
    groups = len(prompted.examples)
    tiled = lambda x: engine.place(np.tile(x.astype(np.int32), groups))
    batch = rollout.batch.replace(row_kind=tiled(kind), parent=tiled(parent), branch=rows.branch)
    reused = jnp.where(batch.extra["row_kind"] == 1, batch.prompt_mask.sum(1), 0).sum()
    return dataclasses.replace(rollout, batch=batch, counts={
        "prefill_tokens": int(prompted.mask.sum()), "reused_tokens": int(reused)})

  def _whole_texts(self, engine: Engine, prompted: Prompted, rows: _Rows, parent: np.ndarray
                   ) -> list[str]:
    """The texts of prefix and continuation together, behind what the prompt leaves open."""
    begun = np.repeat(engine.opened(prompted), self.samples).tolist()
    tokens, mask, branch = sharding.local((rows.samples.tokens, rows.samples.mask, rows.branch))
    groups = len(tokens) // self.samples
    # the row of this process's group that a row's parent is
    parents = np.repeat(np.arange(groups) * self.samples, self.samples) + np.tile(parent, groups)
    return [opened + engine.tokenizer.decode([*tokens[of][:at].tolist(), *row[on].tolist()])
            for opened, of, at, row, on in zip(begun, parents, branch, tokens, mask, strict=True)]
