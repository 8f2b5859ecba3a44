"""README says what is true: its table, its code, its commands' files."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.tasks import task
from entrolab.verify import exact
from scripts import methods_table

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tables_out_of_headers_are_up_to_date():
  done = subprocess.run([sys.executable, "scripts/methods_table.py", "--check"],
                        cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert methods_table.DIFFERENCES.read_text().count("\n| `") >= 60


def test_one_command_writes_both_tables(tmp_path, monkeypatch):
  right = {}
  for name, row in (("README", "[`siren`]"), ("DIFFERENCES", "`siren`")):
    path = getattr(methods_table, name)
    right[name] = path.read_text()
    copy = tmp_path / path.name
    lines = right[name].splitlines(keepends=True)
    copy.write_text("".join(line for line in lines if not line.startswith(f"| {row}")))
    monkeypatch.setattr(methods_table, name, copy)
  with pytest.raises(SystemExit, match="README.md, papers_against_code.md"):
    methods_table.main(["--check"])
  methods_table.main(["--write"])
  assert {name: getattr(methods_table, name).read_text() for name in right} == right


def test_files_that_it_names_are_there():
  for path in re.findall(r"(?:experiments|scripts|tests|entrolab|docs)/[\w/]+\.(?:py|png|md)",
                         README):
    assert (ROOT / path).exists() or path.endswith(("/name.py", "/name_test.py")), path


def test_the_imported_loss_runs_as_printed():
  """The block of README, in another trainer's place: a linear policy on random rows."""
  block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "objective.loss" in b)
  rng, shape = np.random.default_rng(0), (16, 6)
  params = {"w": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
            "head": jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)}
  batch = {"tokens": jnp.asarray(rng.integers(0, 32, shape), jnp.int32),
           "mask": jnp.asarray(rng.random(shape) < 0.8),
           "rewards": jnp.asarray(rng.integers(0, 2, 16), jnp.float32),
           "old_logp": jnp.full(shape, -3.4, jnp.float32)}
  x = jnp.asarray(rng.normal(size=(*shape, 8)), jnp.float32)
  names = {"params": params, "batch": batch, "hidden_states": lambda p, b: x @ p["w"]}
  code = compile(block, "README.md", "exec")
  exec(code, names)
  assert np.isfinite(names["value"]) and set(names["grads"]) == {"w", "head"}
  assert float(jnp.abs(names["grads"]["w"]).max()) > 1e-4
  assert "term/bonus.negative_entropy" in names["metrics"]
  assert jax.tree.structure(names["grads"]) == jax.tree.structure(params)


def test_the_task_of_contributing_runs_as_printed():
  blocks = re.findall(r"   ```python\n(.*?)   ```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
  block = textwrap.dedent(next(b for b in blocks if "(Task)" in b))
  names = {"dataclasses": dataclasses, "exact": exact, **vars(task)}
  exec(compile(block, "CONTRIBUTING.md", "exec"), names)
  made = names["Doubles"]()
  train, held = made.examples("train", 0), made.examples("eval", 0)
  assert {e.prompt for e in train}.isdisjoint(e.prompt for e in held)
  assert [v.status for v in made.verify(["it is 12", "5"], [train[3]] * 2)] == ["right", "wrong"]
