"""The head on accelerators, on paper: FLOPs, bytes and least times of XLA's form and of kernels.

  python scripts/bench_roofline.py [--tokens 8192 --width 3584 --vocab 152064 --chunk 2048 8192]

Forward and backward on one chip, bfloat16 inputs, float32 logits and sums; the defaults are
Qwen2.5-7B's head. The bytes of XLA's form assume no help from the compiler: every block of logits
is written once, read for its maximum and read for its sums; in the backward pass read once, its
gradient written and read by two matmuls; d hidden is read and written for every block.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from entrolab.cost import chips


def xla(n: int, d: int, v: int, chunk: int) -> tuple[float, float]:
  """(FLOPs, bytes): four matmuls, logits by blocks through the memory."""
  blocks = v / chunk
  forward = 12 * n * v + 2 * d * v + 2 * n * d * blocks
  backward = 14 * n * v + 4 * d * v + 8 * d * v + (2 * 2 + 8) * n * d * blocks
  return 8.0 * n * d * v, forward + backward


def kernels(n: int, d: int, v: int, tile: int) -> tuple[float, float]:
  """(FLOPs, bytes): logits never leave the chip. d hidden is a sum over the vocabulary and d head
  one over tokens. No core has room for both, so two kernels make the logits again: five matmuls.
  `tile` rows, or entries, stay while the other side streams past."""
  over_head = 2 * n * d + 2 * d * v * n / tile  # forward, and d hidden
  over_rows = 2 * d * v + 4 * d * v + 2 * n * d * v / tile  # d head
  return 10.0 * n * d * v, 2 * over_head + 4 * n * d + over_rows


def main() -> None:
  """Prints a row a chip and form."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--tokens", type=int, default=8192)
  parser.add_argument("--width", type=int, default=3584)
  parser.add_argument("--vocab", type=int, default=152064)
  parser.add_argument("--chunk", type=int, nargs="+", default=[2048, 8192])
  parser.add_argument("--tile", type=int, default=1024)
  parser.add_argument("--chip", nargs="+", default=["v5e", "v5p", "v6e", "H100"])
  args = parser.parse_args()
  shape = args.tokens, args.width, args.vocab
  forms = {f"XLA, blocks of {c}": xla(*shape, c) for c in args.chunk}
  forms["kernels"] = kernels(*shape, args.tile)
  print("| chip | form | TFLOP | GB | arithmetic ms | memory ms | least ms | no overlap ms |")
  print("| --- | --- | --- | --- | --- | --- | --- | --- |")
  for chip in map(chips.get, args.chip):
    for name, (flops, moved) in forms.items():
      r = chips.roofline(chip, flops, moved)
      times = (r.compute, r.memory, r.seconds, r.serial)
      print(f"| {chip.name} | {name} | {flops / 1e12:.1f} | {moved / 1e9:.1f} | "
            + " | ".join(f"{1e3 * t:.0f}" for t in times) + " |")


if __name__ == "__main__":
  main()
