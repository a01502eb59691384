"""A stage's record, and parents that are missing, damaged, moved or replaced."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax import __version__
from r1jax.model.config import ModelConfig
from r1jax.rollout.policy import Policy
from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
from r1jax.runtime.errors import user_errors
from r1jax.runtime.run import start
from r1jax.runtime.workdir import WorkdirError
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import artifact
from r1jax.stages.artifact import ArtifactError
from r1jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(['wait, I will check: 2+3=5'] * 3, 264)
CONFIG = ModelConfig(d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16)
POLICY = Policy(CONFIG, TOKENIZER, 'plain')
MESH = make_mesh(jax.devices()[:1])
VERSIONS = {'countdown': '2.0.0', 'gsm8k': '1'}


@functools.cache
def _random():
  return POLICY.init(MESH, 0)


def model(number):
  """Parameters that differ with the number."""
  return jax.tree.map(lambda leaf: leaf + number, _random())


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str
  parent: str = ''
  seed: int = 0


def finish(workdir, stage, parents=(), seed=0, models=('final',), kept=None):
  """A finished stage; `kept` changes what it saves."""
  config = Experiment(str(workdir), str(parents[0].path) if parents else '', seed)
  params = {name: model(seed + n) for n, name in enumerate(models)}
  if kept:
    params = jax.tree_util.tree_map_with_path(kept, params)
  with start(config, phases=()) as run:
    return artifact.finish(run, stage, config, POLICY, params, parents, VERSIONS)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """The folder of three stages, each the parent of the next."""
  folder = tmp_path_factory.mktemp('made')
  zero = finish(folder / 'zero', 'r1_zero', seed=1, models=('final', 'base'))
  cold = finish(folder / 'cold', 'cold_start', [zero], seed=3)
  finish(folder / 'reasoning', 'reasoning_rl', [cold], seed=4)
  return folder


@pytest.fixture
def chain(made, tmp_path):
  """A copy of them, elsewhere, to be spoiled."""
  return shutil.copytree(made, tmp_path / 'chain')


def test_parameters_come_back_in_the_types_they_were_saved_in(made, tmp_path):
  def matrices_in_bfloat16(path, x):
    return x.astype('float32' if path[-1].key == 'gain' else 'bfloat16')

  parent = artifact.load(made / 'cold')
  finish(tmp_path / 'r', 'grpo', [parent], seed=5, kept=matrices_in_bfloat16)
  found = artifact.load(tmp_path / 'r').params(MESH)
  expected = jax.tree_util.tree_map_with_path(matrices_in_bfloat16, model(5))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert jax.tree.map(lambda x: (x.dtype, x.sharding), found) == jax.tree.map(
    lambda x: (x.dtype, x.sharding), expected
  )


def edit(folder: Path, **fields: object) -> None:
  record = json.loads((folder / 'stage.json').read_text())
  (folder / 'stage.json').write_text(json.dumps({**record, **fields}))


def test_a_record_names_everything_by_its_digest(made):
  record = json.loads((made / 'cold' / 'stage.json').read_text())
  saved = Checkpoints(made / 'cold/checkpoints/model-final').manifest()['digest']
  zero = hashlib.sha256((made / 'zero' / 'stage.json').read_bytes()).hexdigest()
  # Of the file as it is written: TOKENIZER.digest is of the same text.
  tokenizer = hashlib.sha256((made / 'cold' / 'tokenizer.json').read_bytes())
  # A row of 8 for each token; in the layer query and out 8 x 8, key and value
  # 8 x 4, gate, up and down 8 x 16, two gains of 8; and a last gain of 8.
  size = TOKENIZER.vocab_size * 8 + 2 * 64 + 2 * 32 + 3 * 128 + 2 * 8 + 8
  assert record == {
    'stage': 'cold_start',
    'version': __version__,
    'config': {
      'experiment': 'Experiment',
      'workdir': str(made / 'cold'),
      'parent': str(made / 'zero'),
      'seed': 3,
    },
    'data': VERSIONS,
    'model': json.loads(json.dumps(dataclasses.asdict(CONFIG))),  # tuples are lists
    'parameters': size,
    'rows': 0,
    'lora': {'rank': 0, 'alpha': 32.0, 'targets': 'query|key|value|out|gate|up|down'},
    'template': 'plain',
    'files': {'tokenizer.json': tokenizer.hexdigest()},
    'params': {'final': saved},
    'parents': [{'stage': 'r1_zero', 'path': '../zero', 'digest': zero}],
  }


def test_a_finished_stage_gives_back_its_models(chain):
  stage = artifact.load(chain / 'zero', 'cold_start', 'r1_zero')
  assert stage.name == 'r1_zero'
  assert stage.policy.config == CONFIG
  assert stage.policy.template == 'plain'
  assert stage.policy.tokenizer.encode('wait') == TOKENIZER.encode('wait')
  for name, seed in (('final', 1), ('base', 2)):
    found, expected = stage.params(MESH, name), model(seed)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  placed = stage.params(make_mesh(jax.devices()[:4]))
  for leaf in jax.tree.leaves(placed):
    assert leaf.sharding.device_set == set(jax.devices()[:4])


def test_a_record_of_an_older_version_is_refused_as_that(chain):
  file = chain / 'cold' / 'stage.json'
  record = json.loads(file.read_text())
  del record['version']  # version 0.1 wrote none
  file.write_text(json.dumps(record))
  with pytest.raises(WorkdirError) as error:
    artifact.load(chain / 'cold')
  expected = (
    f'{file} was written by r1jax 0.1.0, whose settings have other names than those of '
    f'{__version__}; use that version for this folder, or choose another one'
  )
  assert str(error.value) == expected
  with pytest.raises(WorkdirError) as error:
    artifact.load(chain / 'reasoning').ancestor('r1_zero')
  assert str(error.value).endswith(expected.partition('stage.json')[2])


def test_an_example_is_a_rendered_question_and_an_output_with_its_end():
  prompt, output = POLICY.example_ids('make 5', '<think></think><answer>5</answer>')
  # As the sampler sees it: nothing after the prompt, and the model says the space.
  assert TOKENIZER.decode(prompt) == 'User: make 5\nAssistant:'
  assert TOKENIZER.decode(output) == ' <think></think><answer>5</answer>'
  assert output[-1] == TOKENIZER.eos_id
  assert TOKENIZER.eos_id not in [*prompt, *output[:-1]]


def test_ancestors_are_found_however_far_they_are(chain):
  stage = artifact.load(chain / 'reasoning', 'reasoning_rl')
  assert stage.ancestor('reasoning_rl') is stage
  assert stage.ancestor('cold_start').digest == artifact.load(chain / 'cold').digest
  zero = stage.ancestor('r1_zero')
  assert zero.path.resolve() == (chain / 'zero').resolve()
  jax.tree.map(np.testing.assert_array_equal, zero.params(MESH, 'base'), model(2))
  with pytest.raises(ArtifactError, match='expected final_rl among its parents'):
    stage.ancestor('final_rl')


def test_stages_that_are_moved_together_are_still_found(chain, tmp_path):
  moved = chain.rename(tmp_path / 'moved')
  assert artifact.load(moved / 'reasoning').ancestor('r1_zero').name == 'r1_zero'


def test_a_grandparent_that_was_moved_away_is_missed(chain):
  (chain / 'zero').rename(chain / 'elsewhere')
  expected = (
    r'zero has no stage.json, but .*cold was trained from the r1_zero that was there'
  )
  with pytest.raises(ArtifactError, match=expected):
    artifact.load(chain / 'reasoning').ancestor('r1_zero')


def test_a_grandparent_that_was_run_anew_is_told_from_the_old_one(chain):
  shutil.rmtree(chain / 'zero')
  finish(chain / 'zero', 'r1_zero', seed=7, models=('final', 'base'))
  with pytest.raises(
    ArtifactError, match=r'zero is not the r1_zero that .*cold was trained'
  ):
    artifact.load(chain / 'reasoning').ancestor('r1_zero')


@pytest.mark.parametrize('names', [('rejection_sft',), ('final_rl', 'r1_zero')])
def test_another_stages_folder_is_refused(chain, names):
  expected = (
    f'parent: expected the work directory of {" or ".join(names)}, got that of '
    f'cold_start \\({chain}/cold\\)'
  )
  with pytest.raises(ArtifactError, match=expected):
    artifact.load(chain / 'cold', *names)


@pytest.mark.parametrize('unfinished', [True, False])
def test_an_unfinished_or_missing_stage_is_refused_with_the_command(
  tmp_path, unfinished
):
  if unfinished:
    with start(Experiment(str(tmp_path / 'run')), phases=()):
      pass
  with pytest.raises(ArtifactError) as error:
    artifact.load(tmp_path / 'run', 'cold_start')
  assert str(error.value) == (
    'parent: expected the work directory of a finished cold_start, but '
    f'{tmp_path}/run has no stage.json; run `python -m experiments.cold_start '
    f'--workdir {tmp_path}/run` first'
  )
  assert unfinished == (tmp_path / 'run').exists()  # nothing is made


def without(name):
  def spoil(content: str) -> str:
    return json.dumps({k: v for k, v in json.loads(content).items() if k != name})

  return spoil


@pytest.mark.parametrize(
  'spoil',
  [
    lambda content: content[:-20],
    lambda content: '',
    lambda content: '[]',
    lambda content: 'null',
    without('params'),
    without('parents'),
    without('files'),
    lambda content: content.replace('d_model', 'width'),
    lambda content: content.replace('"d_model": 8', '"d_model": -8'),
  ],
)
def test_a_damaged_record_is_named_with_what_to_do(chain, spoil):
  file = chain / 'cold' / 'stage.json'
  file.write_text(spoil(file.read_text()))
  expected = rf'{file} is damaged \(.*\); restore it, or delete it and start that stage'
  with pytest.raises(ArtifactError, match=expected):
    artifact.load(chain / 'cold')


@pytest.mark.parametrize('spoil', ['other', 'damaged', 'gone'])
def test_a_tokenizer_that_is_not_the_records_is_refused(chain, spoil):
  file = chain / 'cold' / 'tokenizer.json'
  if spoil == 'other':
    Tokenizer.train(['another text'], 264).save(file)
  elif spoil == 'damaged':
    file.write_text(file.read_text()[:-30])
  else:
    file.unlink()
  with pytest.raises(
    ArtifactError, match=f'{file} does not match its digest in stage.json'
  ):
    artifact.load(chain / 'cold')


@pytest.mark.parametrize('spoil', ['other', 'damaged', 'gone'])
def test_parameters_that_are_not_the_records_are_refused(chain, spoil):
  folder = chain / 'cold' / 'checkpoints' / 'model-final'
  if spoil == 'damaged':
    files = [path for path in folder.rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
  else:
    shutil.rmtree(folder)
  if spoil == 'other':
    shutil.copytree(chain / 'zero/checkpoints/model-final', folder)
  stage = artifact.load(chain / 'cold')  # that is not yet looked at
  left = sorted((chain / 'cold').rglob('*'))
  reason = {
    'other': '; ',
    'damaged': r' \(.*model-final/1 is damaged .*\); ',
    'gone': r' \(.*model-final has no complete checkpoint\); ',
  }[spoil]
  expected = (
    rf"cold: the parameters 'final' do not match their digest in stage.json{reason}"
  )
  with pytest.raises(ArtifactError, match=f'{expected}restore checkpoints/, or run'):
    stage.params(MESH)
  if spoil != 'gone':
    assert sorted((chain / 'cold').rglob('*')) == left  # it is not this run's to change


def test_a_child_does_not_go_on_with_a_parent_that_was_replaced(chain, tmp_path):
  child = Experiment(str(tmp_path / 'child'))
  parent = artifact.load(chain / 'cold')
  with start(child, phases=('sft',), digests=parent.digests) as run:
    run.save('sft', 5, {'w': np.ones(2)})
  with start(child, phases=('sft',), digests=parent.digests) as run:
    assert run.checkpoints['sft'].step == 5
  edit(chain / 'cold', parameters=1)
  replaced = artifact.load(chain / 'cold')
  expected = r'cold/stage.json has changed since the checkpoint of step 5 of sft'
  with (
    pytest.raises(WorkdirError, match=expected),
    start(child, phases=('sft',), digests=replaced.digests),
  ):
    pass


def test_finishing_again_leaves_the_record_that_children_name(chain):
  before = (chain / 'zero' / 'stage.json').read_bytes()
  shutil.rmtree(chain / 'zero' / 'checkpoints')  # lost, and written again
  models = {'final': model(1), 'base': model(2)}
  # The folder is a setting too, and now another one.
  config = Experiment(str(chain / 'zero'), seed=1)
  with start(config, phases=()) as run:
    assert artifact.finished(run)
    artifact.finish(run, 'r1_zero', config, POLICY, models)
  assert (chain / 'zero' / 'stage.json').read_bytes() == before
  artifact.load(chain / 'reasoning').ancestor('r1_zero').params(MESH, 'base')


def test_a_stage_has_no_record_before_its_models_are_whole(tmp_path, monkeypatch):
  def refuse(*_: object) -> None:
    raise CheckpointError('the disk is full')

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'wait', refuse)
    with pytest.raises(CheckpointError, match='the disk is full'):
      finish(tmp_path / 'run', 'cold_start')
  assert not (tmp_path / 'run' / 'stage.json').exists()
  with pytest.raises(ArtifactError, match='expected the work directory of a finished'):
    artifact.load(tmp_path / 'run', 'cold_start')
  assert finish(tmp_path / 'run', 'cold_start').name == 'cold_start'


def test_a_wrong_parent_is_one_sentence_for_a_user(tmp_path, capsys):
  with pytest.raises(SystemExit) as end, user_errors():
    artifact.load(tmp_path, 'r1_zero')
  assert end.value.code == 1
  error = capsys.readouterr().err
  assert error.startswith(
    'error: parent: expected the work directory of a finished r1_zero'
  )
  assert len(error.splitlines()) == 1
