"""Convolutions in 16 bits follow those in 32, and a run changes from one to the other without losing anything."""

import dataclasses
import functools
import shutil

import keras
import numpy as np
import pytest

from facegen_keras.runs.start import load_gan
from facegen_keras import FaceGAN, RunConfig
from facegen_keras.engine import step_tensorflow
from facegen_keras.engine import cpu_speed as cpu_speed_module
from facegen_keras.engine import precision as precision_module
from facegen_keras import gan as gan_module
from facegen_keras import training as training_module
from facegen_keras.runs import images as images_module
from facegen_keras.runs import progress as progress_module
from facegen_keras.runs.checkpoint import checkpoints, state_variables
from facegen_keras.runs.folder import Run
from facegen_keras.training import train

SILENT = dict(report=lambda line: None)
TINY = RunConfig.preset("article_small", image_size=32, width=8, batch_size=16, limit=320, epochs=5, noise="as_run")
BITS_16 = ("bfloat16", "float16")
pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture(scope="module")
def curves(tmp_path_factory, quick_pictures):
    """d_loss and g_loss of 100 steps in each precision."""
    folder = tmp_path_factory.mktemp("precision")

    def losses(precision):
        run = train(dataclasses.replace(TINY, precision=precision, out=folder / precision), **SILENT)
        return np.array([[line["d_loss"], line["g_loss"]] for line in run.records("steps")])

    curves = {precision: losses(precision) for precision in ("float32", *BITS_16)}
    with pytest.MonkeyPatch.context() as patch:  # in all layers, as if they were wide
        patch.setattr(cpu_speed_module, "WIDE_KERNEL", dict.fromkeys(cpu_speed_module.WIDE_KERNEL, 1))
        patch.setattr(training_module, "FaceGAN", CountingGAN)
        shutil.move(folder, folder.with_name("before"))
        return curves | {f"{precision}, fewer products": losses(precision) for precision in ("float32", "bfloat16")}


class CountingGAN(FaceGAN):
    """Says whether what was to be measured was there."""

    def train_step(self, data):
        networks = (self.generator, self.discriminator)
        fast = [layer for network in networks for layer in network.layers
                if any(isinstance(vars(layer).get(name), functools.partial) for name in ("call", "convolution_op"))]
        assert len(fast) == 10, "three convolutions, two transposed ones, five batch norms"
        return super().train_step(data)


@pytest.mark.slow
@pytest.mark.parametrize("precision, rtol", [
    *((precision, 0.03) for precision in (*BITS_16, "bfloat16, fewer products")), ("float32, fewer products", 5e-3)])
def test_the_losses_follow_those_of_float32(curves, precision, rtol):
    """Closely at first, within the run's own scatter later: rounding, once it is there, grows as any noise does."""
    exact, rounded = curves["float32"], curves[precision]
    assert len(exact) == len(rounded) == 100
    np.testing.assert_allclose(rounded[:5], exact[:5], rtol=rtol)
    np.testing.assert_allclose(rounded[:60].mean(axis=0), exact[:60].mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(rounded.mean(axis=0), exact.mean(axis=0), rtol=0.15)
    assert not np.array_equal(exact, rounded), "it is another arithmetic"


def test_weights_and_losses_stay_in_float32():
    for precision in BITS_16:
        model = FaceGAN.from_run_config(dataclasses.replace(TINY, precision=precision))
        kinds = {str(variable.dtype) for name, variable in state_variables(model).items() if "optimizer" not in name}
        assert kinds <= {"float32", "int64"}, "weights, means, and the random state"
        assert model.generator.layers[-1].compute_dtype == model.discriminator.layers[-1].compute_dtype == "float32"
        assert model.generator.get_layer("up1_conv").compute_dtype == precision


@pytest.mark.slow
def test_float16_has_a_factor_for_each_loss_and_resumes_exactly(tmp_path):
    config = dataclasses.replace(TINY, limit=64, epochs=2, precision="float16", out=tmp_path / "whole")
    whole = train(config, **SILENT)
    pieced = dataclasses.replace(config, out=tmp_path / "pieced")
    assert train(pieced, hours=0, **SILENT).status["state"] == "paused"
    run = train(pieced, **SILENT)
    states = [checkpoints(each.directory / "checkpoints")[-1].read_bytes() for each in (whole, run)]
    assert states[0] == states[1]
    scales = {name: float(variable) for name, variable in state_variables(load_gan(run.directory)).items()
              if name.endswith("dynamic_scale")}
    assert len(scales) == 2 and all(scale >= 1 for scale in scales.values())


def test_a_gradient_that_overflows_is_left_out_and_its_factor_halved():
    model = FaceGAN.from_run_config(dataclasses.replace(TINY, precision="float16"))
    model.d_optimizer.dynamic_scale.assign(2.0**120)
    before = {name: keras.ops.convert_to_numpy(variable) for name, variable in state_variables(model).items()}
    model.train_step(np.zeros((16, 32, 32, 3), "float32"))
    after = {name: keras.ops.convert_to_numpy(variable) for name, variable in state_variables(model).items()}
    moved = {name.split("/")[0] for name in before if name.endswith("kernel") and not np.array_equal(before[name], after[name])}
    assert moved == {"generator", "ema_generator"}, "the other network's step was taken"
    assert float(model.d_optimizer.dynamic_scale) == 2.0**119


@pytest.mark.slow
def test_a_run_goes_on_where_the_arithmetic_is_another(tmp_path, monkeypatch):
    """On Kaggle's T4, say, and then at home, and back: with precision=auto."""
    config = dataclasses.replace(TINY, limit=64, epochs=2, precision="auto", out=tmp_path / "run")
    choose, before = precision_module.choose_precision, None
    for precision, hours in (("float16", 0), ("float32", 0), ("float16", 0), ("bfloat16", None)):
        for module in (gan_module, images_module, progress_module):
            monkeypatch.setattr(module, "choose_precision", lambda asked, here=precision: here if asked == "auto" else choose(asked))
        lines = []
        run = train(config, hours=hours, report=lines.append)
        assert Run(config.out).read("environment.json")["precision"] == precision
        assert before is None or any(f"since the last session precision {before} is now {precision}" in line for line in lines)
        assert load_gan(config.out).generate(4).std() > 0
        before = precision
    assert run.status["state"] == "finished"


@pytest.mark.parametrize("capability, expected", [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"),
                                                  ((6, 0), "float32"), (None, "float32")])
def test_auto_is_what_the_card_is_good_at(monkeypatch, capability, expected):
    details = {} if capability is None else {"compute_capability": capability}
    tf = step_tensorflow.tf
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a card"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda card: details)
    assert precision_module.choose_precision("auto") == expected and precision_module.choose_precision("float32") == "float32"


@pytest.mark.parametrize("flags, vendor, expected", [
    ({"avx2", "avx512_bf16"}, "AuthenticAMD", "bfloat16"), ({"avx512_bf16", "amx_bf16"}, "GenuineIntel", "bfloat16"),
    ({"avx2", "avx512_bf16"}, "GenuineIntel", "float32"), ({"avx512f"}, "AuthenticAMD", "float32"), (set(), "", "float32")])
def test_auto_is_what_the_processor_is_good_at(monkeypatch, tmp_path, flags, vendor, expected):
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {' '.join(flags)}\n\nprocessor\t: 1\nflags\t\t: none\n")
    monkeypatch.setattr(precision_module, "Path", lambda path: told)
    monkeypatch.setattr(step_tensorflow.tf.config, "list_physical_devices", lambda kind: [])  # a GPU would go first
    assert precision_module.choose_precision("auto") == expected
    told.unlink()  # as where there is no Linux
    assert precision_module.choose_precision("auto") == "float32"
