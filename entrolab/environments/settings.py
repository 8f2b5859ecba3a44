"""What recipes on environments share: a cloned model, its task, and the numbers that suit them."""

from entrolab.environments.cloned import Cloned
from entrolab.environments.forms import Form
from entrolab.environments.text_world import TextWorld
from entrolab.experiment import Evaluation, Sampling, Training
from entrolab.presets import Preset


def text_world(turns: int = 30) -> Preset:
  """Bring a thing to a room, cloned on few steps of an expert that knows the map."""
  task = TextWorld()
  return Preset(model=Cloned(task, length=96, batch=32), task=task,
                sampling=Sampling(prompts=8, samples=8, longest=6 * turns),
                training=Training(steps=30, updates=2, lr=3e-4, warmup=4),
                evaluation=Evaluation(problems=64, samples=8, ks=(1, 2, 4, 8)))


def form(fields: int = 7) -> Preset:
  """A form of seven fields, cloned on a clerk who writes half of the values wrong."""
  task = Form(fields, slips=0.5)
  return Preset(model=Cloned(task, turns=fields + 2, length=9 * fields + 8, batch=32), task=task,
                sampling=Sampling(prompts=16, samples=8, longest=6 * (fields + 2)),
                training=Training(steps=40, updates=2, lr=3e-4, warmup=4),
                evaluation=Evaluation(problems=64, samples=8, ks=(1, 2, 4, 8)))
