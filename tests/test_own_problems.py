"""Your own problems, rewards and system line in GRPO on a checkpoint of the hub."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hub import checkpoint

from experiments import grpo
from experiments.grpo import GRPO
from r1jax import tasks
from r1jax.hub.chat_template import HubError
from r1jax.rewards import rules, weighted
from r1jax.rewards.pool import RewardPool
from r1jax.stages import artifact, from_hub
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem, programs, settings
from r1jax.tasks.data import DataConfig
from r1jax.text import templates

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ROWS = [{'question': f'{n}?', 'answer': n} for n in range(40)]
LONG = {'question': 'so ' * 200, 'answer': 1}


def brief(problem: Problem, output: str) -> float:
  """A reward of one's own."""
  return float(len(output) <= 9)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('hub') / 'model'
  checkpoint(path, 'llama', {}, chat=CHAT)
  return path


def config_of(folder, tmp_path, rows=(*ROWS, LONG), **settings):
  file = tmp_path / 'mine.jsonl'
  file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return GRPO(
    workdir=str(tmp_path / 'run'),
    data=DataConfig(str(file)),
    model=HubConfig(str(folder), template='chat_boxed', **settings),
    rl=RLConfig(max_prompt_length=128, max_length=((0, 64),)),
  )


def test_a_conversation_is_a_prompt_with_all_its_messages(folder, tmp_path):
  def row(n):
    said = ('user', 'Hi.'), ('assistant', 'Yes?'), ('user', f'{n}?')
    messages = [{'role': role, 'content': content} for role, content in said]
    return {'question': messages, 'answer': n}

  config = config_of(folder, tmp_path, list(map(row, range(40))))
  origin = from_hub.origin(config)
  problem = next(p for p in origin.problems.train[0] if p.truth['answer'] == '7')
  expected = f'user: Hi.\nassistant: Yes?\nuser: 7?\n\n{templates.BOXED}\n'
  assert origin.policy.prompt(problem.question) == expected
  plain = HubConfig(str(folder), template='plain')
  with pytest.raises(ValueError, match=r'expected one of chat, .* several messages'):
    from_hub.origin(dataclasses.replace(config, model=plain))


def test_a_data_file_is_the_problems_of_a_run(folder, tmp_path):
  config = config_of(folder, tmp_path)
  assert config.task_names() == ['data']
  origin = from_hub.origin(config)
  problems = origin.problems
  (train,), (validation,) = problems.train, problems.validation
  assert {p.question for p in (*train, *validation)} == {r['question'] for r in ROWS}
  assert problems.reasoning('validation') == validation  # for evaluations
  assert {p.form for p in (*train, *validation)} == {'boxed'}
  said = '\n'.join(problems.remarks)
  assert 'have prompts of more than rl.max_prompt_length = 128 tokens' in said
  assert f'{len(train)} problems for training, {len(validation)} for valid' in said
  file = config.data.path
  # A changed file is refused when the run resumes, as changed checkpoints are.
  with open(file, 'rb') as content:
    assert origin.digests[file] == hashlib.sha256(content.read()).hexdigest()


def test_a_data_set_of_a_library_is_the_problems_of_a_run(folder, tmp_path):
  config = GRPO(
    workdir=str(tmp_path / 'run'),
    data_dir=str(tmp_path / 'data'),
    task='reasoning_gym:chain_sum',
    task_settings='{"size": 60}',
    model=HubConfig(str(folder), template='plain', dtype='float32'),
    rl=RLConfig(max_prompt_length=96, max_length=((0, 64),)),
  )
  assert config.task_names() == ['reasoning_gym:chain_sum']
  problems = from_hub.origin(config).problems
  policy = from_hub.look_up(config.model).policy
  generate = tasks.module(config.task).generate
  every = settings.read(config.task, config.task_settings)
  for split, found in (
    ('train', problems.train),
    ('validation', problems.validation),
    ('test', problems.test),
  ):
    fit = {
      p.question
      for p in generate(every, split)
      if len(policy.tokenizer.prompt_ids('plain', p.question)) <= 96
    }
    assert {p.question for p in found[0]} == fit
    assert 0 < len(fit) < len(list(generate(every, split)))
  assert problems.remarks[-1].startswith(f'{len(problems.train[0])} problems for train')
  assert sum('rl.max_prompt_length = 96 tokens' in x for x in problems.remarks) == 3


def test_a_file_of_long_prompts_alone_is_refused(folder, tmp_path):
  rows = [{**LONG, 'question': f'{n}{LONG["question"]}'} for n in range(40)]
  message = r'rl.max_prompt_length: expected at least \d+, .*for training, got 128'
  with pytest.raises(ValueError, match=message):
    from_hub.origin(config_of(folder, tmp_path, rows))


def test_a_system_line_begins_the_prompts_and_is_kept(folder, tmp_path):
  config = config_of(folder, tmp_path, system='Be brief.')
  found = from_hub.look_up(config.model)
  expected = f'system: Be brief.\nuser: 1+1?\n\n{templates.BOXED}\n'
  assert found.policy.prompt('1+1?') == expected
  found.keep(tmp_path)
  assert artifact.read_source(tmp_path).system == 'Be brief.'


def test_a_system_line_that_no_prompt_would_contain_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r"system: expected none .* 'plain', which is no"
  ):
    HubConfig('m', template='plain', system='Be brief.')
  last_message = "{{ messages[-1]['content'] }}"
  checkpoint(tmp_path / 'm', 'llama', {}, chat=last_message)
  config = HubConfig(str(tmp_path / 'm'), system='Be brief.')
  with pytest.raises(
    HubError, match=r'model.system: the chat template of .* writes no'
  ):
    from_hub.look_up(config)


def test_a_boxed_answer_is_right_and_in_form_without_tags():
  problem = Problem(
    '1', 'data', '1+1?', {'answer': '2', 'verify': 'math'}, form='boxed'
  )
  assert rules.accuracy(problem, 'It is \\boxed{2}') == 1
  assert rules.format_reward(problem, 'It is \\boxed{3}') == 1
  assert rules.accuracy(problem, 'It is \\boxed{3}') == 0
  assert rules.format_reward(problem, '<think></think><answer>2</answer>') == 0


def test_rewards_of_your_own_are_added_by_flag():
  config = GRPO(rewards=(f'{__name__}:brief=0.5',))
  *ours, yours = config.all_rewards()
  assert [reward.name for reward in ours] == ['accuracy', 'format']
  assert (yours.name, yours.function, yours.weight) == ('brief', brief, 0.5)


def test_workers_apply_your_reward_and_verifier():
  truth = {'answer': '\\frac{1}{2}', 'verify': 'math'}
  problem = Problem('1', 'data', '1/2?', truth, form='boxed')
  rewards = GRPO(rewards=('test_pool:length=0.25',)).all_rewards()
  with RewardPool(rewards, workers=1, imports=('math_verify',)) as pool:
    texts = ['\\boxed{0.5}', '\\boxed{\\frac 24}', '0.5!']
    scores = pool.submit([problem] * 3, texts).result()
  assert scores.values.tolist() == [[1, 1, 11], [1, 1, 16], [0, 0, 4]]
  assert scores.total.tolist() == [2 + 11 / 4, 2 + 16 / 4, 4 / 4]


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('m:f', 'rewards: expected package.module:function=weight'),
    ('m=1', 'rewards: expected package.module:function, got'),
    ('no.such:f=1', 'rewards: the module no.such .* cannot be imported'),
    (f'{__name__}:no=1', "rewards: the module test_own_problems has no function 'no'"),
    (f'{__name__}:brief=much', "a finite number as the weight .*:brief, got 'much'"),
    (f'{__name__}:brief=inf', "a finite number as the weight .*:brief, got 'inf'"),
  ],
)
def test_a_wrong_reward_is_named(words, message):
  with pytest.raises(ValueError, match=message):
    weighted(words)


def test_two_rewards_of_one_name_are_refused():
  with pytest.raises(ValueError, match='expected different names, got brief twice'):
    GRPO(rewards=(f'{__name__}:brief=1', f'{__name__}:brief=2'))


def test_a_task_and_a_file_exclude_each_other(tmp_path):
  with pytest.raises(ValueError, match=r"task: expected none with --data, got 'gsm8k'"):
    GRPO(task='gsm8k', data=DataConfig('mine.jsonl'))
  with pytest.raises(ValueError, match='task: expected --data FILE'):
    GRPO(task='data')


def test_workers_import_the_verifier_of_a_file_alone(monkeypatch):
  asked: list[Any] = []

  def pool(config, rewards, imports, timeout):
    asked.append((imports, timeout))
    raise InterruptedError

  monkeypatch.setattr(grpo, 'reward_pool', pool)
  stage: Any = SimpleNamespace(problem_stream=lambda shares: None)
  for data in (
    DataConfig('mine.jsonl'),
    DataConfig(),
    DataConfig('mine.jsonl', verify='python'),
  ):
    with pytest.raises(InterruptedError):
      grpo.run(stage, GRPO(data=data))
  assert asked == [(('math_verify',), 0), ((), 0), ((), programs.TIMEOUT)]
