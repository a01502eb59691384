"""Downloads checkpoints from the Hugging Face hub."""

import urllib.error
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from r1jax.hub import network, paths
from r1jax.hub.chat_template import HubError

REMOTE = 'hf://'
FETCHED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code


def download(path: str, flag: str = 'model.path') -> Path:
  """Returns the folder that a path names; `hf://owner/name` is fetched there first.

  Where the hub does not answer, what has been fetched before is used as it is.

  Raises:
    HubError: it could not be fetched.
    ValueError: the path has another scheme.
  """
  if not path.startswith(REMOTE):
    return paths.local(flag, path)
  constants = huggingface_hub.constants
  offline, silent = constants.HF_HUB_OFFLINE, ''
  try:
    if not offline and (silent := _no_answer(constants.ENDPOINT)):
      constants.HF_HUB_OFFLINE = True  # it would ask again and again
    name = path.removeprefix(REMOTE)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=FETCHED))
  except Exception as error:  # of its own, of requests, of the system
    reason = f'{type(error).__name__}: {network.reason(error)}'
    if silent and isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
      reason = f'{constants.ENDPOINT}: {silent}'
    raise HubError(
      f'{flag}: {path} is not on this machine and could not be fetched ({reason}); '
      'give the folder of a checkpoint instead'
    ) from error
  finally:
    constants.HF_HUB_OFFLINE = offline


def _no_answer(url: str) -> str:
  """Why a host does not answer, or nothing if it does, be it with a refusal."""
  try:
    network.check(url)
  except OSError as error:
    refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
    return '' if refused else network.reason(error)
  return ''
