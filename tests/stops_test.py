"""Rows end where their decoded text has a stop string, in every loop that draws tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.keys import row_keys
from entrolab.models import transformer
from entrolab.models.parameters import Config
from entrolab.rollout import continuous_batching, decode, turns
from tests.spelling_test import Pieces, decoding_of, first_end

TOKENIZER = Pieces("\n", "\n\n", "a", "a\n", "b", "\nb")
STRINGS, SAMPLES, LONGEST = ("\n\n",), 8, 12
CONFIG = Config(vocab_size=8, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8)


@pytest.fixture(scope="module")
def drawn():
  """Prompts, and the rows that are drawn after them without and with the strings."""
  params = transformer.init(CONFIG, jax.random.key(0))
  prompt = jnp.asarray([[2, 4, 6], [0, 5, 3], [7, 7, 2]], jnp.int32)
  keys = row_keys(jax.random.key(1), 0, jnp.arange(3), SAMPLES)
  args = (CONFIG, params, prompt, prompt > 0, keys)
  with_strings, size = decoding_of(TOKENIZER, STRINGS), dict(samples=SAMPLES, max_tokens=LONGEST)
  # the same arrays of stop tokens, which no row draws
  never = decode.Decoding.of(stop_ids=np.full_like(with_strings.stop_ids, -1))
  assert with_strings.stops is not None
  return (args, with_strings, decode.sample(*args, never, **size),
          decode.sample(*args, with_strings, keep=True, **size))


def ends(tokens):
  return [first_end(TOKENIZER, row, STRINGS) for row in np.asarray(tokens).tolist()]


def test_rows_are_those_without_strings_up_to_the_first_one(drawn):
  _, _, free, cut = drawn
  want = ends(free.tokens)
  assert len(set(want)) > 4 and sum(end is None for end in want) > 0  # of many lengths, some whole
  assert np.asarray(cut.mask).sum(1).tolist() == [end or LONGEST for end in want]
  assert np.asarray(cut.finished).tolist() == [end is not None for end in want]
  on = np.asarray(cut.mask)
  np.testing.assert_array_equal(np.asarray(cut.tokens)[on], np.asarray(free.tokens)[on])


def test_slots_draw_the_same_rows(drawn):
  args, decoding, _, want = drawn
  got = continuous_batching.sample(*args, decoding, samples=SAMPLES, max_tokens=LONGEST, slots=8)
  for name in ("tokens", "mask", "finished"):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_a_string_may_begin_before_a_branch(drawn):
  args, decoding, _, parents = drawn
  length = np.asarray(parents.mask).sum(1)
  at = np.maximum(length - 1, 0).astype(np.int32)  # just before what ended the row
  keys = row_keys(jax.random.key(2), 0, jnp.arange(3), 8 * SAMPLES)
  got = decode.resume(CONFIG, args[1], parents.trunk, jnp.asarray(at), keys, decoding, copies=8,
                      max_tokens=LONGEST)
  early = 0
  for row, (tokens, mask, finished) in enumerate(zip(
      np.asarray(got.tokens), np.asarray(got.mask), np.asarray(got.finished), strict=True)):
    prefix = np.asarray(parents.tokens)[row // 8][:at[row // 8]].tolist()
    whole = prefix + tokens[mask].tolist()
    assert (first_end(TOKENIZER, whole, STRINGS) or 0) == len(whole) * finished
    early += finished and first_end(TOKENIZER, tokens[mask].tolist(), STRINGS) is None
  assert early > 0  # strings across the place of the branch


@pytest.mark.parametrize("chunk", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_an_action_ends_the_same_in_one_call_and_in_several(drawn, chunk):
  (config, params, prompt, mask, keys), decoding, _, _ = drawn
  rows = turns.prefill(config, params, prompt, mask, np.int32(0), samples=SAMPLES, max_tokens=20,
                       width=2)
  count, so_far = len(keys), np.zeros(len(keys), np.int32)
  actions = [[[]] for _ in range(count)]
  none = np.zeros((count, 2), np.int32)
  decoding = decode.Decoding.of(stop_ids=decoding.stop_ids, stops=decoding.stops)
  for _ in range(40):
    acting = np.asarray(rows.at) < 20
    if not acting.any():
      break
    turn = turns.Turn(none, none > 0, acting, np.zeros(count, np.int32), so_far)
    rows, new = turns.advance(config, params, rows, keys, turn, decoding, chunk=chunk, action=6)
    for row in np.flatnonzero(acting):
      said = np.asarray(new.tokens)[row][np.asarray(new.mask)[row]].tolist()
      actions[row][-1] += said
      over = bool(np.asarray(new.stopped)[row]) or len(actions[row][-1]) >= 6
      want = first_end(TOKENIZER, actions[row][-1], STRINGS)
      assert (want == len(actions[row][-1])) == bool(np.asarray(new.stopped)[row])
      assert want in (None, len(actions[row][-1]))
      if over:
        actions[row].append([])
      so_far[row] = len(actions[row][-1])
  assert not acting.any() and sum(map(len, actions)) > 3 * count
