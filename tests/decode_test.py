"""What loops over tokens are made of: decoding, the next token, and the count of compilations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from entrolab.keys import row_keys, token_uniform
from entrolab.models import tiny, transformer
from entrolab.rollout import compilations, decode
from entrolab.rollout.draw import draw


def test_decoding_has_the_types_of_every_program():
  one = decode.Decoding.of(0.7, 0.9, 5, [3, 13], 2)
  other = decode.Decoding.of(np.float64(1.0), 1, np.int64(0), np.asarray([4, 5]), np.int64(0))
  kinds = lambda x: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]
  assert kinds(one) == kinds(other) == [((), np.float32), ((), np.float32), ((), np.int32),
                                        ((2,), np.int32), ((), np.int32)]
  heat = jnp.asarray([0.5, 1.0, 1.5])
  assert decode.Decoding.of(heat).temperature is heat  # arrays on devices stay there


def test_decoding_spreads_its_limits_to_rows_and_gives_those_of_some():
  made = decode.Decoding.of(jnp.asarray([0.5, 1.0, 1.5]), 0.9, 5, [3, 13], 2)
  spread = made.spread(3)
  assert [x.shape for x in jax.tree.leaves(spread)] == [(3,), (3,), (3,), (2,), ()]
  some = spread.of_rows(jnp.asarray([2, 0]))
  np.testing.assert_array_equal(some.temperature, [1.5, 0.5])
  np.testing.assert_array_equal(some.top_k, [5, 5])
  np.testing.assert_array_equal(some.stop_ids, made.stop_ids)


def test_stop_ids_end_a_row_and_minus_one_ends_none():
  token = jnp.asarray([3, 0, 13], jnp.int32)
  np.testing.assert_array_equal(decode.Decoding.of(stop_ids=[13, 3]).ends(token),
                                [True, False, True])
  assert not decode.Decoding.of().ends(token).any()


def test_the_next_token_is_that_of_key_and_position_and_pad_where_a_row_has_ended():
  config, params, _ = tiny.load()
  hidden = jax.random.normal(jax.random.key(0), (4, config.width))
  keys = row_keys(jax.random.key(7), 0, jnp.arange(4), 1)
  decoding = decode.Decoding.of(pad_id=1).spread(4)
  ended = jnp.asarray([False, True, False, False])
  position = jnp.asarray([3, 5, 0, 3], jnp.int32)
  got, logits = decode.next_token(config, params, hidden, keys, position, decoding, ended)
  np.testing.assert_array_equal(logits, transformer.logits(config, params, hidden))
  want = draw(logits, token_uniform(keys, position), decoding.temperature, decoding.top_p,
              decoding.top_k)
  np.testing.assert_array_equal(got.token, np.where(ended, 1, want.token))
  for name in ("logp", "entropy", "sampled_logp", "sampled_entropy"):
    np.testing.assert_array_equal(getattr(got, name), np.where(ended, 0.0, getattr(want, name)))


def test_compilations_are_counted_and_calls_are_not():
  @compilations.counted
  @functools.partial(jax.jit, static_argnames="times")
  def repeated_for_the_test(x, *, times):
    return jnp.repeat(x, times)

  @jax.jit
  def not_counted(x):
    return x + 1

  seen = [compilations.total()]
  for x, times in ((jnp.ones(3), 2), (jnp.zeros(3), 2), (np.ones(3, np.float32), 2),
                   (jnp.ones(3), 4), (jnp.ones(5), 2)):
    repeated_for_the_test(x, times=times)
    not_counted(x)
    seen.append(compilations.total())
  np.testing.assert_array_equal(np.diff(seen), [1, 0, 0, 1, 1])
