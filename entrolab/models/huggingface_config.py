"""config.json of the Hugging Face layout: read into a Config, and written from one.

What this decoder would compute differently is refused.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from entrolab.models import huggingface_rope
from entrolab.models.parameters import Config

ARCHITECTURES = dict(llama="LlamaForCausalLM", qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM")
# switches of config.json that change what a decoder computes, and have no counterpart here
OFF = ("attention_bias", "mlp_bias", "use_sliding_window", "use_mrope", "quantization_config")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file. Raises ValueError that names the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not JSON ({error})") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: must hold an object, not {type(value).__name__}")
  return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Indented JSON and a newline."""
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
  longest = size("max_position_embeddings")
  theta, stretch = huggingface_rope.read(facts, longest, where)
  return Config(
      vocab_size=size("vocab_size"), width=width, layers=size("num_hidden_layers"), heads=heads,
      kv_heads=size("num_key_value_heads", heads if kind == "llama" else None), head_dim=dim,
      mlp_width=size("intermediate_size"), rope_theta=theta, rope_stretch=stretch,
      norm_eps=float(facts.get("rms_norm_eps", 1e-6)),
      tied=bool(facts.get("tie_word_embeddings", False)), qkv_bias=kind == "qwen2",
      qk_norm=kind == "qwen3", max_length=longest)


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
      **huggingface_rope.describe(config.rope_theta, config.rope_stretch))
  # None, because the class defaults name ids that this vocabulary may not have
  facts |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
  if tokenizer is not None:
    facts |= dict(eos_token_id=list(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id)
  return facts
