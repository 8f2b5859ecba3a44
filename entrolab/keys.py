"""The one key scheme: every random number of a run, and the stream that it comes from.

    run key = key(seed)
    row key = fold(run key, step, prompt id, sample index, branch id)

and from the key of a row, by further folds,

    token at response position t      uniform(fold(row, t))
    ties of optimiser step n          uniform(fold(row, TIES, n, t)), one a position t
    cut of a branching response       uniform(fold(row, CUT), (T + 1,))
    branching decisions at position t uniform(fold(row, TRIALS, t), (trials,))

Evaluation folds EVALUATION where training folds its step, and then the step of the evaluation; the
states of the entropy ledger fold LEDGER, and then the step of training.
Responses that only decide how many branches a prompt gets fold PROBE as their branch id. The draw
of what is replayed is seeded on the host by (run key, step).

So a row's tokens depend on the seed, its step, its prompt, its sample and its branch, and not on
the batch around it, the padding, the number of hosts or how often something was called. Streams
never meet, because the reserved values below are larger than any step, prompt id, sample, branch
or position: `STREAMS` lists them all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.typing import Array, Float, Int, Key

TIES = 2**31 - 1
CUT = 2**31 - 2
TRIALS = 2**31 - 3
PROBE = 2**31 - 4
EVALUATION = 2**30
LEDGER = 2**30 + 1
LIMIT = 2**30  # steps, prompt ids, samples, branches and positions are all below it


class Stream(NamedTuple):
  """One kind of random number, and the folds that lead to it from the run key."""
  use: str  # what is drawn from it
  folds: tuple[str | int, ...]  # names stand for integers below LIMIT, integers are reserved values


ROW = ("step", "prompt", "sample", "branch")
PROBE_ROW = ("step", "prompt", "sample", PROBE)
EVALUATION_ROW = (EVALUATION, *ROW)
LEDGER_ROW = (LEDGER, *ROW)
STREAMS = (
    Stream("tokens of training", (*ROW, "position")),
    Stream("ties of an update", (*ROW, TIES, "optimiser step", "position")),
    Stream("cut of a branching response", (*ROW, CUT)),
    Stream("branching decisions", (*ROW, TRIALS, "position")),
    Stream("tokens of probes", (*PROBE_ROW, "position")),
    Stream("branching decisions of probes", (*PROBE_ROW, TRIALS, "position")),
    Stream("tokens of evaluation", (*EVALUATION_ROW, "position")),
    Stream("tokens of the ledger's states", (*LEDGER_ROW, "position")),
)


def row_keys(key: Key[Array, ""], step: Array | int, prompts: Int[Array, " P"], samples: int, *,
             first: Array | int = 0, branch: Array | int = 0) -> Key[Array, " B"]:
  """Keys of B = P x samples rows, the rows of a prompt one after another.

  Sample indices count from `first`; branch: one id for all rows, or one a prompt [P].
  """
  fold = jax.random.fold_in
  stepped = fold(key, step)
  of_prompts = jax.vmap(lambda prompt: fold(stepped, prompt))(prompts)
  of_samples = lambda k, b: jax.vmap(lambda g: fold(fold(k, g), b))(first + jnp.arange(samples))
  return jax.vmap(of_samples)(of_prompts, jnp.broadcast_to(branch, prompts.shape)).reshape(-1)


def keys_of_rows(key: Key[Array, ""], step: Array | int, prompts: Int[Array, " P"],
                 sample: Int[Array, " B"], branch: Int[Array, " B"], *, samples: int
                 ) -> Key[Array, " B"]:
  """`row_keys` with a sample index and a branch id for each row."""
  one_row = lambda prompt, g, b: row_keys(key, step, prompt[None], 1, first=g, branch=b)[0]
  return jax.vmap(one_row)(jnp.repeat(prompts, samples), sample, branch)


def token_uniform(keys: Key[Array, " B"], position: Array | int) -> Float[Array, " B"]:
  """The uniform number that draws each row's token at a position: one for all, or one a row."""
  draw = lambda key, at: jax.random.uniform(jax.random.fold_in(key, at))
  return jax.vmap(draw)(keys, jnp.broadcast_to(position, keys.shape))


def tie_noise(rows: Int[Array, "B 2"], step: Array, length: int) -> Float[Array, "B T"]:
  """Uniform numbers that belong to (row, optimiser step, position): they break ties of rankings.

  rows: key data of the rows, as the batch carries it.
  """
  def of_row(data):
    key = jax.random.wrap_key_data(data)
    key = jax.random.fold_in(jax.random.fold_in(key, TIES), step)
    return jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t)))(jnp.arange(length))

  return jax.vmap(of_row)(rows)


def cut_uniform(keys: Key[Array, " B"], length: int) -> Float[Array, "B N"]:
  """[B, T + 1]: per row, a number for the choice among candidates, then one a position."""
  cut_keys = jax.vmap(lambda key: jax.random.fold_in(key, CUT))(keys)
  return jax.vmap(lambda key: jax.random.uniform(key, (length + 1,)))(cut_keys)


def trial_uniform(keys: Key[Array, " B"], position: Int[Array, " B"], trials: int
                  ) -> Float[Array, "B trials"]:
  """The numbers that decide on branches of each row at its position."""
  fold = jax.random.fold_in
  draw = lambda key, at: jax.random.uniform(fold(fold(key, TRIALS), at), (trials,))
  return jax.vmap(draw)(keys, position)


def evaluation(key: Key[Array, ""]) -> Key[Array, ""]:
  """The run key of evaluation, which no training step reaches."""
  return jax.random.fold_in(key, EVALUATION)


def ledger(key: Key[Array, ""]) -> Key[Array, ""]:
  """The run key of the ledger's states, which neither training nor evaluation reaches."""
  return jax.random.fold_in(key, LEDGER)


def host_seed(key: Key[Array, ""], step: int) -> list[int]:
  """What seeds a numpy generator of the host at one step."""
  return [*np.asarray(jax.random.key_data(key)).tolist(), step]
