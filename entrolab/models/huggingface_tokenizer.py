"""The tokenizer of a folder in the Hugging Face layout, with its chat template and stop tokens."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from entrolab.models import chat_template
from entrolab.models.huggingface_config import read_json, write_json
from entrolab.tasks import spelling
from entrolab.tasks.automaton import Pieces
from entrolab.tasks.task import opening


@functools.cache
def signs() -> dict[int, str]:
  """The character that byte-level BPE writes each byte as: itself where that is visible."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [byte for byte in range(256) if byte not in shown]
  return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@functools.cache
def _bytes_of_signs() -> dict[str, bytes]:
  return {sign: bytes([byte]) for byte, sign in signs().items()}


def byte_level(token: str | None) -> bytes:
  """The bytes of a token of byte-level BPE by its name; of a name with other characters, such as an
  added token's, the name's; of no token, none."""
  known = _bytes_of_signs()
  if token is None:
    return b""
  if all(char in known for char in token):
    return b"".join(known[char] for char in token)
  return token.encode()


def opened_with(encode: Any) -> tuple[int, ...]:
  """The ids that `encode(text, add_special_tokens=True)` puts before a text."""
  text = "a 1"
  plain, whole = (list(encode(text, add_special_tokens=on)) for on in (False, True))
  for start in range(len(whole) - len(plain) + 1):
    if plain and whole[start:start + len(plain)] == plain:
      return tuple(whole[:start])
  return ()


class Tokenizer:
  """The tokenizer of a local folder, through transformers; no code of the folder is run.

  A response ends with the tokenizer's end of sequence or any that generation_config.json names;
  where there is no padding token, the end of sequence pads. A sequence begins with what the
  tokenizer's post-processor puts first.
  """

  def __init__(self, folder: str | os.PathLike):
    """Raises ImportError without transformers, ValueError without an end of sequence or for a chat
    template of over chat_template.LIMIT characters."""
    try:
      from transformers import AutoTokenizer
    except ImportError as error:
      raise ImportError("this tokenizer needs `pip install transformers jinja2`") from error
    folder = pathlib.Path(folder)
    if not folder.is_dir():
      raise FileNotFoundError(f"{folder}: no such folder")
    self.inner = AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                               trust_remote_code=False)
    self.name = folder.name
    self.vocab_size = max(self.inner.get_vocab().values()) + 1
    self.eos_id, self.pad_id = self.inner.eos_token_id, self.inner.pad_token_id
    if self.eos_id is None:
      raise ValueError(f"{folder}: the tokenizer has no eos_token, so that no response would end; "
                       "name one in tokenizer_config.json")
    self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
    self.stop_ids = tuple(dict.fromkeys((self.eos_id, *self._generation_stops(folder))))
    self.skip = {self.pad_id, *self.stop_ids}
    template = self.inner.chat_template
    several = template.values() if isinstance(template, dict) else [template or ""]
    chat_template.check(folder, max(several, key=len))
    self.opening = opened_with(self.inner.encode)

  def _generation_stops(self, folder: pathlib.Path) -> list[int]:
    """The ids that end a response by generation_config.json."""
    path = folder / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    if named is None:
      return []
    ids = named if isinstance(named, list) else [named]
    for id_ in ids:
      if not isinstance(id_, int) or not 0 <= id_ < self.vocab_size:
        raise ValueError(f"{path}: eos_token_id {id_!r} is no token id below {self.vocab_size}")
    return ids

  def encode(self, text: str) -> list[int]:
    """Token ids; nothing is added."""
    return self.inner.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    """The text, padding and stop tokens left out."""
    text_ids = [int(i) for i in ids if int(i) not in self.skip]
    return self.inner.decode(text_ids, clean_up_tokenization_spaces=False)

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation, up to where the answer begins; the template is rendered in
    jinja's sandbox. Raises ValueError where there is none or it fails."""
    from jinja2 import TemplateError
    if not self.inner.chat_template:
      raise ValueError(f"{self.name} has no chat template; use a task with a plain prompt")
    try:
      return self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, *chat_template.FAILURES) as error:
      raise chat_template.failed(self.name, error) from error

  def save(self, folder: str | os.PathLike) -> None:
    """tokenizer.json, tokenizer_config.json, and generation_config.json with the stop tokens."""
    self.inner.save_pretrained(folder)
    write_json(pathlib.Path(folder) / "generation_config.json",
               dict(eos_token_id=list(self.stop_ids), pad_token_id=self.pad_id))


@opening.register
def _(tokenizer: Tokenizer) -> tuple[int, ...]:
  return tokenizer.opening


@spelling.pieces.register
def _(tokenizer: Tokenizer, ids: Sequence[int]) -> Pieces:
  """Of byte-level BPE the bytes themselves; of others by decoding, and tokens that stand for a byte
  as that byte."""
  kinds = _decoders(tokenizer.inner.backend_tokenizer.decoder)
  if kinds == ["ByteLevel"]:
    names = tokenizer.inner.convert_ids_to_tokens(list(ids))
    bytes_ = [b"" if at in tokenizer.skip else byte_level(name)
              for at, name in zip(ids, names, strict=True)]
    return Pieces(bytes_, [bytes_])
  known = {}
  if "ByteFallback" in kinds:
    found = {at: re.fullmatch("<0x([0-9A-F]{2})>", name)
             for name, at in tokenizer.inner.get_vocab().items()}
    known = {at: bytes.fromhex(byte[1]) for at, byte in found.items() if byte is not None}
  return spelling.decoded(tokenizer, ids, known)


def _decoders(decoder: Any) -> list[str]:
  """The kinds of the steps of a decoder of the package tokenizers."""
  facts = json.loads(decoder.__getstate__()) if decoder is not None else {}
  return [step["type"] for step in facts.get("decoders", [facts] if facts else [])]
