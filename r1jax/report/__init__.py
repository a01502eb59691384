"""HTML reports: one page for each run and each pipeline, without server or network.

A page is made from the files of a run alone, so it can be written while the run
continues or after it was killed; the page says what is not there yet.

  python -m r1jax.report WORKDIR              # writes WORKDIR/report.html again
  python -m r1jax.report WORKDIR WORKDIR …    # and compares runs that differ in seed

`reader` reads the files. `words` writes the sentences, `sections` and `tables` the data
of a page's parts, `figures` says which curves `chart` draws. `page` fills in
`templates/`. This module makes the page of a run, `pipeline` that of the whole recipe,
`ablation` and `budget` those of comparisons.
"""

from collections.abc import Sequence
from pathlib import Path

from r1jax.report import figures, page, sections, words
from r1jax.report.reader import read_run
from r1jax.runtime.workdir import write_whole


def write(
  workdir: Path | str,
  folder: Path | str | None = None,
  tested: Sequence[Sequence[str]] = (),
) -> Path:
  """Writes report.html for the run in `workdir`; returns its path.

  Args:
    workdir: of the run.
    folder: for the page; None is `workdir`.
    tested: rows of a table on test problems, the first of which is its head.

  Raises:
    FileNotFoundError: `workdir` does not exist or holds no run.
  """
  workdir = Path(workdir)
  run = read_run(workdir)
  html = page.render(
    'run.html',
    title=f'{run.experiment} · {workdir.resolve().name}',
    facts=' · '.join(words.facts(run)),
    source='config.json, metrics.jsonl and samples.jsonl of the run',
    sentences=words.summary(run),
    notes=[*run.unreadable, *words.warnings(run)],
    columns=sections.result_columns(run),
    rows=sections.result_rows(run),
    tested=tested,
    figures=figures.run_figures(run),
    samples=sections.samples(run),
    command=sections.command(run),
    settings=sections.settings(run),
  )
  file = Path(folder or workdir) / 'report.html'
  write_whole(file, html)
  return file


def result(workdir: Path | str) -> list[str]:
  """Returns lines for a terminal: the page's path, and three of base -> trained."""
  return [
    f'Report: {Path(workdir) / "report.html"}',
    *words.result(read_run(Path(workdir))),
  ]
