"""Writes the report of the run in a work directory, and prints where it is."""

import argparse
import sys

from r1jax.stages import report

if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    prog='python -m r1jax.stages.report', description=__doc__
  )
  parser.add_argument('workdir', help='the --workdir of the run')
  try:
    print(report.write(parser.parse_args().workdir))
  except OSError as error:
    sys.exit(f'error: {error}')
