"""Compares an exported folder in torch with the sampler: the same greedy tokens, or exit code 1.

  python scripts/check_export.py FOLDER [--prompt TEXT] [--tokens 20]

Needs torch and transformers beside the packages of entrolab.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from entrolab.keys import row_keys  # noqa: E402
from entrolab.models import huggingface, huggingface_tokenizer  # noqa: E402
from entrolab.rollout import decode  # noqa: E402

PROMPT = "The capital of France is"


def ours(folder, prompt, max_tokens):
  """(prompt ids, greedy ids) by the sampler."""
  config, params = huggingface.load(folder)
  tokenizer = huggingface_tokenizer.Tokenizer(folder)
  ids = tokenizer.encode(prompt)
  keys = row_keys(jax.random.key(0), 0, jnp.arange(1), 1)
  greedy = decode.Decoding.of(temperature=0.0, stop_ids=tokenizer.stop_ids,
                              pad_id=tokenizer.pad_id)
  drawn = decode.sample(config, params, jnp.asarray([ids]), jnp.ones((1, len(ids)), bool), keys,
                        greedy, samples=1, max_tokens=max_tokens)
  return ids, [int(t) for t in drawn.tokens[0][drawn.mask[0]]]


def theirs(folder, prompt, max_tokens):
  """(prompt ids, greedy ids) by transformers, which reads the exported files alone."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True,
                                                            dtype=torch.float32).eval()
  given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
  with torch.no_grad():
    out = model.generate(**given, max_new_tokens=max_tokens, do_sample=False)[0].tolist()
  ids = given["input_ids"][0].tolist()
  return ids, out[len(ids):]


def agreement(folder, prompt, max_tokens):
  """True when prompt ids and greedy ids agree; prints both continuations."""
  tokenizer = huggingface_tokenizer.Tokenizer(folder)
  (our_prompt, our_ids), (their_prompt, their_ids) = (
      make(folder, prompt, max_tokens) for make in (ours, theirs))
  same = sum(a == b for a, b in zip(our_ids, their_ids, strict=False))
  print(f"entrolab     {tokenizer.decode(our_ids)!r}")
  print(f"transformers {tokenizer.decode(their_ids)!r}")
  print(f"prompt ids {'agree' if our_prompt == their_prompt else 'differ'}; {same} of "
        f"{max(len(our_ids), len(their_ids))} tokens agree")
  return our_prompt == their_prompt and our_ids == their_ids


def main(argv=None):
  """Exit code: 0 when the two agree, 1 otherwise."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--prompt", default=PROMPT)
  parser.add_argument("--tokens", type=int, default=20)
  args = parser.parse_args(argv)
  return 0 if agreement(args.folder, args.prompt, args.tokens) else 1


if __name__ == "__main__":
  sys.exit(main())
