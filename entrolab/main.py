"""`python -m entrolab.main --config=experiments/siren.py:beta=1e-2 --set training.lr=1e-5`

A recipe is a Python file with a function `get_config`; knobs after the colon are its arguments, and
`--set` reaches any other hyper-parameter. `--explain` prints what a run would do, `--dry_run` tries
it for one step. The same command resumes an interrupted run.
"""

import logging as standard
import os
import pathlib
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging

MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
CONFIG = flags.DEFINE_string("config", None, "recipe and its knobs, path.py[:knob=value,...]; a "
                             "wrong knob stops with the list of all knobs of the recipe")
SET = flags.DEFINE_multi_string("set", [], "any other hyper-parameter, path=value, such as "
                                "training.lr=1e-5; may be given several times")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default runs/NAME-HASH of the "
                              "configuration, so that the same command resumes")
EXPLAIN = flags.DEFINE_bool("explain", False, "print batch sizes, memory, the objective and what "
                            "in it cannot act, and exit")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "compile everything, train one step, leave nothing, "
                            "and exit")
ALLOW = flags.DEFINE_bool("allow_config_change", False, "resume although the configuration has "
                          "changed; the changes are recorded in the run")
CACHE = flags.DEFINE_string("compile_cache", None, "folder of compiled programs; default "
                            "~/.cache/entrolab; 'off' for none")


def compile_cache(choice: str | None) -> str:
  """Switches the persistent compile cache on; the folder, or 'off'."""
  import jax
  if choice == "off":
    return choice
  folder = choice or os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
      pathlib.Path.home() / ".cache" / "entrolab")
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return folder


def leave(error: Exception) -> NoReturn:
  """Ends the process: a mistake in one line, anything else with the place where it happened."""
  import jax
  if isinstance(error, MISTAKES) and logging.get_verbosity() < logging.DEBUG:
    text = f"error: {error}\n(--verbosity=1 shows where)"
  else:
    text = "".join(traceback.format_exception(error))
  print(text, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    os._exit(1)  # the usual way out waits for the other hosts, which wait for this one
  sys.exit(1)


def main(argv: list[str]) -> None:
  """Loads the experiment, then explains, tries or runs it. Exit code 130 after a signal."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument {argv[1]!r}; flags begin with --")
  if CONFIG.value is None:
    here = ", ".join(sorted(map(str, pathlib.Path("experiments").glob("*.py"))))
    raise app.UsageError(f"--config is needed; choices here: {here or 'none'}")
  if not flags.FLAGS["verbosity"].present:  # else libraries log every file that they write
    logging.set_verbosity(logging.WARNING)
    standard.getLogger("absl").setLevel(standard.WARNING)
  from entrolab import config, sharding
  from entrolab.trainer import explain, loop, step  # after the flags, so that --help is quick
  try:
    sharding.start_hosts()  # before anything uses a device, as building an objective does
    experiment = config.load(CONFIG.value, tuple(SET.value))
    cache = compile_cache(CACHE.value)
    if EXPLAIN.value:
      lab = step.Lab(experiment)
      print(explain.plan(experiment, lab.config, lab.facts.sentences()))
      return
    folder = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / (
        f"{experiment.name}-{config.config_hash(experiment)[:8]}"))
    if DRY_RUN.value:
      loop.dry_run(experiment, folder)
      print("dry run: everything compiled and one step ran")
      return
    print(f"{experiment.name}: run directory {folder}, compile cache {cache}", flush=True)
    result = loop.run(experiment, folder, allow_config_change=ALLOW.value,
                      source={"config": CONFIG.value, "set": SET.value})
  except Exception as error:
    leave(error)
  if not result["finished"]:
    sys.exit(130)


if __name__ == "__main__":
  app.run(main)
