"""What tokens spell: strings are looked for in decoded text, never in single tokens.

A token may end an occurrence that earlier tokens began, hold one, or begin one: it moves an
automaton over the bytes of the text (`automaton`), where rows are drawn and on the host alike.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from entrolab.tasks.automaton import START, Pieces, Table, reachable, transitions
from entrolab.tasks.task import Tokenizer
from entrolab.typing import Bool, Int

SAMPLE = 4096  # tokens at most among which those are looked for that others are decoded behind
CUT = "\N{REPLACEMENT CHARACTER}"  # stands in decoded text for bytes that are no whole character


@functools.singledispatch
def pieces(tokenizer: Any, ids: Sequence[int]) -> Pieces:
  """The pieces of these tokens: as `decoded` finds them, for a tokenizer that registers no way of
  its own. One whose tokens are known as bytes does."""
  return decoded(tokenizer, ids, {})


def decoded(tokenizer: Tokenizer, ids: Sequence[int], known: Mapping[int, bytes]) -> Pieces:
  """The pieces of these tokens, by decoding them alone and behind others.

  known: pieces that decoding does not tell, such as bytes that are no whole character. Raises
  ValueError where a token changes the text before it.
  """
  def added(before: list[int]) -> list[bytes]:
    start, found = tokenizer.decode(before) if before else "", []
    for at in ids:
      text = start if at in known else tokenizer.decode([*before, at])
      if not text.startswith(start):
        raise ValueError(f"{tokenizer.name}: token {at} changes the text {start!r} before it, so "
                         "that no string can be looked for while tokens are drawn")
      found.append(known.get(at, text[len(start):].encode("utf-8", "surrogatepass")))
    return found

  first = added([])
  return Pieces(first, [added([anchor]) for anchor in _anchors(tokenizer, known)] or [first])


def _anchors(tokenizer: Tokenizer, known: Mapping[int, bytes]) -> list[int]:
  """A token that ends in a letter, one in a digit and one in another sign; fewer if there are."""
  found: dict[str, int] = {}
  for at in range(min(tokenizer.vocab_size, SAMPLE)):
    text = "" if at in known else tokenizer.decode([at])
    if text and CUT not in text and not text[-1].isspace():
      kind = "letter" if text[-1].isalpha() else "digit" if text[-1].isdigit() else "sign"
      found.setdefault(kind, at)
    if len(found) == 3:
      break
  return list(found.values())


def _with_cut_characters(tokenizer: Tokenizer, ids: Sequence[int], spelled: Pieces,
                         strings: Iterable[str]) -> Pieces:
  """The pieces with the bytes of tokens that are one byte of a character of the strings.

  Decoding such a token alone gives no byte; that the tokenizer writes the character with as many
  tokens as it has bytes does.
  """
  cut = {at for at, piece in zip(ids, spelled.first, strict=True) if piece == CUT.encode()}
  known: dict[int, bytes] = {}
  wide = {char for text in strings for char in text if not char.isascii()}
  for char in sorted(wide if cut else ()):  # a tokenizer without such tokens is not asked
    written, parts = char.encode("utf-8", "surrogatepass"), tokenizer.encode(char)
    if len(parts) == len(written) and cut.issuperset(parts):
      known |= {at: bytes([byte]) for at, byte in zip(parts, written, strict=True)}

  def mended(texts: list[bytes]) -> list[bytes]:
    return [known[at] if at in known else text for at, text in zip(ids, texts, strict=True)]

  return Pieces(mended(spelled.first), [mended(texts) for texts in spelled.later])


def stops(strings: Sequence[str], tokenizer: Tokenizer, size: int
          ) -> tuple[tuple[int, ...], Table | None]:
  """(tokens that always end an occurrence, the automaton of all; None where these tokens are all).

  size: of the embedding; tokens of the model that the tokenizer does not know spell nothing.
  Raises ValueError for an empty string, and for one that no tokens spell.
  """
  if not strings:
    return (), None
  if "" in strings:
    raise ValueError(f"stop strings {list(strings)}: an empty one ends every response before it "
                     "begins")
  ids = range(tokenizer.vocab_size)
  spelled = _with_cut_characters(tokenizer, ids, pieces(tokenizer, ids), strings)
  for text in strings:
    state, hit = transitions([text], spelled, ids, tokenizer.name)
    if not hit[reachable(state)].any():
      raise ValueError(f"no token of {tokenizer.name} contains the stop string {text!r}, and no "
                       "tokens one after another spell it")
  if len(strings) > 1:
    state, hit = transitions(strings, spelled, ids, tokenizer.name)
  seen = hit[reachable(state)]
  always = seen.all(0)
  found = tuple(int(at) for at in np.flatnonzero(always))
  if (seen == always).all():
    return found, None
  # tokens with equal columns share one; those beyond the tokenizer stay where they are
  stay = np.repeat(np.arange(len(state))[:, None], max(size - len(ids), 0), 1)
  packed = np.concatenate([2 * state + hit, 2 * stay], 1)
  step, column = np.unique(packed, axis=1, return_inverse=True)
  return found, Table(column.reshape(-1).astype(np.int32), step.astype(np.int32))


def ends(text: str, tokenizer: Tokenizer, tokens: Int[np.ndarray, "B T"],
         mask: Bool[np.ndarray, "B T"]) -> Bool[np.ndarray, "B T"]:
  """Which tokens end an occurrence of `text` in the decoded text of their row.

  Tokens off the mask part texts: what stands on both sides of them is not one text.
  """
  ids = np.unique(tokens[mask]).tolist()
  if not ids or not text:
    return np.zeros(tokens.shape, bool)
  spelled = _with_cut_characters(tokenizer, ids, pieces(tokenizer, ids), [text])
  state, hit = transitions([text], spelled, ids, tokenizer.name)
  at = np.full(len(tokens), START)
  found = np.zeros(tokens.shape, bool)
  columns = np.searchsorted(ids, np.where(mask, tokens, ids[0]))
  for t in range(tokens.shape[1]):
    on, column = mask[:, t], columns[:, t]
    found[:, t] = on & hit[at, column]
    at = np.where(on, state[at, column], START)
  return found
