"""Processes of their own under JAX, which compile soon rather than well: their networks are small, and run a few times."""

import json
import os
import subprocess
import sys
from pathlib import Path

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ENVIRONMENT = {"KERAS_BACKEND": "jax", "XLA_FLAGS": QUICK}


def environment(**more):
    """That of such a process."""
    return {**os.environ, **ENVIRONMENT, **more}


def value_of(call, *arguments):
    """What a call such as `test_x.f(*sys.argv[1:])` of a module of these tests gives there, as JSON has it."""
    code = f"import json, sys, {call.partition('.')[0]}; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          cwd=Path(__file__).parent, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
