"""The files of a Hugging Face checkpoint, all but weights, made from a GGUF file."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from r1jax.hub import gguf_config, gguf_file, gguf_tokenizer


def texts(path: Path) -> Mapping[str, str]:
  """Returns config.json and the tokenizer's files of a GGUF file, by name.

  Raises:
    FamilyError, HubError, WeightsError: the file cannot be read, or has a model or a
      tokenizer that is not implemented.
  """
  status = path.stat()
  return _texts(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _texts(path: Path, time: int, size: int) -> Mapping[str, str]:
  """Returns the texts of a file that was written at this time."""
  file = gguf_file.read(path)
  config = json.dumps(gguf_config.read(file), indent=2) + '\n'
  return {'config.json': config, **gguf_tokenizer.read(file)}
