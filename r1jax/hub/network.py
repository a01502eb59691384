"""Checks that a host answers, before a library retries for minutes."""

import ssl
import urllib.error
import urllib.request

SECONDS = 5.0  # to connect, and to answer


def check(url: str) -> None:
  """Requests the headers of a page once, through the proxies of the environment.

  Raises:
    OSError: no connection within `SECONDS`. Its subclass urllib.error.HTTPError: the
      host answered, but the page does not exist or is not public.
  """
  try:
    request = urllib.request.Request(url, method='HEAD')
    urllib.request.urlopen(request, timeout=SECONDS).close()
  except urllib.error.URLError as error:
    # The host answers, and the library that downloads has certificates of its own.
    if not isinstance(error.reason, ssl.SSLError):
      raise


def reason(error: BaseException) -> str:
  """Returns the message of a connection error, on one line."""
  inner = getattr(error, 'reason', None)  # of a URLError
  if isinstance(error, urllib.error.HTTPError) or not isinstance(inner, OSError):
    inner = error
  lines = (getattr(inner, 'strerror', None) or str(inner)).strip().splitlines()
  return f'{lines[0]:.200}' if lines else type(inner).__name__
