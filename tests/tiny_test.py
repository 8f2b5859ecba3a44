"""The embedded model: its files, its tokenizer, and the figures its card states."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.keys import row_keys
from entrolab.models import tiny, transformer
from entrolab.rollout import decode
from entrolab.tasks import prompts
from entrolab.tasks.countdown import Countdown


@pytest.fixture(scope="module")
def lab():
  return tiny.load()


def test_it_is_small_and_typed(lab):
  config, params, tokenizer = lab
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count < 3e6
  assert sum(f.stat().st_size for f in tiny.folder().iterdir()) < 6e6
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
  want = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, want)
  assert config.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("task", [Countdown(), Countdown(2, 4, 99, max_prompt=12)])
def test_texts_of_the_task_survive_the_tokenizer(lab, task):
  tokenizer = lab[2]
  for at in range(300):
    example = task.examples("train", 1)[at]
    for text in (example.prompt, example.answer):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == text
      # one token a number or sign
      assert len(ids) == len(re.findall(r"\d+|\D", text))
    assert len(task.prompt(example, tokenizer)) <= task.max_prompt


def test_unknown_text_is_refused(lab):
  with pytest.raises(ValueError, match="no token for .*hello"):
    lab[2].encode("3,5>8:hello")
  with pytest.raises(ValueError, match="no chat template"):
    lab[2].chat([{"role": "user", "content": "3"}])


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
  for file in tiny.folder().iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  blob = bytearray((tmp_path / "model.safetensors").read_bytes())
  blob[-1] ^= 1
  (tmp_path / "model.safetensors").write_bytes(blob)
  monkeypatch.setattr(tiny, "folder", lambda: pathlib.Path(tmp_path))
  with pytest.raises(ValueError, match="model.safetensors: checksum differs"):
    tiny.load()


def test_parameters_survive_flattening(lab):
  again = tiny.unflatten(tiny.flatten(lab[1]))
  assert jax.tree.structure(again) == jax.tree.structure(lab[1])
  assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(lab[1])))


def test_it_is_good_but_not_too_good_and_unsure(lab):
  """64 problems x 8: the bounds are what an experiment needs; the card has the figures."""
  config, params, tokenizer = lab
  task, problems, samples = Countdown(), 64, 8
  examples = [task.examples("eval", 3)[i] for i in range(problems)]
  prompt, mask = prompts.padded([task.prompt(e, tokenizer) for e in examples], task.max_prompt,
                             tokenizer.pad_id)
  keys = row_keys(jax.random.key(0), 0, jnp.arange(problems), samples)
  decoding = decode.Decoding.of(stop_ids=prompts.stop_ids(task, tokenizer))
  out = decode.sample(config, params, prompt, mask, keys, decoding, samples=samples, max_tokens=18)
  on = np.asarray(out.mask)
  texts = [tokenizer.decode(row[m]) for row, m in zip(np.asarray(out.tokens), on, strict=True)]
  verdicts = task.verify(texts, [e for e in examples for _ in range(samples)])
  right = np.array([v.status == "right" for v in verdicts]).reshape(problems, samples)
  assert 0.15 < right.mean() < 0.55
  assert right.any(1).mean() > 0.6
  mixed = right.any(1) & ~right.all(1)
  assert mixed.mean() > 0.5  # groups with a signal
  assert 0.25 < np.asarray(out.entropy)[on].mean() < 0.55
  assert np.asarray(out.finished).mean() > 0.9
  solutions = [len({texts[8 * p + g] for g in range(8) if right[p, g]}) for p in range(problems)]
  assert np.mean(solutions) > 1.2  # several valid chains a problem


def test_the_card_states_the_figures_of_the_files():
  facts = json.loads((tiny.folder() / "config.json").read_text())
  card = (tiny.folder() / "card.md").read_text()
  for name in ("pass@1", "pass@16", "distinct@16", "entropy"):
    assert re.search(rf"\| {name} [^|]*\| {facts['figures'][name]:.2f} ", card), name
