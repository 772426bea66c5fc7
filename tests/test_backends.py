"""TensorFlow and JAX, one device and several, one process and two: the same mathematics, the same run directory."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from facegen_keras.runs.start import load_gan
from facegen_keras.runs.checkpoint import Place, checkpoints, restore_checkpoint, save_checkpoint
from facegen_keras.runs.folder import Run
from facegen_keras.config import RunConfig
from facegen_keras.gan import FaceGAN
from facegen_keras.training import train

pytest.importorskip("jax")

TESTS = Path(__file__).parent
SETTINGS = ["image_size=32", "width=2", "batch_size=4", "limit=40", "epochs=6", "save_minutes=0"]
COMPILED = tempfile.TemporaryDirectory()  # by JAX, for all processes: what another has compiled is read in a second
NO_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None; from facegen_keras.cli import main; main(sys.argv[1:])"


def start(*command, backend="jax", **environment):
    cache = {"JAX_COMPILATION_CACHE_DIR": COMPILED.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env={**os.environ, "KERAS_BACKEND": backend, **cache, **environment})


def run(*command, backend="jax", **environment):
    process = start(*command, backend=backend, **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def facegen_train(out, *settings):
    return ["-c", NO_TENSORFLOW, "train", "--out", out,
            *(word for setting in (*SETTINGS, *settings) for word in ("--set", setting))]


def last_state(out):
    with np.load(checkpoints(Path(out) / "checkpoints")[-1]) as file:
        return dict(file)


def test_the_golden_figures_and_the_noise_hold_under_jax():
    run("-m", "pytest", "-q", "-k", "not False", TESTS / "test_parity.py", TESTS / "test_noise.py")  # compiled only


STEPS = """
import json, sys
from pathlib import Path
import numpy as np
from facegen_keras.runs.checkpoint import restore_newest
from facegen_keras.config import RunConfig
from facegen_keras.gan import FaceGAN

gan = FaceGAN.from_run_config(RunConfig.from_json(Path(sys.argv[1], "config.json").read_text()))
losses = []
for seed in range(3):
    restore_newest(gan, Path(sys.argv[1], "checkpoints"))
    rng = np.random.default_rng(seed)
    for step in range(20):
        images, latents = rng.uniform(-1, 1, (4, 32, 32, 3)), rng.uniform(-1, 1, (4, gan.config.latent_dim))
        losses.append([float(value) for value in gan.update(images.astype("float32"), latents.astype("float32"), 0.95)])
moving = [variable for variable in gan.generator.variables if "moving" in variable.path]
print(json.dumps([losses, [np.array(variable).tolist() for variable in moving]]))
"""


@pytest.mark.parametrize("preset", ["article", "modern"])
def test_twenty_steps_from_one_checkpoint_agree(tmp_path, preset):
    """On small networks: in large ones some leaky ReLU meets a value so close to 0 that rounding decides its slope."""
    config = RunConfig.preset(preset, image_size=32, width=2, batch_size=4, precision="float32", out=str(tmp_path))
    (tmp_path / "config.json").write_text(config.to_json())
    gan = FaceGAN.from_run_config(config)
    rng = np.random.default_rng(7)
    for _ in range(5):  # so that the optimizers hold something
        gan.update(rng.uniform(-1, 1, (4, 32, 32, 3)).astype("float32"),
                   rng.uniform(-1, 1, (4, config.latent_dim)).astype("float32"), 0.95)
    save_checkpoint(gan, tmp_path / "checkpoints", Place(1))
    found = [json.loads(run("-c", STEPS, tmp_path, backend=backend).splitlines()[-1])
             for backend in ("tensorflow", "jax")]
    (losses, moving), (jax_losses, jax_moving) = found
    gaps = np.abs(np.subtract(losses, jax_losses)).reshape(3, 20, -1).max(2)  # start, step
    assert gaps[:, :5].max() < 1e-4
    assert np.sort(gaps.max(1))[1] < 1e-4, "one start of three may meet such a value: which one depends on the processor"
    for statistics, jax_statistics in zip(moving, jax_moving, strict=True):
        np.testing.assert_allclose(statistics, jax_statistics, atol=1e-4)
    assert np.ptp(np.array(losses)[:20, 0]) > 0.01, "they have gone somewhere"


@pytest.mark.parametrize(("backend", "precision", "atol", "preset"), [
    ("tensorflow", "float32", 2e-5, "demo"), ("tensorflow", "float16", 0.2, "demo"), ("jax", "float32", 2e-5, "demo"),
    ("tensorflow", "float32", 2e-5, "modern"), ("jax", "float32", 2e-5, "modern")])
def test_two_devices_are_one(tmp_path, backend, precision, atol, preset):
    """In float16 but roughly: the factor of a loss, and with it what overflows, depends on the number of devices."""
    records = []
    for num_devices in (1, 2):
        run(TESTS / "device_steps.py", tmp_path / f"{num_devices}.npz", num_devices, precision, preset, backend=backend)
        records.append(dict(np.load(tmp_path / f"{num_devices}.npz")))
    one, two = records
    np.testing.assert_allclose(one["logs"], two["logs"], atol=atol)
    np.testing.assert_allclose(one["weights"], two["weights"], atol=1e-2)
    if precision == "float32":  # Adam would hide a gradient of twice the size
        np.testing.assert_allclose(np.abs(one["moments"]).sum(), np.abs(two["moments"]).sum(), rtol=0.01)
        assert np.abs(one["moved"]).sum() > 0.1, "the average has gone somewhere"
        np.testing.assert_allclose(np.abs(one["moved"]).sum(), np.abs(two["moved"]).sum(), rtol=0.02)
    assert two["rows"].tolist() == [4, 4] and one["rows"].tolist() == [8], "rows of the batch on each device"
    if backend == "tensorflow":  # the replicas ran in any order
        for whole, *parts in zip(one["latents"], two["latents"][::2], two["latents"][1::2]):
            assert not np.array_equal(*parts), "each replica must draw its own"
            assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())


def test_a_run_moves_between_backends_and_resumes_exactly_under_jax(tmp_path):
    for name in ("unbroken", "broken"):
        run(*facegen_train(tmp_path / name, "epochs=2"), "--hours", 0 if name == "broken" else 1)
    assert 1 <= Run(tmp_path / "broken").status["epoch"] * 10 + Run(tmp_path / "broken").status["step"] < 20
    run(*facegen_train(tmp_path / "broken", "epochs=2"))
    assert (tmp_path / "broken/log.jsonl").read_bytes() == (tmp_path / "unbroken/log.jsonl").read_bytes()
    first, second = map(last_state, (tmp_path / "broken", tmp_path / "unbroken"))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)

    lines, before = [], last_state(tmp_path / "broken")
    config = RunConfig.from_json((tmp_path / "broken/config.json").read_text()).to_dict()
    gan = load_gan(tmp_path / "broken")
    restore_checkpoint(gan, checkpoints(tmp_path / "broken/checkpoints")[-1])
    for name, array in before.items():
        if name.startswith("generator/"):
            assert np.array_equal(array, gan.generator.variables[int(name.split("/")[1])])
    train(RunConfig(**config | {"epochs": 3}), report=lines.append)
    assert any("backend jax is now tensorflow" in line for line in lines)
    run(*facegen_train(tmp_path / "broken", "epochs=4"))
    assert Run(tmp_path / "broken").status == {"state": "finished", "epoch": 4, "step": 0, "reason": ""}
    assert [record["epoch"] for record in Run(tmp_path / "broken").records("epoch")] == [1, 2, 3, 4]


def start_two(out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(*facegen_train(out), KERAS_DISTRIBUTION_JOB_ADDRESSES=address, KERAS_DISTRIBUTION_NUM_PROCESSES="2",
                  KERAS_DISTRIBUTION_PROCESS_ID=str(number)) for number in range(2)]


def wait_for_step(out, step, processes):
    deadline = time.monotonic() + 300
    while not any(record["step"] >= step for record in Run(out).records("steps")):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), \
            [process.communicate()[0] for process in processes if process.poll() is not None]
        time.sleep(0.02)


def test_two_processes_are_one_and_survive_the_loss_of_either(tmp_path):
    run(*facegen_train(tmp_path / "one"))
    for step, lost in ((15, 1), (35, 0)):
        processes = start_two(tmp_path / "two")
        wait_for_step(tmp_path / "two", step, processes)
        processes[lost].kill()
        outputs = [process.communicate(timeout=200)[0] for process in processes]
        if lost == 1:
            assert processes[0].returncode == 0, outputs[0]
            assert "another process has gone" in outputs[0] and "the same command goes on from here" in outputs[0]
            assert Run(tmp_path / "two").status["state"] == "paused"
        assert 0 < Run(tmp_path / "two").records("steps")[-1]["step"] < 60
    processes = start_two(tmp_path / "two")
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert Run(tmp_path / "two").status["state"] == "finished"
    one, two = (Run(tmp_path / name).records("steps") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 61))
    for name, tolerance in (("d_loss", 0.1), ("g_loss", 0.1), ("noise_std", 1e-3)):  # losses part, by rounding
        ours, theirs = ([line[name] for line in lines] for lines in (one, two))
        np.testing.assert_allclose(ours[:25], theirs[:25], atol=1e-3)
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
