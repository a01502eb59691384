"""The command line: values, presets, and one plain line for each mistake."""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

import pytest

from experiments import grpo, r1, r1_zero
from r1jax.algorithms import PRESETS as ALGORITHMS
from r1jax.runtime.cli import parse
from r1jax.stages.experiment import algorithm_presets


@dataclasses.dataclass(frozen=True)
class Loss:
  """How outputs become a gradient."""

  clip_high: float = 0.2  # epsilon above 1
  kind: Literal['token', 'sequence'] = 'token'  # what a ratio is taken over
  limit: int | None = None  # longest output
  schedule: tuple[int, ...] = (1, 2)  # lengths by turn
  scaled: bool = True  # advantages divided by their deviation

  def __post_init__(self) -> None:
    if self.clip_high < 0:
      raise ValueError(f'loss.clip_high: expected 0 or more, got {self.clip_high}')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A small run."""

  workdir: str = 'runs/small'  # where its files go
  seed: int = 0  # of everything random
  batch_size: int = 8  # rows of an update
  loss: Loss = Loss()

  def __post_init__(self) -> None:
    if self.batch_size % 4 and self.loss.kind == 'sequence':
      raise ValueError(
        f'batch_size: expected a multiple of 4 for sequences, got {self.batch_size}'
      )


PRESETS = {
  'loss': {
    'plain': Loss(),
    'wide': Loss(clip_high=0.28, scaled=False),
    'gspo': Loss(kind='sequence'),
  }
}


def read(*words: str, default: Experiment = Experiment()) -> Experiment:
  return parse(default, words, PRESETS)


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
  """What the user sees: one line on stderr, nothing on stdout, exit status 2."""
  with pytest.raises(SystemExit) as end:
    read(*words)
  assert end.value.code == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.endswith('\n')
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  return err.removeprefix('error: ').removesuffix('\n')


def test_no_words_give_the_default_instance_and_not_the_class_defaults():
  default = Experiment(seed=4, loss=Loss(clip_high=0.7))
  assert read(default=default) == default


def test_words_come_from_the_program_when_none_are_given(monkeypatch):
  monkeypatch.setattr('sys.argv', ['program', '--seed', '9'])
  assert parse(Experiment()) == Experiment(seed=9)


@pytest.mark.parametrize(
  ('words', 'loss'),
  [
    (['--loss.clip-high', '0.3'], Loss(clip_high=0.3)),
    (['--loss.clip_high=.3'], Loss(clip_high=0.3)),
    (['--loss.clip-high', '1', '--loss.clip-high', '0'], Loss(clip_high=0.0)),
    (['--loss.kind', 'sequence'], Loss(kind='sequence')),
    (['--loss.limit', '7'], Loss(limit=7)),
    (['--loss.limit', 'None'], Loss(limit=None)),
    (['--loss.schedule', '3', '5', '8'], Loss(schedule=(3, 5, 8))),
    (['--loss.scaled', 'False'], Loss(scaled=False)),
  ],
)
def test_any_field_of_a_group_takes_a_value(words, loss):
  assert read(*words) == Experiment(loss=loss)


def test_a_preset_replaces_the_whole_group_and_fields_change_the_preset():
  default = Experiment(loss=Loss(limit=5))
  wide = Experiment(loss=Loss(clip_high=0.28, scaled=False))
  assert read('--loss', 'wide', default=default) == wide
  assert read('--loss=wide', default=default) == wide
  changed = Experiment(loss=Loss(clip_high=0.5, scaled=False))
  assert read('--loss', 'wide', '--loss.clip-high', '0.5') == changed
  assert read('--loss.clip-high', '0.5', '--loss', 'wide') == changed
  assert read('--loss', 'gspo', '--loss', 'wide') == wide
  assert default.loss.limit == 5


def test_checks_see_only_the_final_values(capsys):
  odd = Experiment(batch_size=6)
  # 6 rows and gspo don't go together, in whichever order they meet ...
  expected = 'batch_size: expected a multiple of 4 for sequences, got 6'
  assert error(capsys, '--loss', 'gspo', '--batch-size', '6') == expected
  with pytest.raises(SystemExit):
    read('--loss', 'gspo', default=odd)
  # ... unless one of the two is changed as well.
  assert read('--loss', 'gspo', '--batch-size', '12', default=odd).batch_size == 12


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    (
      ['--sead', '3'],
      '--sead is not a field (did you mean --seed?); --help lists them all',
    ),
    (
      ['--loss.clip-hihg=3'],
      '--loss.clip-hihg is not a field (did you mean --loss.clip-high?); '
      '--help lists them all',
    ),
    (
      ['--clip_high', '3'],
      '--clip_high is not a field (did you mean --loss.clip-high?); '
      '--help lists them all',
    ),
    (
      ['--los', 'wide'],
      '--los is not a field (did you mean --loss?); --help lists them all',
    ),
    (['--qqq', '3'], '--qqq is not a field; --help lists them all'),
    (
      ['--loss', 'wyde'],
      '--loss knows no preset wyde (did you mean wide?); '
      'expected one of plain, wide, gspo',
    ),
    (['--loss'], '--loss expects a preset: one of plain, wide, gspo'),
    (
      ['--loss', '--seed', '3'],
      '--loss expects a preset: one of plain, wide, gspo',
    ),
    (
      ['--loss.clip-high', '-0.5'],
      'loss.clip_high: expected 0 or more, got -0.5',
    ),
  ],
)
def test_a_mistake_gets_one_sentence_with_what_to_change(capsys, words, sentence):
  assert error(capsys, *words) == sentence


def test_a_group_without_presets_suggests_its_fields(capsys):
  with pytest.raises(SystemExit):
    parse(Experiment(), ['--loss', 'wide'])
  assert '--loss.clip-high or --loss.kind or --loss.limit' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('words', 'parts'),
  [
    (['--seed', 'three'], ['--seed', "'three'"]),
    (['--seed', '1.5'], ['--seed', "'1.5'"]),
    (['--seed'], ['--seed']),
    (['--loss.kind', 'word'], ['--loss.kind', "'word'", "'token'", "'sequence'"]),
    (['--loss.scaled', 'maybe'], ['--loss.scaled', "'maybe'"]),
    (['stray'], ['stray']),
  ],
)
@pytest.mark.parametrize('columns', ['30', '200'])
def test_a_wrong_value_is_named_in_one_line(capsys, monkeypatch, words, parts, columns):
  monkeypatch.setenv('COLUMNS', columns)  # narrow terminals wrap what tyro prints
  sentence = error(capsys, *words)
  assert all(part in sentence for part in parts)
  assert not set(sentence) & set('│─╭╰')
  assert 'help' not in sentence  # tyro's box ends with the field's help, ours doesn't


def test_help_shows_fields_with_meaning_and_default_and_the_presets(capsys):
  with pytest.raises(SystemExit) as end:
    read('--loss', 'wide', '--help')
  assert end.value.code == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert 'A small run.' in text
  assert '--loss PRESET sets fields of the group: plain, wide, gspo' in text
  assert 'rows of an update (default: 8)' in text
  assert 'epsilon above 1 (default: 0.28)' in text  # the preset's, not the class's


def small(x: int) -> int:
  return x


@dataclasses.dataclass(frozen=True)
class Chosen:
  """An experiment one of whose fields is a name or a function."""

  choice: str | Callable[..., int] = 'plain'  # of what is done
  seed: int = 0


def test_a_choice_is_a_name_on_the_command_line(capsys):
  assert parse(Chosen(), ['--choice', 'wide']).choice == 'wide'
  assert parse(Chosen(small), ['--seed', '2']) == Chosen(small, 2)
  assert parse(Chosen(small), ['--choice=wide']) == Chosen('wide')
  with pytest.raises(SystemExit):
    parse(Chosen(small), ['--help'])
  text = ' '.join(capsys.readouterr().out.split())
  assert re.search(r'--choice NAME of what is done \(default: small\)', text)


# --- Presets of a group within a group ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of training."""

  steps: int = 10  # updates
  loss: Loss = Loss()

  def __post_init__(self) -> None:
    if self.steps % 4 and self.loss.kind == 'sequence':
      raise ValueError(f'steps: expected a multiple of 4, got {self.steps}')


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Two stages."""

  seed: int = 0  # of everything random
  first: Stage = Stage(loss=Loss(limit=5))
  second: Stage = Stage()


NESTED = {f'{name}.loss': PRESETS['loss'] for name in ('first', 'second')}


@pytest.mark.parametrize(
  'words',
  [
    ['--first.loss', 'wide', '--first.loss.clip-high', '0.3', '--first.steps', '7'],
    ['--first.steps=7', '--first.loss.clip-high=0.3', '--first.loss=wide'],
  ],
)
def test_a_preset_of_a_nested_group_may_stand_before_or_after_its_fields(words):
  default = Pipeline()
  expected = Stage(steps=7, loss=Loss(clip_high=0.3, scaled=False))
  assert parse(default, words, NESTED) == Pipeline(first=expected)
  assert default == Pipeline()  # groups on the way are copied
  assert default.first.loss.limit == 5


def test_nested_presets_are_checked_with_the_final_values(capsys):
  words = ['--second.loss', 'gspo', '--second.steps', '12']
  found = parse(Pipeline(), words, NESTED)
  assert found.second == Stage(steps=12, loss=PRESETS['loss']['gspo'])
  with pytest.raises(SystemExit):
    parse(Pipeline(), words[:2], NESTED)
  expected = 'error: second.steps: expected a multiple of 4, got 10\n'
  assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
  'words',
  [
    ['--rl.grpo', 'dapo', '--rl.grpo.clip-high', '0.3'],
    ['--rl.grpo.clip-high', '0.3', '--rl.grpo', 'dapo'],
  ],
)
@pytest.mark.parametrize('config', [r1_zero.R1Zero(), grpo.GRPO()])
def test_an_algorithm_is_chosen_by_name_and_changed(config, words):
  found = parse(config, words, {'rl.grpo': ALGORITHMS})
  expected = dataclasses.replace(ALGORITHMS['dapo'], clip_high=0.3)
  assert found.rl == dataclasses.replace(config.rl, grpo=expected)
  assert dataclasses.replace(found, rl=config.rl) == config


# --- Flags of version 0.1 -------------------------------------------------------------


@pytest.mark.parametrize(
  ('words', 'now'),
  [
    (['--rl-optim.learning-rate', '1e-5'], '--rl.optim.learning-rate'),
    (['--rl_optim.learning_rate=1'], '--rl.optim.learning-rate'),
    (['--base-optim.eps', '1e-6'], '--base.optim.eps'),
    (['--grpo.kl-coef', '0'], '--rl.grpo.kl-coef'),
    (['--grpo', 'dapo'], '--rl.grpo'),
    (['--grpo=dapo'], '--rl.grpo'),
    (['--evaluate.problems', '8'], '--evals.problems'),
    (['--evaluate.draw.top-p', '1'], '--evals.draw.top-p'),
    (['--scoreboard.samples', '4'], '--suite.samples'),
  ],
)
def test_a_flag_of_an_older_version_gets_its_new_name(capsys, words, now):
  with pytest.raises(SystemExit) as end:
    parse(r1_zero.R1Zero(), words, {'rl.grpo': ALGORITHMS})
  assert end.value.code == 2
  before = words[0].partition('=')[0].replace('_', '-')
  assert capsys.readouterr().err == f'error: {before} is called {now} now\n'


@pytest.mark.parametrize(
  ('before', 'now'),
  [
    ('--r1-zero.rl-optim.eps', '--r1-zero.rl.optim.eps'),
    ('--r1-zero.grpo.kl-coef', '--r1-zero.rl.grpo.kl-coef'),
    ('--reasoning-rl.grpo.clip-high', '--reasoning-rl.rl.grpo.clip-high'),
    ('--final-rl.grpo.kl-coef', '--final-rl.rl.grpo.kl-coef'),
    ('--final-rl.preference-optim.eps', '--final-rl.preference.optim.eps'),
    ('--cold-start.sft-optim.eps', '--cold-start.sft.optim.eps'),
    ('--distill-tiny.base-optim.eps', '--distill-tiny.base.optim.eps'),
    ('--distill-tiny.evaluate.problems', '--distill-tiny.evals.problems'),
    ('--cold-start.scoreboard.samples', '--cold-start.suite.samples'),
  ],
)
def test_a_flag_of_a_stage_of_the_pipeline_gets_its_new_name(capsys, before, now):
  with pytest.raises(SystemExit) as end:
    parse(r1.R1(), [before, '1'])
  assert end.value.code == 2
  assert capsys.readouterr().err == f'error: {before} is called {now} now\n'


@pytest.mark.parametrize(
  'words',
  [
    ['--rl.grpo.kl-coef', '0'],
    ['--rl.optim.eps', '1e-7'],
    ['--evals.problems', '8'],
    ['--suite.samples', '4'],
  ],
)
def test_the_new_names_are_taken(words):
  assert parse(r1_zero.R1Zero(), words) != r1_zero.R1Zero()


def test_the_algorithm_of_each_stage_of_the_pipeline_is_chosen_by_name():
  default = r1.R1()
  words = ['--r1-zero.rl.grpo', 'dapo', '--final-rl.rl.grpo.kl-coef', '0']
  found = parse(default, words, algorithm_presets(default))
  assert found.r1_zero.rl.grpo == ALGORITHMS['dapo']
  assert found.reasoning_rl == default.reasoning_rl
  assert found.final_rl.rl.grpo.kl_coef == 0


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    # A check names its field, the field after its group, a group's field, or several.
    (['--r1-zero.base.steps', '0'], 'r1_zero.base.steps: expected 1 or more, got 0'),
    (['--r1-zero.rl.steps', '0'], 'r1_zero.rl.steps: expected 1 or more, got 0'),
    (
      ['--final-rl.rl.grpo.clip-low', '2'],
      'final_rl.rl.grpo.clip_low: expected 0 to 1, got 2.0',
    ),
    (
      ['--r1-zero.base.row-length', '9'],
      'r1_zero.base.row_length: expected at least 352',
    ),
    (
      ['--distill-tiny.rejection.draw.temperature', '0.5'],
      'distill_tiny: rejection.draw and rl.temperature: expected the same',
    ),
  ],
)
def test_a_mistake_in_a_stage_of_the_pipeline_names_the_stage(capsys, words, sentence):
  with pytest.raises(SystemExit):
    parse(r1.R1(), words)
  assert capsys.readouterr().err.startswith(f'error: {sentence}')


@pytest.mark.parametrize('words', [('--data', 'a.jsonl'), ('--data=a.jsonl',)])
def test_a_group_with_a_path_takes_it_by_its_own_name(words):
  config = parse(grpo.GRPO(), [*words, '--data.question', 'q', '--model', 'folder'])
  assert (config.data.path, config.data.question) == ('a.jsonl', 'q')
  assert config.model.path == 'folder'


def test_a_path_that_is_left_out_is_missed(capsys):
  with pytest.raises(SystemExit):
    parse(grpo.GRPO(), ['--data'])
  assert "Missing value for argument '--data.path'" in capsys.readouterr().err
