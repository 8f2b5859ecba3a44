"""Makes the small random checkpoints of tests/parity, with logits by the torch implementation.

  python scripts/make_parity.py [FOLDER]

Needs torch and transformers. Each folder gets config.json, safetensors and logits.npz: tokens
[3, 24], logits [3, 24, V] in float32. Gains, biases and scores
are spread wide, so that a wrong rotation, grouping or epsilon moves the logits far above 1e-4.
rope.json has the rates and the gain that transformers reads out of each of ROPES.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

SHARED = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=4, max_position_embeddings=128)
CASES = {
    "llama": dict(
        config=transformers.LlamaConfig, num_key_value_heads=2, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=500.0), rms_norm_eps=1e-2),
    "llama_tied": dict(
        config=transformers.LlamaConfig, num_key_value_heads=1, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1e5), rms_norm_eps=1e-5),
    "qwen2": dict(  # weights stored as bfloat16, logits computed from them in float32
        config=transformers.Qwen2Config, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1e6), rms_norm_eps=1e-3,
        dtype=torch.bfloat16),
    "qwen3": dict(  # in shards; heads wider than width / heads
        config=transformers.Qwen3Config, num_key_value_heads=2, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=2e3), rms_norm_eps=1e-4,
        head_dim=16, shard="60kB"),
    "llama3": dict(  # rates stretched from Llama 3.1 on: all three ranges within 24 positions
        config=transformers.LlamaConfig, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32),
        rms_norm_eps=1e-4, head_dim=16),
    "yarn": dict(  # rates that stay, are mixed and are divided; a gain of 1.14
        config=transformers.Qwen2Config, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4.0,
                             original_max_position_embeddings=32), rms_norm_eps=1e-4, head_dim=16),
}
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(type="yarn", factor=4.0)
# entries of a config.json of 4096 positions and heads of 64
ROPES = [
    {}, dict(rope_theta=5e5), dict(rope_scaling=None, rope_theta=5e5),
    dict(rope_scaling=dict(rope_type="default", rope_theta=5e5)),
    dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)),
    dict(rope_parameters=dict(rope_theta=5e5)), dict(rope_scaling=dict(type="default")),
    dict(rope_scaling={}, rope_parameters=dict(rope_theta=5e5)),
    dict(rope_scaling=dict(type="linear", factor=4.0), rope_theta=5e5),
    dict(rope_parameters=dict(rope_type="linear", factor=4, rope_theta=5e5)),
    dict(rope_scaling=dict(type="linear", factor=4.0, rope_theta=5e5)),
    dict(rope_scaling=dict(rope_type="llama3", **LLAMA3), rope_theta=5e5),
    dict(rope_scaling=dict(rope_type="llama3", original_max_position_embeddings=1024, **LLAMA3)),
    dict(rope_parameters=dict(rope_type="llama3", rope_theta=5e5, **LLAMA3),
         original_max_position_embeddings=1024),
    dict(rope_scaling=dict(**YARN, original_max_position_embeddings=1024), rope_theta=1e6),
    dict(rope_scaling=YARN), dict(rope_scaling=YARN, original_max_position_embeddings=1024),
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e6, factor=None,
                              original_max_position_embeddings=512)),
    dict(rope_scaling=dict(**YARN, attention_factor=0.5)),
    dict(rope_scaling=dict(**YARN, attention_factor=None, beta_fast=None, mscale=None)),
    dict(rope_scaling=dict(**YARN, beta_fast=16, beta_slow=2, truncate=False)),
    dict(rope_scaling=dict(**YARN, beta_fast=2.0, beta_slow=2.0, truncate=True)),
    dict(rope_scaling=dict(**YARN, mscale=0.7, mscale_all_dim=1.3)),
    dict(rope_scaling=dict(type="yarn", factor=1.0), rope_theta=1e6),
    dict(rope_parameters=dict(rope_type="proportional", rope_theta=1e6)),
    dict(rope_parameters=dict(rope_type="proportional", rope_theta=1e6,
                              partial_rotary_factor=0.3)),
    dict(rope_parameters=dict(rope_type="proportional", rope_theta=1e6, factor=2.0),
         partial_rotary_factor=0.25),
    dict(rope_parameters=dict(rope_type="proportional", rope_theta=1e6,
                              partial_rotary_factor=0.0)),
]


def randomise(model, seed):
  """Normal parameters: matrices 0.3, biases 0.5, gains 1 +- 0.3."""
  draw = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      noise = torch.randn(leaf.shape, generator=draw)
      spread = 0.5 if name.endswith("bias") else 0.3
      leaf.copy_(spread * noise + (1.0 if "norm" in name else 0.0))


def make(folder, *, config, seed, dtype=torch.float32, shard="1GB", **sizes):
  """One checkpoint and its logits. Returns (bytes of the folder, largest logit)."""
  shutil.rmtree(folder, ignore_errors=True)
  ends = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
  settings = config(**SHARED, **sizes, **ends, attn_implementation="eager")
  model = transformers.AutoModelForCausalLM.from_config(settings)
  randomise(model, seed)
  model.to(dtype).save_pretrained(folder, max_shard_size=shard)
  (folder / "generation_config.json").unlink(missing_ok=True)
  # read back, because .to(bfloat16) also rounded the rotary frequencies, which no file holds
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                            attn_implementation="eager")
  tokens = np.random.default_rng(seed).integers(0, SHARED["vocab_size"], (3, 24))
  with torch.no_grad():
    logits = model.eval()(torch.from_numpy(tokens)).logits.numpy()
  np.savez_compressed(folder / "logits.npz", tokens=tokens.astype(np.int32), logits=logits)
  return sum(f.stat().st_size for f in folder.iterdir()), float(np.abs(logits).max())


def read_rope(entries):
  """What transformers reads out of entries of a config.json: its rates and its gain."""
  facts = dict(model_type="llama", hidden_size=256, num_attention_heads=4, head_dim=64,
               max_position_embeddings=4096, **json.loads(json.dumps(entries)))
  config = transformers.LlamaConfig.from_dict(facts)
  module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
  return dict(entries=entries, rates=module.inv_freq.tolist(), gain=float(module.attention_scaling))


def main(argv=None):
  """Makes every case below the folder."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  default = pathlib.Path(__file__).resolve().parents[1] / "tests" / "parity"
  parser.add_argument("folder", type=pathlib.Path, nargs="?", default=default)
  parser.add_argument("--only", choices=[*CASES, "rope"])
  args = parser.parse_args(argv)
  for seed, (name, case) in enumerate(CASES.items()):
    if args.only not in (None, name):
      continue
    size, largest = make(args.folder / name, seed=seed, **case)
    print(f"{name}: {size / 1000:.0f} kB, logits up to {largest:.1f}")
  if args.only is None or args.only == "rope":
    lines = ",\n".join(json.dumps(read_rope(entries)) for entries in ROPES)
    (args.folder / "rope.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
  main()
