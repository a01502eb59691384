"""The presets of `experiments.paper` against the paper's numbers, written down again.

[N] is the Nature version, [v1] the first arXiv version.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import distill as distill_experiment
from experiments import final_rl, reasoning_rl
from experiments.paper import (
  choices,
  data,
  distill,
  evaluation,
  r1,
  r1_zero,
  results,
  reward_models,
  stage,
)
from experiments.paper.stage import RL, SFT
from r1jax import grpo
from r1jax.model import decoder, presets
from r1jax.stages.rl_config import value_at
from r1jax.terms.surrogates import clipped
from r1jax.text import templates

BASE = 'DeepSeek-V3-Base'
ZERO = r1_zero.R1_ZERO


def test_r1_zero_has_the_papers_hyper_parameters():
  # [N], methods, training of R1-Zero
  assert ZERO.start == BASE
  assert (ZERO.rl.optim.learning_rate, ZERO.rl.optim.schedule) == (3e-6, 'constant')
  assert (ZERO.rl.grpo.kl, ZERO.rl.grpo.kl_coef) == ('k3', 0.001)
  assert (ZERO.rl.group_size, ZERO.rl.epochs) == (16, 1)
  assert value_at(ZERO.rl.temperature, 0) == value_at(ZERO.rl.temperature, 649) == 1.0
  ((_, rewards),) = ZERO.rewards
  assert tuple(rewards) == (1, 1, 0, 0, 0)  # accuracy and format alike, nothing neural
  # [v1], Table 1
  assert templates.render(r1_zero.TEMPLATE, 'Why?').endswith('User: Why?. Assistant:')


def test_the_command_runs_what_the_module_says():
  config = r1_zero.PaperR1Zero()
  assert config.rl is ZERO.rl
  assert config.model.template == r1_zero.TEMPLATE
  weights = {reward.name: reward.weight for reward in config.all_rewards()}
  assert weights == {'accuracy': 1, 'format': 1}


def test_a_rollout_is_8192_outputs_and_a_step_512():
  outputs = ZERO.rl.prompts_per_step * ZERO.rl.group_size
  assert outputs == 8_192 == 512 * 16
  questions = ZERO.rl.prompts_per_step // ZERO.rl.minibatches
  assert questions == 32
  assert questions * ZERO.rl.group_size == 512 == outputs // ZERO.rl.minibatches


def test_steps_of_the_paper_are_updates():
  updates = ZERO.rl.minibatches * ZERO.rl.epochs  # of a rollout
  assert ZERO.rl.steps * updates == 10_400
  assert ZERO.rl.reference_every * updates == 400
  assert distill.RL_32B.rl.steps * updates == 10_000
  # 1,700 = 106 * 16 + 4: a part of a rollout is a whole one
  assert (r1.ALL_SCENARIOS.rl.steps - 1) * updates < 1_700
  assert r1.ALL_SCENARIOS.rl.steps * updates >= 1_700


def test_a_part_of_a_rollout_counts_as_one():
  assert [stage.rollouts(steps) for steps in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_outputs_may_be_longer_from_step_8200_on():
  # 512 rollouts are 8,192 updates, so the next is sampled before step 8,200; the one
  # after it has 8,208 before it.
  limits = [value_at(ZERO.rl.max_length, before) for before in (0, 512, 513, 649)]
  assert limits == [32_768, 32_768, 65_536, 65_536]


def test_each_stage_starts_from_the_base_or_from_the_one_before():
  assert {name: config.start for name, config in r1.STAGES.items()} == {
    'Dev1': BASE,
    'Dev2': 'Dev1',
    'Dev3': BASE,  # not Dev2
    'R1': 'Dev3',
  }
  kinds = [type(config) for config in r1.STAGES.values()]
  assert kinds == [SFT, RL, SFT, RL]


@pytest.mark.parametrize(
  ('config', 'epochs'), [(r1.COLD_START, (2, 3)), (r1.REJECTION, (2,))]
)
def test_the_stages_of_examples(config, epochs):
  # [N]: batch 128, context 32,768, 5e-5 -> 5e-6
  assert config.sft.epochs in epochs
  assert (config.sft.rows_per_step, config.sft.row_length) == (128, 32_768)
  assert_cosine(config.sft.optim, 5e-5, 5e-6)


def tokens_of(ratio, advantage):
  """Tokens [1, 1, T] of these ratios."""
  logp = jnp.log(ratio)[None, None]
  outputs = jnp.full((1, 1), jnp.float32(advantage))
  mask = jnp.ones(logp.shape, bool)
  return grpo.tokens_of(logp, outputs, mask, old_logp=jnp.zeros_like(logp))._replace(
    ratio=ratio[None, None]
  )


def test_stage_2_is_r1_zero_with_another_clip_range_and_language():
  config = r1.REASONING
  assert dataclasses.replace(config.rl, grpo=ZERO.rl.grpo) == ZERO.rl
  assert config.data == ZERO.data
  ((_, rewards),) = config.rewards
  assert tuple(rewards) == (1, 1, 1, 0, 0)
  # epsilon 10 is 1 - 10 ... 1 + 10 [N]; whatever is below 0 bounds no ratio
  ratio = np.array([1e-30, 0.01, 5.0, 10.9, 11.1, 1e6], np.float32)
  for sign in (1, -1):
    expected = np.minimum(ratio * sign, np.clip(ratio, -9, 11) * sign)
    got = clipped(tokens_of(jnp.asarray(ratio), sign), config.rl.grpo)
    np.testing.assert_array_equal(got[0, 0], expected)
  assert (
    dataclasses.replace(config.rl.grpo, clip_low=0.2, clip_high=0.2) == ZERO.rl.grpo
  )


def test_the_miniature_clips_ratios_as_the_paper_does():
  # epsilon 10 in both stages of RL, and in the RL of students beside them
  both = {
    reasoning_rl.ReasoningRL: r1.REASONING,
    final_rl.FinalRL: r1.ALL_SCENARIOS,
    distill_experiment.Distill: r1.REASONING,
  }
  for experiment, config in both.items():
    ours = experiment().rl.grpo
    assert (ours.clip_low, ours.clip_high) == (1.0, 10.0)
    assert (config.rl.grpo.clip_low, config.rl.grpo.clip_high) == (1.0, 10.0)
    # A token of a wrong output keeps its gradient however rare it has become: A = -1
    slope = jax.grad(
      lambda x, ours=ours: clipped(tokens_of(jnp.exp(x)[None], -1), ours)[0, 0, 0]
    )(jnp.log(0.5))
    np.testing.assert_allclose(slope, -0.5, rtol=1e-6)  # the ratio times A


def test_stage_4_judges_preference_in_its_last_400_steps_alone():
  # [N]: 1,700 steps at temperature 0.7
  config = r1.ALL_SCENARIOS
  rollouts = range(config.rl.steps)
  assert {value_at(config.rl.temperature, n) for n in rollouts} == {0.7}
  preferred = [n for n in rollouts if value_at(config.rewards, n).helpfulness]
  assert len(preferred) * config.rl.minibatches == 400
  assert preferred[-1] == rollouts[-1]
  assert preferred == [n for n in rollouts if value_at(config.rewards, n).safety]
  assert preferred == [n for n in rollouts if value_at(config.data, n).general]
  # reasoning + general + language
  sums = {tuple(value_at(config.rewards, n)) for n in rollouts}
  assert sums == {(1, 1, 1, 0, 0), (1, 1, 1, 1, 1)}


def test_data_of_the_papers_tables():
  # [N], in thousands: math, code, STEM, logic, general
  assert data.RL == (26_000, 17_000, 22_000, 15_000, 66_000)
  assert data.REASONING == (26_000, 17_000, 22_000, 15_000, 0)
  assert data.SFT == (395_285, 211_129, 10_124, 10_395, 177_812)
  assert data.SFT.total == 804_745 == r1.REJECTION.examples
  assert data.SFT_MEAN_TOKENS == 5_355
  # 'about 600k' and 'about 200k'
  assert round(data.SFT.total - data.SFT.general, -5) == 600_000
  assert round(data.SFT.general, -5) == 200_000
  assert 1_000 < data.COLD_START_EXAMPLES < 10_000  # 'thousands'


def test_stage_3_is_as_many_updates_as_it_says():
  # 2 epochs of 804,745 * 5,355 tokens in steps of 128 * 32,768: 2,054.9
  config = r1.REJECTION.sft
  tokens = config.epochs * data.SFT.total * data.SFT_MEAN_TOKENS
  assert -(-tokens // (config.rows_per_step * config.row_length)) == 2_055


def test_the_reward_models():
  # [N]: 66k pairs, batch 256, 6e-6, one epoch; 106k single labels
  pairs, points = reward_models.HELPFULNESS, reward_models.SAFETY
  assert (pairs.examples, pairs.labels, pairs.judges) == (66_000, 'pairs', 'summary')
  assert (pairs.learning_rate, pairs.batch_size, pairs.epochs) == (6e-6, 256, 1)
  assert (reward_models.JUDGEMENTS, reward_models.LEAST_DIFFERENCE) == (4, 1)
  assert (points.examples, points.labels, points.judges) == (
    106_000,
    'points',
    'output',
  )


STUDENTS = {  # [N]: from which model, peak learning rate
  'Qwen-1.5B': ('Qwen2.5-Math-1.5B', 1e-4),
  'Qwen-7B': ('Qwen2.5-Math-7B', 8e-5),
  'Qwen-14B': ('Qwen2.5-14B', 7e-5),
  'Qwen-32B': ('Qwen2.5-32B', 6e-5),
  'Llama-8B': ('Llama-3.1-8B', 5e-5),
  'Llama-70B': ('Llama-3.3-70B-Instruct', 2e-5),
}


def test_the_six_students():
  assert list(distill.STUDENTS) == list(STUDENTS) == list(results.STUDENTS)
  for name, (start, peak) in STUDENTS.items():
    student = distill.STUDENTS[name]
    assert student.start == start
    assert_cosine(student.sft.optim, peak, peak / 10)
    assert student.sft.epochs in (2, 3)
    assert (student.sft.rows_per_step, student.sft.row_length) == (64, 32_768)
    assert round(student.examples, -5) == 800_000


def test_rl_on_32b_is_r1_zeros_with_a_lower_rate():
  # [N]: 2e-6
  assert distill.RL_32B.rl.optim == dataclasses.replace(
    ZERO.rl.optim, learning_rate=2e-6
  )
  again = dataclasses.replace(
    distill.RL_32B,
    start=BASE,
    rl=dataclasses.replace(distill.RL_32B.rl, steps=650, optim=ZERO.rl.optim),
  )
  assert again == ZERO


def assert_cosine(config, peak, end):
  assert (config.schedule, config.warmup_steps) == ('cosine', 0)
  assert config.learning_rate == peak
  # 1e-12: a product of two floats
  assert config.learning_rate * config.final_share == pytest.approx(end, rel=1e-12)


def test_the_evaluation_protocol():
  # [N]: temperature 0.6, top-p 0.95, 32,768 tokens, 4 to 64 samples
  draw = evaluation.EVALUATE.draw
  assert (draw.temperature, draw.top_p, draw.top_k) == (0.6, 0.95, 0)
  assert 4 <= evaluation.EVALUATE.samples <= 64
  assert evaluation.MAX_LENGTH == 32_768
  assert evaluation.OUTPUT_BEGINS == '<think>\n'
  assert evaluation.OVERLAP == 10


def test_the_model_has_671b_parameters_of_which_a_token_uses_37b():
  shapes = decoder.shapes(*presets.PRESETS['DeepSeek-V3-Base'])
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  experts = sum(
    math.prod(shapes['blocks'][f'expert_{name}'].shape)
    for name in ('gate', 'up', 'down')
  )
  table = math.prod(shapes['embedding'].shape)
  assert round(total / 1e9) == 671
  # A token goes to 8 of 256 experts and reads one row of the table of tokens in.
  assert round((total - experts * 248 / 256 - table) / 1e9) == 37


def test_the_model_in_the_papers_words():
  # [N]: 61 layers, the first 3 dense, width 7168, 128 heads of 64 + 128 channels and
  # values of 128, latents of 1536 and 512; 256 experts of 2048 and 1 shared, 8 active,
  # from 4 of 8 groups, scale 2.5, dense width 18432; a vocabulary of 129,280
  config, vocab_size = presets.PRESETS['DeepSeek-V3-Base']
  latent, experts = config.latent, config.experts
  assert (config.layers, experts.dense_layers, config.heads) == (61, 3, 128)
  assert (config.d_model, latent.q_rank, latent.kv_rank) == (7_168, 1_536, 512)
  assert (latent.rope_dim, latent.value_dim, config.head_dim) == (64, 128, 64 + 128)
  assert (config.d_ff, experts.d_ff) == (18_432, 2_048)
  assert (experts.count, experts.shared, experts.active) == (256, 1, 8)
  assert (experts.groups, experts.active_groups, experts.scale) == (8, 4, 2.5)
  assert (experts.scores, experts.normalised, vocab_size) == ('sigmoid', True, 129_280)


def test_the_stage_table_is_shaped_as_the_paper_tells_it():
  table = results.STAGES
  for reasoning in ('AIME 2024', 'MATH-500', 'GPQA Diamond'):
    row = table[reasoning]
    assert row.dev1 < row.r1_zero  # the cold start costs
    assert row.dev2 > row.dev1  # RL restores
  assert table['IF-Eval'].dev1 - table['IF-Eval'].r1_zero == pytest.approx(25.1)
  for preference in ('AlpacaEval 2', 'ArenaHard'):
    row = table[preference]
    assert row.r1 - row.dev3 == max(np.diff(row)[1:])  # after the cold start


def columns(rows):
  """The table by column."""
  names = next(iter(rows.values()))._fields
  return dict(zip(names, zip(*rows.values(), strict=True), strict=True))


def test_the_stage_table_by_column():
  # [N]: AIME 2024, MATH-500, Codeforces, LiveCodeBench, GPQA Diamond, IF-Eval,
  # AlpacaEval 2, ArenaHard
  assert columns(results.STAGES) == {
    'r1_zero': (77.9, 95.9, 1444, 50.0, 75.8, 46.6, 24.7, 53.6),
    'dev1': (59.0, 94.2, 1534, 57.5, 66.1, 71.7, 50.1, 77.0),
    'dev2': (74.0, 95.9, 1687, 63.5, 70.7, 72.0, 55.8, 73.2),
    'dev3': (78.1, 95.4, 1746, 64.6, 71.2, 78.1, 62.1, 75.6),
    'r1': (79.8, 97.3, 2029, 65.9, 71.5, 83.3, 87.6, 92.3),
  }


def test_r1_zeros_results_are_those_of_the_stage_table():
  for name in ('MATH-500', 'GPQA Diamond', 'LiveCodeBench', 'Codeforces'):
    assert results.R1_ZERO[name].nature == results.STAGES[name].r1_zero
  # pass@1 went from 15.6 to 77.9 [N] or 71.0 [v1]; consensus of 16 [N] or 64 [v1]
  assert results.R1_ZERO['AIME 2024 pass@1, before'] == (15.6, 15.6)
  assert results.R1_ZERO['AIME 2024 pass@1'] == (77.9, 71.0)
  assert results.R1_ZERO['AIME 2024 cons@16'] == (86.7, None)
  assert results.R1_ZERO['AIME 2024 cons@64'] == (None, 86.7)
  assert results.R1_ZERO['GPQA Diamond'].first == 73.3


def test_the_table_of_students_by_column():
  # [N]: Qwen 1.5B, 7B, 14B, 32B, Llama 8B, 70B
  assert columns(results.STUDENTS) == {
    'aime_2024': (28.9, 55.5, 69.7, 72.6, 50.4, 70.0),
    'aime_2024_cons_64': (52.7, 83.3, 80.0, 83.3, 80.0, 86.7),
    'math_500': (83.9, 92.8, 93.9, 94.3, 89.1, 94.5),
    'gpqa_diamond': (33.8, 49.1, 59.1, 62.1, 49.0, 65.2),
    'livecodebench': (16.9, 37.6, 53.1, 57.2, 39.6, 57.5),
    'codeforces': (954, 1189, 1481, 1691, 1205, 1633),
  }


def test_distilling_beats_rl_of_the_same_size():
  # [N]: AIME 2024, MATH-500, GPQA Diamond, LiveCodeBench
  alone = [x for x in results.RL_32B if x is not None]
  assert alone == [47.0, 91.6, 55.0, 40.2]
  pairs = zip(results.STUDENTS['Qwen-32B'], results.RL_32B, strict=True)
  assert all(x > y for x, y in pairs if x is not None and y is not None)


@pytest.mark.parametrize(
  'choice', [c for c in choices.CHOICES if c.setting], ids=lambda c: c.setting
)
def test_a_choice_is_the_setting_it_names(choice):
  modules = {'r1_zero': r1_zero, 'r1': r1, 'distill': distill}
  assert eval(choice.setting, modules) == choice.value
  field = choice.setting.rpartition('.')[2]
  if field in grpo.TABLES:
    assert choice.value in grpo.TABLES[field]


def test_every_choice_answers_its_question_once():
  questions = [choice.question for choice in choices.CHOICES]
  assert len(set(questions)) == len(questions)
  assert all(question.endswith('?') for question in questions)
  assert all(all(choice[:4]) for choice in choices.CHOICES)


def test_questions_of_the_1_6_epochs():
  # 10,400 steps of 32 questions are 1.6 epochs of 208,000 [N], more than the table of
  # RL data has: what the choice about it says
  (choice,) = (c for c in choices.CHOICES if '1.6 epochs' in c.question)
  assert f'{10_400 * 32 / 1.6:,.0f} questions' in choice.paper
  assert f'sums to {data.RL.total:,}' in choice.paper
  assert f'{data.REASONING.total:,} for reasoning' in choice.paper


@pytest.mark.parametrize('field', ['rewards', 'data'])
def test_a_schedule_that_cannot_be_followed_is_refused(field):
  ((_, value),) = getattr(ZERO, field)

  def starting(*starts):
    changes: dict[str, Any] = {field: tuple((start, value) for start in starts)}
    return dataclasses.replace(ZERO, **changes)

  for starts in ((), (1,), (0, 0), (0, 9, 5)):
    with pytest.raises(ValueError, match=f'{field}: expected pairs .* from 0 on'):
      starting(*starts)
  with pytest.raises(ValueError, match=f'{field}: .* before rl.steps = 650 .* at 650'):
    starting(0, 650)


def test_a_stage_that_has_nothing_to_learn_from_is_refused():
  with pytest.raises(ValueError, match='examples: expected 1 or more, got 0'):
    dataclasses.replace(r1.COLD_START, examples=0)
  with pytest.raises(ValueError, match=r'group_size: .* needs 2 or more, got 1'):
    dataclasses.replace(ZERO.rl, group_size=1)
