"""The problems of a chain of stages, and what its stages learn from."""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import (
  cold_start,
  distill,
  final_rl,
  r1_zero,
  reasoning_rl,
  rejection_sft,
)
from r1jax import tasks as all_tasks
from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.runtime.workdir import plain_config
from r1jax.stages import from_scratch, problem_sets
from r1jax.stages.artifact import ArtifactError
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem, countdown, equations
from r1jax.tasks.countdown import CountdownConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.text.tokenizer import Tokenizer


def problems(task, count):
  return [Problem(f'{task}{n}', task, f'{task} {n}', {}) for n in range(count)]


PROBLEMS = Problems(
  train=[problems(task, 9) for task in problem_sets.TASKS],
  validation=[problems(f'{task}-v', 2) for task in problem_sets.TASKS],
  test=[problems(task, 3 + n) for n, task in enumerate(problem_sets.TASKS)],
  max_prompt_length=32,
  max_positions=352,
)


def test_held_out_problems_come_by_turns_and_instructions_apart():
  first = ['countdown0', 'equations0', 'arithmetic0', 'countdown1']
  test = PROBLEMS.reasoning('test')
  assert [problem.id for problem in test[:4]] == first
  assert len(test) == 9  # 3 of each, as long as all have one
  assert [problem.task for problem in PROBLEMS.general('test')] == ['instructions'] * 6
  validation = [problem.id for problem in PROBLEMS.reasoning('validation')]
  assert validation[:2] == ['countdown-v0', 'equations-v0']
  assert len(PROBLEMS.general('validation')) == 2


def test_prompts_are_padded_to_the_longest_one():
  tokenizer: Any = SimpleNamespace(
    prompt_ids=lambda template, question: list(range(len(question))), pad_id=0
  )
  ample = dataclasses.replace(PROBLEMS, max_prompt_length=384)
  longest = max(
    len(p.question) for part in (ample.train, ample.validation) for s in part for p in s
  )
  assert ample.check_prompts(tokenizer, 'chat') == longest == 16
  assert ample.without_padding(tokenizer, 'chat').max_prompt_length == 32
  assert ample.without_padding(tokenizer, 'chat', shards=3).max_prompt_length == 96
  tight = dataclasses.replace(PROBLEMS, max_prompt_length=20)
  assert tight.without_padding(tokenizer, 'chat').max_prompt_length == 20
  short = dataclasses.replace(PROBLEMS, max_prompt_length=15)
  expected = 'max_prompt_length: expected at least 16, the tokens of the longest prompt'
  with pytest.raises(ValueError, match=expected):
    short.without_padding(tokenizer, 'chat')


def test_outputs_end_where_the_base_model_has_seen_positions():
  PROBLEMS.check_length('rejection.max_length', 320)
  expected = (
    'rejection.max_length: expected at most 320, as the base model was trained on '
    'rows of 352 tokens with prompts of 32, got 321'
  )
  with pytest.raises(ValueError, match=expected):
    PROBLEMS.check_length('rejection.max_length', 321)


@pytest.mark.parametrize(
  ('prompts', 'judged', 'remedy'),
  [(4, 12, 'set it to 8'), (16, 16, 'lower rl.prompts_per_step')],
)
def test_the_judge_compares_no_more_instructions_than_there_are(
  prompts, judged, remedy
):
  config = final_rl.FinalRL(
    rl=RLConfig(steps=40, prompts_per_step=prompts), judged=judged
  )
  expected = f'judged: expected at most the 9 instructions .* got {judged}; {remedy}'
  with pytest.raises(ValueError, match=expected):
    config.check(PROBLEMS)
  rl = RLConfig(steps=40, prompts_per_step=4)
  dataclasses.replace(config, rl=rl, judged=8).check(PROBLEMS)


def test_a_row_has_place_for_a_prompt_and_its_output():
  PROBLEMS.check_row('sft.row_length', 132, 100)
  expected = (
    'sft.row_length: expected at least 132, for prompts of 32 tokens and outputs of '
    '100, got 131'
  )
  with pytest.raises(ValueError, match=expected):
    PROBLEMS.check_row('sft.row_length', 131, 100)


def test_the_problems_are_those_of_the_first_stage(tmp_path):
  # A number of Countdown less and smaller: built in a moment.
  tasks = TaskConfigs(CountdownConfig(2, 6), EquationsConfig(3, 2, 4))
  found = problem_sets.problems_of(first_stage(tasks), str(tmp_path))
  assert (found.max_prompt_length, found.max_positions) == (32, 352)
  for source, task in zip(found.train, problem_sets.TASKS, strict=True):
    assert {problem.task for problem in source} == {task}
  names = {p.id for p in equations.generate(tasks.equations, 'train')}
  assert {p.id for p in found.train[1]} == names
  for split, held_out in (('validation', found.validation), ('test', found.test)):
    names = {p.id for p in countdown.generate(tasks.countdown, split)}
    assert {p.id for p in held_out[0]} == names
  parts = zip(found.train, found.validation, found.test, strict=True)
  for task, part in zip(problem_sets.TASKS, parts, strict=True):
    group = all_tasks.module(task).group
    a, b, c = ({group(p) for p in split} for split in part)
    assert not a & b
    assert not (a | b) & c


def first_stage(tasks, **data):
  """An R1-Zero whose problems were of the present versions, but for those named."""
  record = {
    'config': plain_config(r1_zero.R1Zero(tasks=tasks)),
    'data': {**all_tasks.versions(problem_sets.TASKS), **data},
  }
  stage: Any = SimpleNamespace(path=Path('runs/zero'), record=record)
  stage.ancestor = {'r1_zero': stage}.__getitem__
  return stage


def test_an_ancestor_with_other_problems_is_refused(tmp_path):
  old = first_stage(TaskConfigs(), countdown='1.1.0')
  version = countdown.VERSION
  with pytest.raises(
    ArtifactError,
    match=r'runs/zero was made with other problems, .*\(countdown was 1\.1\.0 there '
    rf'and is {version} here\); run it again in another folder',
  ):
    problem_sets.problems_of(old, str(tmp_path))
  del old.record['data']
  with pytest.raises(ArtifactError, match='equations was none there and is'):
    problem_sets.problems_of(old, str(tmp_path))
  assert not list(tmp_path.iterdir())  # refused before anything was built


def test_every_stage_of_every_seed_has_a_seed_of_its_own():
  names = ('cold_start', 'reasoning_rl', 'rejection_sft', 'final_rl', 'distill')
  seeds = {problem_sets.own_seed(seed, name) for seed in range(100) for name in names}
  assert len(seeds) == 500
  assert all(0 <= seed < 2**32 for seed in seeds)
  assert problem_sets.own_seed(7, 'distill') == problem_sets.own_seed(7, 'distill')


STAGES = {
  r1_zero.R1Zero: 3,
  cold_start.ColdStart: 4,
  reasoning_rl.ReasoningRL: 3,
  rejection_sft.RejectionSFT: 3,
  final_rl.FinalRL: 3,
  distill.Distill: 4,
}


@pytest.mark.parametrize('stage', STAGES)
def test_shares_that_nothing_can_be_drawn_by_are_refused(stage):
  count = STAGES[stage]
  stage(shares=(1.0,) + (0.0,) * (count - 1))
  for shares in (
    (0.0,) * count,
    (-0.5,) + (1.0,) * (count - 1),
    (0.5,) * (count - 1),
    (0.5,) * (count + 1),
    (float('nan'),) * count,
    (float('inf'),) * count,
    (),
  ):
    expected = f'shares: expected {count} finite numbers of 0 or more, not all 0, for c'
    with pytest.raises(ValueError, match=expected) as error:
      stage(shares=shares)
    assert str(shares) in str(error.value)


def test_a_run_keeps_its_tokenizer_and_a_folder_without_a_run_gets_a_new_one(tmp_path):
  document = functools.partial(corpus.document, CorpusConfig(), TaskConfigs(), 0)
  file = tmp_path / 'tokenizer.json'
  Tokenizer.train(['aaaa'], 270).save(file)
  old = Tokenizer.load(file).digest
  new = from_scratch.tokenizer(file, document, 'plain', 300)
  assert new.vocab_size == 300
  assert new.digest != old  # somebody else's file is not taken
  (tmp_path / 'config.json').write_text('{}')
  assert from_scratch.tokenizer(file, document, 'plain', 300).digest == old
