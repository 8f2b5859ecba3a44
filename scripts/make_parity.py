"""Makes the small random checkpoints of tests/parity, with logits by the torch implementation.

  python scripts/make_parity.py [FOLDER]

Needs torch and transformers. Each folder gets config.json, safetensors and logits.npz: tokens
[3, 24], logits [3, 24, V] in float32. Gains, biases and scores
are spread wide, so that a wrong rotation, grouping or epsilon moves the logits far above 1e-4.
"""

import argparse
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
}


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


def main(argv=None):
  """Makes every case below the folder."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  default = pathlib.Path(__file__).resolve().parents[1] / "tests" / "parity"
  parser.add_argument("folder", type=pathlib.Path, nargs="?", default=default)
  parser.add_argument("--only", choices=CASES)
  args = parser.parse_args(argv)
  for seed, (name, case) in enumerate(CASES.items()):
    if args.only not in (None, name):
      continue
    size, largest = make(args.folder / name, seed=seed, **case)
    print(f"{name}: {size / 1000:.0f} kB, logits up to {largest:.1f}")


if __name__ == "__main__":
  main()
