"""Data files as a task: four formats, their faults, and how they are split."""

import hashlib
import json

import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from r1jax import tasks
from r1jax.hub import download
from r1jax.hub.chat_template import HubError
from r1jax.tasks import data
from r1jax.tasks import rows as rows_of
from r1jax.tasks.data import DataConfig

ROWS = [{'question': f'What is {n}+{n}?', 'answer': str(2 * n)} for n in range(60)]


def accepts_nothing(answer: str, truth: str) -> bool:
  """A verifier that finds no answer right."""
  return False


def fails(answer: str, truth: str) -> bool:
  """A verifier that raises."""
  raise KeyError(answer)


def jsonl(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)


def as_json(path, rows):
  path.write_text(json.dumps(rows))


def as_csv(path, rows):
  lines = [f'"{row["question"]}","{row["answer"]}"' for row in rows]
  path.write_text('\n'.join(['question,answer', *lines]), encoding='utf-8-sig')


def as_parquet(path, rows):
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def asked(problems):
  return {(p.question, p.truth['answer']) for p in problems}


@pytest.mark.parametrize(
  ('suffix', 'write'),
  [('jsonl', jsonl), ('json', as_json), ('csv', as_csv), ('parquet', as_parquet)],
)
def test_each_format_gives_the_same_problems(tmp_path, suffix, write):
  write(path := tmp_path / f'mine.{suffix}', ROWS)
  files = data.load(DataConfig(str(path)))
  expected = {(row['question'], row['answer']) for row in ROWS}
  train, validation = asked(files.train), asked(files.validation)
  assert train | validation == expected
  assert not train & validation
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert files.digests == {str(path): digest}


def test_about_15_percent_of_the_questions_are_held_out_by_their_hash(tmp_path):
  rows = [{'question': f'{n}?', 'answer': n} for n in range(1000)]
  first = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows)))
  # Three standard deviations of a binomial distribution: 3 x sqrt(1000 x .15 x .85).
  assert abs(len(first.validation) - 150) < 34
  # A question stays in its split, wherever it stands and however it is spaced.
  spaced = [{**row, 'question': f' {row["question"]}\n'} for row in rows[500:]]
  other = data.load(DataConfig(jsonl(tmp_path / 'b.jsonl', spaced)))
  assert asked(other.validation) <= asked(first.validation)


def test_questions_of_the_held_out_file_are_left_out_of_training(tmp_path):
  own = jsonl(tmp_path / 'train.jsonl', ROWS)
  same = [{'question': 'what is  7+7?', 'answer': '14'}, *ROWS[:2]]
  held_out = jsonl(tmp_path / 'test.jsonl', same)
  files = data.load(DataConfig(own, held_out=held_out))
  assert len(files.train) == 57
  assert len(files.validation) == 3
  assert files.remarks == (
    '3 of 60 questions of train.jsonl are in test.jsonl too; they are left out of '
    'training.',
  )
  assert set(files.digests) == {own, held_out}


def test_gsm8k_s_answer_is_what_follows_its_mark(tmp_path):
  solution = 'He has 2+3 = <<2+3=5>>5.\n#### 1,080'
  rows = [{**row, 'answer': solution} for row in ROWS]
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows), verify='number'))
  assert {p.truth['answer'] for p in files.train} == {'1,080'}
  assert tasks.verify(files.train[0], '1080')


def test_fields_may_lie_within_objects_and_lists(tmp_path):
  rows = [
    {'chat': [{'content': row['question']}], 'a.b': row['answer']} for row in ROWS
  ]
  config = DataConfig(
    jsonl(tmp_path / 'a.jsonl', rows), question='chat.0.content', answer='a.b', limit=9
  )
  files = data.load(config)
  assert asked(files.train) < {(row['question'], row['answer']) for row in ROWS}
  assert len(files.train) == 9


SYSTEM = {'role': 'system', 'content': 'Be brief.'}
ASKED = {'role': 'user', 'content': 'What is 1+1?'}
SAID = {'role': 'assistant', 'content': '2'}
AGAIN = {'role': 'user', 'content': ' And 2+2? '}


@pytest.mark.parametrize(
  ('suffix', 'write'), [('jsonl', jsonl), ('parquet', as_parquet)]
)
def test_a_question_may_be_a_conversation(tmp_path, suffix, write):
  def messages(n):
    return [SYSTEM, ASKED, {**SAID, 'name': 'me'}, {**AGAIN, 'content': f' And {n}? '}]

  rows = [{'prompt': messages(n), 'answer': n} for n in range(40)]
  write(path := tmp_path / f'mine.{suffix}', rows)
  files = data.load(DataConfig(str(path), question='prompt'))
  problems = {p.truth['answer']: p for p in (*files.train, *files.validation)}
  assert len(problems) == 40
  last = {'role': 'user', 'content': 'And 7?'}
  assert problems['7'].question == (SYSTEM, ASKED, SAID, last)
  assert problems['7'].text == 'Be brief.\nWhat is 1+1?\n2\nAnd 7?'


def test_a_single_message_of_the_user_is_a_text(tmp_path):
  rows = [
    {'prompt': [{'role': 'user', 'content': f'{n}?'}], 'answer': n} for n in range(40)
  ]
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows), question='prompt'))
  assert {p.question for p in (*files.train, *files.validation)} == {
    f'{n}?' for n in range(40)
  }


@pytest.mark.parametrize(
  ('messages', 'fault'),
  [
    ([], "has none as the last message of 'prompt', not one of the user"),
    ([ASKED, SAID], 'has one of the assistant as the last message'),
    (
      [ASKED, SYSTEM, ASKED],
      "has the role 'system' in message 2 of 'prompt', not user",
    ),
    ([{**ASKED, 'role': 'human'}], "has the role 'human' in message 1"),
    ([SYSTEM, {'role': 'user'}], 'has no object with role and content as message 2'),
    (['What is 1+1?'], 'has no object with role and content as message 1'),
    ([{**ASKED, 'content': ''}], 'has no text as the content of message 1'),
    ([{**ASKED, 'content': [{'type': 'text'}]}], 'has no text as the content'),
  ],
)
def test_a_wrong_message_is_named(tmp_path, messages, fault):
  rows = [{'prompt': [ASKED], 'answer': 2}, {'prompt': messages, 'answer': 4}]
  path = jsonl(tmp_path / 'mine.jsonl', rows)
  with pytest.raises(ValueError, match=f'line 2 {fault}'):
    data.load(DataConfig(path, question='prompt'))


def test_a_text_may_have_fields_in_it(tmp_path):
  rows = [{'a': {'b': 1.0}, 'c': ['x', n], 'answer': n} for n in range(40)]
  path = jsonl(tmp_path / 'a.jsonl', rows)
  files = data.load(DataConfig(path, question=' {c} {}\\of {a.b}: {c.0} '))
  problems = {p.id: p.question for p in (*files.train, *files.validation)}
  assert problems['a.jsonl:4'] == 'x, 3 {}\\of 1: x'
  for name, fault in (
    ('{c} {d}', "line 1 has no field 'd' .it has a, c, answer; set --data.question"),
    ('{c} {a}', "line 1 has neither text nor a number in the field '{c} {a}'"),
  ):
    with pytest.raises(ValueError, match=fault):
      data.load(DataConfig(path, question=name))


def test_of_a_parquet_file_only_the_needed_columns_are_read(tmp_path):
  row = {'question': '1?', 'a.b': '2', 'a': {'b': '3'}, 'long': 'x'}
  as_parquet(path := tmp_path / 'a.parquet', [row])
  for fields, expected in (
    (('question', 'a.b'), {'question': '1?', 'a.b': '2'}),
    (('a.c',), {'a': {'b': '3'}}),
    (('no', 'question'), row),
  ):
    assert rows_of.read('data.path', path, fields) == [(1, expected)]


def test_wrong_rows_are_left_out_if_that_is_asked_for(tmp_path):
  rows = [*ROWS, {'question': '?'}, {'question': 'Who?', 'answer': 'Evelyn'}, [1]]
  path = jsonl(tmp_path / 'a.jsonl', rows)
  for shown in (path, 'with --data.skip-wrong True'):
    with pytest.raises(ValueError, match=shown):
      data.load(DataConfig(path, verify='number'))
  files = data.load(DataConfig(path, verify='number', skip_wrong=True))
  assert len(files.train) + len(files.validation) == 60
  (remark,) = files.remarks
  assert remark == (
    "3 of 63 rows of a.jsonl are wrong and left out: line 61 has no field 'answer' (it "
    'has question; set --data.answer); line 63 is no object but list; a.jsonl:62 '
    "'Evelyn' is no answer for number."
  )
  path = jsonl(tmp_path / 'b.jsonl', rows[60:])
  with pytest.raises(
    ValueError, match=r'for training among the 0 different ones of .*b'
  ):
    data.load(DataConfig(path, verify='number', skip_wrong=True))


def test_a_number_may_be_an_answer(tmp_path):
  rows = [{'question': f'{n}?', 'answer': 27.0} for n in range(40)]
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows), verify='exact'))
  assert tasks.verify(files.train[0], '27')


def test_a_whole_number_beyond_all_floats_is_an_answer(tmp_path):
  rows = [{'question': f'{n}?', 'answer': 10**400} for n in range(40)]
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows), verify='exact'))
  assert tasks.verify(files.train[0], '1' + 400 * '0')


def test_the_verifier_of_the_config_checks_answers(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', ROWS)
  by_math, exactly = (
    data.load(DataConfig(path, verify=name)).train[-1] for name in ('math', 'exact')
  )
  truth = by_math.truth['answer']
  assert tasks.verify(by_math, f'{truth}.0')
  assert not tasks.verify(exactly, f'{truth}.0')
  assert tasks.answer_key(by_math, f'{truth} ') == tasks.answer_key(by_math, truth)


@pytest.mark.parametrize(
  ('row', 'fault'),
  [
    ([1], 'line 61 is no object but list'),
    ({'q': '1'}, "line 61 has no field 'question' .it has q; set --data.question."),
    ({'question': '1'}, "line 61 has no field 'answer'"),
    ({'question': '1', 'answer': ' '}, "line 61 has an empty field 'answer'"),
    (
      {'question': '1', 'answer': [2]},
      'neither text nor a number in the field .answer',
    ),
    ({'question': '1', 'answer': True}, 'neither text nor a number in the field .answ'),
    ({'question': '1', 'answer': None}, 'neither text nor a number in the field .answ'),
  ],
)
def test_a_wrong_row_is_named_by_file_line_and_field(tmp_path, row, fault):
  path = jsonl(tmp_path / 'a.jsonl', [*ROWS, row])
  with pytest.raises(ValueError, match=rf'data.path: 1 of 61 rows of {path} .*{fault}'):
    data.load(DataConfig(path))


def test_only_the_first_wrong_rows_are_described(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', [{}] * 9)
  with pytest.raises(
    ValueError, match=r'9 of 9 rows .*; line 3 .*; and 6 more; correct'
  ):
    data.load(DataConfig(path))


@pytest.mark.parametrize(
  ('name', 'content', 'fault'),
  [
    ('a.jsonl', '{"question": "1"}\n{', r'line 2 is no JSON'),
    ('a.json', '{"rows": []}', 'expected a list of rows, got dict'),
    ('a.csv', 'question,answer\n1,2,3\n', 'line 2 has 3 columns, the first line 2'),
    ('a.parquet', 'PAR1', 'cannot be parsed'),
    ('a.csv', 'question,answer,answer\n1,2,3\n', "first line has .* 'answer' twice"),
    ('a.jsonl', '[' * 10**5, 'maximum recursion depth'),
    ('a.jsonl', '{"question": "\\ud800", "answer": "1"}', 'neither text nor a number'),
    ('a.jsonl', '\n', 'has no rows'),
    ('a.txt', '', 'expected a file that ends in .jsonl, .json, .csv, .parquet'),
  ],
)
def test_a_file_that_cannot_be_parsed_is_named(tmp_path, name, content, fault):
  (tmp_path / name).write_text(content)
  with pytest.raises(
    ValueError, match=rf'data.path: .*{name}.*{fault}|{fault}.*{name}'
  ):
    data.load(DataConfig(str(tmp_path / name)))


def test_a_missing_file_and_other_bytes_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'no.jsonl cannot be read .No such file'):
    data.load(DataConfig(str(tmp_path / 'no.jsonl')))
  (tmp_path / 'a.csv').write_bytes(b'question,answer\n\xff,1')
  with pytest.raises(
    ValueError, match=r'a.csv is not text in UTF-8 .byte 16.; convert'
  ):
    data.load(DataConfig(str(tmp_path / 'a.csv')))


def test_truths_that_their_verifier_rejects_are_listed(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', [*ROWS, {'question': 'Who?', 'answer': 'Evelyn'}])
  message = r"verifier number rejects .* 1 of 61 rows .*: a.jsonl:61 'Evelyn'; correct"
  with pytest.raises(ValueError, match=message):
    data.load(DataConfig(path, verify='number'))
  with pytest.raises(
    ValueError, match=r'61 of 61 rows .*; and 58 more; .*--data.verify'
  ):
    data.load(DataConfig(path, verify=f'{__name__}:accepts_nothing'))
  with pytest.raises(ValueError, match=r"a.jsonl:1 '0' \(KeyError: '0'\)"):
    data.load(DataConfig(path, verify=f'{__name__}:fails'))


def test_too_few_rows_to_hold_some_out_are_refused(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', ROWS[:1])
  with pytest.raises(ValueError, match=r'expected .* for .* among the 1 different'):
    data.load(DataConfig(path))
  with pytest.raises(ValueError, match=r'for training .* or others than those of --d'):
    data.load(DataConfig(path, held_out=path))
  path = jsonl(tmp_path / 'b.jsonl', ROWS[:1] * 30)
  with pytest.raises(ValueError, match=r'expected .* for .* among the 1 different'):
    data.load(DataConfig(path))


def test_repeated_questions_are_counted_and_other_answers_named(tmp_path):
  rows = [*ROWS, ROWS[4], {'question': 'what is  4+4?', 'answer': '9'}]
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', rows)))
  assert files.remarks == (
    '2 of 62 rows of a.jsonl repeat a question, 1 of them with another answer: '
    'a.jsonl:5 and a.jsonl:62.',
  )
  other = jsonl(tmp_path / 'b.jsonl', [{'question': 'x?', 'answer': 1.5}] * 2)
  files = data.load(DataConfig(jsonl(tmp_path / 'a.jsonl', ROWS), held_out=other))
  assert files.remarks == ('1 of 2 rows of b.jsonl repeat a question.',)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'verify': 'maths'}, 'data.verify: expected one of'),
    ({'limit': -1}, 'data.limit: expected 0 or more'),
    ({'held_out': 'a.jsonl'}, 'data.held_out: expected --data as well'),
    ({'held_out_split': 'test'}, 'data.held_out: expected --data as well'),
    ({'path': 'a.csv', 'split': 'x'}, 'data.split: expected a data set .* file a.csv'),
    (
      {'path': 'hf://datasets/o/n/a.csv', 'held_out_split': 'test'},
      r'data.held_out_split: expected .* got the file hf://datasets/o/n/a.csv',
    ),
    (
      {'path': 'tfds:a', 'held_out': 'b.csv', 'held_out_split': 'test'},
      'data.held_out_split: expected a data set .*, got the file b.csv',
    ),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**settings)


def test_a_file_of_the_hub_is_fetched(tmp_path, monkeypatch):
  path = jsonl(tmp_path / 'train.jsonl', ROWS)
  monkeypatch.setattr(download, '_connection_problem', lambda url: '')
  monkeypatch.setattr(
    huggingface_hub,
    'hf_hub_download',
    lambda name, file, repo_type: {('o/n', 'a/train.jsonl', 'dataset'): path}[
      name, file, repo_type
    ],
  )
  files = data.load(DataConfig('hf://datasets/o/n/a/train.jsonl'))
  assert len(files.train) + len(files.validation) == 60
  assert list(files.digests) == ['hf://datasets/o/n/a/train.jsonl']
  with pytest.raises(
    ValueError, match=r'data.path: expected hf://datasets/owner/name/f'
  ):
    data.load(DataConfig('hf://o/n/a.jsonl'))
  with pytest.raises(HubError, match=r'o/n/b.json is not on this machine .*KeyError'):
    data.load(DataConfig('hf://datasets/o/n/b.json'))
