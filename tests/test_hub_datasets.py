"""Data sets of the hub by name: which files of a split, from a hub of our own."""

import hashlib
import http.server
import json
import threading
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from test_data_files import ROWS, as_parquet, asked, jsonl

from r1jax.hub import dataset_files
from r1jax.hub.chat_template import HubError
from r1jax.tasks import data
from r1jax.tasks.data import DataConfig

CONFIGS = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-0*, main/more.jsonl]
- config_name: other
  data_files: other/*.csv
---
# A set
"""
COMMIT = 40 * 'a'


class Hub(http.server.ThreadingHTTPServer):
  """The parts of the hub's API that its library asks for; one data set, o/n."""

  def __init__(self, folder):
    super().__init__(('localhost', 0), Answer)
    self.folder, self.asked = folder, []
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
  server: Hub

  def do_GET(self):
    path = urlsplit(self.path).path
    self.server.asked.append(path)
    folder, start = self.server.folder, '/api/datasets/o/n'
    files = sorted(x for x in folder.rglob('*') if x.is_file())
    if path == f'{start}/revision/main':
      return self.answer(json.dumps({'id': 'o/n', 'sha': COMMIT}).encode())
    if path == f'{start}/tree/{COMMIT}':
      entries = [
        {
          'type': 'file',
          'path': str(file.relative_to(folder)),
          'size': file.stat().st_size,
          'oid': hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in files
      ]
      return self.answer(json.dumps(entries).encode())
    file = folder / path.removeprefix(f'/datasets/o/n/resolve/{COMMIT}/')
    if path == '/' or not file.is_file():
      return self.send_error(200 if path == '/' else 404)
    return self.answer(file.read_bytes())

  def do_HEAD(self):
    self.do_GET()

  def answer(self, content):
    self.send_response(200)
    self.send_header('Content-Length', str(len(content)))
    self.send_header('ETag', hashlib.sha1(content).hexdigest())
    self.send_header('X-Repo-Commit', COMMIT)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(content)

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub with a data set in a folder, and a cache of its own."""
  with Hub(tmp_path / 'set') as server:
    server.folder.mkdir()
    constants, url = huggingface_hub.constants, f'http://localhost:{server.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split('/{repo_id}')[1]
    monkeypatch.setattr(
      constants, 'HUGGINGFACE_CO_URL_TEMPLATE', f'{url}/{{repo_id}}{template}'
    )
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    yield server
    server.shutdown()


def downloaded(hub):
  """The files whose content was asked for."""
  start = f'/datasets/o/n/resolve/{COMMIT}/'
  return {path.removeprefix(start) for path in hub.asked if path.startswith(start)}


def put(hub, name, rows):
  (hub.folder / name).parent.mkdir(parents=True, exist_ok=True)
  (as_parquet if name.endswith('.parquet') else jsonl)(hub.folder / name, rows)


def test_the_files_of_a_split_are_read_in_order_and_no_others(hub):
  (hub.folder / 'README.md').write_text(CONFIGS)
  put(hub, 'main/train-00000-of-00002.parquet', ROWS[:20])
  put(hub, 'main/train-00001-of-00002.parquet', ROWS[20:40])
  put(hub, 'main/test-00000-of-00001.parquet', ROWS[40:])
  put(hub, 'main/unused-00000.parquet', ROWS)
  path = 'hf://datasets/o/n/main'
  files = data.load(DataConfig(path, held_out_split='test'))
  assert [p.question for p in files.train] == [row['question'] for row in ROWS[:40]]
  assert asked(files.validation) == {(r['question'], r['answer']) for r in ROWS[40:]}
  names = [
    f'main/{x}.parquet' for x in ('train-00000-of-00002', 'train-00001-of-00002')
  ]
  names.append('main/test-00000-of-00001.parquet')
  assert downloaded(hub) == {'README.md', *names}
  assert files.digests == {
    f'hf://datasets/o/n/{name}': hashlib.sha256(
      (hub.folder / name).read_bytes()
    ).hexdigest()
    for name in names
  }
  assert len({p.id for p in (*files.train, *files.validation)}) == 60


def test_files_of_one_name_have_rows_of_other_names(hub):
  put(hub, 'train/0.jsonl', ROWS[:30])
  put(hub, 'test/0.jsonl', ROWS[30:])
  files = data.load(DataConfig('hf://datasets/o/n', held_out_split='test'))
  assert len({p.id for p in (*files.train, *files.validation)}) == 60


def test_both_questions_to_the_hub_are_about_one_commit(hub):
  put(hub, 'train.jsonl', ROWS)
  data.load(DataConfig('hf://datasets/o/n'))
  assert hub.asked.count('/api/datasets/o/n/revision/main') == 1


def test_a_card_of_another_form_is_named(hub):
  put(hub, 'train.jsonl', ROWS)
  (hub.folder / 'README.md').write_text('---\nconfigs:\n- main\n---\n')
  with pytest.raises(ValueError, match=r'n: its README.md lists the configs in an unk'):
    data.load(DataConfig('hf://datasets/o/n'))


def test_an_earlier_download_is_used_and_a_part_of_one_refused(hub):
  put(hub, 'train.jsonl', ROWS)
  put(hub, 'test.jsonl', ROWS)
  config = DataConfig('hf://datasets/o/n')
  first = data.load(config)
  hub.shutdown()
  hub.server_close()
  assert data.load(config) == first
  message = r'data.path: hf://datasets/o/n is not on this machine .*Connection refused'
  with pytest.raises(HubError, match=message) as error:
    data.load(DataConfig('hf://datasets/o/n', split='test'))
  assert '\n' not in str(error.value)


def test_a_set_that_is_not_there_is_a_sentence(hub):
  with pytest.raises(
    HubError, match=r'data.path: hf://datasets/o/m is not on this .*40'
  ):
    data.load(DataConfig('hf://datasets/o/m'))
  with pytest.raises(ValueError, match=r'data.path: expected hf://datasets/owner/name'):
    data.load(DataConfig('hf://datasets/o'))


GSM8K = [
  *('.gitattributes', 'README.md'),
  *(
    f'{config}/{split}-00000-of-00001.parquet'
    for config in ('main', 'socratic')
    for split in ('test', 'train')
  ),
]
DEFAULT = {
  'configs': [
    {
      'config_name': 'default',
      'data_files': [{'split': 'train', 'path': 'data/train-*'}],
    },
    {'config_name': 'all', 'data_dir': 'all'},
  ]
}


@pytest.mark.parametrize(
  ('names', 'card', 'config', 'split', 'expected'),
  [
    # HuggingFaceH4/MATH-500, agentica-org/DeepScaleR-Preview-Dataset
    (['README.md', 'test.jsonl'], {}, '', 'test', ['test.jsonl']),
    (['deepscaler.json', 'README.md'], {}, '', 'train', ['deepscaler.json']),
    (GSM8K, {}, 'main', 'train', [GSM8K[3]]),
    # A suffix is chosen, not a row twice; what describes a set has no rows.
    (['a/train.csv', 'a/train.jsonl'], {}, '', 'train', ['a/train.jsonl']),
    (['x.jsonl', 'y.jsonl', 'config.json'], {}, '', 'train', ['x.jsonl', 'y.jsonl']),
    (['retrain.csv', 'train_1.csv', 'trainer.csv'], {}, '', 'train', ['train_1.csv']),
    (['train/0.jsonl', 'test/0.jsonl'], {}, '', 'test', ['test/0.jsonl']),
    (
      ['data/train-0.jsonl', 'all/train-0.csv'],
      DEFAULT,
      '',
      'train',
      ['data/train-0.jsonl'],
    ),
    (
      ['data/train-0.jsonl', 'all/train-0.csv'],
      DEFAULT,
      'all',
      'train',
      ['all/train-0.csv'],
    ),
    (
      ['b.csv', 'a.csv'],
      {'configs': [{'data_files': ['b.csv', 'a.*']}]},
      '',
      'train',
      ['b.csv', 'a.csv'],
    ),
    (
      ['b.csv', 'c/a.csv'],
      {'configs': [{'data_files': {'test': '**/a.csv'}}]},
      '',
      'test',
      ['c/a.csv'],
    ),
    (
      ['en.csv', 'de.csv'],
      {
        'configs': [
          {'config_name': 'en', 'data_files': 'en.csv'},
          {'config_name': 'de', 'data_files': 'de.csv', 'default': True},
        ]
      },
      '',
      'train',
      ['de.csv'],
    ),
  ],
)
def test_the_card_or_the_names_say_which_files(names, card, config, split, expected):
  assert dataset_files.choose(names, card, config, split) == expected


@pytest.mark.parametrize(
  ('names', 'card', 'config', 'split', 'message'),
  [
    (
      ['set.py', 'x.zip'],
      {},
      '',
      'train',
      'expected Parquet, .* train, got set.py, x.zi',
    ),
    (
      ['train.jsonl'],
      {},
      '',
      'test',
      'of the split test, got train.jsonl; choose anoth',
    ),
    (GSM8K, {}, '', 'train', 'expected one of the folders main, socratic after its na'),
    (GSM8K, {}, 'basic', 'train', 'files of the split train, got .gitattributes, READ'),
    ([f'{n}.txt' for n in range(10)], {}, '', 'train', '0.txt, .*7.txt and 2 more; ch'),
    (GSM8K, DEFAULT, 'en', 'train', 'one of the configs default, all after its .* en'),
    (GSM8K, DEFAULT, '', 'dev', 'expected one of the splits train, got dev'),
    (
      GSM8K,
      {'configs': [{'config_name': 'a'}, {'config_name': 'b'}]},
      '',
      'train',
      'expected one of the configs a, b after its name, got none',
    ),
  ],
)
def test_what_is_missing_is_named(names, card, config, split, message):
  with pytest.raises(ValueError, match=message):
    dataset_files.choose(names, card, config, split)
