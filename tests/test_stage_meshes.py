"""What stages learn on meshes of eight devices, beside the same on one."""

import dataclasses
import functools
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import distill
from r1jax import mesh, optim, text
from r1jax.model.config import ModelConfig
from r1jax.rewards.judge import Pair
from r1jax.stages import finetune, lineage, preference, work
from r1jax.stages.run import start
from r1jax.tasks import Problem

MESHES = {
  'fsdp 4 tensor 2': mesh.Config(fsdp=4, tensor=2),
  'context 2 fsdp 4': mesh.Config(context=2, fsdp=4),
  'data 2 fsdp 4': mesh.Config(data=2, fsdp=4),
}
CORPUS = [f'calculate {n}+{n} <think>{n}</think> {2 * n}' for n in range(60)]
TOKENIZER = text.Tokenizer.train(CORPUS, 320)
STUDENT = ModelConfig(d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=48)
MODEL = lineage.Model(STUDENT, TOKENIZER, 'plain', 288)
TEACHER = lineage.Model(dataclasses.replace(STUDENT, layers=1), TOKENIZER, 'plain', 288)
EXAMPLES = [
  (f'calculate {n}+{n}', f'<think>{n}</think> {2 * n}' + ' so' * (n % 5))
  for n in range(60)
]
PORTIONS: dict[str, Any] = {
  'rows_per_step': 8,
  'row_length': 48,
  'micro_batches': 2,
  'checkpoint_every': 100,
  'log_every': 1,
}
BASE = finetune.Config(steps=2, **PORTIONS)
SFT = finetune.Epochs(epochs=1, **PORTIONS)
PREFERENCE = preference.Config(
  pairs_per_step=16, micro_batches=2, max_length=48, log_every=1, held_out=0.2
)
# eps: a gradient that is small beside rounding must not make a step of full size.
OPTIMIZER = optim.Config(learning_rate=1e-3, warmup_steps=0, eps=1e-3)


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def pretrain(job):
  return job.pretrain(lambda n: EXAMPLES[n % len(EXAMPLES)], BASE, OPTIMIZER)


def imitate(job):
  return job.imitate(MODEL.init(job.mesh, 0), EXAMPLES, SFT, OPTIMIZER)


def follow(job, phase):
  """Token by token from a teacher."""
  teacher: Any = SimpleNamespace(
    model=TEACHER, params=lambda place: TEACHER.init(place, 1)
  )
  config = distill.Distill(sft=SFT, sft_optim=OPTIMIZER)
  kept = [{'question': question, 'output': output} for question, output in EXAMPLES]
  order: Any = None  # of problems, unused here
  lesson = distill._Lesson(job, config, teacher, order, kept)
  return distill._token_level(lesson, MODEL.init(job.mesh, 0), phase)


def prefer(job):
  """The decoder of a preference model, and what it gives."""
  problems = [Problem(str(n), 'instructions', q, {}) for n, (q, _) in enumerate(EXAMPLES)]
  outputs = [output for _, output in EXAMPLES]
  voice: dict[str, Any] = {
    'model': MODEL.functions, 'tokenizer': TOKENIZER, 'template': 'plain'
  }
  params = preference.train(
    job.run,
    'preference',
    MODEL.init(job.mesh, 0),
    **voice,
    pairs=[
      Pair(problem, f'{output} yes', f'{output} no', 1.0)
      for problem, output in zip(problems, outputs, strict=True)
    ],
    config=PREFERENCE,
    optimizer=optim.make(OPTIMIZER, 3),
    mesh=job.mesh,
    seed=0,
  )
  scorer = preference.Scorer(
    params, **voice, max_length=48, mesh=mesh.local(job.mesh)
  )
  return {**params['decoder'], 'rewards': scorer(problems, outputs)}


LEARN: dict[str, Any] = {
  'base': pretrain,
  'sft': imitate,
  'forward_kl': functools.partial(follow, phase='forward_kl'),
  'reverse_kl': functools.partial(follow, phase='reverse_kl'),
  'preference': prefer,
}


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  @functools.cache
  def learned(phase, mesh_name):
    """The logged lines and the parameters."""
    layout = MESHES.get(mesh_name, mesh.Config())
    devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
    place: Any = None  # of problems, unused here
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    with start(Experiment(str(workdir)), phases=(phase,)) as run:
      job = work.Work(run, MODEL, place, mesh.make(devices, layout), 0, layout)
      params = LEARN[phase](job)
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines], params

  return learned


@pytest.mark.parametrize('mesh_name', MESHES)
@pytest.mark.parametrize('phase', LEARN)
def test_what_is_learned_is_that_of_one_device(learned, phase, mesh_name):
  expected, before = learned(phase, 'one')
  found, params = learned(phase, mesh_name)
  assert len(found) == len(expected) > 1
  for line, numbers in zip(found, expected, strict=True):
    assert line.keys() == numbers.keys()
    for name in numbers.keys() - {'phase', 'step', 'time'}:
      assert line[name] == pytest.approx(numbers[name], rel=1e-5, abs=1e-5), name
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), params, before
  )
