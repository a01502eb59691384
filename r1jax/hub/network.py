"""Whether a host answers, asked once before a library that would ask for minutes."""

import ssl
import urllib.error
import urllib.request

SECONDS = 5.0  # to connect, and to answer


def check(url: str) -> None:
  """Asks for a page's headers once, through the proxies that the environment names.

  Raises:
    OSError: no connection in time; urllib.error.HTTPError, which is one: the host has
      answered that there is no such page, or not for everybody.
  """
  try:
    request = urllib.request.Request(url, method='HEAD')
    urllib.request.urlopen(request, timeout=SECONDS).close()
  except urllib.error.URLError as error:
    # The host answers. Whoever fetches from it brings certificates of its own.
    if not isinstance(error.reason, ssl.SSLError):
      raise


def reason(error: BaseException) -> str:
  """What an error of a connection says, on one line."""
  inner = getattr(error, 'reason', None)  # of a URLError
  if isinstance(error, urllib.error.HTTPError) or not isinstance(inner, OSError):
    inner = error
  lines = (getattr(inner, 'strerror', None) or str(inner)).strip().splitlines()
  return f'{lines[0]:.200}' if lines else type(inner).__name__
