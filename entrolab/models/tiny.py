"""The model that ships with the package: a small decoder for countdown, and its tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
import sentencepiece
from safetensors import numpy as safetensors

from entrolab.models.parameters import Config, Params


def folder():
  """The shipped files: model.safetensors, tokenizer.model, config.json, card.md."""
  return resources.files("entrolab.models") / "tiny_assets"


class Tokenizer:
  """A sentencepiece model: every number of 0 to 99 and every sign of countdown is one token."""

  def __init__(self, model: bytes):
    self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.name = "entrolab-tiny"
    self.vocab_size = self.pieces.vocab_size()
    self.pad_id, self.eos_id = self.pieces.pad_id(), self.pieces.eos_id()
    self.stop_ids = (self.eos_id,)

  def encode(self, text: str) -> list[int]:
    """Token ids; nothing is added. Raises ValueError for text outside the vocabulary."""
    ids = self.pieces.encode(text)
    if self.pieces.unk_id() in ids:
      at = ids.index(self.pieces.unk_id())
      bad = self.pieces.encode(text, out_type=str)[at]
      raise ValueError(f"{self.name} has no token for {bad!r} in {text[:60]!r}; it knows the "
                       "numbers 0 to 99 and + - * / = , > :")
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text, padding and end of sequence left out."""
    skip = (self.pad_id, self.eos_id)
    return self.pieces.decode([int(i) for i in ids if int(i) not in skip])

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The embedded model has no chat format."""
    raise ValueError(f"{self.name} has no chat template; use a task with a plain prompt")


def flatten(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
  """Nested parameters as `layers.qkv` and so on."""
  flat = {}
  for name, value in params.items():
    inner = isinstance(value, dict)
    flat.update(flatten(value, f"{prefix}{name}.") if inner
                else {prefix + name: np.asarray(value)})
  return flat


def unflatten(flat: dict[str, np.ndarray]) -> Params:
  """The inverse of `flatten`."""
  tree: Params = {}
  for path, value in flat.items():
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def load() -> tuple[Config, Params, Tokenizer]:
  """(Config, float32 parameters as numpy arrays, Tokenizer).

  Raises ValueError when a file is not the one that config.json gives the checksum of.
  """
  facts = json.loads((folder() / "config.json").read_text())
  blobs = {name: (folder() / name).read_bytes() for name in facts["sha256"]}
  for name, want in facts["sha256"].items():
    if hashlib.sha256(blobs[name]).hexdigest() != want:
      raise ValueError(f"tiny_assets/{name}: checksum differs from config.json; install entrolab "
                       "again, or run scripts/pretrain_tiny.py")
  params = unflatten(safetensors.load(blobs["model.safetensors"]))
  return Config(**facts["config"]), params, Tokenizer(blobs["tokenizer.model"])
