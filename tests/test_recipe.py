"""The world of a lineage, and what its stages learn from."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import (
  cold_start,
  distill,
  final_rl,
  r1_zero,
  reasoning_rl,
  rejection_sft,
)
from r1jax import mesh, text
from r1jax.model.config import ModelConfig
from r1jax.stages import finetune, lineage, recipe
from r1jax.stages.workdir import plain_config
from r1jax.tasks import Problem, countdown, equations, web


def problems(task, count):
  return [Problem(f'{task}{n}', task, f'{task} {n}', {}) for n in range(count)]


SETTING = recipe.Setting(
  train=[problems(task, 9) for task in recipe.TASKS],
  held_out=[problems(task, 3 + n) for n, task in enumerate(recipe.TASKS)],
  max_prompt_length=32,
  longest=352,
)


def test_held_out_problems_come_by_turns_and_instructions_apart():
  first = ['countdown0', 'equations0', 'arithmetic0', 'countdown1']
  assert [problem.id for problem in SETTING.reasoning[:4]] == first
  assert len(SETTING.reasoning) == 9  # 3 of each, as long as all have one
  assert [problem.task for problem in SETTING.general] == ['instructions'] * 6


def test_outputs_end_where_the_base_model_has_seen_positions():
  SETTING.check_length('rejection.max_length', 320)
  expected = (
    'rejection.max_length: expected at most 320, as the base model was trained on '
    'rows of 352 tokens with prompts of 32, got 321'
  )
  with pytest.raises(ValueError, match=expected):
    SETTING.check_length('rejection.max_length', 321)


def test_a_row_has_place_for_a_prompt_and_its_output():
  SETTING.check_row('sft.row_length', 132, 100)
  expected = (
    'sft.row_length: expected at least 132, for prompts of 32 tokens and outputs of '
    '100, got 131'
  )
  with pytest.raises(ValueError, match=expected):
    SETTING.check_row('sft.row_length', 131, 100)


def test_the_setting_is_that_of_the_first_stage(tmp_path):
  # A number of Countdown less and smaller: built in a moment.
  tasks = web.Tasks(countdown.Config(2, 5), equations.Config(3, 2, 4))
  config = r1_zero.R1Zero(tasks=tasks)
  ancestors = {'r1_zero': SimpleNamespace(record={'config': plain_config(config)})}
  stage: Any = SimpleNamespace(ancestor=ancestors.__getitem__)
  setting = recipe.setting(stage, str(tmp_path))
  assert (setting.max_prompt_length, setting.longest) == (32, 352)
  for source, task in zip(setting.train, recipe.TASKS, strict=True):
    assert {problem.task for problem in source} == {task}
  names = {p.id for p in equations.generate(tasks.equations, 'train')}
  assert {p.id for p in setting.train[1]} == names
  names = {p.id for p in countdown.generate(tasks.countdown, 'test')}
  assert {p.id for p in setting.held_out[0]} == names
  for train, held_out in zip(setting.train, setting.held_out, strict=True):
    assert not {p.id for p in train} & {p.id for p in held_out}


def test_every_stage_of_every_seed_has_a_seed_of_its_own():
  names = ('cold_start', 'reasoning_rl', 'rejection_sft', 'final_rl', 'distill')
  seeds = {recipe.own_seed(seed, name) for seed in range(100) for name in names}
  assert len(seeds) == 500
  assert all(0 <= seed < 2**32 for seed in seeds)
  assert recipe.own_seed(7, 'distill') == recipe.own_seed(7, 'distill')


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


def test_on_policy_rows_hold_what_the_model_said_and_no_padding():
  class Written:
    """Stands in for a Generator: 7 says 70 71, 8 says 80 81, ... by its number."""

    def __init__(self):
      self.asked = []

    def __call__(self, params, key, problems, *, group_size, max_length, draw):
      assert (params, group_size, max_length) == ('params', 1, 6)
      assert (draw.temperature, draw.top_p) == (1, 1)  # the policy itself
      numbers = np.array([int(problem.id) for problem in problems])
      self.asked.append((numbers.tolist(), tuple(jax.random.key_data(key).tolist())))
      lengths = 2 + numbers % 3
      said = np.arange(6)
      return SimpleNamespace(
        prompts=np.stack([0 * numbers, numbers, numbers], axis=1),
        prompt_mask=np.array([[False, True, True]] * len(numbers)),
        tokens=np.where(
          said < lengths[:, None], 10 * numbers[:, None] + said, 0
        )[:, None],
        lengths=lengths[:, None],
      )  # fmt: skip

  generator: Any = Written()
  config = finetune.Epochs(epochs=9, rows_per_step=2, row_length=12, micro_batches=1)
  batch = recipe.own_outputs(
    generator,
    lambda index: Problem(str(7 + index), 'countdown', '', {}),
    prompts=4,
    config=config,
    max_length=6,
    seed=1,
  )
  first, second = batch(1, 'params'), batch(2, 'params')
  assert [numbers for numbers, _ in generator.asked] == [
    [7, 8, 9, 10],
    [11, 12, 13, 14],
  ]
  assert len({key for _, key in generator.asked}) == 2
  found: Any = first
  # 7, 8, 9 and 10 say 3, 4, 2 and 3 tokens: with their prompts of 2 that is 20 of 24.
  learned = found.tokens[found.weights == 1]
  assert sorted(learned) == [70, 71, 72, 80, 81, 82, 83, 90, 91, 100, 101, 102]
  assert sorted(found.tokens[(found.weights == 0) & (found.documents > 0)]) == [
    *(7, 7, 8, 8, 9, 9, 10, 10),
  ]
  assert second.tokens.shape == (2, 12)
  # Asked out of order, as after a kill: the same.
  again: Any = batch(1, 'params')
  np.testing.assert_array_equal(again.tokens, found.tokens)


def test_no_document_is_read_twice_and_a_step_reads_its_own(monkeypatch):
  tokenizer = text.Tokenizer.train(['a'], 262)
  config = ModelConfig(d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16)
  model = lineage.Model(config, tokenizer, 'plain')
  read: list[int] = []

  def document(index):
    read.append(index)
    return 'q', f'<think></think><answer>{index}</answer>'

  def train(run, phase, params, *, batch, steps, **how):
    del run, params, how
    assert (phase, steps) == ('base', 2)
    return [batch(step, None) for step in (1, 2)]

  monkeypatch.setattr(finetune, 'train', train)
  run: Any = None  # unused here
  batches = recipe.pretrain(
    run,
    model,
    document,
    config=finetune.Config(steps=2, rows_per_step=2, row_length=64, micro_batches=1),
    optimizer=r1_zero.R1Zero().base_optim,
    mesh=mesh.make(jax.devices()[:1]),
    seed=0,
  )
  assert len(set(read)) == len(read)
  for step, batch in enumerate(batches, start=1):
    own = [index for index in read if index // recipe.STEP_DOCUMENTS == step]
    assert own == list(range(own[0], own[0] + len(own)))
    assert own[0] == step * recipe.STEP_DOCUMENTS
    shown = tokenizer.decode(batch.tokens[0])
    assert shown.startswith(f'User: q\nAssistant: <think></think><answer>{own[0]}<')


def test_a_run_keeps_its_tokenizer_and_a_folder_without_a_run_gets_a_new_one(tmp_path):
  document = functools.partial(web.document, web.Config(), web.Tasks(), 0)
  file = tmp_path / 'tokenizer.json'
  text.Tokenizer.train(['aaaa'], 270).save(file)
  old = text.Tokenizer.load(file).digest
  new = recipe.tokenizer(file, document, 'plain', 300)
  assert new.vocab_size == 300
  assert new.digest != old  # somebody else's file is not taken
  (tmp_path / 'config.json').write_text('{}')
  assert recipe.tokenizer(file, document, 'plain', 300).digest == old
