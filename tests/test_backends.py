"""TensorFlow and JAX, one device and several, one process and two: the same mathematics, the same run directory."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import under_jax

from facegen_keras.runs.start import load_gan
from facegen_keras.runs.checkpoint import Place, checkpoints, restore_checkpoint, restore_newest, save_checkpoint
from facegen_keras.runs.folder import Run
from facegen_keras.config import RunConfig
from facegen_keras.engine.backend import backend
from facegen_keras.gan import FaceGAN
from facegen_keras.training import train

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_pictures")]

TESTS = Path(__file__).parent
SETTINGS = ["image_size=32", "width=2", "batch_size=4", "limit=40", "save_minutes=0"]
COMMANDS = """
import json, sys
import quick_pictures
sys.modules["tensorflow"] = None
quick_pictures.draw_quickly()
from facegen_keras.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, end.code
"""  # one after the other, where TensorFlow cannot be imported


def start(*command, **environment):
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, cwd=TESTS, env=under_jax.environment(**environment))


def run(*command, **environment):
    process = start(*command, **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def training(out, epochs, *options):
    """What to write after `facegen`."""
    settings = [*SETTINGS, f"epochs={epochs}"]
    return ["train", "--preset", "article_small", "--out", str(out), *options, *(word for setting in settings for word in ("--set", setting))]


def commands(*words):
    """What to write after `python`."""
    return ["-c", COMMANDS, json.dumps(words)]


def last_state(out):
    with np.load(checkpoints(Path(out) / "checkpoints")[-1]) as file:
        return dict(file)


@needs_jax
def test_the_golden_figures_and_the_noise_hold_under_jax():
    files = TESTS / "test_parity.py", TESTS / "test_noise.py"
    run("-m", "pytest", "-q", "-k", "not False", *files, XLA_FLAGS="")  # compiled only, and well: it is large


def twenty_steps(folder):
    """What three times twenty steps from a checkpoint give: losses, and the generator's moving statistics."""
    gan = FaceGAN.from_run_config(RunConfig.from_json(Path(folder, "config.json").read_text()))
    update = backend.compiled(gan.update, gan.variables + gan.optimizer.variables)
    losses = []
    for seed in range(3):
        restore_newest(gan.config, Path(folder, "checkpoints"), gan=gan)
        rng = np.random.default_rng(seed)
        for _ in range(20):
            images, latents = rng.uniform(-1, 1, (4, 32, 32, 3)), rng.uniform(-1, 1, (4, gan.config.latent_dim))
            losses.append([float(value) for value in update(images.astype("float32"), latents.astype("float32"), 0.95)])
    return losses, [keras.ops.convert_to_numpy(variable).tolist() for variable in gan.generator.variables
                    if "moving" in variable.path]


UNDER_JAX = "import json, sys, test_backends; print(json.dumps([*map(test_backends.twenty_steps, sys.argv[1:])]))"
RECIPES = {"article": ("article", {}), "even": ("article", {"networks": "dcgan_even"}), "acts": ("acts", {})}


@pytest.fixture(scope="module")
def twenty_steps_of_both(tmp_path_factory):
    """By recipe: what they give here, and under JAX."""
    folders = []
    for recipe, (preset, settings) in RECIPES.items():
        folders.append(folder := tmp_path_factory.mktemp(recipe))
        config = RunConfig.preset(preset, image_size=32, width=2, batch_size=4, precision="float32", redraw_epochs=0,
                                  out=str(folder), **settings)
        (folder / "config.json").write_text(config.to_json())
        gan, rng = FaceGAN.from_run_config(config), np.random.default_rng(7)
        for _ in range(5):  # so that the optimizers hold something
            gan.update(rng.uniform(-1, 1, (4, 32, 32, 3)).astype("float32"),
                       rng.uniform(-1, 1, (4, config.latent_dim)).astype("float32"), 0.95)
        save_checkpoint(gan, folder / "checkpoints", Place(1))
    under_jax = json.loads(run("-c", UNDER_JAX, *folders).splitlines()[-1])
    return dict(zip(RECIPES, zip(map(twenty_steps, folders), under_jax)))


@needs_jax
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_steps_from_one_checkpoint_agree(twenty_steps_of_both, recipe):
    """On small networks: in large ones some leaky ReLU meets a value so close to 0 that rounding decides its slope."""
    (losses, moving), (jax_losses, jax_moving) = twenty_steps_of_both[recipe]
    gaps = np.abs(np.subtract(losses, jax_losses)).reshape(3, 20, -1).max(2)  # start, step
    assert gaps[:, :5].max() < 1e-4
    assert np.sort(gaps.max(1))[1] < 1e-4, "one start of three may meet such a value: which one depends on the processor"
    for statistics, jax_statistics in zip(moving, jax_moving, strict=True):
        np.testing.assert_allclose(statistics, jax_statistics, atol=1e-4)
    assert np.ptp(np.array(losses)[:20, 0]) > 0.01, "they have gone somewhere"


@pytest.fixture(scope="module")
def jax_devices(tmp_path_factory):
    """What steps under JAX on one device and on two have left, of one process."""
    folder = tmp_path_factory.mktemp("devices")
    run(TESTS / "device_steps.py", folder, "article_small/float32", "acts/float32")
    return folder


@pytest.mark.parametrize(("backend", "preset", "precision"), [
    *(("tensorflow", preset, precision) for preset in ("article_small", "acts") for precision in ("float32", "float16")),
    pytest.param("jax", "article_small", "float32", marks=needs_jax), pytest.param("jax", "acts", "float32", marks=needs_jax)])
def test_two_devices_are_one(request, tmp_path, backend, preset, precision):
    """In float16 with a last step in which what the second device is given overflows: no device may take that step.

    In `article_small` the first device would learn of it by batch norm, too. In `modern` it learns by the sum of gradients alone.
    """
    if backend == "jax":
        tmp_path = request.getfixturevalue("jax_devices")
    else:  # which wants a process for each model on two devices: a second one's collective operations may get mixed up
        run(TESTS / "device_steps.py", tmp_path, f"{preset}/{precision}", KERAS_BACKEND=backend)
    one, two = (dict(np.load(tmp_path / f"{preset} {precision} {num_devices}.npz")) for num_devices in (1, 2))
    steps = slice(0, 5 if precision == "float16" else 6)  # those whose losses are numbers
    # in 16 bits a picture or two of 24 may change sides, so the shares may differ by more than the losses
    for columns, tolerance in (((slice(0, 2), 0.1), (slice(2, None), 0.01)) if precision == "float16" else ((slice(None), 3e-5),)):
        np.testing.assert_allclose(one["logs"][steps, columns], two["logs"][steps, columns], atol=tolerance)
    # Adam would hide a gradient of twice the size: moments do not (rounding alone: 0.023 of them on a processor with AVX2)
    for name, tolerance in (("moments", 0.03), ("moved", 1e-3)) if precision == "float32" else (("moments", 0.3), ("moved", 0.02)):
        finite = np.isfinite(one[name]) & np.isfinite(two[name])  # what the overflow leaves in moving statistics is not
        assert finite.mean() > 0.99 and np.linalg.norm(one[name][finite]) > 1, "it has gone somewhere"
        apart = np.linalg.norm((one[name] - two[name])[finite])
        assert apart < tolerance * np.linalg.norm(one[name][finite]), name
    if precision == "float16":  # in `modern` the discriminator has 32 bits
        before, after = {"article_small": ([256, 256], [128, 256]), "acts": ([1, 256], [1, 128])}[preset]
        assert one["scales"].tolist() == two["scales"].tolist() == 5 * [before] + [after]
    assert two["rows"].tolist() == [4, 4] and one["rows"].tolist() == [8], "rows of the batch on each device"
    if backend == "tensorflow":  # the replicas ran in any order
        for whole, *parts in zip(one["latents"], two["latents"][::2], two["latents"][1::2]):
            assert not np.array_equal(*parts), "each replica must draw its own"
            rounded = 1e-6  # where a row begins decides on some processors by which instructions its numbers are drawn
            np.testing.assert_allclose(sorted(np.concatenate(parts).tolist()), sorted(whole.tolist()), rtol=rounded, atol=rounded)


EPOCHS = 4  # of ten steps


@pytest.fixture(scope="module")
def jax_runs(tmp_path_factory):
    """Two runs of one process: `unbroken`, and `broken`, which stopped after its first step."""
    folder = tmp_path_factory.mktemp("jax")
    run(*commands(training(folder / "unbroken", EPOCHS), training(folder / "broken", EPOCHS, "--hours", "0")))
    return folder


@needs_jax
def test_a_run_moves_between_backends_and_resumes_exactly_under_jax(jax_runs):
    broken, unbroken = jax_runs / "broken", jax_runs / "unbroken"
    assert 1 <= Run(broken).status["epoch"] * 10 + Run(broken).status["step"] < 10 * EPOCHS
    run(*commands(training(broken, EPOCHS)))
    assert (broken / "log.jsonl").read_bytes() == (unbroken / "log.jsonl").read_bytes()
    first, second = map(last_state, (broken, unbroken))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)

    lines = []
    config = RunConfig.from_json((broken / "config.json").read_text()).to_dict()
    gan = load_gan(broken)
    restore_checkpoint(gan, checkpoints(broken / "checkpoints")[-1])
    for name, array in first.items():
        if name.startswith("generator/"):
            assert np.array_equal(array, gan.generator.variables[int(name.split("/")[1])])
    train(RunConfig(**config | {"epochs": EPOCHS + 1}), report=lines.append)
    assert any("backend jax is now tensorflow" in line for line in lines)
    run(*commands(training(broken, EPOCHS + 2)))
    assert Run(broken).status == {"state": "finished", "epoch": EPOCHS + 2, "step": 0, "reason": ""}
    assert [record["epoch"] for record in Run(broken).records("epoch")] == list(range(1, EPOCHS + 3))


def start_two(out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(*commands(training(out, EPOCHS)), KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
                  KERAS_DISTRIBUTION_NUM_PROCESSES="2", KERAS_DISTRIBUTION_PROCESS_ID=str(number)) for number in range(2)]


def wait_for_step(out, step, processes):
    deadline = time.monotonic() + 300
    while not any(record["step"] >= step for record in Run(out).records("steps")):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), \
            [process.communicate()[0] for process in processes if process.poll() is not None]
        time.sleep(0.02)


@needs_jax
def test_two_processes_are_one_and_survive_the_loss_of_either(jax_runs, tmp_path):
    for step, lost in ((8, 1), (18, 0)):
        processes = start_two(tmp_path / "two")
        wait_for_step(tmp_path / "two", step, processes)
        processes[lost].kill()
        outputs = [process.communicate(timeout=200)[0] for process in processes]
        if lost == 1:
            assert processes[0].returncode == 0, outputs[0]
            assert "another process has gone" in outputs[0] and "the same command goes on from here" in outputs[0]
            assert Run(tmp_path / "two").status["state"] == "paused"
        assert 0 < Run(tmp_path / "two").records("steps")[-1]["step"] < 10 * EPOCHS
    processes = start_two(tmp_path / "two")
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert Run(tmp_path / "two").status["state"] == "finished"
    one, two = (Run(out).records("steps") for out in (jax_runs / "unbroken", tmp_path / "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 10 * EPOCHS + 1))
    for name, tolerance in (("d_loss", 0.1), ("g_loss", 0.1), ("noise_std", 1e-3)):  # losses part, by rounding
        ours, theirs = ([line[name] for line in lines] for lines in (one, two))
        np.testing.assert_allclose(ours[:25], theirs[:25], atol=1e-3)
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


MESSAGES = {
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.": False,
    "INTERNAL: NCCL operation failed: out of memory": False,
    "INVALID_ARGUMENT: shapes do not match": False,
    "INTERNAL: Failed to execute XLA runtime executable: nan": False,
    "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4242": True,
    "UNAVAILABLE: failed to connect to all addresses": True,
    "ABORTED: The coordination service has found that task 1 is dead (heartbeat timeout)": True,
}


@needs_jax
@pytest.mark.parametrize("message", MESSAGES)
def test_only_the_loss_of_a_process_is_taken_for_one(monkeypatch, message):
    import jax

    from facegen_keras.engine import step_jax

    assert not step_jax.has_lost_another(jax.errors.JaxRuntimeError(message)), "there is one process"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert step_jax.has_lost_another(jax.errors.JaxRuntimeError(message)) == MESSAGES[message]
