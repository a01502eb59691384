"""A process that reports why JAX ended a host."""

import subprocess
import sys
import time


class Witness:
  """A child process that outlives this one and reports its end on stderr.

  JAX ends a process without a message when not all hosts connect in time, and when host
  0 dies. The child notices that its parent is gone and prints the reason.

  Args:
    timeout: seconds in which all hosts must connect.
    remedy: what to do after a failure; ends the message.
  """

  def __init__(self, timeout: int, remedy: str) -> None:
    began = str(time.time())
    command = [sys.executable, '-S', '-c', _PROGRAM, str(timeout), remedy, began]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, start_new_session=True
    )

  def connected(self, coordinator: str) -> None:
    """Reports that all hosts are connected.

    Args:
      coordinator: address and name of host 0, separated by a space.
    """
    assert self._process.stdin is not None
    self._process.stdin.write(f'{coordinator}\n'.encode())
    self._process.stdin.flush()

  def dismiss(self) -> None:
    """Ends the child without a message."""
    self._process.communicate(b'end')


# Its stdin closes when the parent ends.
_PROGRAM = """
import socket, sys, time
limit, remedy, began = sys.argv[1:]
lines = sys.stdin.read().splitlines()
waited = time.time() - float(began)
if not lines and waited < float(limit):
  print(f'error: this host has ended after {waited:.0f} s, before all had come; start '
        'the same command on all of them', file=sys.stderr)
elif not lines:
  print(f'error: not all hosts have come within {limit} s, or what answers at the '
        'address of host 0 is something else; start the same command on all of them',
        file=sys.stderr)
elif lines[-1] != 'end':
  time.sleep(1)  # the parent's own output comes first
  address, name = lines[0].split(' ', 1)
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host.strip('[]'), int(port)), 5).close()
  except OSError:
    print(f'error: host 0 ({name}), which coordinates, has died; {remedy}',
          file=sys.stderr)
"""
