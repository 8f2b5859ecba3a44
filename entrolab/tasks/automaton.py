"""An automaton over the bytes of a text, as a table by state and token: strings are found token by
token, across, at and inside the borders of tokens.

A token moves the automaton by the bytes that it adds to the text. The table is small, exact, and
cheap where tokens are drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from entrolab.typing import Bool, Int

START, ROOT = 0, 1  # states: before the first token, and behind a text in which nothing began


class Pieces(NamedTuple):
  """The bytes that each of some tokens adds to a text."""
  first: list[bytes]  # where it is the first of the text
  later: list[list[bytes]]  # elsewhere: behind tokens of several kinds


class Table(NamedTuple):
  """An automaton over tokens; a pytree of arrays, so that it may be given to jitted programs.

  step[state, column[token]] is 2 x the next state, plus 1 where the token ends an occurrence; the
  text behind its end is looked through anew.
  """
  column: Int[np.ndarray, " V"]  # of each token
  step: Int[np.ndarray, "S C"]  # START is the state before the first token


def bytewise(strings: Sequence[bytes]) -> tuple[Int[np.ndarray, "S 256"], Bool[np.ndarray, " S"]]:
  """(next state by state and byte, which states end an occurrence); Aho and Corasick (1975).

  States are the prefixes of the strings, 0 the empty one.
  """
  prefixes = sorted({text[:size] for text in strings for size in range(len(text) + 1)}, key=len)
  state = {prefix: at for at, prefix in enumerate(prefixes)}
  go = np.zeros((len(prefixes), 256), np.int64)
  for at, prefix in enumerate(prefixes):
    for byte in range(256):
      text = prefix + bytes([byte])
      # the longest end of the text that begins a string
      while text not in state:
        text = text[1:]
      go[at, byte] = state[text]
  return go, np.asarray([any(prefix.endswith(text) for text in strings) for prefix in prefixes])


def _moved(go: np.ndarray, ends: np.ndarray, texts: Sequence[bytes]
           ) -> tuple[Int[np.ndarray, "S V"], Bool[np.ndarray, "S V"]]:
  """(state behind each text, whether an occurrence ends in it), from every state before it."""
  state = np.repeat(np.arange(len(go))[:, None], len(texts), 1)
  hit = np.zeros(state.shape, bool)
  lengths = np.asarray([len(text) for text in texts])
  order = np.argsort(-lengths, kind="stable")
  for at in range(lengths.max(initial=0)):
    those = order[:np.searchsorted(-lengths[order], -at)]  # the texts that have a byte here
    bytes_ = np.asarray([texts[t][at] for t in those])
    moved = go[state[:, those], bytes_[None]]
    hit[:, those] |= ends[moved]
    state[:, those] = np.where(ends[moved], 0, moved)
  return state, hit


def transitions(strings: Sequence[str], spelled: Pieces, ids: Sequence[int], name: str
          ) -> tuple[Int[np.ndarray, "S V"], Bool[np.ndarray, "S V"]]:
  """(next state, whether an occurrence ends) by state and token, with START as the first row.

  Raises ValueError where what a token adds depends on the one before it in a way that matters.
  """
  go, ends = bytewise([text.encode("utf-8", "surrogatepass") for text in strings])
  state, hit = _moved(go, ends, spelled.later[0])
  for texts in spelled.later[1:]:
    other, hit_other = _moved(go, ends, texts)
    differ = ((other != state) | (hit_other != hit)).any(0)
    if differ.any():
      raise ValueError(f"{name}: the text of token {ids[int(differ.argmax())]} depends on the "
                       f"token before it, and {list(strings)} cannot be looked for in it")
  begun, hit_begun = (x[:1] for x in _moved(go, ends, spelled.first))
  # a token that adds nothing, wherever it stands, leaves the text without a beginning
  silent = np.asarray([not one and not other for one, other
                       in zip(spelled.first, spelled.later[0], strict=True)])
  begun = np.where(silent[None], START - ROOT, begun)
  return np.concatenate([begun, state]) + ROOT, np.concatenate([hit_begun, hit])


def reachable(state: Int[np.ndarray, "S V"]) -> Bool[np.ndarray, " S"]:
  """The states that some tokens lead to from START."""
  seen, new = np.zeros(len(state), bool), np.asarray([START])
  while len(new):
    seen[new] = True
    new = np.asarray([at for at in np.unique(state[new]) if not seen[at]], int)
  return seen
