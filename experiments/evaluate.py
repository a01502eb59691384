"""A model on the field's benchmarks: GSM8K, MATH-500, AIME, AMC, …, IFEval.

  python -m experiments.evaluate --model DIR --benchmarks gsm8k aime24 --samples 4
  python -m experiments.evaluate --compare runs/evaluate_a runs/evaluate_b

Writes each output with its verdict, the table, and the settings. Stopped at any time,
the same command goes on. The paper draws 4 to 64 samples of up to 32,768 tokens at
temperature 0.6 with top-p 0.95; its results stand beside yours.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from experiments.paper.results import PASS_AT_1
from r1jax.evaluation import benchmarks, instruction_following
from r1jax.evaluation.benchmarks import RESULTS, Draw, Outputs
from r1jax.plain import JsonDict
from r1jax.rewards import Weighted, ifeval, rules
from r1jax.rewards.pool import TIMEOUT, RewardPool
from r1jax.rollout import sample_memory
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import cli, compilation, memory
from r1jax.runtime.errors import user_errors
from r1jax.runtime.keys import named_key
from r1jax.runtime.workdir import (
  machine_settings,
  open_workdir,
  read_settings,
  write_whole,
)
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, fit_mesh
from r1jax.stages import any_model, problem_sets
from r1jax.stages.any_model import Model
from r1jax.stages.rl_config import MACHINE
from r1jax.tasks import Problem, verifiers
from r1jax.tasks.benchmarks import BENCHMARKS, check_names, load
from r1jax.text import parsing, templates

TABLE = 'table.md'
# Templates in place of one for boxes, by the form that a benchmark needs
UNBOXED: dict[parsing.Form | None, str] = {
  'text': templates.CHAT,
  'code': templates.CHAT_CODE,
}


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """A model, its benchmarks, and how to sample."""

  # Folder of a checkpoint, GGUF file, or work directory of a finished stage
  model: str = dataclasses.field(default='', metadata=MACHINE)
  # gsm8k, math500, aime24, aime25, amc23, olympiadbench, ifeval, humaneval, mbpp
  benchmarks: tuple[str, ...] = dataclasses.field(
    default=tuple(BENCHMARKS), metadata=MACHINE
  )
  # The folder with NAME/test.jsonl for each benchmark, ifeval/input_data.jsonl
  data_dir: str = dataclasses.field(default='data', metadata=MACHINE)
  workdir: str = 'runs/evaluate'  # outputs, results.json and table.md
  samples: int = 4  # outputs per problem, k of pass@k and maj@k
  limit: int = 0  # problems of each benchmark, of a fixed shuffle; 0 takes all
  max_length: int = 32768  # the most tokens of an output
  draw: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95)  # as in the paper
  # Of the prompts; None is that of a stage, and chat_boxed for a checkpoint. In place
  # of chat_boxed, ifeval takes chat, and humaneval and mbpp take chat_code
  template: str | None = None
  # Variables of the chat template in JSON; None is those that a stage was trained with
  chat_template_kwargs: str | None = None
  # Of products, keys and values; 'auto' is the stage's, and for a checkpoint the one
  # that this device computes faster
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto'
  prompts_per_batch: int = 32  # problems sampled between two writes
  seed: int = 0  # of the samples
  workers: int = dataclasses.field(default=2, metadata=MACHINE)  # processes that verify
  mesh: MeshConfig = MeshConfig(sampler_slots=32)  # how the devices are arranged
  compare: tuple[str, ...] = ()  # two work directories, to test their difference

  def __post_init__(self) -> None:
    for field in ('samples', 'max_length', 'prompts_per_batch', 'workers'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field}: expected 1 or more, got {getattr(self, field)}')
    if self.limit < 0:
      raise ValueError(f'limit: expected 0 or more, got {self.limit}')
    if self.mesh.hosts > 1:
      raise ValueError(f'mesh.hosts: expected 1, got {self.mesh.hosts}')
    if self.compare and len(self.compare) != 2:
      raise ValueError(
        f'compare: expected two work directories, got {len(self.compare)}'
      )
    problem_sets.check_seed(self.seed)
    problem_sets.check_folders(self.workdir, self.data_dir)
    check_names(self.benchmarks)


@dataclasses.dataclass(frozen=True)
class Evaluation(Evaluate):
  """An evaluation with what it depends on."""

  checkpoint: str = ''  # digest of the model's parameters


def main(config: Evaluate) -> None:
  """Compares two evaluations, or evaluates a model; prints a table."""
  if config.compare:
    before, after = map(Path, config.compare)
    print('\n'.join(benchmarks.markdown(benchmarks.compare(before, after))))
    return
  if not config.model:
    raise ValueError(
      'model: expected the folder of a checkpoint, a GGUF file or the work directory '
      'of a finished stage, got none'
    )
  print('\n'.join(evaluate(config)))


class Found(NamedTuple):
  """A model without its parameters, and what each benchmark has, by name.

  Fields:
    model: see `any_model.look_up`.
    problems: of the benchmark.
    draws: how to sample its outputs.
    samplers: of the model, with the template for the benchmark.
  """

  model: Model
  problems: dict[str, list[Problem]]
  draws: dict[str, Draw]
  samplers: dict[str, Sampler]


def look_up(config: Evaluate) -> Found:
  """Returns what an evaluation starts from, before anything expensive.

  Raises:
    SandboxError, ValueError: see `evaluate`.
  """
  dtype = config.dtype
  if dtype == 'auto':  # an evaluation that goes on keeps its type
    dtype = read_settings(config.workdir).get('dtype') or dtype
  model = any_model.look_up(
    config.model,
    'model',
    template=config.template,
    checkpoint_template=templates.CHAT_BOXED,
    chat_template_kwargs=config.chat_template_kwargs,
    dtype=dtype,
  )
  size = {'prompts_per_batch': config.prompts_per_batch}
  mesh = fit_mesh(size, config.mesh, size)
  found = Found(model, {}, {}, {})
  for name in config.benchmarks:
    verifiers.check(f'benchmarks {name}', BENCHMARKS[name].verify)
    policy = _policy(model.policy, name)
    form = templates.form(policy.template)
    problems = load(name, config.data_dir, form, config.limit)
    limits = config.max_length, model.max_positions
    length = benchmarks.prompt_length(policy, name, problems, *limits)
    draw = _draw(config, len(problems), mesh)
    sampler = Sampler(policy, length, mesh, config.mesh)
    sample_memory.check(
      sampler,
      prompts=draw.prompts_per_batch,
      group_size=config.samples,
      max_length=config.max_length,
      param_dtype=model.param_dtype,
      memory=memory.of_device(mesh.devices.flat[0]),
    )
    found.problems[name], found.draws[name] = problems, draw
    found.samplers[name] = sampler
  return found


def evaluate(config: Evaluate) -> list[str]:
  """Samples what is missing; writes the outputs and results; returns the table.

  Raises:
    SandboxError: a benchmark needs a sandbox, and there can't be one here.
    ValueError: a benchmark's file is missing or has other problems, there is no such
      model, it knows too few positions, or its keys and values exceed the memory.
    WorkdirError: the work directory has an evaluation with other settings or of another
      checkpoint.
  """
  compilation.keep_on_disk()
  memory.keep_large_blocks()
  model, problems, draws, samplers = look_up(config)
  config = dataclasses.replace(config, dtype=model.policy.config.dtype)
  settings = Evaluation(**vars(config), checkpoint=model.digest)
  workdir = open_workdir(
    config.workdir, settings, may_change=machine_settings(settings)
  )
  outputs = {
    name: Outputs(workdir / f'{name}.jsonl', found, draws[name])
    for name, found in problems.items()
  }
  _sample_missing(config, model, outputs, samplers)
  results = {name: x.summary() for name, x in outputs.items()}
  if (workdir / RESULTS).exists():  # also of benchmarks that were asked for before
    results = benchmarks.read_results(workdir)['benchmarks'] | results
  used = dict.fromkeys(_policy(model.policy, name).template for name in results)
  facts = _facts(config, ' and '.join(used), model.digest)
  content = {'settings': facts, 'benchmarks': results}
  write_whole(workdir / RESULTS, json.dumps(content, indent=2) + '\n')
  lines = [
    *benchmarks.table(results),
    '',
    *filter(None, map(instruction_following.sentence, results.values())),
    ', '.join(f'{name} {value}' for name, value in facts.items()),
    *_published(results),
  ]
  write_whole(workdir / TABLE, '\n'.join(lines) + '\n')
  return lines


def _policy(policy: Policy, name: str) -> Policy:
  """Returns the policy for a benchmark; texts and programs have no box."""
  other = UNBOXED.get(BENCHMARKS[name].form)
  if other is None or templates.form(policy.template) != 'boxed':
    return policy
  return dataclasses.replace(policy, template=other)


def _sample_missing(
  config: Evaluate,
  model: Model,
  outputs: dict[str, Outputs],
  samplers: dict[str, Sampler],
) -> None:
  """Samples the outputs that are missing, benchmark by benchmark."""
  missing = [name for name, x in outputs.items() if x.finished < len(x.problems)]
  if not missing:
    return
  params = model.params(samplers[missing[0]].mesh)
  for name in missing:
    verify = BENCHMARKS[name].verify
    with RewardPool(
      _rewards(name),
      config.workers,
      max(TIMEOUT, verifiers.timeout(verify)),
      verifiers.imports(verify),
    ) as pool:
      outputs[name].sample(
        params,
        named_key(jax.random.key(config.seed), name),
        sampler=samplers[name],
        rewarder=pool,
        say=_say,
      )


def _rewards(name: str) -> list[Weighted]:
  """Returns what judges the outputs of a benchmark."""
  accuracy = Weighted('accuracy', rules.accuracy, 1.0)
  return [accuracy, *ifeval.MEASURES] if name == 'ifeval' else [accuracy]


def _draw(config: Evaluate, problems: int, mesh: jax.sharding.Mesh) -> Draw:
  """Returns how to sample; few problems make a smaller batch."""
  size = min(config.prompts_per_batch, math.ceil(problems / mesh.size) * mesh.size)
  return Draw(config.samples, size, config.max_length, config.draw)


def _say(sentence: str) -> None:
  print(sentence, file=sys.stderr, flush=True)


def _facts(config: Evaluate, template: str, digest: str) -> JsonDict:
  """Returns the settings that results depend on, by name."""
  return {
    'model': config.model,
    'sha256': f'{digest:.12}',
    'temperature': config.draw.temperature,
    'top-p': config.draw.top_p,
    'top-k': config.draw.top_k or 'all',
    'samples': config.samples,
    'limit': config.limit or 'none',
    'max-length': config.max_length,
    'template': template,
    'dtype': config.dtype,
    'seed': config.seed,
  }


def _published(results: JsonDict) -> list[str]:
  """Returns the paper's pass@1 on these benchmarks, as the lines of a table."""
  names = [name for name in results if name in PASS_AT_1]
  if not names:
    return []
  head = ("the paper's models", *(f'{BENCHMARKS[name].title}, %' for name in names))
  models = dict.fromkeys(model for name in names for model in PASS_AT_1[name])
  rows = [
    (model, *(_share(PASS_AT_1[name].get(model)) for name in names)) for model in models
  ]
  return ['', *benchmarks.markdown([head, *rows])]


def _share(percent: float | None) -> str:
  return '–' if percent is None else f'{percent:.1f}'


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Evaluate()))
