"""The machines of tests: CPUs as many devices, and hardware that is not there."""

import os
import subprocess
import sys

# Most of the tests' time is compilation for a CPU: this halves it, and costs little,
# as what is computed is tiny. Fusions are no longer optimized as MLIR before LLVM.
QUICK = (
  '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
  ' --xla_backend_optimization_level=0'
)


def cpus(count: int) -> str:
  """Returns the XLA_FLAGS of a process that sees so many devices."""
  return f'--xla_force_host_platform_device_count={count} {QUICK}'


def with_gpu_compiler(*words: str) -> subprocess.CompletedProcess[str]:
  """Runs Python where JAX finds the compiler of GPUs; see scripts/environment."""
  folders = f'{sys.prefix}/gpu-compiler', os.environ.get('PYTHONPATH', '')
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(folders)}
  return subprocess.run(
    [sys.executable, *words],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
