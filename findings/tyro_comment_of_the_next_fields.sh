#!/usr/bin/env bash
# tyro 1.0.17: a comment above a field of a dataclass is the help of the fields after it,
# too, as long as no blank line and no comment of their own stands between.
#
# A comment above one field reads as a comment on that field. tyro takes it for a heading
# of the whole block, so `--help` describes further flags by words that are not about
# them. A nested dataclass among them gets the words as the description of its group.
#
# Seen: of three flags `--b`, `--c` and `--d`, where the comment is above `b` alone, all
# say "About b.".
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check tyro==1.0.17
cat >"$tmp/flags.py" <<'PY'
import dataclasses

import tyro


@dataclasses.dataclass
class Flags:
  # About b.
  b: int = 0
  c: int = 0
  d: int = 0


tyro.cli(Flags)
PY
help=$(COLUMNS=100 "$tmp/venv/bin/python" "$tmp/flags.py" --help)
echo "$help"
[ "$(grep -c 'About b\.' <<<"$help")" = 3 ] || { echo 'it has changed' >&2; exit 1; }
