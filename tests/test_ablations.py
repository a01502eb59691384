"""Ablations with stages that write their results instead of training for them."""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from examples import evaluation

from experiments import final_rl, reasoning_rl
from experiments.ablations import (
  ablation,
  algorithms,
  brevity,
  kl,
  language,
  more_sft,
  preference_hacking,
  sweep,
)
from r1jax import __version__, tasks
from r1jax.algorithms import PRESETS
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.runtime import workdir
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import artifact, problem_sets
from r1jax.stages.artifact import ArtifactError
from r1jax.stages.problem_sets import Problems
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import instructions
from r1jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(['User: solve 3x+4=19 Assistant:'], 270)


def write_stage(folder, stage, config, parents=()):
  """A finished stage as `artifact.finish` leaves it, but for its parameters."""
  folder.mkdir(parents=True)
  TOKENIZER.save(folder / 'tokenizer.json')
  record = {
    'stage': stage,
    'version': __version__,
    'config': config,
    'data': tasks.versions(problem_sets.TASKS),
    'model': dataclasses.asdict(ModelConfig()),
    'rows': 0,
    'lora': dataclasses.asdict(LoraConfig()),
    'template': 'plain',
    'files': {'tokenizer.json': TOKENIZER.digest},
    'params': {},
    'parents': [
      {'stage': parent.name, 'path': str(parent.path), 'digest': parent.digest}
      for parent in parents
    ],
  }
  (folder / 'stage.json').write_text(json.dumps(record))
  return artifact.load(folder)


class Launch:
  """A stage that writes down what `outcome` says of a config; counts its calls."""

  def __init__(self, outcome, dies_after=None):
    self.outcome, self.dies_after, self.called = outcome, dies_after, []

  def __call__(self, config):
    if len(self.called) == self.dies_after:
      raise KeyboardInterrupt
    folder = Path(config.workdir)
    self.called.append(folder.name)
    parent = artifact.load(config.parent)
    write_stage(folder, 'reasoning_rl', workdir.plain_config(config), [parent])
    row = self.outcome(config)
    (folder / 'evaluation-final.json').write_text(json.dumps(row))
    lines = [
      {'phase': 'eval', 'step': step, 'pass_at_1': {'mean': step / 10}}
      for step in (0, 2, 4 + config.seed)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'metrics.jsonl').write_text(text)


def better_without(config):
  return evaluation([4] * 12 if not config.language_weight else [2] * 12)


@pytest.fixture
def cold_start(tmp_path):
  write_stage(tmp_path / 'cold', 'cold_start', {})
  return tmp_path / 'cold'


@pytest.fixture
def command(tmp_path, cold_start):
  return ablation.Command(
    parent=str(cold_start), workdir=str(tmp_path / 'out'), seeds=2, data_dir='data'
  )


def with_launch(which, launch):
  return dataclasses.replace(which, launch=launch)


def test_every_run_has_a_folder_a_seed_and_the_same_parent(command):
  base = dataclasses.replace(command.base, seed=5)
  runs = ablation.plan(language.ABLATION, dataclasses.replace(command, base=base))
  for variant, weight in (('with', 1.0), ('without', 0.0)):
    for seed, run in zip((5, 6), runs[variant], strict=True):
      assert run == dataclasses.replace(
        base,
        parent=command.parent,
        workdir=f'{command.workdir}/{variant}-seed{seed}',
        seed=seed,
        data_dir='data',
        language_weight=weight,
      )


def test_finished_runs_are_not_run_again(command):
  launch = Launch(better_without, dies_after=3)
  which = with_launch(language.ABLATION, launch)
  with pytest.raises(KeyboardInterrupt):
    ablation.run(which, command)
  # All variants of a seed before the next seed.
  assert launch.called == ['with-seed0', 'without-seed0', 'with-seed1']
  launch.dies_after = None
  first = ablation.run(which, command)
  assert launch.called[3:] == ['without-seed1']
  again = ablation.run(which, command)
  assert len(launch.called) == 4
  assert again == first
  assert (Path(command.workdir) / 'ablation.html').read_text() == first.html
  # More seeds go on from those that are there.
  ablation.run(which, dataclasses.replace(command, seeds=3))
  assert launch.called[4:] == ['with-seed2', 'without-seed2']


def test_a_finished_run_with_other_settings_is_refused_before_anything_runs(command):
  launch = Launch(better_without)
  which = with_launch(language.ABLATION, launch)
  ablation.run(which, command)
  rl = dataclasses.replace(command.base.rl, steps=7)
  base = dataclasses.replace(command.base, rl=rl)
  other = dataclasses.replace(command, base=base, seeds=3)
  with pytest.raises(
    ValueError, match=r'with-seed0 holds .* another rl\.steps; choose'
  ):
    ablation.run(which, other)
  assert len(launch.called) == 4
  # What belongs to the machine may change.
  rl = dataclasses.replace(command.base.rl, reward_workers=1)
  base = dataclasses.replace(command.base, rl=rl)
  ablation.run(which, dataclasses.replace(command, base=base))
  assert len(launch.called) == 4


def test_runs_of_another_parent_are_refused(command, tmp_path):
  launch = Launch(better_without)
  which = with_launch(language.ABLATION, launch)
  ablation.run(which, command)
  write_stage(tmp_path / 'other', 'cold_start', {'seed': 1})
  other = dataclasses.replace(command, parent=str(tmp_path / 'other'))
  with pytest.raises(ValueError, match='a finished run with another parent'):
    ablation.run(which, other)


def test_finished_runs_with_other_problems_are_refused(command):
  which = with_launch(language.ABLATION, Launch(better_without))
  ablation.run(which, command)
  file = Path(command.workdir) / 'with-seed1' / 'stage.json'
  record = json.loads(file.read_text())
  record['data']['countdown'] = '1.1.0'
  file.write_text(json.dumps(record))
  with pytest.raises(ValueError, match='with another version of the problems; choose'):
    ablation.run(which, command)


def test_a_parent_of_another_stage_is_refused_before_anything_runs(command, tmp_path):
  launch = Launch(better_without)
  which = with_launch(language.ABLATION, launch)
  write_stage(tmp_path / 'zero', 'r1_zero', {})
  for folder, expected in (
    ('zero', 'expected the work directory of cold_start, got'),
    ('nothing', 'has no stage.json'),
  ):
    other = dataclasses.replace(command, parent=str(tmp_path / folder))
    with pytest.raises(ArtifactError, match=expected):
      ablation.run(which, other)
  assert not launch.called
  assert not Path(command.workdir).exists()


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'seeds': 0}, 'seeds: expected 1 or more, got 0'),
    ({'workdir': ''}, 'workdir and data_dir: expected the path'),
    (
      {'base': reasoning_rl.ReasoningRL(parent='there')},
      "base.parent: expected the default, .* got 'there'; set parent instead",
    ),
  ],
)
def test_settings_that_cannot_work_are_refused(fields, expected):
  with pytest.raises(ValueError, match=expected):
    ablation.Command(**fields)


# --- What the variants change ---------------------------------------------------------

PPO_CLIP: dict[str, object] = {'rl.grpo.clip_low': 0.2, 'rl.grpo.clip_high': 0.2}
CHANGES: dict[str, dict[str, dict[str, object]]] = {
  'language': {'with': {}, 'without': {'language_weight': 0.0}},
  'clip': {'clip10': {}, 'clip0.2': PPO_CLIP},
  'kl': {
    'kl0.001': {},
    'kl0': {'rl.grpo.kl_coef': 0.0},
    'kl0.04': {'rl.grpo.kl_coef': 0.04},
  },
  'reference': {
    'replaced': {'rl.reference_every': 10, 'rl.grpo.kl_coef': 0.04},
    'fixed': {'rl.grpo.kl_coef': 0.04},
  },
  'group_size': {
    'standard': {},
    'quarter': {'rl.group_size': 4, 'rl.prompts_per_step': 64},
    'fourfold': {'rl.group_size': 64, 'rl.prompts_per_step': 4},
  },
  'algorithms': {
    # R1's own settings here differ from the published algorithm's in three fields.
    'grpo': {'rl.grpo.mean': 'outputs', **PPO_CLIP},
    'dr_grpo': {
      'rl.grpo.advantage': 'group_centred',
      'rl.grpo.kl': 'none',
      'rl.grpo.mean': 'constant',
      'rl.grpo.constant_length': 320,  # the most tokens of an output
      'rl.grpo.kl_coef': 0.0,
      **PPO_CLIP,
    },
    'dapo': {
      'rl.grpo.kl': 'none',
      'rl.grpo.kl_coef': 0.0,
      'rl.grpo.clip_low': 0.2,
      'rl.grpo.clip_high': 0.28,
    },
    'gspo': {
      'rl.grpo.ratio': 'geometric',
      'rl.grpo.kl': 'none',
      'rl.grpo.kl_coef': 0.0,
      'rl.grpo.mean': 'outputs',
      'rl.grpo.clip_low': 3e-4,
      'rl.grpo.clip_high': 4e-4,
    },
    'cispo': {
      'rl.grpo.surrogate': 'clipped_weight',
      'rl.grpo.kl': 'none',
      'rl.grpo.kl_coef': 0.0,
      'rl.grpo.clip_high': 0.28,
    },
  },
  'brevity': {
    'without': {'experiment': 'Brief', 'brevity_weight': 0.0},
    'with': {'experiment': 'Brief', 'brevity_weight': 1.0},
  },
  'preference_hacking': {
    'late': {'rl.logged_samples': 16},
    'early': {'rl.logged_samples': 16, 'general_after': 0},
  },
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_variant_changes_what_it_is_about_and_nothing_else(name):
  module = importlib.import_module(f'experiments.ablations.{name}')
  fixed = name != 'algorithms'
  which = module.ABLATION if fixed else algorithms.ablation_of(algorithms.Algorithms())
  hacking = name == 'preference_hacking'
  base = final_rl.FinalRL() if hacking else reasoning_rl.ReasoningRL()
  before = workdir.leaves(workdir.plain_config(base))
  assert list(which.variants) == list(CHANGES[name])
  for variant, change in which.variants.items():
    after = workdir.leaves(workdir.plain_config(change(base)))
    changed = {x: y for x, y in after.items() if before.get(x, '') != y}
    assert changed == CHANGES[name][variant]


def test_any_algorithms_can_be_compared():
  names = ('grpo', 'sapo', 'max_rl', 'scale_rl')
  found = algorithms.ablation_of(algorithms.Algorithms(algorithms=names))
  assert list(found.variants) == list(names)
  base = reasoning_rl.ReasoningRL()
  assert found.variants['sapo'](base).rl.grpo == PRESETS['sapo']


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (
      ('grpo', 'sap'),
      "algorithms: expected one of grpo, .* 'sap'; did you mean 'sapo'",
    ),
    (('grpo',), 'algorithms: expected two or more different names, got grpo'),
    (('grpo', 'grpo', 'dapo'), 'two or more different names, got grpo grpo dapo'),
  ],
)
def test_algorithms_that_cannot_be_compared_are_refused(names, expected):
  with pytest.raises(ValueError, match=expected):
    algorithms.Algorithms(algorithms=names)


def test_a_sweep_takes_values_of_any_flag():
  base = reasoning_rl.ReasoningRL()
  command = sweep.Sweep(field='rl.temperature', values=('0 1.0', '0 1.0 10 0.6'))
  variants = sweep.ablation_of(command).variants
  assert list(variants) == ['temperature-0_1.0', 'temperature-0_1.0_10_0.6']
  found = [change(base).rl.temperature for change in variants.values()]
  assert found == [((0, 1.0),), ((0, 1.0), (10, 0.6))]
  command = sweep.Sweep(field='rl.grpo', values=('grpo', 'sapo'))
  variants = sweep.ablation_of(command).variants
  assert variants['grpo-sapo'](base) == ablation.with_rl(base, grpo=PRESETS['sapo'])


@pytest.mark.parametrize(
  ('field', 'values', 'expected'),
  [
    ('rl.step', ('1', '2'), '--rl.step.*did you mean'),
    ('rl.steps', ('5', 'x'), 'rl.steps'),
    ('rl.steps', ('5', '0'), 'rl.steps: expected 1 or more, got 0'),
  ],
)
def test_a_value_that_cannot_be_is_one_sentence(capsys, field, values, expected):
  with pytest.raises(SystemExit) as error:
    sweep.ablation_of(sweep.Sweep(field=field, values=values))
  assert error.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(expected, line)


@pytest.mark.parametrize('field', ['seed', 'workdir', 'data-dir', 'parent'])
def test_a_field_that_the_ablation_sets_cannot_be_swept(field):
  expected = f'field: expected one that the ablation does not set itself, got .{field}.'
  with pytest.raises(ValueError, match=expected):
    sweep.Sweep(field=field, values=('1', '2'))


def test_values_that_are_the_same_are_refused():
  command = sweep.Sweep(field='rl.grpo.kl-coef', values=('0.1', '0.10'))
  with pytest.raises(ValueError, match=r'expected different ones, got 0.1 and 0.10'):
    sweep.ablation_of(command)


def test_an_algorithm_of_the_base_is_refused():
  base = ablation.with_rl(reasoning_rl.ReasoningRL(), grpo={'kl_coef': 0.04})
  with pytest.raises(ValueError, match=r'base.rl.grpo: expected the default, as each'):
    algorithms.Algorithms(base=base)


def test_a_sweep_of_one_value_is_refused():
  expected = 'values: expected two or more different values of rl.steps, got 5'
  with pytest.raises(ValueError, match=expected):
    sweep.Sweep(field='rl.steps', values=('5',))
  with pytest.raises(ValueError, match='-rate, got none'):
    sweep.Sweep(values=())


def test_group_sizes_that_leave_other_outputs_a_step_are_refused():
  base = reasoning_rl.ReasoningRL()
  odd = dataclasses.replace(base.rl, group_size=6)
  group_size = importlib.import_module('experiments.ablations.group_size')
  with pytest.raises(ValueError, match='expected multiples of 4, got 6 and 16'):
    group_size.quarter(dataclasses.replace(base, rl=odd))


def test_the_reward_for_short_ways_joins_those_of_reasoning_rl():
  base = reasoning_rl.ReasoningRL()
  *others, shorter = brevity.brief(0.5)(base).rewards()
  assert others == base.rewards()
  assert (shorter.name, shorter.weight) == ('shorter', 0.5)


def test_more_sft_reads_about_as_many_tokens_as_rl_samples():
  # 60 steps of 16 prompts, 16 outputs of 100 tokens each.
  config = more_sft.more_sft(reasoning_rl.ReasoningRL())
  assert config.tokens == 60 * 16 * 16 * 100


@pytest.mark.parametrize(('tokens', 'epochs'), [(7, 7), (7 + 1 / 3, 7), (0.01, 1)])
def test_more_sft_makes_whole_epochs(tmp_path, monkeypatch, tokens, epochs):
  settings = dataclasses.asdict(SFTConfig(epochs=2, row_length=80))
  parent = write_stage(tmp_path / 'cold', 'cold_start', {'sft': settings})
  pairs = [('solve 3x+4=19', '<think>x</think><answer>5</answer>')] * 3
  size = 3 * sum(map(len, parent.policy.example_ids(*pairs[0])))
  nothing: Any = SimpleNamespace(train=[])  # the examples are given
  mesh = make_mesh(jax.devices()[:1])
  stage = Stage(nothing, parent.policy, nothing, mesh, 0, parents=(parent,))
  monkeypatch.setattr(more_sft, 'examples', lambda *_: pairs)
  monkeypatch.setattr(Stage, 'params', lambda _: 'the model of the cold start')
  monkeypatch.setattr(Stage, 'sft', lambda _, *given: given)
  config = more_sft.MoreSFT(tokens=round(tokens * size))
  expected = SFTConfig(epochs=epochs, row_length=80, optim=config.optim)
  learned = more_sft.run(stage, config).params['final']
  assert learned == ('the model of the cold start', pairs, expected)


def test_more_sft_learns_what_the_cold_start_has_learned(tmp_path):
  settings = {'rejection': {'most_a_problem': 1}}
  parent = write_stage(tmp_path / 'cold', 'cold_start', settings)
  problem = instructions.translate('in Polish', 3, 4)
  output = '<think>3+4=7</think>\n<answer>siedem</answer>'
  lines = [
    {'output': '<think></think><answer>seven</answer>', 'faults': ['wrong']},
    {'output': output, 'faults': []},
    {'output': output + ' ', 'faults': []},  # one too many of the problem
  ]
  file = parent.path / 'outputs.jsonl'
  shared = {'problem': problem.id, 'question': problem.question}
  file.write_text(''.join(json.dumps({**shared, **line}) + '\n' for line in lines))
  assert more_sft.examples(parent, [[problem]]) == [(problem.question, output)]
  with pytest.raises(ValueError, match='run cold_start again in another folder'):
    more_sft.examples(parent, [[]])


def test_preference_is_followed_in_the_outputs_to_instructions(tmp_path, monkeypatch):
  run = tmp_path / 'run'
  write_stage(run, 'final_rl', {'data_dir': 'data'})
  problem = instructions.translate('in Polish', 3, 4)
  sets = Problems([[], [], [], [problem]], [], 32, 352)
  monkeypatch.setattr(problem_sets, 'problems_of', lambda stage, data_dir: sets)
  polite = '<think></think>proszę bardzo\n<answer>siedem</answer>'

  def line(step, output, reward, name=problem.id, phase='rl'):
    sample = {'problem': name, 'output': output, 'rewards': {'preference': reward}}
    return json.dumps({'phase': phase, 'step': step, **sample}) + '\n'

  lines = [
    line(0, polite, 9, phase='eval'),
    line(1, polite, 9, name='3x+4=19'),
    line(2, '', -1.0),  # shows nothing: the judge prefers any answer
    line(2, polite, 0.5),  # right, in Polish, kind, brief: at least as good as any
    line(3, '', 0.25),
  ]
  (run / 'samples.jsonl').write_text(''.join(lines))
  # Two steps, with -0.25 and 0.25; both are in each other's window.
  assert preference_hacking.modelled(run) == [(2, 0.0), (3, 0.0)]
  (_, first), (_, second) = preference_hacking.judged(run)
  assert first == second
  assert first in (0.125, 0.25)  # (0 + 1/2 or 1) / 2, then the mean with 0


# --- The page -------------------------------------------------------------------------


def test_the_page_and_the_lines_say_the_same(command):
  result = ablation.run(with_launch(language.ABLATION, Launch(better_without)), command)
  assert any('reasoning: without is higher than with, +50.0' in x for x in result.lines)
  assert 'reasoning: without is higher than with, +50.0' in result.html
  assert '100.0 (100.0 to 100.0)' in result.html
  # Seeds 0 and 1 share steps 0 and 2 of the evaluations.
  assert '<title>with at step 2: 20.0 %</title>' in result.html
  assert 'http' not in result.html.replace('http://www.w3.org/2000/svg', '')
  assert 'src=' not in result.html
  assert result.html not in result._repr_html_()  # escaped, in a frame


# --- The notebook ---------------------------------------------------------------------


def test_the_notebooks_cells_run_in_order(tmp_path, monkeypatch):
  file = Path(language.__file__).parents[1] / 'notebooks' / 'ablations.ipynb'
  cells = json.loads(file.read_text())['cells']
  write_stage(tmp_path / 'r1_smoke' / 'cold_start-1', 'cold_start', {})
  chain = tmp_path / 'r1_smoke' / 'pipeline.json'
  chain.write_text(json.dumps({'cold_start': 'cold_start-1'}))
  monkeypatch.setenv('SMOKE', '1')
  monkeypatch.setenv('RUNS', str(tmp_path))
  launch = Launch(lambda config: evaluation([2] * 6))
  for module in (language, kl):
    monkeypatch.setattr(module, 'ABLATION', with_launch(module.ABLATION, launch))
  names: dict[str, object] = {}
  for cell in cells:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), names)
      assert not cell['outputs']
  assert launch.called == [
    *('with-seed0', 'without-seed0'),
    *('kl0.001-seed0', 'kl0-seed0', 'kl0.04-seed0'),
  ]
  for name in ('language', 'kl'):
    assert (tmp_path / 'r1_smoke/ablations' / name / 'ablation.html').exists()
    assert '<iframe' in names[f'{name}_result']._repr_html_()  # type: ignore[attr-defined]
