"""Runs Python with the compiler of hardware that is not there."""

import os
import subprocess
import sys


def with_gpu_compiler(*words: str) -> subprocess.CompletedProcess[str]:
  """Runs Python where JAX finds the compiler of GPUs; see scripts/environment."""
  folders = f'{sys.prefix}/gpu-compiler', os.environ.get('PYTHONPATH', '')
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(folders)}
  return subprocess.run(
    [sys.executable, *words],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
