"""Stop strings in decoded text: a row ends where its text has the string, whatever its tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.models import gguf, huggingface_tokenizer, tiny
from entrolab.models.cloned import Words
from entrolab.rollout import columns, decode
from entrolab.tasks import automaton, prompts, spelling
from entrolab.tasks.task import opened, opening
from tests.models_test import BYTES, SPECIAL, small


class Pieces:
  """A tokenizer of given pieces, decoded one after another."""
  name, pad_id, eos_id, stop_ids = "pieces", 0, 1, (1,)

  def __init__(self, *pieces):
    self.words = ["", "", *pieces]
    self.vocab_size = len(self.words)

  def encode(self, text):
    return [self.words.index(char, 2) for char in text]

  def decode(self, ids):
    return "".join(self.words[i] for i in ids)


class Bytes:
  """A tokenizer of a token a byte, as far as its members tell."""
  name, pad_id, eos_id, stop_ids, vocab_size = "bytes", 0, 1, (1,), 256

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(i for i in ids if i > 1).decode("utf-8", "replace")


def merged(*more):
  """Byte-level BPE with further tokens, given as bytes: some cut characters."""
  signs = huggingface_tokenizer.signs()
  tokens = [*SPECIAL, *BYTES, *("".join(signs[byte] for byte in token) for token in more)]
  fast = gguf._bpe(tokens, [], [3] * 3 + [1] * (len(tokens) - 3), "smollm")
  return gguf.Tokenizer(fast, "merged", eos_id=2, pad_id=0, template=None)


def first_end(tokenizer, ids, strings):
  """By the definition: the tokens up to which the decoded text has one of the strings."""
  for size in range(1, len(ids) + 1):
    text = tokenizer.decode(ids[:size])
    if ids[size - 1] in tokenizer.stop_ids or any(string in text for string in strings):
      return size
  return None


def drawn_ends(decoding, rows):
  """What the jitted loops do with the same tokens: the number of each row's last one, or None."""
  rows = np.asarray(rows, np.int32)
  spelled, last = jnp.full(len(rows), automaton.START), [None] * len(rows)
  for t in range(rows.shape[1]):
    ends, spelled = decoding.advanced(jnp.asarray(rows[:, t]), spelled)
    last = [t + 1 if old is None and new else old
            for old, new in zip(last, np.asarray(ends).tolist(), strict=True)]
  return last


def decoding_of(tokenizer, strings, size=None):
  found, table = spelling.stops(strings, tokenizer, size or tokenizer.vocab_size)
  return decode.Decoding.of(stop_ids=(*tokenizer.stop_ids, *found), stops=table)


CASES = [
    (Pieces("\n", "\n\n", "a", "a\n", "\n\nb", " "), ("\n\n",)),
    (Pieces("E", "N", "D", "EN", "ND", "xEN", "D.", "x", "EE"), ("END",)),
    (Pieces("a", "b", "ab", "aa", "ba"), ("aab", "bb")),  # one begins inside the other
    (Pieces("</", "think", ">", "</think", "x>", "<", "/"), ("</think>",)),
    (Pieces("é", "e", "x"), ("éx",)),
    (Bytes(), ("é", "\n\n")),
    (merged(b"\n\n", b"a\n", b"\xc3\xa9\n", b"\xa9", b"x\xc3", b"\xe2\x82", b"\xac!"),
     ("\n\n", "é", "€!")),
    (merged(b"\n\n"), ("\n\n",)),
    (tiny.load()[2], ("=", ",")),
    (tiny.load()[2], ("1,2",)),
    (Words(["go", "at", "to", "."]), ("at",)), (Words(["go", "at", "to", "."]), ("go at",)),
]


@pytest.mark.parametrize("tokenizer,strings", CASES, ids=lambda x: str(getattr(x, "name", x)))
def test_a_row_ends_where_its_decoded_text_has_a_stop_string(tokenizer, strings):
  rng = np.random.default_rng(0)
  decoding = decoding_of(tokenizer, strings)
  written = sorted({token for text in strings for token in _written(tokenizer, text)})
  shape = 100, 12
  # most tokens are of the strings themselves, so that many rows spell one
  rows = np.where(rng.random(shape) < 0.8, rng.choice(written, shape),
                  rng.integers(0, tokenizer.vocab_size, shape)).tolist()
  want = [first_end(tokenizer, ids, strings) for ids in rows]
  assert drawn_ends(decoding, rows) == want
  assert sum(end is not None and end > 1 for end in want) > 5


def _written(tokenizer, text):
  """Tokens that have a part of the text."""
  ids = list(range(tokenizer.vocab_size))
  found = spelling.pieces(tokenizer, ids).later[0]
  parts = {text.encode()[a:b] for a in range(len(text.encode())) for b in range(a + 1, 20)}
  return [at for at, piece in zip(ids, found, strict=True) if piece.strip() in parts] or (
      tokenizer.encode(text))


def test_what_single_tokens_end_needs_no_automaton():
  """A run whose strings are single characters draws with the program that it had."""
  for tokenizer, strings, want in ((Pieces("7", "7\n", "\n"), ("\n",), (3, 4)),
                                   (Words(["go", "at"]), ("at",), (3,)),
                                   (Pieces("7"), (), ())):
    assert spelling.stops(strings, tokenizer, 99) == (want, None)


def test_strings_that_no_tokens_spell_are_refused():
  for tokenizer, text in ((Pieces("a", "b"), "c"), (Pieces("ab", "a"), "bb"),
                          (Words(["go", "at"]), "stop")):
    with pytest.raises(ValueError, match=f"no token of .* contains the stop string '{text}'"):
      spelling.stops((text,), tokenizer, tokenizer.vocab_size)
  with pytest.raises(ValueError, match="an empty one ends every response"):
    spelling.stops(("",), Pieces("a"), 3)
  with pytest.raises(ValueError, match="the text of token .* depends on the token before it"):
    spelling.stops((" 5",), Words(["5", "6", "go"]), 8)


def test_rows_of_the_model_beyond_the_tokenizer_spell_nothing():
  decoding = decoding_of(Pieces("\n", "x"), ("\n\n",), size=9)
  assert drawn_ends(decoding, [[2, 8, 7, 2], [2, 3, 8, 2]]) == [4, None]


def test_a_tokenizer_that_rewrites_its_text_is_refused():
  class Last(Pieces):
    def decode(self, ids):
      return self.words[ids[-1]]

  with pytest.raises(ValueError, match="changes the text 'a' before it"):
    spelling.stops(("ab",), Last("a", "b"), 4)


# ---- columns


class Task:
  think_end, step_end = "</think>", "\n\n"


def responses(tokenizer, rows):
  width = max(map(len, rows))
  tokens = np.asarray([row + [0] * (width - len(row)) for row in rows])
  mask = np.asarray([[True] * len(row) + [False] * (width - len(row)) for row in rows])
  return columns.Responses([tokenizer.decode(row) for row in rows], tokens, mask, 1,
                           np.arange(len(rows)))


@pytest.mark.parametrize("tokenizer", [Bytes(), merged(b"\n\n", b"</th", b"k>\n")],
                         ids=["bytes", "merged"])
def test_thinking_and_steps_end_in_decoded_text(tokenizer):
  texts = ["a</think>b", "no end", "x\n\ny\n\n\nz", "</think></think>"]
  rows = [tokenizer.encode(text) for text in texts]
  got = responses(tokenizer, rows)
  ends = columns.think_end(Task(), tokenizer, got)
  phases = columns.phase(Task(), tokenizer, got)
  for row, end, phase in zip(rows, ends, phases, strict=True):
    assert (end + 1 or None) == first_end(tokenizer, row, ["</think>"])
    # a step ends where its string is complete, and the next one begins behind it
    assert phase[:len(row)].tolist() == [
        tokenizer.decode(row[:at]).count("\n\n") for at in range(len(row))]


def test_texts_that_others_part_are_not_one():
  """Between two actions there is an observation, which is off the mask."""
  tokenizer = Pieces("\n", "x")
  tokens = np.asarray([[2, 3, 2, 2]])
  mask = np.asarray([[True, False, True, True]])
  assert spelling.ends("\n\n", tokenizer, tokens, mask).tolist() == [[False, False, False, True]]
  assert not spelling.ends("\n\n", tokenizer, tokens, np.zeros_like(mask)).any()


# ---- how a sequence begins


def test_a_sequence_begins_once():
  tokenizer = small()
  assert opening(tokenizer) == opening(Bytes()) == () and opened(Bytes(), [5]) == [5]
  begun = gguf.Tokenizer(small().fast, "begun", eos_id=2, pad_id=0, bos_id=1, opens=True,
                         template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
  text = begun.chat([{"role": "user", "content": "hi"}])
  assert text == "<|im_start|>hi<|im_end|>"
  for ids in (begun.encode("hi"), begun.encode(text)):
    made = opened(begun, ids)
    assert made[0] == 1 and made.count(1) == 1 and made == opened(begun, made)
  assert prompts.stop_ids(Quiet(), begun) == (2, 0)
  with pytest.raises(ValueError, match="bos_id is missing"):
    gguf.Tokenizer(small().fast, "begun", eos_id=2, pad_id=0, template=None, opens=True)


class Quiet:
  stop = ()
