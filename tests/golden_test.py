"""Every golden file of the repository, value by value, in float64; every hyper-parameter acts."""

import contextlib
import json
import pathlib

import numpy as np
import pytest

from scripts import methods_table
from tests import adapters

FILES = sorted((pathlib.Path(__file__).parent / "golden").glob("*.npz"))
assert FILES, "tests/golden holds no file"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden(path):
  shared, called = adapters.slug_of(path) in adapters.SHARED, set()
  with adapters.methods_called(called) if shared else contextlib.nullcontext():
    case, worst = adapters.check(path)
  assert worst.error <= worst.tolerance
  assert len(case.rows) >= 1
  if shared:  # README counts this file for every method that it compares, and for no other
    claimed = {method for method in methods_table.METHODS
               if path in methods_table.golden_files(method)}
    assert claimed and claimed <= called, f"README counts it for {claimed - called}, in vain"


def test_golden_files_of_a_method_are_those_of_its_name():
  names = lambda method: [path.stem for path in methods_table.golden_files(method)]
  assert names("siren") == ["siren_a", "siren_b", "siren_c"]
  assert names("kl") == ["base_objectives_misc_a", "base_objectives_pg_a", "base_objectives_pg_b",
                         "base_objectives_trl_a"]  # and none of kl_cov
  assert names("lite_ppo") == ["base_objectives_trl_a"]
  assert names("qae") == []


def leaves(entries, at=()):
  """The path of every entry of a config that is no object itself, but for what only describes."""
  for key, value in entries.items():
    if isinstance(value, dict):
      yield from leaves(value, (*at, key))
    elif key not in adapters.DESCRIBES:
      yield (*at, key)


def others(value):
  """Other values than this one, the likeliest to act first; far ones move what rarely acts."""
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, (int, float)):
    near = [value + 1, value - 1, 2 * value, 0] if isinstance(value, int) else [1.5 * value + 0.01]
    return [x for x in (*near, 1, 0.5 * value, 1.02, 1e-3, 20.0, 1e3, -1.0) if x != value]
  if isinstance(value, list):
    pairs = [[a, b] for b in range(20) for a in range(b)]
    more = pairs if not value else [*value, *range(8)] if isinstance(value[0], int) else value[:1]
    return [x for x in ([*value[1:], *value[:1]], value[1:], value[:-1], more) if x != value]
  return ["another rule"] if value is not None else [7]


def varied(case, name, path, value):
  """The file with one entry of a stored object replaced."""
  stored = json.loads(str(case.arrays[name]))
  inner = stored
  for key in path[:-1]:
    inner = inner[key]
  inner[path[-1]] = value
  other = adapters.Case(case.path, hasty=True)
  other.arrays[name] = np.asarray(json.dumps(stored))
  return other


def refused(case):
  """Why the adapter does not pass the file, or None."""
  run = adapters.adapter(case.path)
  try:
    run(case)
    case.finish()
  except (adapters.Mismatch, ValueError) as error:
    return error
  return None


def ignored(config, path):
  """The reason for which an adapter leaves an entry out, or None."""
  for key in path[:-1]:
    config = dict.__getitem__(config, key)
  return config.ignored.get(path[-1])


# entries that are read and cannot act on the numbers of a file, with the reason
INERT = {("aepo_agentic_branch_b", "entropy_weight"):
         "all slots are filled by trials before any entropy has changed",
         ("spear_sil_loss_b", "is_replay"): "the ramp is over: a replay has weight 1, too",
         ("spear_sil_loss_b", "clip_low"): "no token of negative advantage has fallen so far"}
OBJECTS = [(path, name) for path in FILES for name in ("config", "overlong_cfg", "akl_cfg")
           if name in adapters.Case(path)]


@pytest.mark.slow
@pytest.mark.parametrize("path, name", OBJECTS, ids=lambda x: getattr(x, "stem", x))
def test_every_hyper_parameter_of_a_file_acts_or_is_refused(path, name):
  """One at a time is changed: the numbers are others, or the adapter says that it cannot know."""
  case, _ = adapters.check(path)
  with adapters.double():
    for at in leaves(json.loads(str(case.arrays[name]))):
      if ignored(case.parsed[name], at) or (path.stem, at[-1]) in INERT:
        continue
      value = json.loads(str(case.arrays[name]))
      for key in at:
        value = value[key]
      assert any(refused(varied(case, name, at, other)) for other in others(value)), (
          f"{path.stem}: {name}{list(at)} = {value!r} may be anything")


@pytest.mark.parametrize("stem, name, entries, said", [
    ("ttrl_basic", "config", dict(agg="seq-mean-token-mean"), "loss is off"),
    ("ttrl_basic", "config", dict(agg="token-mean, twice"), "nobody reads ', twice'"),
    ("ttrl_basic", "config", dict(std_ddof=0), "config.std_ddof is 0; the adapter computes 1"),
    ("ttrl_basic", "config", dict(kl="k3 clamped to [-1e-3,1e-3]"), "kl_per_token is off"),
    ("ttrl_basic", "config", dict(length_penalty=0.1), "nobody reads: config.length_penalty"),
    ("light_if_reward_a", "config", dict(language="zh"), "nobody reads: config.language"),
    ("canon_schedules", "config", dict(total=151), "intra_weight_cosine is off"),
    ("conformal_ip_basic", "config", dict(entropy_clamp=0.2), "entropy_emp is off"),
    ("spear_schedules", "config", dict(max_toolcall_steps=100), "tool_weight is off"),
    ("base_objectives_misc_a", "akl_cfg", dict(warmup=3), "nobody reads: akl_cfg.warmup"),
], ids=lambda x: x if isinstance(x, str) else "")
def test_a_hyper_parameter_that_is_changed_or_new_fails_its_file(stem, name, entries, said):
  case = adapters.Case(FILES[0].parent / f"{stem}.npz")
  case.arrays[name] = np.asarray(json.dumps({**json.loads(str(case.arrays[name])), **entries}))
  with adapters.double():
    assert said in str(refused(case))


def test_a_missing_hyper_parameter_is_named():
  case = adapters.Case(FILES[0].parent / "canon_schedules.npz")
  case.arrays["config"] = np.asarray(json.dumps(dict(source="x", total=150, cycles=3)))
  with adapters.double():
    assert "config has no warmup; has: source, total, cycles" in str(refused(case))


def test_without_a_reason_nothing_is_left_out():
  config = adapters.Config(dict(alpha=1.0), FILES[0], "config")
  with pytest.raises(ValueError, match="say why"):
    config.ignore("none", "alpha")
  assert list(config.unread()) == ["config.alpha"]
