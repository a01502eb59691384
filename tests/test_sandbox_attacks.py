"""What programs may try in the sandbox: none reaches anything, and none is believed.

Each attack is harmless: it asks for what the sandbox must refuse, and prints `REACHED`
if it gets it. Afterwards the sandbox still works.
"""

import errno
import importlib
import json
import os
import socket
import sys
import textwrap

import pytest
from sandboxed import MISSING, needs_sandbox

from r1jax.sandbox import Limits, isolation
from r1jax.sandbox.pool import Sandbox

pytestmark = needs_sandbox
LIMITS = Limits(cpu=1, clock=60, memory=2**29, files=2**20)
DOUBLE = 'def double(x):\n  return 2 * x'


@pytest.fixture(scope='module')
def sandbox():
  with Sandbox(LIMITS, workers=2) as sandbox:
    yield sandbox
    assert sandbox.run('print(6 * 7)').stdout == '42\n'
    assert sandbox.judge(DOUBLE, ['assert double(21) == 42']).passed == (True,)


def reached(sandbox, code):
  """Whether an attack prints REACHED."""
  result = sandbox.run(textwrap.dedent(code))
  assert result.status in ('ok', 'error'), result
  return 'REACHED' in result.stdout


def is_refused(sandbox, expression):
  """Whether the system refuses the expression, which has no other error."""
  code = f"""
import os, socket, shutil
try:
  {expression}
except OSError:
  print('REFUSED')
else:
  print('REACHED')
"""
  result = sandbox.run(code)
  assert result.stdout in ('REFUSED\n', 'REACHED\n'), result
  return result.stdout == 'REFUSED\n'


FILES = (
  *('/etc/passwd', '/etc/shadow', '/etc/hosts', '/etc/resolv.conf', '/etc/hostname'),
  *('/proc/self/environ', '/proc/1/cmdline', '/proc/self/mem', '/proc/self/maps'),
  *('/proc/version', '/proc/meminfo', '/proc/kcore', '/proc/sys/kernel/hostname'),
  *('/sys/kernel/uevent_helper', '/sys/fs/cgroup/cgroup.procs', '/sys/power/state'),
  *('/dev/mem', '/dev/kmsg', '/dev/port', '/dev/sda', '/dev/vda', '/dev/kvm'),
  *('/dev/fuse', '/dev/net/tun', '/dev/loop-control', '/dev/tty', '/dev/console'),
  *('/dev/stdin', '/dev/fd/0', '/run/docker.sock', '/var/log/syslog', '/boot/grub'),
  *('/root/.bashrc', '/root/.ssh/id_rsa', '/root/.netrc', '/home', '/opt', '/srv'),
  *('/mnt', '/media', '/var', '/run', '/etc', '/proc', '/sys', '/usr/bin', '/bin/sh'),
  os.path.expanduser('~/.profile'),
  os.getcwd(),
  os.path.abspath(__file__),
  os.path.join(os.path.dirname(os.path.abspath(__file__)), 'test_sandbox.py'),
  *importlib.import_module('r1jax').__path__,
  sys.executable,
)


@pytest.mark.parametrize('path', FILES)
def test_files_of_the_machine_cannot_be_opened(sandbox, path):
  assert is_refused(sandbox, f'os.open({path!r}, os.O_RDONLY)')


def test_files_beside_the_sandbox_cannot_be_read(sandbox, tmp_path):
  secret = tmp_path / 'secret'
  secret.write_text('REACHED')
  for code in (
    f'print(open({str(secret)!r}).read())',
    f'import os; os.symlink({str(secret)!r}, "/tmp/s"); print(open("/tmp/s").read())',
    f'import os; os.link({str(secret)!r}, "/tmp/h"); print(open("/tmp/h").read())',
    f'import os; os.chdir("/" + "../" * 20); print(open({str(secret)!r}).read())',
    f'import shutil; print(open(shutil.copy({str(secret)!r}, "/tmp/c")).read())',
    f'import os; print(open(os.path.relpath({str(secret)!r})).read())',
    f'import glob\nfor x in glob.glob({str(tmp_path)!r} + "/*"): print(open(x).read())',
    'import os\nfor d, _, names in os.walk("/"):\n'
    '  for name in names:\n    if name == "secret": print("REACHED")',
  ):
    assert not reached(sandbox, code)


@pytest.mark.parametrize(
  'folder',
  [
    '/',
    '/dev',
    '/dev/shm',
    '/dev/pts',
    '/usr/lib',
    '/lib',
    '/packages',
    f'{sys.base_prefix}/lib',
  ],
)
def test_only_tmp_can_be_written(sandbox, folder):
  assert is_refused(sandbox, f'open({folder!r} + "/x", "w")')


@pytest.mark.parametrize(
  'expression',
  [
    'open("/inside.py", "a")',
    'os.remove("/inside.py")',
    'os.rename("/tmp", "/other")',
    'os.mkdir("/dev/shm/x")',
    'shutil.rmtree("/usr/lib")',
    'os.chmod("/inside.py", 0o777)',
    'os.chown("/tmp", 0, 0)',
    'os.mknod("/tmp/null", 0o20666, os.makedev(1, 3))',
    'os.truncate("/inside.py", 0)',
    'os.utime("/inside.py")',
    'os.setxattr("/inside.py", "user.x", b"x")',
  ],
)
def test_the_files_of_the_sandbox_cannot_be_changed(sandbox, expression):
  assert is_refused(sandbox, expression)


FAMILIES = [name for name in dir(socket) if name.startswith('AF_')]
KINDS = ('SOCK_STREAM', 'SOCK_DGRAM', 'SOCK_RAW')


@pytest.mark.parametrize('family', FAMILIES)
def test_there_are_no_sockets(sandbox, family):
  for kind in KINDS:
    words = f'socket.socket(socket.{family}, socket.{kind})'
    assert is_refused(sandbox, words)


@pytest.mark.parametrize(
  'expression',
  [
    'socket.create_connection(("1.1.1.1", 53), timeout=2)',
    'socket.create_connection(("localhost", 22), timeout=2)',
    'socket.create_server(("", 0))',
    'socket.gethostbyname("localhost")',
    'socket.getaddrinfo("example.org", 80)',
    '__import__("urllib.request").request.urlopen("http://1.1.1.1", timeout=2)',
    '__import__("asyncio").run(__import__("asyncio").open_connection("1.1.1.1", 80))',
    'socket.socketpair()[0].connect("/run/x")',
    'socket.if_nameindex()',
  ],
)
def test_there_is_no_network(sandbox, expression):
  assert is_refused(sandbox, expression)


@pytest.mark.parametrize(
  'expression',
  [
    'os.fork()',
    'os.forkpty()',
    'os.posix_spawn("/inside.py", ["x"], {})',
    'os.system("true") == 0 or [][1:] or open("/x")',
    'os.popen("true").read()',
    '__import__("subprocess").run(["/bin/true"])',
    '__import__("subprocess").Popen("true", shell=True)',
    '__import__("multiprocessing").Process(target=print).start()',
    '__import__("concurrent.futures").futures.ProcessPoolExecutor(1).submit(int).result()',
    '__import__("multiprocessing").get_context("fork").Process(target=print).start()',
    '__import__("_posixshmem").shm_open("/x", os.O_CREAT | os.O_RDWR, 0o600)',
    '__import__("pty").spawn("true")',
  ],
)
def test_there_are_no_other_processes(sandbox, expression):
  assert is_refused(sandbox, expression)


def test_processes_outside_are_not_seen(sandbox):
  code = f"""
  import os, signal
  for number in [{os.getpid()}, {os.getppid()}, *range(3, 400)]:
    if number != os.getpid():
      try:
        os.kill(number, 0)
        print('REACHED', number)
      except ProcessLookupError:
        pass
  """
  assert not reached(sandbox, code)


@pytest.mark.parametrize('number', ['1', '-1', 'os.getppid()', '0'])
def test_signals_end_the_program_alone(sandbox, number):
  sandbox.run(f'import os, signal; os.kill({number}, signal.SIGKILL)')
  assert sandbox.run('print(1)').stdout == '1\n'


def number_of(name):
  """The number of a system call on this machine; negative if it has none."""
  seccomp = importlib.import_module('pyseccomp')
  return seccomp.resolve_syscall(seccomp.system_arch(), name)


NAMES = () if MISSING else (*isolation.DENIED, 'clone3')
CALLS = {name: number_of(name) for name in NAMES}


@pytest.mark.parametrize('name', [name for name, n in CALLS.items() if n >= 0])
def test_system_calls_are_refused(sandbox, name):
  expected = errno.ENOSYS if name == 'clone3' else errno.EPERM
  code = f"""
  import ctypes
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.syscall({CALLS[name]}, 0, 0, 0, 0, 0, 0) != -1:
    print('REACHED')
  print(ctypes.get_errno())
  """
  result = sandbox.run(textwrap.dedent(code))
  assert result.stdout == f'{expected}\n'


@pytest.mark.parametrize('flags', [0, 17, 0x10000000, 0x40000000, 0x20000, 0x7E020000])
def test_clone_makes_threads_alone(sandbox, flags):
  number = number_of('clone')
  code = f"""
  import ctypes
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.syscall({number}, {flags}, 0, 0, 0, 0) != -1:
    print('REACHED')
  """
  assert not reached(sandbox, code)


@pytest.mark.parametrize(
  'expression',
  [
    'os.setuid(0)',
    'os.setgid(0)',
    'os.setgroups([0])',
    'os.seteuid(0)',
    'os.chroot("/tmp")',
    'os.nice(-5)',
    'os.setpriority(os.PRIO_PROCESS, 0, -5)',
    'socket.sethostname("x")',
    'os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))',
    '__import__("time").clock_settime(0, 0)',
    'os.setns(0) if hasattr(os, "setns") else open("/x")',
    'os.pidfd_open(os.getpid())',
    'os.memfd_create("x")',
    'os.ttyname(0)',
    'os.tcsetpgrp(0, 1)',
    'os.getlogin()',
  ],
)
def test_there_are_no_privileges(sandbox, expression):
  assert is_refused(sandbox, expression)


@pytest.mark.parametrize('kind', ['CPU', 'AS', 'FSIZE', 'NOFILE', 'CORE'])
def test_limits_cannot_be_raised(sandbox, kind):
  code = f"""
  import resource
  hard = resource.getrlimit(resource.RLIMIT_{kind})[1]
  for limit in (resource.RLIM_INFINITY, hard + 1):
    try:
      resource.setrlimit(resource.RLIMIT_{kind}, (limit, limit))
      print('REACHED')
    except (ValueError, OSError):
      pass
  """
  assert not reached(sandbox, code)


BOMBS = {
  'memory at once': '"x" * 2**40',
  'memory bit by bit': 'a = []\nwhile True: a.append(bytearray(2**20))',
  'memory of a map': 'import mmap\nm = [mmap.mmap(-1, 2**26) for _ in range(99)]',
  'a large number': '10**10**8',
  'a long text': 'a = "x"\nwhile True: a += a',
  'recursion': 'def f(): f()\nf()',
  'recursion in C': 'a = []\nfor _ in range(10**6): a = [a]\nprint(a)',
  'recursion of eval': 'eval("(" * 10**5)',
  'a regular expression': 'import re; re.match("(a+)+$", "a" * 40 + "b")',
  'an endless loop': 'while True: pass',
  'an endless loop that catches all': (
    'while True:\n  try:\n    while True: pass\n  except BaseException: pass'
  ),
  'threads': (
    'import threading\nwait = threading.Event().wait\n'
    'while True: threading.Thread(target=wait, daemon=True).start()'
  ),
  'threads that work': (
    'import threading\ndef f():\n  while True: pass\n'
    'for _ in range(8): threading.Thread(target=f).start()'
  ),
  'output': 'while True: print("x" * 10**5)',
  'errors': 'import sys\nwhile True: sys.stderr.write("x" * 10**5)',
  'output that is caught': (
    'while True:\n  try: print("x" * 10**5, flush=True)\n  except OSError: pass'
  ),
  'a sparse file': 'open("/tmp/x", "w").truncate(2**50)',
  'a sparse output': 'import os; os.ftruncate(1, 2**50)',
  'a large file': 'f = open("/tmp/x", "wb")\nwhile True: f.write(bytes(2**16))',
  'many files': 'for n in range(10**9): open(f"/tmp/{n}", "wb", 0).write(bytes(4096))',
  'many open files': 'f = []\nwhile True: f.append(open("/dev/null"))',
  'deep folders': 'import os\nwhile True: os.mkdir("d"); os.chdir("d")',
  'links': 'import os\nfor n in range(10**9): os.symlink("x" * 4000, f"/tmp/{n}")',
  'pipes': 'import os\np = []\nwhile True: p.append(os.pipe())',
  'a signal': 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)',
  'a null pointer': 'import ctypes; ctypes.string_at(0)',
  'stopping itself': (
    'import os, signal\nsignal.alarm(2)\nwhile True: signal.sigwait([signal.SIGUSR1])'
  ),
  'ignoring all signals': (
    'import signal\nfor number in set(signal.Signals) - {9, 19}:\n'
    '  signal.signal(number, signal.SIG_IGN)\nwhile True: pass'
  ),
  'no end': 'import atexit\ndef f():\n  while True: pass\natexit.register(f)',
  'a destructor': 'class A:\n  def __del__(self):\n    while True: pass\na = A()',
}


# What stops a bomb; processor time stops the others that do not stop by themselves.
STOPS = {
  'memory at once': 'MemoryError',
  'memory bit by bit': 'MemoryError',
  'memory of a map': 'Cannot allocate memory',
  'threads': "can't start new thread",
  'output': 'File too large',
  'a sparse file': 'File too large',
  'a sparse output': 'File too large',
  'a large file': 'File too large',
  'many files': 'No space left on device',
  'many open files': 'Too many open files',
  'pipes': 'Too many open files',
}


@pytest.mark.parametrize('name', BOMBS)
def test_bombs_end_within_their_limits(sandbox, name):
  result = sandbox.run(BOMBS[name])
  assert result.status in ('error', 'cpu')
  assert STOPS.get(name, '') in result.stderr
  assert max(len(result.stdout), len(result.stderr)) <= LIMITS.files


LEFT = {
  'a file': ('open("/tmp/x", "w").write("x")', 'os.listdir("/tmp")'),
  'a hidden folder': ('os.mkdir("/tmp/.x")', 'os.listdir("/tmp")'),
  'an environment': ('os.environ["X"] = "1"', '"X" in os.environ'),
  'a variable': ('builtins.x = 1', 'hasattr(builtins, "x")'),
  'a module': ('sys.modules["x"] = os', '"x" in sys.modules'),
  'a working directory': ('os.chdir("/usr")', 'os.getcwd() != "/tmp"'),
  'a mask': ('os.umask(0o777)', 'os.umask(0) == 0o777'),
  'open files': ('os.dup2(1, 50)', 'os.path.exists("/dev/fd/50")'),
}


@pytest.mark.parametrize('name', LEFT)
def test_the_next_program_finds_nothing(sandbox, name):
  before, after = LEFT[name]
  imports = 'import builtins, os, sys\n'
  for _ in range(4):  # whichever interpreter comes next
    assert not reached(sandbox, f'{imports}if {after}: print("REACHED")\n{before}')


def test_the_environment_is_empty(sandbox, monkeypatch):
  monkeypatch.setenv('R1JAX_SECRET', 'x')
  found = sandbox.run('import os; print(sorted(os.environ))').stdout
  assert found == "['LANG', 'OPENBLAS_NUM_THREADS', 'PWD']\n"


def test_no_descriptor_is_inherited(sandbox, tmp_path):
  with (tmp_path / 'secret').open('w') as file:
    os.set_inheritable(file.fileno(), True)
    code = """
    import os
    for n in range(3, 1024):
      try:
        print('REACHED', n, os.fstat(n))
      except OSError:
        pass
    """
    with Sandbox(LIMITS, workers=1) as fresh:
      assert not reached(fresh, code)


# Programs that are wrong, and want to be found right.
FORGERIES = {
  'exits early': 'import sys; sys.exit(0)',
  'exits early without handlers': 'import os; os._exit(0)',
  'exits in a call': 'def double(x):\n  import os; os._exit(0)',
  'raises SystemExit in a call': 'def double(x): raise SystemExit(0)',
  'raises an exit of generators': 'def double(x): raise GeneratorExit',
  'raises KeyboardInterrupt': 'def double(x): raise KeyboardInterrupt',
  'exits in a thread': (
    'import threading, os\nthreading.Timer(0.05, os._exit, [0]).start()\n'
    'def double(x): threading.Event().wait()'
  ),
  'an object equal to all': (
    'class A:\n  def __eq__(self, other): return True\n  __hash__ = None\n'
    'def double(x): return A()'
  ),
  'a number equal to all': (
    'class A(int):\n  def __eq__(self, other): return True\ndef double(x): return A(1)'
  ),
  'a float equal to all': (
    'class A(float):\n  def __eq__(self, o): return True\ndef double(x): return A(1)'
  ),
  'a complex equal to all': (
    'class A(complex):\n  def __eq__(self, o): return True\ndef double(x): return A(1)'
  ),
  'a text equal to all': (
    'class A(str):\n  def __eq__(self, o): return True\ndef double(x): return A("")'
  ),
  'a list equal to all': (
    'class A(list):\n  def __eq__(self, o): return True\ndef double(x): return A()'
  ),
  'a metaclass equal to all': (
    'class M(type):\n  def __eq__(self, o): return True\n'
    'class A(metaclass=M): pass\ndef double(x): return A'
  ),
  'a mock': 'from unittest import mock\ndef double(x): return mock.ANY',
  'another mock': 'from unittest import mock\ndouble = mock.MagicMock()',
  'a number by index': (
    'class A:\n  def __index__(self): return 42\n  def __int__(self): return 42\n'
    'def double(x): return A()'
  ),
  'not a number': 'def double(x): return float("nan")',
  'a coroutine': 'async def double(x): return 2 * x',
  'a generator': 'def double(x): yield 2 * x',
  'an argument': 'def double(x): return x',
  'nothing': 'def double(x): pass',
  'another assert': (
    'import builtins\nbuiltins.AssertionError = None\nAssertionError = None'
  ),
  'another build': (
    'import builtins\nfor name in ("compile", "exec", "eval", "print"):\n'
    '  setattr(builtins, name, lambda *a, **k: True)\ndef double(x): return 1'
  ),
  'tracing': (
    'import sys\ndef trace(*a): return trace\nsys.settrace(trace)\n'
    'sys.setprofile(trace)\ndef double(x): return 1'
  ),
  'a module of its own': (
    'import sys, types\nsys.modules["__main__"] = types.ModuleType("__main__")\n'
    'sys.modules["__main__"].double = lambda x: 42\ndef double(x): return 1'
  ),
  'patched JSON': (
    'import json\njson.dumps = lambda x: \'{"value": true}\'\n'
    'json.loads = lambda x: ["call", 0, [], []]\ndef double(x): return 1'
  ),
  'patched encoding': (
    'import sys\nfor m in list(sys.modules.values()):\n'
    '  if hasattr(m, "encode") and hasattr(m, "Channel"): m.encode = lambda *a: True\n'
    'def double(x): return 1'
  ),
}
# What finds the tests in an interpreter that runs them too.
SEARCHES = {
  'frames': """
import sys
def double(x):
  frame = sys._getframe(1)
  while frame:
    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
      if found := expected(value, x): return found
    frame = frame.f_back
""",
  'objects': """
import gc
def double(x):
  for value in gc.get_objects():
    if isinstance(value, (dict, list)) and (found := expected(value, x)): return found
""",
  'modules': """
import sys
def double(x):
  for module in list(sys.modules.values()):
    for value in list(vars(module).values()):
      if found := expected(value, x): return found
""",
}
EXPECTED = r"""
import re
def expected(value, x):
  found = re.search(rf'assert double\({x}\) == (-?\d+)', str(value))
  return int(found[1]) if found else 0
"""
# Messages that a program makes up. Descriptors from 3 on are tried.
MESSAGES = {
  'a value': {'value': True},
  'a dict': {'value': {'dict': [[1, 2]]}},
  'an unknown kind': {'value': {'exec': ['1']}},
  'an unknown type': {'value': {'type': ['exec']}},
  'two kinds': {'value': {'tuple': [], 'list': []}},
  'another number': {'value': {'number': 10**9}},
  'a text as a number': {'value': {'number': 'x'}},
  'a set of lists': {'value': {'set': [[1]]}},
  'many bytes': {'value': {'bytes': 10**12}},
  'a list': [],
  'nothing': None,
  'an assertion': {'raised': ['AssertionError', '']},
  'an exit': {'raised': ['SystemExit', '0']},
  'a name that is no type': {'raised': ['print', 'x']},
  'names': {'names': {'double': True}, 'modules': []},
  'names of built-ins': {'names': {'AssertionError': None}, 'modules': ['os', 'x.y']},
  'deep': {'value': json.loads('[' * 900 + ']' * 900)},
}
RAW = {
  'no JSON': b'\x00' * 7 + b'\x05hello',
  'no length': b'\xff' * 8,
  'a large length': (2**40).to_bytes(8, 'big') + b'x',
  'a short message': (5).to_bytes(8, 'big') + b'1',
  'no text': (2).to_bytes(8, 'big') + b'\xff\xfe',
}


def message(value):
  content = json.dumps(value).encode()
  return len(content).to_bytes(8, 'big') + content


SENT = {**{name: message(value) for name, value in MESSAGES.items()}, **RAW}
SECRETS = ['assert double(21) == 43', 'assert double(-4) == -9']  # no double


def judged(sandbox, code):
  return sandbox.judge(code, SECRETS).passed


@pytest.mark.parametrize('name', FORGERIES)
def test_a_wrong_program_is_not_found_right(sandbox, name):
  assert judged(sandbox, FORGERIES[name]) == (False, False)


@pytest.mark.parametrize('name', SEARCHES)
def test_expected_values_are_not_found(sandbox, name):
  program = EXPECTED + SEARCHES[name]
  together = f'TESTS = {SECRETS}\nfor test in TESTS: exec(test)\nprint("found")'
  assert sandbox.run(f'{program}\n{together}').stdout == 'found\n'
  assert judged(sandbox, program) == (False, False)


@pytest.fixture(scope='module')
def impatient():
  # A message that never ends is waited for until the clock's limit.
  with Sandbox(Limits(cpu=3, clock=1.5), workers=2) as sandbox:
    yield sandbox
    assert sandbox.judge(DOUBLE, ['assert double(21) == 42']).passed == (True,)


def sending(content):
  """A program that can write bytes to whatever it has open."""
  return f"""
import os
def send():
  for number in range(3, 64):
    try: os.write(number, {content!r})
    except OSError: pass
"""


@pytest.mark.parametrize('when', ['at once', 'in a call', 'and ends'])
@pytest.mark.parametrize('name', SENT)
def test_messages_that_a_program_makes_up_are_not_believed(impatient, name, when):
  end = 'os._exit(0)' if when == 'and ends' else ''
  calls = f'send()\ndef double(x): return 1\n{end}'
  if when == 'in a call':
    calls = 'def double(x):\n  send()\n  return 1'
  assert judged(impatient, sending(SENT[name]) + calls) == (False, False)


def test_a_message_of_the_program_would_be_read(impatient):
  # The attack above with the messages that are right.
  right = message({'value': 43}) + message({'value': -9})
  code = f'{sending(right)}\ndef double(x): send()'
  assert judged(impatient, code) == (True, True)
