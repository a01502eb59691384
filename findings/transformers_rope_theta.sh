#!/usr/bin/env bash
# transformers 5.24.0: adding `rope_scaling` to a config.json that transformers 5 itself
# wrote changes the base of RoPE, silently.
#
# Model cards say: to read long texts, add `"rope_scaling": {"type": "yarn", ...}` to
# config.json. Files written by transformers 5 keep the base in `rope_parameters`, not at
# the top. One would expect the addition to stretch that RoPE, or a complaint about two
# fields for one thing. Instead `rope_scaling` replaces `rope_parameters` as a whole, and
# the base falls back to 10,000 in place of 1,000,000: every angle of the model is wrong.
#
# Seen: rope_theta 1000000.0 without rope_scaling, 10000.0 with it, no warning.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
"$tmp/venv/bin/python" -W error - "$tmp" <<'PY'
import json, pathlib, sys
import transformers

folder = pathlib.Path(sys.argv[1]) / 'model'
transformers.Qwen2Config(
  rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
).save_pretrained(folder)
file = folder / 'config.json'
raw = json.loads(file.read_text())
assert 'rope_theta' not in raw, raw
before = transformers.AutoConfig.from_pretrained(folder).rope_parameters
raw['rope_scaling'] = {
  'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32768
}
file.write_text(json.dumps(raw))
after = transformers.AutoConfig.from_pretrained(folder).rope_parameters
print('without rope_scaling:', before)
print('with rope_scaling:   ', after)
assert before['rope_theta'] == 1e6
assert after['rope_type'] == 'yarn' and after['rope_theta'] == 1e4, 'it has changed'
PY
