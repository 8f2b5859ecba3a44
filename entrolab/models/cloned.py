"""A small decoder over the words of an environment, cloned on demonstrations when it is loaded.

It stands where a pre-trained model would: a policy that speaks the environment's language and
half knows what to do. Everything comes from the seed; nothing is stored on disk.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entrolab import vocab
from entrolab.environments import play
from entrolab.models import transformer
from entrolab.models.parameters import BY_NAME, Config, Params
from entrolab.typing import real

PAD, END = "<pad>", "<end>"


class Words:
  """A token a word, a token a digit; the vocabulary is filled up to a multiple of eight, so that
  it divides over devices."""

  def __init__(self, words: Sequence[str]):
    known = list(dict.fromkeys([PAD, END, *words]))
    known += [f"<{at}>" for at in range(-len(known) % 8)]
    self.name, self.words = "words", tuple(known)
    self.ids = {word: at for at, word in enumerate(known)}
    self.vocab_size, self.pad_id, self.eos_id = len(known), 0, 1
    self.stop_ids = (self.eos_id,)

  def encode(self, text: str) -> list[int]:
    """Token ids; nothing is added. Raises ValueError for a word outside the vocabulary."""
    pieces = re.findall(r"\d|[^\s\d]+", text)
    unknown = [piece for piece in pieces if piece not in self.ids]
    if unknown:
      raise ValueError(f"no token for {unknown[0]!r} in {text[:60]!r}; the {len(self.words)} words "
                       f"are {', '.join(self.words[:8])}, ...")
    return [self.ids[piece] for piece in pieces]

  def decode(self, ids: Sequence[int]) -> str:
    """The text, padding and end left out, digits of a number together."""
    skip = (self.pad_id, self.eos_id)
    text = " ".join(self.words[int(i)] for i in ids if int(i) not in skip)
    return re.sub(r"(?<=\d) (?=\d)", "", text)

  def chat(self, messages: list[dict[str, str]]) -> str:
    """There is no chat format."""
    raise ValueError(f"{self.name} has no chat template; use an environment's plain text")


@dataclasses.dataclass(frozen=True)
class Cloned:
  """A decoder after `steps` steps of behaviour cloning, each on `batch` episodes of the expert.

  Loss: mean over the tokens of actions of -log pi(token).
  """
  task: Any  # an environment with `words()` and `expert(state, rng)`
  steps: int = 200  # of the optimiser
  batch: int = 64  # episodes a step
  turns: int = 30  # actions of an episode at most
  length: int = 192  # tokens of an episode at most; longer ones are cut
  pool: int = 512  # episodes to draw batches from
  levels: int = 0  # of `task.eased`, in turn over the pool; 0: the examples as they are
  width: int = 64  # of the states between layers
  layers: int = 2  # of the decoder
  heads: int = 4  # of queries, and as many of keys and values
  lr: float = 3e-3  # at first; falls to 0 along a cosine
  seed: int = 0  # of everything: examples, parameters, order

  def load(self) -> tuple[Config, Params, Words]:
    """(Config, float32 parameters as numpy arrays, Words)."""
    tokenizer = Words(self.task.words())
    config = Config(vocab_size=tokenizer.vocab_size, width=self.width, layers=self.layers,
                    heads=self.heads, kv_heads=self.heads, head_dim=self.width // self.heads,
                    mlp_width=2 * self.width)
    tokens, acted = demonstrations(self, tokenizer)
    tx = optax.adam(optax.cosine_decay_schedule(self.lr, self.steps))
    step = jax.jit(lambda params, opt, rows, on: _step(config, tx, params, opt, rows, on))
    # a standard deviation of 0.02 is width^-1/2 at width 2500, and too little for a small model
    wide = self.width ** -0.5 / 0.02
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if BY_NAME[path[-1].key].gain else wide * x,
        transformer.init(config, jax.random.key(self.seed)))
    opt, rng = tx.init(params), np.random.default_rng([self.seed, 2])
    for _ in range(self.steps):
      rows = rng.choice(len(tokens), self.batch, replace=False)
      params, opt, loss = step(params, opt, tokens[rows], acted[rows])
    print(f"cloned {self.task!r}: {self.steps} steps, loss {float(loss):.3f} nats", flush=True)
    return config, jax.tree.map(np.asarray, params), tokenizer


def demonstrations(model: Cloned, tokenizer: Words) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, which of them are of actions) [pool, length], right padded."""
  shape = model.pool, model.length
  tokens, acted = np.full(shape, tokenizer.pad_id, np.int32), np.zeros(shape, bool)
  examples = model.task.examples("train", model.seed + 1_000_003)
  for row in range(model.pool):
    rng = np.random.default_rng([model.seed, 1, row])
    example = examples[row]
    if model.levels:
      example = model.task.eased(example, 1 + row % model.levels)
    pieces, _, _ = play(model.task, example, lambda s, r=rng: model.task.expert(s, r),
                        model.turns)
    ids, on = [], []
    for text, is_action in pieces:
      new = tokenizer.encode(text) + [tokenizer.eos_id] * is_action
      ids += new
      on += [is_action] * len(new)
    size = min(len(ids), model.length)
    tokens[row, :size], acted[row, :size] = ids[:size], on[:size]
  return tokens, acted


def _step(config, tx, params, opt, tokens, acted):
  """(params, opt, loss) after one update on rows of tokens, of which those in `acted` count."""
  valid = tokens != 0
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)

  def loss(params):
    hidden = transformer.hidden_states(config, params, tokens, positions, valid.astype(jnp.int32))
    got = vocab.fused(hidden[:, :-1], transformer.head_matrix(params), tokens[:, 1:],
                      vocab.Spec(names=("logp",)))
    on = acted[:, 1:]
    return -jnp.where(on, got["logp"], 0.0).sum() / real(on).sum()

  value, grads = jax.value_and_grad(loss)(params)
  updates, opt = tx.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, value
