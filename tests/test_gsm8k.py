"""Answers to GSM8K as numbers, and the data set on disk in any format."""

import json
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import strategies
from tensorboardX.record_writer import RecordWriter
from tensorflow_datasets.proto import tf_example_pb2
from tensorflow_datasets.text.gsm8k import gsm8k as tfds_gsm8k

from r1jax.hub import network
from r1jax.tasks import Problem, gsm8k, store
from r1jax.tasks.gsm8k import GSM8KConfig

NUMBERS = {
  **dict.fromkeys(('.5', '$.5', '0.5', '0.50'), Fraction(1, 2)),
  **dict.fromkeys(('-.5', '-$.5', '$-.5'), Fraction(-1, 2)),
  **dict.fromkeys(('-$5', '$-5', '$ -5', '- 5', '\u22125', '\u2212$5'), -5),
  **dict.fromkeys(
    ('-\\$5', '$-\\$5$', '\\boxed{-5}', '-\\boxed{5}', '-(5)', 'x=-5'), -5
  ),
  **dict.fromkeys(
    ('minus 5', 'negative $5', '-US$5', 'USD -5', '-€5', '-5 apples'), -5
  ),
  **dict.fromkeys(
    ('1,234', '1{,}234', '1\\,234', '1,\\!234', '1 234', '\\$1,234'), 1234
  ),
  **dict.fromkeys(
    ('1\u202f234', '1\u00a0234', '1\u2009234', '$1234.00', '1234.'), 1234
  ),
  **dict.fromkeys(('\\text{1{,}234 apples}', '**1,234**', '1 234 apples'), 1234),
  **dict.fromkeys(('50%', '50\\%', '+50', '(50)', 'Rs.50', '50 m²', '050'), 50),
  **dict.fromkeys(('5 thousand', '5k', '$5 thousand', '5,000'), 5000),
  **dict.fromkeys(('-C$5', '-HK$5', '-AUD 5', '-R$ 5', 'CHF -5', '-A\\$5'), -5),
  **dict.fromkeys(('5 m^2', '5 \\text{cm}^2', '5 ft^{3}', '5 \\mathrm{km^2}'), 5),
  **dict.fromkeys(('1,00,000', 'Rs. 1,00,000', '100,000', '100 thousand'), 10**5),
  **dict.fromkeys(('5 hundred', '500'), 500),
  **dict.fromkeys(('1.5 million', '$1.5$ million'), 1_500_000),
  **dict.fromkeys(('5 km', '5.', '5!'), 5),
}
# Calculations, fractions, other digits, or several numbers.
NONE = (
  *('1/2', '3 1/2', '\\frac12', '\\dfrac{1}{2}', '½', '2½', '2 ½', '5²', '2^{3}', '√3'),
  *('x^2', '5^2', '1,23,45'),
  *('\\sqrt{3}', '±5', '--5', '1e3', '0x48', '5５', '１０００', '٣', '1.2.3', '1,2345'),
  *(
    '1234 567',
    '1,234 567',
    '1.234,50',
    '12 34',
    '10-12',
    '71+1',
    'none',
    '',
    '.',
    '-',
  ),
)


def counts(truth, answer):
  row = {'question': 'How much?', 'short_answer': truth}
  return gsm8k.verify(gsm8k.problem('test-0', row), answer)


@pytest.mark.parametrize(('answer', 'value'), NUMBERS.items())
def test_an_answer_is_read_with_its_sign_point_and_thousands(answer, value):
  assert gsm8k.answer_key(answer) == value
  assert counts(str(float(value)), answer)
  assert not counts(str(float(-value)), answer)
  assert gsm8k.answer_key(answer.replace('-', '\u2212')) == value  # a minus sign


@pytest.mark.parametrize('answer', NONE)
def test_other_than_one_number_is_none(answer):
  assert gsm8k.answer_key(answer) is None
  assert not counts('5', answer)


@hypothesis.given(strategies.text(max_size=60))
def test_no_text_raises(answer):
  gsm8k.answer_key(answer)


@hypothesis.given(strategies.integers(-(10**12), 10**12))
def test_whole_numbers_are_read_in_all_their_forms(n):
  sign = '-' if n < 0 else ''
  for form in (str(n), f'{n:,}', f'{sign}${abs(n):,}.00', f'{n:,}'.replace(',', '{,}')):
    assert gsm8k.answer_key(form) == n


@pytest.fixture
def prepare(monkeypatch):
  """A function that prepares a set of two problems a split in a file format."""

  def prepare(place, form='array_record'):
    rows = place / 'rows.jsonl'
    answers = ('so\n#### 1,234', 'thus\n#### -5')
    lines = [json.dumps({'question': 'How much?', 'answer': a}) for a in answers]
    rows.write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(
      tfds_gsm8k.Gsm8k,
      '_split_generators',
      lambda self, _: {s: self._generate_examples(rows) for s in ('train', 'test')},
    )
    data = place / 'data'
    builder = tfds_gsm8k.Gsm8k(data_dir=str(data), file_format=form)
    builder.download_and_prepare()
    return data / 'gsm8k' / '1.0.0'

  return prepare


def load(folder):
  return gsm8k.load(GSM8KConfig(), 'test', str(folder.parents[1]))


def truths(problems):
  return sorted(problem.truth['answer'] for problem in problems)


def as_tfrecord(folder):
  """Makes TFRecords of array_records, as `tfds.load('gsm8k')` prepares them."""
  info = folder / 'dataset_info.json'
  for file in folder.glob('*-test.array_record*'):
    writer = RecordWriter(str(file).replace('array_record', 'tfrecord'))
    for answer in ('1,234', '-5'):
      example = tf_example_pb2.Example()
      for name in ('question', 'answer', 'annotation', 'short_answer'):
        text = answer if name == 'short_answer' else name
        example.features.feature[name].bytes_list.value.append(text.encode())
      writer.write(example.SerializeToString())
    writer.close()
  for file in folder.glob('*.array_record*'):
    file.unlink()
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))


@pytest.mark.parametrize('form', ['array_record', 'parquet'])
def test_a_prepared_set_is_read_in_its_own_format(form, tmp_path, prepare, capfd):
  found = load(prepare(tmp_path, form))
  assert truths(found) == ['-5', '1,234']
  assert found[0].question == 'How much?'
  capfd.readouterr()
  assert load(tmp_path / 'data' / 'gsm8k' / '1.0.0') == found
  assert capfd.readouterr().out == ''


def test_tfrecords_are_read_without_tensorflow_and_checked(tmp_path, prepare):
  folder = prepare(tmp_path)
  as_tfrecord(folder)
  assert truths(load(folder)) == ['-5', '1,234']
  (file,) = folder.glob('*-test.tfrecord*')
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(OSError, match=r'1\.0\.0 cannot be used .*another --data-dir'):
    load(folder)


def test_an_unsupported_format_is_named(tmp_path, prepare):
  folder = prepare(tmp_path)
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'riegeli'))
  with pytest.raises(OSError, match=r'parquet or tfrecord files, got riegeli.*--data-'):
    load(folder)


@pytest.mark.parametrize('harm', ['cut', 'gone', 'no info', 'damaged info', 'empty'])
def test_an_incomplete_set_is_named(harm, tmp_path, prepare):
  folder = prepare(tmp_path)
  (file,) = folder.glob('*-test.array_record*')
  info = folder / 'dataset_info.json'
  if harm == 'cut':
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  elif harm == 'gone':
    file.unlink()
  elif harm == 'damaged info':
    info.write_text('{')
  else:
    info.unlink()
  if harm == 'empty':
    for left in folder.iterdir():
      left.unlink()
  with pytest.raises(OSError, match=r'gsm8k in .*1\.0\.0 cannot be used') as error:
    load(folder)
  assert 'delete that folder and start again' in str(error.value)
  assert '\n' not in str(error.value)


def test_another_version_of_the_set_is_left_alone(tmp_path, prepare):
  folder = prepare(tmp_path)
  other = folder.with_name('0.9.0')
  folder.rename(other)
  (other / 'dataset_info.json').write_text('{')
  assert truths(load(folder)) == ['-5', '1,234']
  assert other.exists()


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'data_dir: cannot create .*file/gsm8k .*--data-d'):
    gsm8k.load(GSM8KConfig(), 'test', str(tmp_path / 'file'))


def test_a_bucket_is_refused_and_no_folder_is_made(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for task in ('gsm8k', 'arithmetic'):
    config = store.tasks.module(task).SETTINGS()
    with pytest.raises(ValueError, match=r'data_dir: expected a path on this machine'):
      store.load(task, config, 'test', 'gs://bucket/data')
  assert not list(tmp_path.iterdir())


def test_without_network_the_host_is_tried_once(tmp_path, monkeypatch):
  asked = []

  def refuse(url):
    asked.append(url)
    raise OSError(-2, 'Name or service not known')

  monkeypatch.setattr(network, 'check', refuse)
  with pytest.raises(
    OSError, match=r'downloaded .Name or service not known.; run the same .*--data-dir'
  ) as error:
    gsm8k.load(GSM8KConfig(), 'test', str(tmp_path))
  assert len(asked) == 1
  assert asked[0].startswith('https://')
  assert 'https://github.com/openai/grade-school-math' in str(error.value)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'gsm8k' / '1.0.0').exists()


def test_problems_are_plain_data():
  row = {'question': ' How many? ', 'short_answer': ' 1,234'}
  expected = Problem('t-0', 'gsm8k', 'How many?', {'answer': '1,234'}, 'latin')
  assert gsm8k.problem('t-0', row) == expected
