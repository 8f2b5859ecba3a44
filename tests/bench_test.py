"""The benchmark runs, each variant in its own process, and its JSON line holds what docs quote."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def bench(*args):
  """(exit code, the JSON line or None, standard error)."""
  done = subprocess.run([sys.executable, "scripts/bench.py", *args], cwd=ROOT, text=True,
                        capture_output=True, timeout=300, check=False)
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


def test_head_prints_ratios_to_the_bound():
  code, found, said = bench("head", "--shape", "64x32x1000", "--rounds", "2", "--only", "matmul",
                            "fused", "fused fwd", "naive")
  assert code == 0, said
  rows = {row["variant"]: row for row in found["tables"]["64x32x1000"]["rows"]}
  for name, bound in (("fused", "x 4 matmul"), ("fused fwd", "x 1 matmul"),
                      ("naive", "x 4 matmul")):
    assert rows[name][bound] > 0.0 and rows[name]["ms"] > 0.0 and rows[name]["temp MB"] > 0.0
  assert "x naive" in rows["fused"]["beside"]
  assert found["machine"]["cores"] > 0 and len(found["tables"]["64x32x1000"]["load"]) == 2


def test_mistakes_stop_with_the_choices():
  assert "or NxDxV" in bench("head", "--shape", "huge")[2]
  code, _, said = bench("sample", "--peer", "trl")
  assert code != 0 and "transformers" in said
