"""The tokenizer of a folder in the Hugging Face layout, with its chat template and stop tokens."""

import os
import pathlib
from collections.abc import Sequence

from entrolab.models.huggingface_config import read_json, write_json

TEMPLATE_LIMIT = 65536  # characters of a chat template


def check_template(where: object, template: str) -> None:
  """Raises ValueError for a chat template that is too long to be one."""
  if len(template) > TEMPLATE_LIMIT:
    raise ValueError(f"{where}: a chat template of {len(template)} characters; at most "
                     f"{TEMPLATE_LIMIT} are accepted")


class Tokenizer:
  """The tokenizer of a local folder, through transformers; no code of the folder is run.

  A response ends with the tokenizer's end of sequence or any that generation_config.json names;
  where there is no padding token, the end of sequence pads.
  """

  def __init__(self, folder: str | os.PathLike):
    """Raises ImportError without transformers, ValueError without an end of sequence or for a chat
    template of over TEMPLATE_LIMIT characters."""
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
    self._skip = {self.pad_id, *self.stop_ids}
    template = self.inner.chat_template
    several = template.values() if isinstance(template, dict) else [template or ""]
    check_template(folder, max(several, key=len))

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
    text_ids = [int(i) for i in ids if int(i) not in self._skip]
    return self.inner.decode(text_ids, clean_up_tokenization_spaces=False)

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation, up to where the answer begins; the template is rendered in
    jinja's sandbox. Raises ValueError where there is none or it fails."""
    from jinja2 import TemplateError
    if not self.inner.chat_template:
      raise ValueError(f"{self.name} has no chat template; use a task with a plain prompt")
    try:
      return self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
      raise ValueError(f"{self.name}: the chat template failed: {error}") from error

  def save(self, folder: str | os.PathLike) -> None:
    """tokenizer.json, tokenizer_config.json, and generation_config.json with the stop tokens."""
    self.inner.save_pretrained(folder)
    write_json(pathlib.Path(folder) / "generation_config.json",
               dict(eos_token_id=list(self.stop_ids), pad_token_id=self.pad_id))
