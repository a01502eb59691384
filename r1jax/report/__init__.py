"""The report of a run: report.html, one page that needs no server and no network.

Written from config.json, metrics.jsonl and samples.jsonl alone, so it can be written
while a run goes on or after it was killed; what is not there yet is said in words.
`run` reads those files, `words` finds the sentences, `sections` and `figures` (drawn by
`chart`) make the page's parts, `template` holds the page around them.

`python -m r1jax.report WORKDIR` writes the page anew. `pipeline` makes
the page of the whole recipe from the folders of its stages.
"""

from html import escape
from pathlib import Path

from r1jax.report import figures, sections, words
from r1jax.report.page import PAGE
from r1jax.report.reader import read_run
from r1jax.runtime.workdir import write_whole


def write(workdir: Path | str) -> Path:
  """The path of report.html, which now shows the run in `workdir` as it stands.

  Raises FileNotFoundError if `workdir` does not exist or holds no run.
  """
  workdir = Path(workdir)
  run = read_run(workdir)
  body = [
    sections.summary(words.summary(run), [*run.unreadable, *words.warnings(run)]),
    sections.result_table(run),
    figures.figures(run),
    sections.sample_outputs(run),
    sections.settings(run),
  ]
  page = PAGE.substitute(
    title=escape(f'{run.experiment} · {workdir.resolve().name}'),
    facts=' · '.join(words.facts(run)),
    body='\n'.join(body),
    source='config.json, metrics.jsonl and samples.jsonl of the run',
  )
  write_whole(workdir / 'report.html', page)
  return workdir / 'report.html'


def result(workdir: Path | str) -> list[str]:
  """Where the page is, and the result in three lines: base -> trained."""
  return [
    f'Report: {Path(workdir) / "report.html"}',
    *words.result(read_run(Path(workdir))),
  ]
