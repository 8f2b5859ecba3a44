"""The page of a run: self-contained, safe, and never in the way of a run."""

import json
import re

import numpy as np
import pytest

from entrolab.trainer import log, report


def make(folder, steps=14, text="3*5", **extra):
  (folder / "samples").mkdir(parents=True)
  facts = {"name": "toy", "plan": "plan <b>", "experiment": {"seed": 0, "model": {"kind": "Tiny"},
                                                             "task": {"kind": "Countdown"}}}
  (folder / "config.json").write_text(json.dumps(facts))
  evals = {f"eval/{n}{end}": 0.4 for n in ("pass@1", "pass@16", "greedy", "distinct")
           for end in ("", "_low", "_high")} | {"eval/entropy": 0.3}
  rows = [{"step": 0, **evals}]
  for step in range(1, steps + 1):
    rows.append({"step": step, "reward/mean": 0.1 * (step % 5), "reward/accuracy": 0.3,
                 "entropy/exact": 1.0 / step, "entropy/surprisal": None, "train/grad_norm": 1.0,
                 "theory/covariance": -0.01 * step, "entropy/measured": -0.02 * step, **extra})
  rows.append({"step": steps, **evals})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  row = {"step": 1, "prompt": text, "answer": text, "tokens": [text, "</code>"], "ids": [1, 2],
         "entropy": [0.1, 2.0], "logp": [-0.1, -1.0], "verdict": "right", "why": text,
         "reward": 1.0}
  (folder / "samples" / "step_000001.jsonl").write_text(json.dumps(row) + "\n")
  return folder


def test_it_is_one_file_without_scripts_or_links(tmp_path):
  page = report.write(make(tmp_path / "run")).read_text()
  assert not re.search(r"<script|<link|<iframe|src=|href=\"http|url\(http|@import", page)
  assert page.count("<svg") >= 5 and "correlation 1.00, measured = 2.0 x theory" in page
  assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_hostile_text_stays_text(tmp_path):
  bad = "<script>alert(1)</script>{{ 7*7 }}\"><img onerror=x>"
  page = report.write(make(tmp_path / "run", text=bad)).read_text()
  assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
  assert "{{ 7*7 }}" in page


def test_the_paired_change_of_the_last_evaluation_is_shown(tmp_path):
  run = make(tmp_path / "run")
  rows = (run / "metrics.jsonl").read_text().splitlines()
  change = {f"eval/pass@1_change{end}": x for end, x in (("", 0.1), ("_low", 0.05), ("_high", 0.2))}
  rows[-1] = json.dumps({**json.loads(rows[-1]), **change})
  (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
  assert "paired change +0.100, +0.050 to +0.200" in report.write(run).read_text()


def test_the_same_run_gives_the_same_bytes(tmp_path):
  run = make(tmp_path / "run")
  first = report.write(run).read_bytes()
  assert report.write(run).read_bytes() == first


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_that_was_cut_still_has_a_page(tmp_path, steps):
  assert report.write(make(tmp_path / "run", steps=steps)).is_file()


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
  run = make(tmp_path / "run", **{"method/tokens_changed": None, "control/coef": None})
  assert "NaN" not in report.write(run).read_text()


def test_several_runs_are_compared(tmp_path):
  page = report.write(make(tmp_path / "a"), make(tmp_path / "b", steps=5))
  assert page == tmp_path / "a" / "compare.html" and page.read_text().count("toy (seed 0)") >= 4


def test_former_names_are_read_aloud(tmp_path, caplog):
  run = make(tmp_path / "run")
  path = run / "metrics.jsonl"
  path.write_text(path.read_text().replace("reward/accuracy", "reward/right"))
  assert report.Run(run).series("reward/accuracy")[1].mean() == pytest.approx(0.3)
  assert "reward/right -> reward/accuracy" in caplog.text and str(path) in caplog.text


def test_a_progress_line_fits_and_its_words_are_explained():
  metrics = {"reward/accuracy": 1.0, "entropy/exact": 0.25, "entropy/measured": -0.0125,
             "rollout/groups_with_signal": 1.0, "method/tokens_changed": 1.0,
             "response_length/mean": 4000.0, "rollout/tokens_per_second": 123456.0}
  line = log.line(1000, 1000, metrics, 7261.0)
  assert line == ("step 1000/1000  accuracy 1.000  entropy 0.250 (-0.0125)  learning signal 100%  "
                  "tokens changed 100%  length 4000  123,456 tok/s  121:01 left")
  assert len(line) <= 140
  for word in ("accuracy", "entropy", "learning signal", "tokens changed"):
    assert word in log.LEGEND
  assert "entropy 0.250  " in log.line(1, 9, {k: v for k, v in metrics.items()
                                              if k != "entropy/measured"}, 0.0)


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json is missing"):
    report.write(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="has no line yet"):
    report.write(tmp_path)


def test_the_account_is_drawn_with_its_sums_and_every_class(tmp_path):
  """Three accounted steps of fourteen: running sums in the legend, tokens in the fields."""
  run = make(tmp_path / "run")
  path = run / "metrics.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  cell = np.arange(32.0).reshape(2, 2, 4, 2)
  for row in rows:
    if "reward/mean" in row and row["step"] in (5, 10, 14):
      row |= {"ledger/surrogate_positive": -0.02, "ledger/momentum": 0.005, "ledger/rest": 0.001,
              "ledger/weight_decay": 0.0, "ledger/measured": -0.014, "ledger/explained": 0.93,
              "ledger/own/measured": -0.5, "ledger/table/effect": (1e-6 * cell).tolist(),
              "ledger/table/tokens": np.full(cell.shape, 2.0).tolist()}
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  page = report.write(run).read_text()
  assert "Account of entropy, 3 of 14 steps accounted for" in page
  for text in ("surrogate_positive -0.0600", "momentum +0.0150", "rest +0.0030",
               "measured -0.0420"):
    assert text in page, text
  assert "weight_decay" not in page.split("<svg")[1]  # an entry of nothing is not drawn
  # the cell (A < 0, unlikely, lowest quarter): effects 0 and 1 of 2 tokens each, three times
  assert ">+0.25<" in page and ">12<" in page


def test_a_run_without_accounts_has_no_picture_of_them(tmp_path):
  assert "Account of entropy" not in report.write(make(tmp_path / "run")).read_text()


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    report.main([str(tmp_path)])
  assert ended.value.code == 2
  assert capsys.readouterr().err.splitlines()[-1].endswith(
      f"error: {tmp_path} is no run directory: config.json is missing")
