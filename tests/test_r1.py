"""All of R1 with tiny models: the plan of its folders, kills, and wrong parents."""

import collections
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machines
import pytest

from experiments import distill, r1, r1_smoke, rejection_sft
from experiments.cold_start import COLD_START, ColdStart
from experiments.distill import DISTILL, Distill
from experiments.final_rl import FINAL_RL, FinalRL
from experiments.reasoning_rl import REASONING_RL, ReasoningRL
from experiments.rejection_sft import REJECTION_SFT, RejectionSFT
from r1jax import tasks
from r1jax.evaluation import suite
from r1jax.miniature.corpus import TaskConfigs
from r1jax.rewards import filters
from r1jax.rollout.policy import Policy
from r1jax.runtime import compilation
from r1jax.runtime.checkpoint import Checkpoints
from r1jax.runtime.digest import digest_of
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.sharding.rules import MeshError
from r1jax.stages import distillation, problem_sets, rejection
from r1jax.stages.artifact import ArtifactError
from r1jax.stages.experiment import Experiment
from r1jax.stages.problem_sets import Problems, stream_with_general
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem, instructions
from r1jax.tasks.instructions import InstructionsConfig
from r1jax.text.tokenizer import Tokenizer

STAGES = tuple(r1.STAGES)
CONFIG = r1_smoke.R1Smoke()

# --- The plan: which folder a stage has ---------------------------------------------


def folders(config: r1.R1) -> dict[str, str]:
  return {stage.name: Path(stage.config.workdir).name for stage in r1.plan(config)}


def changed(before: r1.R1, after: r1.R1) -> list[str]:
  """The stages that have other folders."""
  old, new = folders(before), folders(after)
  return [name for name in STAGES if old[name] != new[name]]


def with_setting(config: Any, path: str, value: object) -> Any:
  name, _, rest = path.partition('.')
  inner = with_setting(getattr(config, name), rest, value) if rest else value
  return dataclasses.replace(config, **{name: inner})


def test_every_stage_has_a_folder_of_its_own_and_starts_from_the_one_before():
  plan = r1.plan(dataclasses.replace(CONFIG, workdir='some/where'))
  assert [stage.name for stage in plan] == [
    'r1_zero',
    'cold_start',
    'reasoning_rl',
    'rejection_sft',
    'final_rl',
    'distill_small',
    'distill_tiny',
  ]
  folders_of = {stage.name: stage.config.workdir for stage in plan}
  assert len(set(folders_of.values())) == 7
  for name, folder in folders_of.items():
    assert folder.startswith(f'some/where/{name}-')
  parents = [getattr(stage.config, 'parent', None) for stage in plan]
  chain = [folders_of[name] for name in STAGES[:5]]
  assert parents == [
    None,
    *chain[:4],
    chain[4],
    chain[4],
  ]  # both students learn from R1


@pytest.mark.parametrize(
  ('setting', 'value', 'stages'),
  [
    ('r1_zero.base.steps', 301, STAGES),
    ('r1_zero.web.slip', 0.01, STAGES),
    ('cold_start.sft.epochs', 2, STAGES[1:]),
    ('reasoning_rl.language_weight', 0.5, STAGES[2:]),
    ('rejection_sft.writers.kind', 1.0, STAGES[3:]),
    ('rejection_sft.general', 17, STAGES[3:]),
    ('final_rl.judge.looks', 5, STAGES[4:]),
    ('distill_small.rl.steps', 5, ('distill_small',)),
    ('distill_tiny.student.vocab_size', 290, ('distill_tiny',)),
    ('seed', 1, STAGES),
    # Settings of the machine.
    ('workdir', 'elsewhere', ()),
    ('data_dir', 'elsewhere', ()),
    ('mesh', MeshConfig(fsdp=2), ()),
    ('r1_zero.rl.reward_workers', 9, ()),
    ('final_rl.rl.reward_timeout', 9.0, ()),
    ('distill_small.rl.profile_step', 1, ()),
  ],
)
def test_a_setting_changes_the_folders_of_what_depends_on_it(setting, value, stages):
  assert changed(CONFIG, with_setting(CONFIG, setting, value)) == list(stages)


def test_seed_data_and_mesh_reach_every_stage():
  shared: dict[str, Any] = {'seed': 5, 'data_dir': 'data', 'mesh': MeshConfig(fsdp=2)}
  for stage in r1.plan(dataclasses.replace(CONFIG, **shared)):
    assert {name: getattr(stage.config, name) for name in shared} == shared


KV_HEADS = 'expected a divisor of 1, the axis kv_heads of '


@pytest.mark.parametrize(
  ('fields', 'heads', 'expected'),
  [
    (
      {'fsdp': 3},
      1,
      'r1_zero: mesh: .* product is the 8 devices, .* set mesh.fsdp to 4',
    ),
    ({'fsdp': 8}, 1, 'r1_zero: rl.prompts_per_step: .* of 8, .* got 4; the next is 8'),
    (
      {'fsdp': 4},
      1,
      'cold_start: sft.rows_per_step / .* of 4, .* got 6; the next is 8',
    ),
    ({'tensor': 2}, 1, f'r1_zero: mesh.tensor 2: {KV_HEADS}'),
    # The student has one kv head, whatever its teacher has.
    ({'tensor': 2}, 2, f'distill_small: mesh.tensor 2: {KV_HEADS}'),
    ({'sampler_tensor': 2}, 2, f'distill_small: mesh.sampler_tensor 2: {KV_HEADS}'),
  ],
)
def test_what_devices_cannot_be_given_is_refused_before_the_first_stage(
  fields, heads, expected, tmp_path
):
  config = with_setting(CONFIG, 'r1_zero.model.kv_heads', heads)
  workdir = str(tmp_path / 'run')
  config = dataclasses.replace(config, mesh=MeshConfig(**fields), workdir=workdir)
  with pytest.raises(MeshError, match=expected):
    r1.main(config)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('setting', 'value', 'expected'),
  [
    ('seed', -1, 'seed: expected 0 to 4294967295, got -1'),
    ('workdir', '', 'workdir and data_dir: expected the path of a folder, got none'),
    ('cold_start.seed', 3, 'cold_start.seed: expected to be left to the pipeline'),
    ('final_rl.parent', 'x', 'final_rl.parent: expected to be left to the pipeline'),
    ('distill_tiny.workdir', 'x', 'distill_tiny.workdir: expected to be left'),
    ('r1_zero.mesh.fsdp', 2, 'r1_zero.mesh: expected to be left to the pipeline'),
  ],
)
def test_what_the_pipeline_sets_cannot_be_set_for_a_stage(setting, value, expected):
  with pytest.raises(ValueError, match=expected):
    with_setting(CONFIG, setting, value)


def test_finished_stages_are_not_run_again(tmp_path, monkeypatch):
  ran = []

  def act(name):
    def launch(stage):
      ran.append(name)
      Path(stage.workdir).mkdir(parents=True)
      if name != 'final_rl' or len(ran) > 5:  # where something stopped it
        (Path(stage.workdir) / 'stage.json').write_text('{}')
      else:
        raise KeyboardInterrupt

    return SimpleNamespace(launch=launch)

  monkeypatch.setattr(r1, 'STAGES', {name: act(name) for name in STAGES})
  config = dataclasses.replace(CONFIG, workdir=str(tmp_path))
  with pytest.raises(KeyboardInterrupt):
    r1.main(config)
  assert ran == list(STAGES[:5])
  (tmp_path / folders(config)['final_rl']).rmdir()
  r1.main(config)
  assert ran[5:] == list(STAGES[4:])
  r1.main(config)
  assert len(ran) == 8
  r1.main(with_setting(config, 'rejection_sft.general', 17))
  assert ran[8:] == list(STAGES[3:])
  written = json.loads((tmp_path / 'pipeline.json').read_text())
  assert written == folders(with_setting(config, 'rejection_sft.general', 17))


# --- A whole run, and one that is killed --------------------------------------------


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  return tmp_path_factory.mktemp('shared')


@pytest.fixture(scope='module')
def begin(shared):
  """Starts the experiment as a process of its own, in a folder."""

  def begin(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    # The same relative paths in each folder, so that not even these differ.
    command = [sys.executable, '-m', 'experiments.r1_smoke', '--workdir', 'run']
    environment = {
      **os.environ,
      'PYTHONPATH': str(Path(r1.__file__).parents[1]),
      # Restarts would spend their time on compiling the same functions again.
      'JAX_COMPILATION_CACHE_DIR': str(shared / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'XLA_FLAGS': machines.cpus(1),
      'JAX_DEBUG_KEY_REUSE': '1',
    }
    return subprocess.Popen(
      [*command, '--data-dir', str(shared / 'data')],
      cwd=folder,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return begin


@pytest.fixture(scope='module')
def unbroken(begin, tmp_path_factory):
  """The folders of the stages of a run that nothing disturbed, by name."""
  folder = tmp_path_factory.mktemp('unbroken')
  process = begin(folder)
  output, _ = process.communicate(timeout=1800)
  assert process.returncode == 0, output
  return stages_of(folder / 'run')


def stages_of(root: Path) -> dict[str, Path]:
  return {name: root / folder for name, folder in folders(CONFIG).items()}


def record(folder: Path) -> dict[str, Any]:
  return json.loads((folder / 'stage.json').read_text(encoding='utf-8'))


def test_every_model_is_traced_to_a_seed(unbroken):
  def ancestry(folder: Path) -> list[str]:
    found = record(folder)
    for parent in found['parents']:
      file = folder / parent['path'] / 'stage.json'
      assert hashlib.sha256(file.read_bytes()).hexdigest() == parent['digest']
      assert record(file.parent)['stage'] == parent['stage']
    assert found['config']['seed'] == 0
    first = found['parents'][:1]
    return [found['stage'], *(x for p in first for x in ancestry(folder / p['path']))]

  chain = ['final_rl', 'rejection_sft', 'reasoning_rl', 'cold_start', 'r1_zero']
  assert ancestry(unbroken['distill_tiny']) == ['distill', *chain]
  assert ancestry(unbroken['distill_small']) == ['distill', *chain]
  # Its base comes from the first stage, its examples from the second.
  parents = record(unbroken['rejection_sft'])['parents']
  assert [parent['stage'] for parent in parents] == ['reasoning_rl', 'r1_zero']


@pytest.mark.parametrize(
  ('stage', 'parent', 'start', 'name'),
  [
    ('cold_start', 'r1_zero', 'r1_zero', 'base'),
    ('reasoning_rl', 'cold_start', 'cold_start', 'final'),
    ('rejection_sft', 'reasoning_rl', 'r1_zero', 'base'),
    ('final_rl', 'rejection_sft', 'rejection_sft', 'final'),
  ],
)
def test_each_stage_starts_from_the_model_that_the_paper_says(
  unbroken, shared, tmp_path, monkeypatch, stage, parent, start, name
):
  began = []

  def sft(stage, params, *rest):
    del stage, rest
    began.append(digest_of(params))
    return params

  monkeypatch.setattr(Stage, 'sft', sft)
  monkeypatch.setattr(Stage, 'rl', lambda stage, params, *rest: sft(stage, params()))
  monkeypatch.setattr(Stage, 'rejection_sample', lambda *_: [])
  monkeypatch.setattr(Experiment, '_finish', lambda *_: None)
  monkeypatch.setattr(Stage, 'preference_model', lambda *_: None)
  config = dataclasses.replace(
    getattr(CONFIG, stage),
    parent=str(unbroken[parent]),
    workdir=str(tmp_path / 'run'),
    data_dir=str(shared / 'data'),
  )
  dataclasses.replace(r1.STAGES[stage], report=False).launch(config)
  assert began == [record(unbroken[start])['params'][name]]


def test_a_record_names_the_models_that_lie_beside_it(unbroken):
  for name, folder in unbroken.items():
    found = record(folder)
    for model, digest in found['params'].items():
      saved = Checkpoints(folder / 'checkpoints' / f'model-{model}')
      assert saved.manifest()['digest'] == digest
    names = {
      'r1_zero': {'base', 'final'},
      'distill_small': {'base', 'final', *distillation.METHODS},
      'distill_tiny': {'base', 'final', *Distill.methods},
    }
    assert set(found['params']) == names.get(name, {'final'})
  small, tiny = (record(unbroken[f'distill_{name}']) for name in ('small', 'tiny'))
  assert small['params']['final'] == small['params']['sft']
  # Every way of learning leads elsewhere.
  assert len(set(small['params'].values())) == 1 + len(distillation.METHODS)
  teacher = record(unbroken['final_rl'])['files']
  assert small['files'] == teacher != tiny['files']


def test_every_model_has_its_row_of_the_stage_table(unbroken):
  for name, folder in unbroken.items():
    rows = {
      path.stem.removeprefix('evaluation-') for path in folder.glob('evaluation*')
    }
    expected = set(record(folder)['params'])
    if name.startswith('distill'):
      expected -= {'final'}  # the same model as the first method's
    assert rows == expected
    for row in rows:
      measured = json.loads(suite.file(folder, row).read_text(encoding='utf-8'))
      assert measured['reasoning']['problems'] == 4
      assert 0 <= measured['general']['rewards']['preference']['mean'] <= 1


def test_students_say_what_each_method_has_computed(unbroken):
  for name, methods in (('small', distillation.METHODS), ('tiny', Distill.methods)):
    folder = unbroken[f'distill_{name}']
    found = json.loads((folder / 'compute.json').read_text())
    assert set(found) == set(methods)
    assert found['sft']['times_sft'] == 1
    # As many tokens: epochs are rounded, and answers of one example a step are short.
    assert 0.5 < found['answers']['times_sft'] < 1.5
    rl_tokens = found['rl']
    assert rl_tokens['learned'] == rl_tokens['sampled'] == rl_tokens['scored']
    # 4 steps of 4 problems and 16 outputs, of up to 32 and 64 tokens
    assert 4 * 16 < rl_tokens['sampled'] <= 4 * (4 * 32 + 16 * 64)
  for method in ('forward_kl', 'reverse_kl', 'on_policy'):
    assert found_small(unbroken)[method]['judged'] > 0
  assert found_small(unbroken)['on_policy']['sampled'] > 0


def found_small(unbroken):
  return json.loads((unbroken['distill_small'] / 'compute.json').read_text())


def same(path: Path) -> object:
  """What must not depend on when a run was killed, of a file."""
  if path.name not in ('metrics.jsonl', 'samples.jsonl'):
    return path.read_bytes()
  lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  return [{k: v for k, v in line.items() if k != 'time'} for line in lines]


def reached(folder: Path, phase: str, count: int) -> bool:
  if phase == 'sampling':
    file = folder / 'outputs.jsonl'
    return file.exists() and file.read_bytes().count(b'\n') >= count
  saved = (folder / 'checkpoints' / phase).glob('[1-9]*')
  return any(int(step.name) >= count for step in saved if step.name.isdecimal())


KILLS = (
  ('cold_start', 'sampling', 16),
  ('cold_start', 'sft', 1),
  ('reasoning_rl', 'rl', 2),
  ('final_rl', 'preference', 1),
  ('distill_small', 'base', 100),
  ('distill_small', 'forward_kl', 1),
)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
  begin, unbroken, tmp_path
):
  rng, stages = random.Random(0), stages_of(tmp_path / 'run')
  for stage, phase, count in KILLS:
    process = begin(tmp_path)
    deadline = time.monotonic() + 900
    while not reached(stages[stage], phase, count):
      assert process.poll() is None, process.communicate()[0]
      assert time.monotonic() < deadline, f'{phase} of {stage} did not come to {count}'
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))  # something half written, or a step half done
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (stages[stage] / 'stage.json').exists(), (
      'killed too late to show a thing'
    )
  process = begin(tmp_path)
  output, _ = process.communicate(timeout=1800)
  assert process.returncode == 0, output
  assert 'Stage 5 of 7, final_rl, is finished: ' in output
  assert 'Stage 7 of 7, distill_tiny, begins: ' in output
  for name, folder in unbroken.items():
    files = [
      *folder.glob('*.json'),  # the record, with the digests of all models, is one
      *folder.glob('*.jsonl'),
    ]
    assert len(files) >= 5
    for file in files:
      assert same(stages[name] / file.name) == same(file), f'{name}/{file.name}'
    assert {path.name for path in stages[name].glob('*.json*')} == {
      file.name for file in files
    }


# --- Wrong parents and settings are refused before anything is made -----------------


@pytest.fixture
def quiet(monkeypatch):
  """Keeps programs compiled here out of the user's folder."""
  monkeypatch.setattr(compilation, 'keep_on_disk', lambda: None)


# By name: the experiment, its config, and what it may start from.
CHILDREN: dict[str, tuple[Experiment, Any, str]] = {
  'cold_start': (COLD_START, ColdStart, 'r1_zero'),
  'reasoning_rl': (REASONING_RL, ReasoningRL, 'cold_start'),
  'rejection_sft': (REJECTION_SFT, RejectionSFT, 'reasoning_rl'),
  'final_rl': (FINAL_RL, FinalRL, 'rejection_sft'),
  'distill_small': (DISTILL, Distill, 'final_rl or rejection_sft or reasoning_rl'),
}


@pytest.mark.parametrize('child', CHILDREN)
def test_a_stage_takes_its_own_parent_alone(unbroken, quiet, tmp_path, child):
  experiment, config, expected = CHILDREN[child]
  wrong = 'distill_tiny' if child == 'cold_start' else 'r1_zero'
  name = record(unbroken[wrong])['stage']
  for parent, got in (
    (unbroken[wrong], f'got that of {name}'),
    (tmp_path / 'none', 'has no stage.json'),
  ):
    with pytest.raises(
      ArtifactError, match=f'parent: expected .* of (a finished )?{expected}.*{got}'
    ):
      experiment.launch(config(parent=str(parent), workdir=str(tmp_path / 'run')))
    assert not (tmp_path / 'run').exists()


TOO_LONG = 'expected at most 96, as the base model was trained on rows of 128 tokens'


@pytest.mark.parametrize(
  ('child', 'setting', 'value', 'expected'),
  [
    ('cold_start', 'rejection.max_length', 97, f'rejection.max_length: {TOO_LONG}'),
    ('cold_start', 'suite.max_length', 97, f'suite.max_length: {TOO_LONG}'),
    ('cold_start', 'sft.row_length', 95, 'sft.row_length: expected at least 96'),
    ('reasoning_rl', 'rl.max_length', ((0, 97),), f'rl.max_length: {TOO_LONG}'),
    ('rejection_sft', 'rejection.max_length', 97, f'rejection.max_length: {TOO_LONG}'),
    ('final_rl', 'rl.max_length', ((0, 64), (1, 97)), f'rl.max_length: {TOO_LONG}'),
    ('final_rl', 'judged', 40_000, 'judged: expected at most the .* got 40000; set it'),
    ('distill_small', 'rejection.max_length', 97, f'rejection.max_length: {TOO_LONG}'),
    ('distill_small', 'base.row_length', 95, 'base.row_length: expected at least 96'),
    ('distill_small', 'sft.row_length', 95, 'sft.row_length: expected at least 96'),
    ('cold_start', 'mesh', MeshConfig(fsdp=4), 'sft.rows_per_step / .* the next is 8'),
    ('reasoning_rl', 'mesh', MeshConfig(tensor=2), f'mesh.tensor 2: {KV_HEADS}'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(
  unbroken, shared, quiet, tmp_path, child, setting, value, expected
):
  parents = dict(zip(STAGES[1:6], STAGES[:5], strict=True))
  config = dataclasses.replace(
    with_setting(getattr(CONFIG, child), setting, value),
    parent=str(unbroken[parents[child]]),
    workdir=str(tmp_path / 'run'),
    data_dir=str(shared / 'data'),
  )
  with pytest.raises(ValueError, match=expected):
    CHILDREN[child][0].launch(config)
  assert not (tmp_path / 'run').exists()


COOLER: dict[str, Any] = {
  'rejection': RejectionConfig(draw=SamplingConfig(temperature=0.7))
}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'methods': ()}, 'methods: expected some of'),
    ({'methods': ('sft', 'prayer')}, 'methods: expected some of'),
    ({'methods': ('sft', 'sft')}, 'each once'),
    (
      {'methods': ('sft', 'reverse_kl'), 'student': distill.STUDENTS['tiny']},
      r"a tokenizer of its own, .* got \['reverse_kl'\]; set student.vocab_size to 0",
    ),
    (COOLER, r'rejection.draw and rl.temperature: .* the same .* got \[0.7, 1.0\]'),
    ({'rl': RLConfig(temperature=((0, 1.0), (9, 0.7)))}, r'got \[0.7, 1.0\]'),
    ({**COOLER, 'methods': ('sft', 'forward_kl')}, r'got \[0.7, 1.0\]'),
    (
      {'rl': RLConfig(temperature=((0, 0.7),)), 'methods': ('rl', 'on_policy')},
      r'got \[0.7, 1.0\]',
    ),
    (
      {'rejection': RejectionConfig(draw=SamplingConfig(top_p=0.95))},
      r'no top-k or top-p, .* got \[1.0\] and .*top_p=0.95',
    ),
  ],
)
def test_impossible_lessons_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    Distill(**fields)


def test_students_learn_and_are_measured_at_one_temperature():
  config = Distill(methods=tuple(distillation.METHODS))
  one = SamplingConfig(temperature=1.0)
  assert config.rejection.draw == config.suite.draw == config.evals.draw == one
  assert config.rl.temperature == ((0, 1.0),)
  # Another one for all, and any where only SFT learns.
  Distill(**COOLER, rl=RLConfig(temperature=((0, 0.7),)))
  Distill(**COOLER, methods=('sft', 'answers'))


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'general_share': 1.5}, 'general_share: expected 0 to 1, got 1.5'),
    ({'general_after': 10**6}, 'general_after: expected 0 to rl.steps'),
    ({'judged': 5}, 'judged: expected a multiple of rl.prompts_per_step'),
  ],
)
def test_impossible_settings_of_the_last_stage_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    FinalRL(**fields)


# --- What the stages learn from -----------------------------------------------------


def problems(task, count):
  return [Problem(f'{task}{n}', task, f'{task} {n}', {}) for n in range(count)]


def test_instructions_come_into_the_last_stage_after_so_many_steps():
  sets = Problems([problems(t, 50) for t in problem_sets.TASKS], [], 32, 352)
  problem_at = stream_with_general(
    sets.train, (1.0, 1.0, 0.0), seed=0, general_share=0.25, first=300
  )
  drawn = [problem_at(index).task for index in range(400)]
  assert collections.Counter(drawn[:300]) == {'countdown': 150, 'equations': 150}
  last = collections.Counter(drawn[300:])
  # A quarter of 100, and the rest in halves; where the stretch begins may cost one.
  assert abs(last['instructions'] - 25) <= 1
  assert abs(last['countdown'] - 37.5) <= 1.5
  assert abs(last['equations'] - 37.5) <= 1.5
  assert not last['arithmetic']


def test_the_last_stage_asks_the_first_instruction_after_general_after_steps(unbroken):
  assert CONFIG.final_rl.general_after == 2  # of 4 steps
  raw = (unbroken['final_rl'] / 'samples.jsonl').read_text(encoding='utf-8')
  samples = [json.loads(line) for line in raw.splitlines()]
  known = {p.id for p in instructions.generate(InstructionsConfig(), 'train')}
  steps = {x['step'] for x in samples if x['phase'] == 'rl' and x['problem'] in known}
  assert steps == {3, 4}


def test_the_last_stage_asks_no_problem_twice_before_all_of_its_kind():
  difficulty = TaskConfigs()
  generated = [
    list(tasks.module(name).generate(getattr(difficulty, name), 'train'))
    for name in problem_sets.TASKS
  ]
  sets = Problems(generated, [], 32, 352)
  config = FinalRL()
  count = config.rl.steps * config.rl.prompts_per_step
  first = config.general_after * config.rl.prompts_per_step
  share = config.general_share

  def mixed(sets):
    return stream_with_general(
      sets.train, config.shares, 7, general_share=share, first=first
    )

  problem_at = mixed(sets)
  asked = [problem_at(n).id for n in range(count)]
  assert len(asked) == len(set(asked)) == 640
  # Few problems: a pass over those of a task ends before the next begins.
  few = Problems([problems(t, 50) for t in problem_sets.TASKS], [], 32, 352)
  problem_at = mixed(few)
  found = [problem_at(n) for n in range(640)]
  for task in problem_sets.TASKS:
    ids = [problem.id for problem in found if problem.task == task]
    passes = [ids[n : n + 50] for n in range(0, len(ids), 50)]
    assert all(len(one) == len(set(one)) for one in passes)


def test_general_data_is_careful_and_as_much_as_was_asked_for():
  train = list(instructions.generate(InstructionsConfig(), 'train'))[:40]
  by_question = {problem.question: problem for problem in train}
  config = RejectionSFT(general=100)
  found = rejection_sft.general_data(config, train, 0)
  assert len(found) == 100
  assert found == rejection_sft.general_data(config, train, 0)
  # In turn, each two or three times, in different words.
  assert collections.Counter(question for question, _ in found) == {
    problem.question: 3 if n < 20 else 2 for n, problem in enumerate(train)
  }
  assert len(set(found)) > 40
  for question, output in found:
    assert not filters.faults(by_question[question], output), output


def test_answers_alone_are_learned_with_the_same_compute(monkeypatch):
  tokenizer = Tokenizer.train(['12 abc'], 262)
  learned = {}

  def sft(stage, base, pairs, config, phase='sft'):
    del stage, base
    learned[phase] = (pairs, config.epochs)

  monkeypatch.setattr(Stage, 'sft', sft)
  line = {
    'question': 'q',
    'output': f'<think>{"12" * 40}</think>\nso\n<answer>3</answer>',
  }
  policy = Policy(distill.STUDENTS['small'].model, tokenizer, 'plain')
  nothing: Any = None  # unused here
  kept: list[rejection.Line] = [line]
  stage = Stage(nothing, policy, nothing, nothing, 0)
  lesson = distillation.Lesson(
    stage,
    teacher=nothing,
    problem_at=nothing,
    kept=kept,
    max_length=320,
    sft=SFTConfig(epochs=3),
    rl=nothing,
    rewards=nothing,
    evals=nothing,
  )
  distillation.METHODS['sft'](lesson, None)
  distillation.METHODS['answers'](lesson, None)
  assert learned['sft'] == ([('q', line['output'])], 3)
  examples, epochs = learned['answers']
  assert examples == [('q', '<think></think>\nso\n<answer>3</answer>')]
  # Without merges a letter is a token, as is each tag: `User: q\nAssistant:` has 18,
  # ` <think></think>\nso\n<answer>3</answer>` and its end have 11, the thoughts 80.
  assert epochs == round(3 * (18 + 11 + 80) / (18 + 11))
