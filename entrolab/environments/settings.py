"""What recipes on environments share: a cloned model, its task, and the numbers that suit them."""

from entrolab.environments.calculator import WordProblems
from entrolab.environments.cloned import Cloned
from entrolab.environments.forms import Form
from entrolab.environments.text_world import TextWorld
from entrolab.experiment import Evaluation, Sampling, Training
from entrolab.presets import Preset


def text_world(turns: int = 30) -> Preset:
  """Bring a thing to a room, cloned on few steps of an expert that knows the map."""
  task = TextWorld()
  return Preset(model=Cloned(task, length=96, batch=32), task=task,
                sampling=Sampling(prompts=4, samples=8, longest=8 * turns),
                training=Training(steps=20, updates=2, lr=1e-4, warmup=4),
                evaluation=Evaluation(problems=16))


def form(fields: int = 7) -> Preset:
  """A form of seven fields, cloned on a clerk who writes six values of ten wrong."""
  task = Form(fields, slips=0.6)
  model = Cloned(task, steps=300, turns=fields + 2, length=5 * fields + 7, pool=2048,
                 levels=fields, lr=4e-3)
  return Preset(model=model, task=task,
                sampling=Sampling(prompts=16, samples=8, longest=6 * (fields + 2)),
                training=Training(steps=40, updates=2, lr=7e-4, warmup=4),
                evaluation=Evaluation(problems=32))


def word_problems() -> Preset:
  """Word problems with a calculator, cloned on few steps of an expert."""
  task = WordProblems()
  return Preset(model=Cloned(task, steps=110, turns=4, length=48, batch=32), task=task,
                sampling=Sampling(prompts=16, samples=8, longest=56),
                training=Training(steps=40, updates=2, lr=3e-4, warmup=4),
                evaluation=Evaluation(problems=64))
