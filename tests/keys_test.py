"""The key scheme: streams never meet, and each function draws from the stream that is listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys

RUN = jax.random.key(3)
VALUES = (0, 1, 2, 17, keys.LIMIT - 1)  # of every step, prompt id, sample, branch, position


def key_at(path):
  key = RUN
  for number in path:
    key = jax.random.fold_in(key, number)
  return key


def paths(stream):
  """Every way through a stream with the numbers of VALUES."""
  choices = [VALUES if isinstance(fold, str) else (fold,) for fold in stream.folds]
  return list(itertools.product(*choices))


def test_reserved_values_are_no_step_prompt_sample_branch_or_position():
  reserved = {fold for stream in keys.STREAMS for fold in stream.folds if isinstance(fold, int)}
  assert reserved == {keys.TIES, keys.CUT, keys.TRIALS, keys.PROBE, keys.EVALUATION,
                      keys.LEDGER}
  assert min(reserved) >= keys.LIMIT and max(reserved) < 2**31


def test_no_two_streams_meet():
  """As sequences of folds, for all numbers below LIMIT, and as keys, for some of them."""
  for one, other in itertools.combinations(keys.STREAMS, 2):
    differ = len(one.folds) != len(other.folds) or any(
        a != b and not (isinstance(a, str) and isinstance(b, str))
        for a, b in zip(one.folds, other.folds, strict=True))
    assert differ, f"{one.use} and {other.use} have the same folds"
  seen = {}
  for stream in keys.STREAMS:
    ways = paths(stream)[::7]
    data = jax.vmap(lambda way: jax.random.key_data(key_at(way)))(
        tuple(jnp.asarray(column, jnp.int32) for column in zip(*ways, strict=True)))
    for way, words in zip(ways, np.asarray(data).tolist(), strict=True):
      assert tuple(words) not in seen, f"{stream.use} {way} is {seen[tuple(words)]}"
      seen[tuple(words)] = f"{stream.use} {way}"
  assert len(seen) > 3000


def test_functions_draw_from_the_streams_that_are_listed():
  step, prompt, sample, branch, position = 5, 11, 2, 1, 9
  rows = keys.row_keys(RUN, step, jnp.asarray([4, prompt]), 3, branch=branch)
  row = key_at((step, prompt, sample, branch))
  same = lambda a, b: np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))
  same(rows[3 + sample], row)
  same(keys.row_keys(RUN, step, jnp.asarray([prompt]), 1, first=sample, branch=branch)[0], row)
  same(keys.keys_of_rows(RUN, step, jnp.asarray([prompt]), jnp.asarray([0, sample]),
                         jnp.asarray([0, branch]), samples=2)[1], row)
  fold, uniform = jax.random.fold_in, jax.random.uniform
  one = row[None]
  assert keys.token_uniform(one, position)[0] == uniform(fold(row, position))
  np.testing.assert_array_equal(keys.cut_uniform(one, 6)[0], uniform(fold(row, keys.CUT), (7,)))
  np.testing.assert_array_equal(keys.trial_uniform(one, jnp.asarray([position]), 4)[0],
                                uniform(fold(fold(row, keys.TRIALS), position), (4,)))
  ties = keys.tie_noise(jax.random.key_data(one), jnp.asarray(8), position + 1)
  assert ties[0, position] == uniform(fold(fold(fold(row, keys.TIES), 8), position))
  same(keys.evaluation(RUN), fold(RUN, keys.EVALUATION))
  assert keys.host_seed(RUN, step) == [*jax.random.key_data(RUN).tolist(), step]


def test_the_host_s_generators_differ_by_step_and_seed():
  first = [np.random.default_rng(keys.host_seed(jax.random.key(seed), step)).random()
           for seed in (0, 1) for step in (0, 1, 2)]
  assert len(set(first)) == 6
