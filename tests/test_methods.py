"""Methods of papers as a whole: `--rl dapo`."""

import dataclasses

import pytest

from experiments import r1_zero
from r1jax.algorithms import ALGORITHMS, PRESETS
from r1jax.runtime import cli
from r1jax.stages.experiment import algorithm_presets
from r1jax.stages.methods import Methods, notes
from r1jax.stages.rl_config import RLConfig

RL = RLConfig(max_length=((0, 320), (9, 640)))
# DAPO (2503.14476) section 3: 4,096 of 20,480 tokens are the soft cache, a fifth.
DAPO = {'equal_groups': 'replace', 'overlong_tokens': 64}


@pytest.mark.parametrize(
  ('name', 'beside'),
  [
    ('dapo', DAPO),
    ('cispo', DAPO),  # trained with DAPO's sampling and penalty (2506.13585)
    ('top_entropy', DAPO),  # 2506.01939: DAPO on some of the tokens
    ('scale_rl', {'equal_groups': 'drop'}),  # 2510.13786: zero-variance filtering
    ('grpo', {}),
    ('sapo', {}),
  ],
)
def test_a_method_is_an_objective_and_what_the_paper_sets_beside_it(name, beside):
  expected = dataclasses.replace(RL, grpo=PRESETS[name], **beside)
  assert Methods(RL)[name] == expected


def test_dr_grpo_divides_by_the_longest_length():
  objective = dataclasses.replace(PRESETS['dr_grpo'], constant_length=640)
  assert Methods(RL)['dr_grpo'] == dataclasses.replace(RL, grpo=objective)


def test_every_algorithm_is_a_method():
  methods = Methods(RL)
  assert list(methods) == list(PRESETS)
  assert len(methods) == len(PRESETS)
  assert all(
    methods[name].grpo.advantage == PRESETS[name].advantage for name in PRESETS
  )


@pytest.mark.parametrize(
  'words',
  [
    ['--rl', 'dapo', '--rl.grpo', 'sapo', '--rl.steps', '7'],
    ['--rl.steps=7', '--rl.grpo=sapo', '--rl=dapo'],
  ],
)
def test_a_method_comes_before_an_objective_and_fields_in_any_order(words):
  default = r1_zero.R1Zero()
  found = cli.parse(default, words, algorithm_presets(default)).rl
  expected = dataclasses.replace(
    default.rl, steps=7, grpo=PRESETS['sapo'], equal_groups='replace',
    overlong_tokens=min(length for _, length in default.rl.max_length) // 5,
  )  # fmt: skip
  assert found == expected


def test_a_method_that_contradicts_a_setting_is_refused():
  default = dataclasses.replace(RL, group_size=1, grpo=PRESETS['reinforce_pp'])
  with pytest.raises(ValueError, match="advantage 'group_zscore' compares"):
    Methods(default)['dapo']


@pytest.mark.parametrize('name', PRESETS)
def test_a_method_has_the_notes_of_its_objective_alone(name):
  # Dr. GRPO's note asks for the constant that its method sets.
  note = '' if name == 'dr_grpo' else ALGORITHMS[name].note
  assert notes(Methods(RL)[name]) == ([f'The algorithm is {note}.'] if note else [])


def test_an_objective_alone_says_what_its_paper_has_besides():
  assert notes(dataclasses.replace(RL, grpo=PRESETS['dapo'])) == [
    'The paper of dapo also has rl.equal_groups replace and rl.overlong_tokens 64.'
  ]
  some = dataclasses.replace(RL, grpo=PRESETS['dapo'], equal_groups='replace')
  assert notes(some) == ['The paper of dapo also has rl.overlong_tokens 64.']
  (asks,) = notes(dataclasses.replace(RL, grpo=PRESETS['dr_grpo']))
  assert 'set rl.grpo.constant_length to the largest rl.max_length' in asks
  other = dataclasses.replace(PRESETS['dapo'], clip_high=0.3)
  assert notes(dataclasses.replace(RL, grpo=other)) == []
