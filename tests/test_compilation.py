"""What is compiled is kept and counted."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from r1jax.runtime import compilation
from r1jax.runtime.compilation import Compilations


def test_programs_compiled_meanwhile_are_counted():
  double = jax.jit(lambda x: 2 * x)
  one, two = jnp.ones(1), jnp.ones(2)
  with Compilations() as compiled:
    double(one)
    programs, seconds = compiled.since()
    assert programs == 1
    assert seconds > 0
    double(one)
    assert compiled.since() == (0, 0.0)
    double(two)  # another shape
  jax.jit(lambda x: 3 * x)(one)
  assert compiled.since()[0] == 1


def test_a_program_that_lies_on_disk_is_compiled_again_to_be_looked_at(tmp_path):
  cache, dumped = tmp_path / 'cache', tmp_path / 'dumped'
  given = {
    'jax_compilation_cache_dir': str(cache),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': 0,
  }
  config: Any = jax.config
  before = {name: getattr(config, name) for name in given}
  for name, value in given.items():
    config.update(name, value)
  compilation_cache.reset_cache()

  def compile_it(place: Path) -> bool:
    program = jax.jit(lambda x: 5 * x).lower(jnp.ones(3))
    program.compile(
      compiler_options={'xla_dump_to': str(place), 'xla_dump_hlo_as_text': True}
    )
    return any(place.glob('*before_optimizations.txt'))

  try:
    assert compile_it(dumped / 'first')
    assert any(cache.iterdir())
    assert not compile_it(dumped / 'kept')
    with compilation.nothing_from_disk():
      assert compile_it(dumped / 'afresh')
    assert not compile_it(dumped / 'kept again')
  finally:
    for name, value in before.items():
      config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
  ('given', 'expected'), [(None, '/cache/r1jax'), ('/elsewhere', '/elsewhere')]
)
def test_a_place_that_the_user_chose_is_kept(monkeypatch, given, expected):
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  config: Any = jax.config
  before = config.jax_compilation_cache_dir
  config.update('jax_compilation_cache_dir', given)
  compilation.keep_on_disk()
  found = config.jax_compilation_cache_dir
  config.update('jax_compilation_cache_dir', before)
  assert found == expected


@pytest.mark.parametrize(('given', 'expected'), [(None, 0.1), ('0.5', 2.0)])
def test_small_programs_are_kept_unless_the_user_says_otherwise(
  monkeypatch, given, expected
):
  name = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
  monkeypatch.delenv(name, raising=False)
  if given:
    monkeypatch.setenv(name, given)
  config: Any = jax.config
  before = config.jax_persistent_cache_min_compile_time_secs
  config.update(name.lower(), 2.0)  # jax read the variable when it was imported
  compilation.keep_on_disk()
  found = config.jax_persistent_cache_min_compile_time_secs
  config.update(name.lower(), before)
  assert found == expected
