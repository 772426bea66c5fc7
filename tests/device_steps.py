"""A process of `test_backends.py`: python device_steps.py FOLDER PRESET/PRECISION... trains each for a few steps, twice.

Once on one device and once on two. It writes the log of each step, and the latents of each replica where a step is run
once a replica.
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

NUM_DEVICES = 2
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={NUM_DEVICES}"

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu, = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, NUM_DEVICES * [tf.config.LogicalDeviceConfiguration()])
    from facegen_keras.engine import step_tensorflow

from facegen_keras.config import RunConfig
from facegen_keras.faces import load_faces
from facegen_keras.engine.backend import backend
from facegen_keras.gan import FaceGAN

NUM_STEPS = 6
seen, rows = [], []


class RecordingGAN(FaceGAN):
    def update(self, real_images, latents, label_factor):
        if keras.backend.backend() == "tensorflow":
            rows.append(latents.shape[0])  # traced once a replica
            if self.config.precision == "float16":
                return self.overflow(real_images, latents, label_factor)
            tf.numpy_function(lambda array: seen.append(array.copy()), [latents], [])
        else:
            backend.engine.debug.inspect_array_sharding(real_images, callback=lambda sharding: rows.extend(
                len(sharding.device_set) * [sharding.shard_shape(real_images.shape)[0]]))
        return super().update(real_images, latents, label_factor)

    def overflow(self, real_images, latents, label_factor):
        """The update, which in the last step does not fit into the second device's float16.

        In the discriminator's, real images are too large. Where that has 32 bits, the generator's gradient is.
        """
        if hasattr(self.d_optimizer, "inner_optimizer"):
            return super().update(self.too_large(real_images, self.d_optimizer), latents, label_factor)
        make_images = step_tensorflow.make_images

        def make_overflowing_images(*arguments):
            images, to_weights = make_images(*arguments)
            return images, lambda gradient: to_weights(self.too_large(gradient, self.g_optimizer))

        with mock.patch.object(step_tensorflow, "make_images", make_overflowing_images):
            return super().update(real_images, latents, label_factor)

    def too_large(self, images, optimizer):
        """In the last step, what the second of two devices is given, or would be given, does not fit into float16."""
        size = images.shape[0]
        numbers = tf.range(size) + size * tf.distribute.get_replica_context().replica_id_in_sync_group
        last = tf.equal(optimizer.inner_optimizer.iterations, NUM_STEPS - 1)
        late = tf.logical_and(last, numbers >= self.config.batch_size // NUM_DEVICES)
        return tf.where(late[:, None, None, None], 1e30, images)


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs, self.scales = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append([float(logs[name]) for name in sorted(logs)])
        optimizers = self.model.d_optimizer, self.model.g_optimizer
        self.scales.append([float(keras.ops.convert_to_numpy(getattr(optimizer, "dynamic_scale", 1)))
                            for optimizer in optimizers])


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable).ravel() for variable in variables]


def steps(config, devices):
    """What a few steps leave; `devices` is a context."""
    seen.clear()
    rows.clear()
    with devices:
        gan = RecordingGAN.from_run_config(config)
        for optimizer in (gan.d_optimizer, gan.g_optimizer):
            if hasattr(optimizer, "dynamic_scale"):
                optimizer.dynamic_scale.assign(2.0**8)  # with Keras' 2**15 the first steps overflow as well
        start = arrays(gan.variables)
        faces = load_faces("toy", 32, limit=NUM_STEPS * config.batch_size)
        gan.fit(backend.as_data(faces.batches(config.batch_size)), steps_per_epoch=NUM_STEPS, shuffle=False, verbose=0,
                callbacks=[record := Record()])
    weights = np.concatenate(arrays(gan.variables))
    moments = arrays(variable for variable in gan.optimizer.variables if "momentum" in variable.path)
    return dict(moved=weights - np.concatenate(start), moments=np.concatenate(moments), rows=np.array(rows),
                logs=np.array(record.logs), scales=np.array(record.scales), latents=np.array(seen))


if __name__ == "__main__":
    assert len(keras.distribution.list_devices()) == NUM_DEVICES
    for case in sys.argv[2:]:
        preset, precision = case.split("/")
        more = dict(augment=0.5)  # draws of each replica's own
        if preset == "acts":
            more |= dict(redraw_epochs=1, blur=(1.0, 0.1), ema_images=100)
        config = RunConfig.preset(preset, image_size=32, width=4, batch_size=8, precision=precision, **more)
        for num_devices, devices in ((1, contextlib.nullcontext()), (2, backend.over_devices(config.batch_size))):
            np.savez(Path(sys.argv[1], f"{preset} {precision} {num_devices}.npz"), **steps(config, devices))
