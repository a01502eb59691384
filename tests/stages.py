"""What stages learn, in small: for `test_stage_meshes`, and as one of its hosts.

python tests/stages.py INDEX HOSTS PORT FOLDER
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import machines
import pytest

from r1jax.evaluation.evaluate import EvalConfig
from r1jax.miniature.judge import Pair
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rollout.policy import Policy
from r1jax.runtime import checkpoint, hosts
from r1jax.runtime.errors import TrainingError
from r1jax.runtime.run import start
from r1jax.sharding.mesh import MeshConfig, local_mesh, make_mesh
from r1jax.sharding.place import replicate, reshard, unbox
from r1jax.stages import distillation, preference
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.preference_scoring import Scorer
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer

PROBLEMS = [
  Problem(str(n), 'gsm8k', f'calculate {n}+{n}', {'answer': str(2 * n)})
  for n in range(40)
]
OUTPUTS = [f'<think>{n}</think> {2 * n}' + ' so' * (n % 5) for n in range(40)]
EXAMPLES = [(p.text, output) for p, output in zip(PROBLEMS, OUTPUTS, strict=True)]
TOKENIZER = Tokenizer.train(map(' '.join, EXAMPLES), 288)
STUDENT = ModelConfig(d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=48)
POLICY = Policy(STUDENT, TOKENIZER, 'plain', 288)
TEACHER = Policy(dataclasses.replace(STUDENT, layers=1), TOKENIZER, 'plain', 288)
NO_PROBLEMS = Problems([], [], 24, 48)
# eps: a gradient that is small beside rounding must not make a step of full size.
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-3)
SFT = SFTConfig(
  epochs=1,
  rows_per_step=16,
  row_length=48,
  micro_batches=2,
  checkpoint_every=100,
  log_every=1,
  optim=OPTIM,
)
SAMPLED = RejectionConfig(problems=32, samples=1, max_length=16)
PREFERENCE = PreferenceConfig(
  pairs_per_step=16,
  micro_batches=2,
  max_length=48,
  log_every=1,
  held_out=0.2,
  optim=OPTIM,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a run is of, and hosts compare."""

  workdir: str
  mesh: MeshConfig


@functools.cache
def random(policy: Policy) -> Any:
  """Parameters, made on one device."""
  return jax.device_get(unbox(policy.boxed(jax.random.key(policy.config.layers))))


def put(policy: Policy, place: jax.sharding.Mesh) -> Any:
  """Random parameters on a mesh."""
  return reshard(place, random(policy), policy.names)


def sft(stage: Stage) -> Any:
  """SFT, whose program is also that of base models."""
  return stage.sft(put(POLICY, stage.mesh), EXAMPLES, SFT)


def on_policy(stage: Stage) -> Any:
  """Distillation token by token, on the student's own outputs."""
  teacher: Any = SimpleNamespace(policy=TEACHER, params=functools.partial(put, TEACHER))
  kept = [{'question': question, 'output': output} for question, output in EXAMPLES]
  lesson = distillation.Lesson(
    stage,
    teacher,
    lambda n: PROBLEMS[n % 40],
    kept,
    max_length=SAMPLED.max_length,
    sft=SFT,
    rl=RLConfig(),
    rewards=(),
    evals=EvalConfig(),
  )
  return distillation.token_level(lesson, put(POLICY, stage.mesh), 'on_policy')


def sampled(stage: Stage) -> Any:
  """Writes down outputs, of which none is worth keeping."""
  with pytest.raises(TrainingError, match='none of 32 outputs is kept'):
    stage.rejection_sample(put(POLICY, stage.mesh), lambda n: PROBLEMS[n], SAMPLED)
  return {}


def preferred(stage: Stage) -> Any:
  """A preference model; its decoder, and the rewards that it gives."""
  params = preference.train(
    stage.run,
    'preferred',
    put(POLICY, stage.mesh),
    policy=POLICY,
    pairs=[Pair(p, f'{x} so', x, 1.0) for p, x in zip(PROBLEMS, OUTPUTS, strict=True)],
    config=PREFERENCE,
    mesh=stage.mesh,
    seed=0,
  )
  scorer = Scorer(params, POLICY, max_length=48, mesh=local_mesh(stage.mesh))
  return {**params['decoder'], 'rewards': scorer(PROBLEMS, OUTPUTS)}


LEARN: dict[str, Callable[[Stage], Any]] = {
  'sft': sft,
  'on_policy': on_policy,
  'preferred': preferred,
  'sampled': sampled,
}


def learn(
  workdir: Path, layout: MeshConfig, devices: list[jax.Device], *phases: str
) -> dict[str, Any]:
  """The parameters after each phase."""
  config = Experiment(str(workdir), layout)
  with start(config, phases=phases) as run:
    mesh = make_mesh(devices, layout)
    stage = Stage(run, POLICY, NO_PROBLEMS, mesh, 0, layout)
    return {phase: LEARN[phase](stage) for phase in phases}


def check_lines(workdir: Path, expected: Path) -> None:
  """Asserts that two runs have logged the same, but for rounding and time."""
  found, wanted = (
    [json.loads(line) for line in (folder / 'metrics.jsonl').open()]
    for folder in (workdir, expected)
  )
  assert len(found) == len(wanted) > 1
  for line, numbers in zip(found, wanted, strict=True):
    assert line.keys() == numbers.keys()
    assert (line['phase'], line['step']) == (numbers['phase'], numbers['step'])
    for name in numbers.keys() - {'phase', 'step', 'time'}:
      assert line[name] == pytest.approx(numbers[name], rel=1e-5, abs=1e-5), name


def main(index: int, count: int, port: int, folder: Path) -> None:
  """Does, on four devices, all that needs the outputs of other hosts."""
  layout = MeshConfig(fsdp=4, coordinator=f'127.0.0.1:{port}', hosts=count, host=index)
  with hosts.connect(Experiment(str(folder), layout)):
    phases = 'sampled', 'on_policy', 'preferred'
    found = learn(folder / 'run', layout, jax.devices(), *phases)
    found['preferred'] = jax.device_get(found['preferred'])  # each host has it whole
    whole = replicate(make_mesh(config=layout), found)
    saved = checkpoint.Checkpoints(folder / 'found')
    saved.save(1, whole, {})
    saved.wait()


if __name__ == '__main__':
  numbers = [int(word) for word in sys.argv[1:4]]
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = machines.cpus(4 // numbers[1])
  main(numbers[0], numbers[1], numbers[2], Path(sys.argv[4]))
