"""Rejection sampling: samples several outputs per problem and keeps the good ones.

R1's third stage samples several outputs per prompt and keeps the right and readable
ones; its first stage does the same with R1-Zero's outputs (Nature version). Every
output is written to a file with its faults, so that the selection can be inspected.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from r1jax.plain import JsonDict
from r1jax.rewards import filters
from r1jax.rollout.sampler import Sampler, of_all_hosts
from r1jax.runtime import hosts
from r1jax.runtime.errors import Interruption, TrainingError
from r1jax.runtime.keys import named_key
from r1jax.runtime.log import explained, jsonable
from r1jax.runtime.loop import Loop
from r1jax.runtime.run import Run
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.tasks import Problem

Line = JsonDict  # of the file: an output, its problem and its faults
OUTPUTS = 'outputs.jsonl'
SELECTION = ('duplicate', 'surplus')  # faults of outputs that are right but not kept


@dataclasses.dataclass(frozen=True)
class RejectionConfig:
  """How much to sample and how much of it to keep."""

  problems: int = 480  # problems to sample for
  samples: int = 16  # outputs per problem
  most_a_problem: int = 4  # outputs kept per problem, at most; the first ones
  prompts_per_batch: int = 16  # problems sampled at a time
  max_length: int = 320  # T, tokens
  draw: SamplingConfig = SamplingConfig()  # R1's first stage: temperature 1

  def __post_init__(self) -> None:
    for name in ('samples', 'most_a_problem', 'prompts_per_batch', 'max_length'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'rejection.{name}: expected 1 or more, got {getattr(self, name)}'
        )
    if self.problems < 1 or self.problems % self.prompts_per_batch:
      raise ValueError(
        f'rejection.problems: expected a multiple of rejection.prompts_per_batch = '
        f'{self.prompts_per_batch}, got {self.problems}'
      )


def rejection_sample(
  run: Run,
  params: optax.Params,
  problem_at: Callable[[int], Problem],
  *,
  sampler: Sampler,
  config: RejectionConfig,
  seed: int,
) -> list[Line]:
  """Samples outputs of `config.problems` problems, and returns those that are kept.

  All outputs are written to `outputs.jsonl`, a batch at a time; a killed run resumes at
  the first missing batch. A batch is a step of the phase 'rejection' in the log, with
  the share of outputs without faults. `rejection.json` has the statistics.

  Args:
    run: the open run.
    params: of the policy.
    problem_at: index -> problem.
    sampler: of the policy.
    config: see `RejectionConfig`.
    seed: of the samples.

  Raises:
    Interruption: the run was asked to stop.
    TrainingError: no output is kept.
  """
  file = run.workdir / OUTPUTS
  lines = _complete(file, config)
  key = named_key(jax.random.key(seed), 'rejection')
  size = config.prompts_per_batch
  first = len(lines) // (size * config.samples)
  run.log.resume('rejection', first)
  loop = Loop(run, 'rejection', config.problems // size, first=first, optim=None)
  for step in loop:
    asked = step * size
    chosen = [problem_at(index) for index in range(asked - size, asked)]
    outputs = sampler.sample(
      params,
      jax.random.fold_in(key, step - 1),
      chosen,
      group_size=config.samples,
      max_length=config.max_length,
      draw=config.draw,
    )
    groups = [
      _lines(chosen[row], group, lengths)
      for row, group, lengths in zip(
        outputs.rows, outputs.texts, outputs.lengths, strict=True
      )
    ]
    new = [line for group in of_all_hosts(outputs, groups) for line in group]
    # The log first: a resumed run drops its lines of batches that the file lacks.
    loop.log({'accepted': np.mean([not line['faults'] for line in new])})
    if hosts.is_primary():
      with explained(file), file.open('a', encoding='utf-8') as end:
        end.write(_json_lines(new))
    lines += new
    if run.must_stop():
      raise Interruption(f'Stopped after {asked} problems. The same command resumes.')
  kept = select(lines, config.most_a_problem)
  counted = statistics(lines)
  content = json.dumps(jsonable(counted), indent=2) + '\n'
  if hosts.is_primary():
    write_whole(run.workdir / 'rejection.json', content)
  if not kept:
    faults = Counter(fault for line in lines for fault in line['faults'])
    right = 1 - (faults['wrong'] + faults['form']) / len(lines)
    most, times = faults.most_common(1)[0]
    raise TrainingError(
      f'none of {len(lines)} outputs is kept, so there is nothing to learn from: '
      f'{right:.1%} are right, and {times} have the fault {most!r}; train the parent '
      'for longer, or raise rejection.samples in another --workdir'
    )
  return kept


def _lines(
  problem: Problem, group: Sequence[str], lengths: Sequence[int]
) -> list[Line]:
  """Returns a line for each output to a problem."""
  return [
    {
      'problem': problem.id,
      'task': problem.task,
      'question': problem.question,
      'output': output,
      'tokens': int(length),
      'faults': filters.faults(problem, output),
    }
    for output, length in zip(group, lengths, strict=True)
  ]


def _complete(file: Path, config: RejectionConfig) -> list[Line]:
  """Returns the lines of complete batches, and drops the others from the file."""
  if not file.exists():
    return []
  lines: list[Line] = []
  for raw in file.read_bytes().splitlines():
    try:
      lines.append(json.loads(raw))
    except ValueError:  # half-written when the run was killed
      break
  size = config.prompts_per_batch * config.samples
  lines = lines[: len(lines) // size * size]
  if hosts.is_primary():  # other hosts read the same lines before and after
    write_whole(file, _json_lines(lines))
  return lines


def _json_lines(lines: Iterable[Line]) -> str:
  return ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)


def kept_outputs(workdir: Path, most_a_problem: int) -> list[Line]:
  """Returns the outputs that a finished stage kept; see `select`."""
  raw = (workdir / OUTPUTS).read_bytes().splitlines()
  return select([json.loads(line) for line in raw], most_a_problem)


def select(lines: Sequence[Line], most_a_problem: int) -> list[Line]:
  """Returns outputs without faults, each once, at most `most_a_problem` per problem.

  Outputs that are left out get one of `SELECTION` as their fault.
  """
  kept: list[Line] = []
  seen: set[tuple[str, str]] = set()
  count: Counter[str] = Counter()
  for line in lines:
    if set(line['faults']) - set(SELECTION):
      continue
    problem, output = line['problem'], line['output']
    if (problem, output) in seen:
      line['faults'] = ['duplicate']
    elif count[problem] >= most_a_problem:
      line['faults'] = ['surplus']
    else:
      line['faults'] = []
      seen.add((problem, output))
      count[problem] += 1
      kept.append(line)
  return kept


def statistics(lines: Iterable[Line]) -> dict[str, JsonDict]:
  """Returns by task: problems, outputs, kept outputs, their mean tokens, and faults.

  An output with several faults is counted under its first.
  """
  by_task: dict[str, list[Line]] = {}
  for line in lines:
    by_task.setdefault(line['task'], []).append(line)
  return {
    task: {
      'problems': len({line['problem'] for line in found}),
      'outputs': len(found),
      'kept': sum(not line['faults'] for line in found),
      'tokens': float(
        np.mean([line['tokens'] for line in found if not line['faults']] or [np.nan])
      ),
      'dropped': dict(
        Counter(line['faults'][0] for line in found if line['faults']).most_common()
      ),
    }
    for task, found in by_task.items()
  }
