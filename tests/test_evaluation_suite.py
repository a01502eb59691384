"""A row of the stage table, of a model whose outputs are fixed."""

import dataclasses
import json
from types import SimpleNamespace
from typing import cast

import jax
import numpy as np
import pytest

from r1jax.evaluation import suite
from r1jax.evaluation.suite import SuiteConfig, file, measure
from r1jax.miniature import baseline
from r1jax.rollout.sampler import Sampler
from r1jax.runtime.run import start
from r1jax.sampling.sampler import SamplingConfig
from r1jax.tasks import arithmetic, equations, instructions, store
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.tasks.instructions import InstructionsConfig

REASONING = store.by_turns(
  [
    list(equations.generate(EquationsConfig(), 'test'))[:4],
    list(arithmetic.generate(ArithmeticConfig(), 'test'))[:4],
  ]
)
GENERAL = list(instructions.generate(InstructionsConfig(), 'test'))[:4]
CONFIG = SuiteConfig(
  reasoning=4,
  general=2,
  samples=2,
  prompts_per_batch=2,
  max_length=77,
  draw=SamplingConfig(temperature=0.6, top_p=0.95),
  shown=1,
)


class Written:
  """Stands for a sampler: right on every equation, and as good as the opponent."""

  policy = SimpleNamespace(prompt=lambda question: f'? {question}')

  def __init__(self):
    self.asked = []

  def sample(self, params, key, problems, *, group_size, max_length, draw):
    ids = [problem.id for problem in problems]
    data = tuple(jax.random.key_data(key).tolist())
    self.asked.append((params, data, ids, group_size, max_length, draw))
    return SimpleNamespace(
      rows=np.arange(len(problems)),
      own=np.ones(len(problems), bool),
      texts=[[self.answer(problem), 'garbage'] for problem in problems],
      lengths=np.full((len(problems), 2), 10),
      cut_off=np.zeros((len(problems), 2), bool),
    )

  @staticmethod
  def answer(problem):
    if problem.task == 'instructions':
      return baseline.answer(problem)
    return f'<think>so\nso</think><answer>{problem.truth.get("x", "none")}</answer>'


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """The folder, the row and the sampler of two models' measurements."""
  workdir, sampler = tmp_path_factory.mktemp('runs') / 'run', Written()
  with start(Experiment(str(workdir)), phases=()) as run:
    row, _ = (
      measure(
        run,
        name,
        REASONING,
        GENERAL,
        sampler=cast(Sampler, sampler),
        config=CONFIG,
        seed=5,
        name=name,
      )
      for name in ('base', 'final')
    )
  return workdir, row, sampler


def test_a_row_has_reasoning_by_task_and_preference_among_instructions(measured):
  _, row, _ = measured
  reasoning, general = row['reasoning'], row['general']
  # Of 4 problems by turns 2 are equations; one of two outputs is right.
  assert reasoning['split'] == general['split'] == 'test'
  assert reasoning['problems'] == 4
  assert reasoning['pass_at_1']['mean'] == 1 / 4
  assert reasoning['tasks']['equations']['mean'] == 1 / 2
  assert reasoning['tasks']['arithmetic']['mean'] == 0
  assert reasoning['rewards']['language']['mean'] == 1 / 2  # 'so', and 'garbage'
  assert reasoning['rewards']['readable']['mean'] == 0  # 'so' twice, and 'garbage'
  assert reasoning['rewards']['preference']['mean'] == 0
  assert general['problems'] == 2
  # The opponent's own answer is a draw; what shows nothing loses.
  assert general['rewards']['preference']['mean'] == 1 / 4
  assert 'tasks' not in general


def test_a_row_is_written_whole_with_outputs_to_show(measured):
  workdir, row, _ = measured
  written = json.loads(file(workdir, 'base').read_text(encoding='utf-8'))
  assert file(workdir, 'base').name == 'evaluation-base.json'
  assert written['reasoning']['pass_at_1'] == row['reasoning']['pass_at_1']
  assert written['general']['right'] == row['general']['right']
  (shown,) = written['general']['shown']
  assert shown['output'] == baseline.answer(GENERAL[0])
  assert shown['prompt'] == f'? {GENERAL[0].question}'
  assert file(workdir, 'final').read_bytes() == file(workdir, 'base').read_bytes()
  assert not list(workdir.glob('*.partial'))


def test_all_models_answer_the_same_problems_with_the_same_keys(measured):
  _, _, sampler = measured
  base, final = sampler.asked[:3], sampler.asked[3:]
  assert [asked[0] for asked in base] == ['base'] * 3
  assert [asked[1:] for asked in base] == [asked[1:] for asked in final]
  assert len({key for _, key, *_ in base}) == 3
  ids = [problem.id for problem in [*REASONING[:4], *GENERAL[:2]]]
  assert [name for asked in base for name in asked[2]] == ids
  for *_, samples, length, draw in base:
    assert (samples, length) == (2, 77)
    assert draw == CONFIG.draw


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'reasoning': 0}, 'suite.reasoning: expected 1 or more, got 0'),
    ({'max_length': 0}, 'suite.max_length: expected 1 or more, got 0'),
    # Refused here: an evaluation comes after all the training.
    ({'shown': -1}, 'suite.shown: expected 0 or more, got -1'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    SuiteConfig(**fields)


def test_every_reward_of_a_row_has_another_name():
  names = [reward.name for reward in suite.REWARDS]
  assert names == ['accuracy', 'language', 'readable', 'preference']
