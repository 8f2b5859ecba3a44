"""Checkpoints of the Hugging Face layout: config.json, safetensors in one file or in shards.

Llama, Qwen2 and Qwen3 decoders go in and out; whatever this decoder would compute differently is
refused. Projections are stored there as [out, in] with heads in order, query head k R + r reading
key-value head k; `tensors` and `assemble` are the two directions of that change of layout.
"""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from entrolab.models import rope, transformer
from entrolab.models.transformer import Config, Params

ARCHITECTURES = dict(llama="LlamaForCausalLM", qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM")
OFF = ("attention_bias", "mlp_bias", "use_sliding_window", "use_mrope", "quantization_config")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SAVED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
TEMPLATE_LIMIT = 65536  # characters of a chat template
SHARD_BYTES = 4 * 2 ** 30
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file. Raises ValueError that names the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not JSON ({error})") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: must hold an object, not {type(value).__name__}")
  return value


def read_config(path: pathlib.Path) -> Config:
  """The Config that a config.json describes.

  Raises ValueError for another architecture, for a switch that this decoder has no counterpart of,
  and for a size that is missing.
  """
  facts, where = read_json(path), str(path)
  kind = facts.get("model_type")
  if kind not in ARCHITECTURES:
    raise ValueError(f"{where}: model_type {kind!r}; known: {', '.join(ARCHITECTURES)}")
  for name in facts.get("architectures") or ():
    if name != ARCHITECTURES[kind]:
      raise ValueError(f"{where}: architecture {name!r} of model_type {kind!r}; known: "
                       f"{', '.join(ARCHITECTURES.values())}")
  for switch in OFF:
    if facts.get(switch):
      raise ValueError(f"{where}: {switch}={facts[switch]!r} is not supported; it must be off")
  if facts.get("hidden_act", "silu") != "silu":
    raise ValueError(f"{where}: hidden_act {facts['hidden_act']!r} is not supported; known: silu")
  layers = set(facts.get("layer_types") or ()) - {"full_attention"}
  if layers:
    raise ValueError(f"{where}: layer_types {sorted(layers)} are not supported; known: "
                     "full_attention")

  def size(key, default=None):
    value = default if facts.get(key) is None else facts[key]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
      raise ValueError(f"{where}: {key}={value!r}; it must be a positive whole number")
    return value

  width, heads = size("hidden_size"), size("num_attention_heads")
  even = width // heads if width % heads == 0 and kind != "qwen3" else None
  dim = size("head_dim", even)
  if dim % 2:
    raise ValueError(f"{where}: head_dim={dim} must be even to be rotated by halves")
  theta, stretch = rope.read(facts, where)
  return Config(
      vocab_size=size("vocab_size"), width=width, layers=size("num_hidden_layers"), heads=heads,
      kv_heads=size("num_key_value_heads", heads if kind == "llama" else None), head_dim=dim,
      mlp_width=size("intermediate_size"), rope_theta=theta, rope_stretch=stretch,
      norm_eps=float(facts.get("rms_norm_eps", 1e-6)),
      tied=bool(facts.get("tie_word_embeddings", False)), qkv_bias=kind == "qwen2",
      qk_norm=kind == "qwen3", max_length=size("max_position_embeddings"))


def _places(c: Config) -> Iterator[tuple[str, tuple[int, ...], Callable[[Params], Any],
                                         Callable[[Any], Any]]]:
  """(tensor, shape there, its view in the stacked tree, the change of layout to that view)."""
  d, k, r, dh, f = c.width, c.kv_heads, c.queries, c.head_dim, c.mlp_width
  same = lambda x: x
  spread = lambda n: lambda x: x.reshape(k, n, dh, d).transpose(3, 0, 1, 2)
  parts = (("q", slice(0, r), r), ("k", slice(r, r + 1), 1), ("v", slice(r + 1, r + 2), 1))

  yield "model.embed_tokens.weight", (c.vocab_size, d), lambda p: p["embed"], same
  for i in range(c.layers):
    at = f"model.layers.{i}"
    inner = lambda name, i=i: lambda p: p["layers"][name][i]
    yield f"{at}.input_layernorm.weight", (d,), inner("attn_norm"), same
    for name, part, n in parts:
      yield (f"{at}.self_attn.{name}_proj.weight", (k * n * dh, d),
             lambda p, i=i, part=part: p["layers"]["qkv"][i][:, :, part], spread(n))
      if c.qkv_bias:
        yield (f"{at}.self_attn.{name}_proj.bias", (k * n * dh,),
               lambda p, i=i, part=part: p["layers"]["qkv_bias"][i][:, part],
             lambda x, n=n: x.reshape(k, n, dh))
    for name in ("q_norm", "k_norm") if c.qk_norm else ():
      yield f"{at}.self_attn.{name}.weight", (dh,), inner(name), same
    yield (f"{at}.self_attn.o_proj.weight", (d, k * r * dh), inner("out"),
           lambda x: x.T.reshape(k, r, dh, d))
    yield f"{at}.post_attention_layernorm.weight", (d,), inner("mlp_norm"), same
    for j, name in enumerate(("gate", "up")):
      yield (f"{at}.mlp.{name}_proj.weight", (f, d),
             lambda p, i=i, j=j: p["layers"]["gate_up"][i][:, j], lambda x: x.T)
    yield f"{at}.mlp.down_proj.weight", (d, f), inner("down"), lambda x: x.T
  yield "model.norm.weight", (d,), lambda p: p["final_norm"], same
  if not c.tied:
    yield "lm_head.weight", (c.vocab_size, d), lambda p: p["head"], same


class Stored(NamedTuple):
  """A tensor that a file holds: where (file and name, for messages), shape, and how to read it."""
  where: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def assemble(config: Config, stored: Mapping[str, Stored], source: str,
             called: Callable[[str], str] = str) -> Params:
  """The float32 parameter tree out of tensors by their Hugging Face names; one is read at a time.

  called: what the source calls a tensor. Raises ValueError for a tensor that is missing, has
  another shape or is left over, before any is read.
  """
  places = {}
  for name, shape, view, layout in _places(config):
    if name not in stored:
      raise ValueError(f"{source}: no tensor {called(name)} (shape {shape})")
    if stored[name].shape != shape:
      raise ValueError(f"{stored[name].where}: shape {stored[name].shape}, wanted {shape}")
    places[name] = view, layout
  extra = sorted(called(name) for name in stored.keys() - places.keys())
  if extra:
    raise ValueError(f"{source}: {len(extra)} tensors that this decoder has no place for: "
                     f"{', '.join(extra[:5])}")
  params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes(config))
  for name, (view, layout) in places.items():
    view(params)[...] = layout(stored[name].read())
  return params


def shapes(config: Config) -> Params:
  """The parameter tree of `transformer.init`, with shapes in place of arrays."""
  return jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))


def _stored(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
  """Every tensor of the checkpoint by name. Raises ValueError where index and files disagree."""
  single, index = folder / SINGLE, folder / INDEX
  if not single.is_file() and not index.is_file():
    raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX}; checkpoints in other "
                            "formats (*.bin, *.pth) are not read")
  listed = None if single.is_file() else read_json(index).get("weight_map")
  if not single.is_file() and not isinstance(listed, dict):
    raise ValueError(f"{index}: no object under 'weight_map'")
  names = [SINGLE] if listed is None else sorted({str(name) for name in listed.values()})
  found: dict[str, Stored] = {}
  for name in names:
    if pathlib.PurePath(name).name != name:
      raise ValueError(f"{index}: shard {name!r} is not a plain file name")
    path = folder / name
    if not path.is_file():
      raise FileNotFoundError(f"{path}: no such file, and {INDEX} lists it")
    try:
      file = stack.enter_context(safe_open(path, "np"))
    except SafetensorError as error:
      raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    for key in file.keys():
      if listed is not None and listed.get(key) != name:
        raise ValueError(f"{path}: holds {key}, which {INDEX} puts in {listed.get(key)}")
      head = file.get_slice(key)
      if head.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {key} is {head.get_dtype()}; known: {', '.join(DTYPES)}")
      found[key] = Stored(f"{path}: {key}", tuple(head.get_shape()),
                          lambda file=file, key=key: file.get_tensor(key))
  listed = listed or {}
  lost = sorted(listed.keys() - found.keys())
  if lost:
    raise ValueError(f"{folder / listed[lost[0]]}: no tensor {lost[0]}, which {INDEX} puts there")
  return found


def load(folder: str | os.PathLike) -> tuple[Config, Params]:
  """(Config, parameters as float32 numpy arrays) of a folder with config.json and safetensors.

  Ignored are stored rotary frequencies, and a head that equals the embedding it is tied to. Raises
  FileNotFoundError for a missing file, ValueError for anything that would not be this decoder.
  """
  folder = pathlib.Path(folder)
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: no config.json")
  config = read_config(folder / "config.json")
  with contextlib.ExitStack() as stack:
    stored = {name: tensor for name, tensor in _stored(folder, stack).items()
              if not name.endswith("rotary_emb.inv_freq")}
    head = stored.pop("lm_head.weight", None) if config.tied else None
    params = assemble(config, stored, str(folder))
    if head is not None and not np.array_equal(head.read().astype(np.float32), params["embed"]):
      raise ValueError(f"{head.where}: differs from the embedding, and config.json says "
                       "tie_word_embeddings")
  return config, params


def tensors(config: Config, params: Params, dtype: str = "float32"
            ) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
  """(name, shape, function that makes the array) of every tensor, in the files' layout.

  Raises ValueError for a tree that is not the config's, naming leaf, shape found and wanted.
  """
  is_shape = lambda x: isinstance(x, tuple)
  flat = lambda tree: {jax.tree_util.keystr(path, simple=True, separator="."): shape for
                       path, shape in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_shape)}
  want = flat(jax.tree.map(lambda leaf: tuple(leaf.shape), shapes(config)))
  have = flat(jax.tree.map(lambda leaf: tuple(np.shape(leaf)), params))
  for leaf in sorted(want.keys() | have.keys()):
    if want.get(leaf) != have.get(leaf):
      raise ValueError(f"params {leaf}: shape {have.get(leaf)}, the config wants {want.get(leaf)}")
  params = jax.tree.map(np.asarray, params)

  def make(shape, view, layout):
    array = np.empty(shape, SAVED[dtype])
    layout(array)[...] = view(params)  # layout only reshapes and transposes: it writes into array
    return array

  for name, shape, view, layout in _places(config):
    yield name, shape, lambda s=shape, v=view, t=layout: make(s, v, t)


def describe(config: Config, dtype: str = "float32", tokenizer: Any = None) -> dict[str, Any]:
  """The config.json of a config. Raises ValueError where no known architecture fits."""
  if config.qkv_bias and config.qk_norm:
    raise ValueError("no known architecture has both qkv_bias and qk_norm")
  kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
  facts = dict(
      architectures=[ARCHITECTURES[kind]], model_type=kind, vocab_size=config.vocab_size,
      hidden_size=config.width, intermediate_size=config.mlp_width,
      num_hidden_layers=config.layers, num_attention_heads=config.heads,
      num_key_value_heads=config.kv_heads, head_dim=config.head_dim, hidden_act="silu",
      max_position_embeddings=config.max_length, rms_norm_eps=config.norm_eps,
      tie_word_embeddings=config.tied, torch_dtype=dtype,
      **rope.describe(config.rope_theta, config.rope_stretch))
  # None, because the class defaults name ids that this vocabulary may not have
  ends = (None, None) if tokenizer is None else (list(tokenizer.stop_ids), tokenizer.pad_id)
  return facts | dict(bos_token_id=None, eos_token_id=ends[0], pad_token_id=ends[1])


def _write(folder: pathlib.Path, config: Config, params: Params, dtype: str) -> None:
  """model.safetensors, or shards of at most SHARD_BYTES and their index."""
  shards, room = [], -1
  for name, shape, make in tensors(config, params, dtype):
    size = int(np.prod(shape)) * np.dtype(SAVED[dtype]).itemsize
    if size > room:
      shards, room = [*shards, {}], SHARD_BYTES
    shards[-1][name], room = (size, make), room - size
  label = lambda i: (SINGLE if len(shards) == 1 else
                     f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors")
  for i, shard in enumerate(shards):
    made = {name: make() for name, (_, make) in shard.items()}
    safetensors.save_file(made, folder / label(i), metadata={"format": "pt"})
  if len(shards) > 1:
    where = {name: label(i) for i, shard in enumerate(shards) for name in shard}
    total = sum(size for shard in shards for size, _ in shard.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Indented JSON and a newline."""
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(folder: str | os.PathLike, config: Config, params: Params, *,
         tokenizer: Any = None, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
  """Writes a checkpoint that `transformers` opens; float32 comes back from `load` bit for bit.

  tokenizer: has `save(folder)`, pad_id and stop_ids. The folder appears whole or not at all. Raises
  FileExistsError when it holds files, ValueError for parameters that do not fit the config.
  """
  folder = pathlib.Path(folder)
  if dtype not in SAVED:
    raise ValueError(f"dtype={dtype!r}; choices: {', '.join(SAVED)}")
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f"{folder}: exists already; a checkpoint is not written over")
  facts = describe(config, dtype, tokenizer)
  folder.parent.mkdir(parents=True, exist_ok=True)
  staged = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}")
  staged.mkdir()
  try:
    _write(staged, config, params, dtype)
    if tokenizer is not None:
      tokenizer.save(staged)
    write_json(staged / "config.json", facts)
    os.replace(staged, folder)
  finally:
    shutil.rmtree(staged, ignore_errors=True)


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
    path = folder / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = named if isinstance(named, list) else [] if named is None else [named]
    for one in ids:
      if not isinstance(one, int) or not 0 <= one < self.vocab_size:
        raise ValueError(f"{path}: eos_token_id {one!r} is no token id below {self.vocab_size}")
    return ids

  def encode(self, text: str) -> list[int]:
    """Token ids; nothing is added."""
    return self.inner.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    """The text, padding and stop tokens left out."""
    kept = [int(i) for i in ids if int(i) not in self._skip]
    return self.inner.decode(kept, clean_up_tokenization_spaces=False)

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
