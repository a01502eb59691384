"""Downloads checkpoints from the Hugging Face hub."""

import urllib.error
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from r1jax.hub import network, paths
from r1jax.hub.chat_template import HubError

REMOTE = 'hf://'
DOWNLOADED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code


def download(path: str, flag: str = 'model.path') -> Path:
  """Returns the folder of a checkpoint; downloads `hf://owner/name` first.

  If the hub does not answer, an earlier download is used.

  Raises:
    HubError: the download failed.
    ValueError: the path has another scheme.
  """
  if not path.startswith(REMOTE):
    return paths.local(flag, path)
  constants = huggingface_hub.constants
  offline, problem = constants.HF_HUB_OFFLINE, ''
  try:
    if not offline and (problem := _connection_problem(constants.ENDPOINT)):
      constants.HF_HUB_OFFLINE = True  # or the library would retry
    name = path.removeprefix(REMOTE)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=DOWNLOADED))
  except Exception as error:  # from the library, from its HTTP client, from the system
    reason = f'{type(error).__name__}: {network.reason(error)}'
    if problem and isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
      reason = f'{constants.ENDPOINT}: {problem}'
    raise HubError(
      f'{flag}: {path} is not on this machine and could not be downloaded ({reason}); '
      'give the folder of a checkpoint instead'
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
