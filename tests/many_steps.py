"""python many_steps.py DATA: 3,000 steps of each act on photographs, in float32 and in bfloat16; none may be out of numbers.

No step divides by what can round to 0. A few dozen steps of it are a test in `test_acts.py`.
"""

import math
import sys
import tempfile

import keras
import numpy as np

from facegen_keras.config import RunConfig
from facegen_keras.runs.folder import Run
from facegen_keras.runs.start import load_gan
from facegen_keras.training import train


def take_steps(
    num_steps: int,  # at least, of each act
    **settings,  # of the preset small
) -> Run:  # in which nothing diverged
    """Redraws, spreads and plays; raises `AssertionError` if a number was not finite at any time."""
    config = RunConfig.preset("acts", **settings)
    epochs = math.ceil(num_steps / (config.limit // config.batch_size))
    config = RunConfig.preset("acts", **settings, redraw_epochs=epochs, epochs=2 * epochs)
    run = train(config, report=lambda line: None)
    assert run.status["state"] == "finished" and not run.records("recovery"), "it diverged"
    gan = load_gan(run.directory)
    arrays = map(keras.ops.convert_to_numpy, [*gan.variables, *gan.optimizer.variables])
    assert all(np.isfinite(array).all() for array in arrays if np.issubdtype(array.dtype, np.floating))
    return run


if __name__ == "__main__":
    for precision in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            run = take_steps(3_000, data=sys.argv[1], out=f"{folder}/run", precision=precision, width=8, latent_dim=32)
            print(precision, f"{run.records('epoch')[-1]['step']:,} steps, all numbers finite", flush=True)
