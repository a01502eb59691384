"""Writes the report of a run and prints where it is; for several, compares seeds."""

import argparse
import sys

from r1jax.stages import report
from r1jax.stages.report.seeds import over_seeds

if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    prog='python -m r1jax.stages.report', description=__doc__
  )
  parser.add_argument(
    'workdir', nargs='+', help='the --workdir of a run; of several that differ in seed'
  )
  workdirs = parser.parse_args().workdir
  try:
    print('\n'.join(str(report.write(workdir)) for workdir in workdirs))
    if len(workdirs) > 1:
      print('\n'.join(over_seeds(workdirs)))
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
