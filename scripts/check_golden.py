"""Compares the methods with stored outputs of their official implementations.

  python scripts/check_golden.py DIR [--method NAME]

Walks every *.npz below DIR, finds the method by the file's slug, runs it on the stored inputs in
float64 and compares every stored output. One line a file with the largest relative error and the
array it belongs to; ends with `N passed, M failed` and exits 1 on any failure.
"""

import argparse
import os
import pathlib
import sys
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tests import adapters  # noqa: E402


def main(argv=None):
  """Exit code: 0 when every file passed, 1 otherwise, 2 when there is no file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("folder", type=pathlib.Path, help="folder that holds *.npz")
  parser.add_argument("--method", help="only files whose name begins with this slug")
  args = parser.parse_args(argv)
  files = sorted(args.folder.rglob("*.npz"))
  files = [f for f in files if args.method is None or f.stem.startswith(args.method)]
  if not files:
    print(f"{args.folder}: no *.npz" + (f" of {args.method}" if args.method else ""))
    return 2
  passed = 0
  for path in files:
    try:
      case, worst = adapters.check(path)
    except adapters.Mismatch as error:
      print(f"FAIL  {path.stem}: {error}")
    except Exception:  # any other error is that file's failure; the rest still run
      print(f"FAIL  {path.stem}\n{traceback.format_exc()}")
    else:
      passed += 1
      print(f"ok    {path.stem}: {len(case.rows)} arrays, largest relative error "
            f"{worst.error:.1e} ({worst.name})")
      for name, why in case.ignored.items():
        print(f"        ignored {name}: {why}")
  print(f"{passed} passed, {len(files) - passed} failed")
  return 0 if passed == len(files) else 1


if __name__ == "__main__":
  sys.exit(main())
