"""Writes the report of each run or pipeline; compares several that differ in seed."""

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
  write = pipeline.write if whole else report.write
  compare = seeds.compare_pipelines if whole else seeds.compare_runs
  try:
    print('\n'.join(str(write(workdir)) for workdir in workdirs))
    if len(workdirs) > 1:
      print('\n'.join(compare(workdirs)))
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
