"""Writes the report of a run or a pipeline, says where; for several, compares seeds."""

import argparse
import sys
from pathlib import Path

from r1jax import report
from r1jax.report import pipeline, seeds
from r1jax.runtime.workdir import PIPELINE

if __name__ == '__main__':
  parser = argparse.ArgumentParser(prog='python -m r1jax.report', description=__doc__)
  parser.add_argument(
    'workdir', nargs='+', help='the --workdir of a run; of several that differ in seed'
  )
  workdirs = parser.parse_args().workdir
  whole = all((Path(workdir) / PIPELINE).exists() for workdir in workdirs)
  write, over_seeds = (
    (pipeline.write, pipeline.over_seeds) if whole else (report.write, seeds.over_seeds)
  )
  try:
    print('\n'.join(str(write(workdir)) for workdir in workdirs))
    if len(workdirs) > 1:
      print('\n'.join(over_seeds(workdirs)))
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
