"""Data sets of tensorflow-datasets by name, as problems of one's own."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.core import registered
from tensorflow_datasets.text.gsm8k import gsm8k
from test_data_files import asked

from r1jax.hub import network
from r1jax.tasks import data, published
from r1jax.tasks.data import DataConfig

SIZES = {'train': 40, 'test': 4}
F = tfds.features


FEATURES = {
  'asked': {'question': F.Text()},
  'sum': np.int64,
  'letter': F.ClassLabel(names=['A', 'B']),
  'choices': F.Sequence({'text': F.Text(), 'value': np.int64}),
  'image': F.Tensor(shape=(), dtype=np.str_),
}


with registered.skip_registration():

  class Sums(tfds.core.GeneratorBasedBuilder):
    """Sums, with fields of many kinds; two configs."""

    VERSION = tfds.core.Version('1.2.0')
    BUILDER_CONFIGS = tuple(
      tfds.core.BuilderConfig(name=name, version='1.2.0') for name in ('easy', 'hard')
    )
    pkg_dir_path = Path(__file__).parent

    def _info(self):
      return self.dataset_info_from_configs(features=F.FeaturesDict(FEATURES))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
      choices = [{'text': 'one', 'value': 1}, {'text': 'two', 'value': 2}]
      for n in range(SIZES[split]):
        question = f'{split}: how many é are {n} + {n}?'
        row = {'asked': {'question': question}, 'sum': 2 * n, 'letter': 'B'}
        yield n, {**row, 'choices': choices, 'image': b'\xff\xd8'}


def prepare(folder, config, form='array_record'):
  builder = Sums(data_dir=str(folder), config=config, file_format=form)
  builder.download_and_prepare()
  return Path(builder.data_dir)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A data folder with one config."""
  folder = tmp_path_factory.mktemp('tfds')
  prepare(folder, 'easy')
  return folder


def config(name='tfds:sums/easy', **fields):
  given = {'question': 'asked.question', 'answer': 'sum', 'verify': 'number', **fields}
  return DataConfig(name, **given)


@pytest.mark.parametrize(
  'name', ['tfds:sums', 'tfds:sums/easy', 'tfds:sums/easy:1.2.0']
)
def test_a_prepared_set_is_read_by_its_name(place, name):
  files = data.load(config(name, held_out_split='test'), str(place))
  questions = {f'train: how many é are {n} + {n}?': str(2 * n) for n in range(40)}
  assert asked(files.train) == set(questions.items())
  assert len(files.validation) == 4
  folder = place / 'sums' / 'easy' / '1.2.0'
  assert files.digests == {
    str(file): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in folder.glob('*.array_record*')
  }
  assert len(files.digests) == 2


def test_of_another_set_the_test_split_is_held_out(place):
  files = data.load(config(held_out='tfds:sums/easy'), str(place))
  assert (len(files.train), len(files.validation)) == (40, 4)
  assert len({p.id for p in (*files.train, *files.validation)}) == 44


def test_without_a_held_out_split_a_hash_holds_out_a_part(place):
  files = data.load(config(), str(place))
  assert len(files.train) + len(files.validation) == 40
  assert files.validation


def test_classes_lists_and_nested_fields_are_texts(place):
  fields = {'question': '{asked.question} {choices.text}', 'answer': 'letter'}
  files = data.load(config(**fields, verify='choice'), str(place))
  (first,) = (p for p in files.train + files.validation if ' 7 + 7' in p.question)
  assert first.question == 'train: how many é are 7 + 7? one, two'
  assert first.truth['answer'] == 'B'
  rows, _ = published.read_split('sums/easy', 'test', str(place))
  assert rows[0]['choices'] == {'text': ['one', 'two'], 'value': [1, 2]}
  assert rows[0]['image'] == b'\xff\xd8'  # no text


def as_tfrecord(folder):
  """Writes the same examples as tensorflow would."""
  builder = tfds.builder_from_directory(folder)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  for split in SIZES:
    (file,) = folder.glob(f'*-{split}.array_record*')
    writer = RecordWriter(str(file).replace('array_record', 'tfrecord'))
    for record in builder.as_data_source(split=split, deserialize_method=raw):
      writer.write(record)
    writer.close()
    file.unlink()
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))


@pytest.mark.parametrize('form', ['parquet', 'tfrecord'])
def test_each_file_format_gives_the_same_rows(place, tmp_path, form):
  expected, _ = published.read_split('sums', 'train', str(place))
  other = 'array_record' if form == 'tfrecord' else form
  folder = prepare(tmp_path, 'easy', other)
  if form == 'tfrecord':
    as_tfrecord(folder)
  found, files = published.read_split('sums', 'train', str(tmp_path))
  assert [form in file.name for file in files] == [True]
  key = str  # the order of examples belongs to the files
  assert sorted(found, key=key) == sorted(expected, key=key)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'split': 'dev'}, 'data.path: sums/easy of tensor.* splits test, train, got dev'),
    ({'held_out_split': 'dev'}, 'data.held_out_split: sums/easy .*, train, got dev'),
    ({'answer': 'total'}, "row 1 has no field 'total' .it has asked, .*set --data.ans"),
    ({'answer': 'image'}, "row 1 has neither text nor a number in the field 'image'"),
    (
      {'name': 'tfds:sumz'},
      "expected a data set that .*, got 'sumz'; did you mean sums",
    ),
    ({'name': 'tfds:gsm9k'}, "data.path: .*, got 'gsm9k'; did you mean gsm8k"),
    ({'name': 'tfds:sums/odd'}, r"expected a data set that .*, got 'sums/odd'"),
    ({'name': 'tfds:a b'}, "the name of a data set of tensorflow-datasets, .*'a b'"),
    (
      {'name': 'tfds:ai2_arc/odd'},
      'one of the configs ARC-Challenge, ARC-Easy, got od',
    ),
  ],
)
def test_what_is_missing_is_named(place, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    data.load(config(**fields), str(place))
  assert '\n' not in str(error.value)


def test_a_config_must_be_named_if_several_are_there(tmp_path):
  for name in ('easy', 'hard'):
    prepare(tmp_path, name)
  with pytest.raises(ValueError, match=r'sums .* one of the configs easy, hard after'):
    data.load(config('tfds:sums'), str(tmp_path))
  assert data.load(config('tfds:sums/hard'), str(tmp_path)).train


def test_the_newest_version_on_disk_is_read(tmp_path):
  folder = prepare(tmp_path, 'easy')
  folder.rename(folder.with_name('1.10.0'))
  prepare(tmp_path, 'easy')
  for name, version in (('sums', '1.10.0'), ('sums/easy:1.2.0', '1.2.0')):
    _, (file,) = published.read_split(name, 'train', str(tmp_path))
    assert file.parent.name == version


def test_a_set_that_cannot_be_downloaded_is_a_sentence(tmp_path, monkeypatch):
  asked_for = []

  def refuse(url):
    asked_for.append(url)
    raise OSError(-2, 'Name or service not known')

  monkeypatch.setattr(network, 'check', refuse)
  message = (
    r'^gsm8k is not in .*1\.0\.0 and could not .*Name or ser.*; run .*--data-dir'
  )
  with pytest.raises(OSError, match=message) as error:
    data.load(config('tfds:gsm8k'), str(tmp_path))
  assert '\n' not in str(error.value)
  assert len(asked_for) == 1


def test_a_package_that_preparing_needs_is_named(tmp_path, monkeypatch):
  def needs(self, manager):
    raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(gsm8k.Gsm8k, '_split_generators', needs)
  message = (
    "No module named 'tensorflow'.; install that, or run tfds build gsm8k --file"
  )
  with pytest.raises(OSError, match=message):
    data.load(config('tfds:gsm8k'), str(tmp_path))
