"""A process of `test_backends.py`: python device_steps.py OUT NUM_DEVICES PRECISION PRESET trains for a few steps.

It writes the log of each step, and the latents of each replica where a step is run once a replica.
"""

import os
import sys

OUT, NUM_DEVICES, PRECISION, PRESET = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={NUM_DEVICES}"

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu, = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, NUM_DEVICES * [tf.config.LogicalDeviceConfiguration()])

from facegen_keras.config import RunConfig
from facegen_keras.faces import load_faces
from facegen_keras.engine.backend import backend
from facegen_keras.gan import FaceGAN

NUM_STEPS = 6
CONFIG = RunConfig.preset(PRESET, image_size=32, width=4, batch_size=8, precision=PRECISION)
seen, rows = [], []


class RecordingGAN(FaceGAN):
    def update(self, real_images, latents, label_factor):
        if keras.backend.backend() == "tensorflow":
            rows.append(latents.shape[0])  # traced once a replica
            tf.numpy_function(lambda array: seen.append(array.copy()), [latents], [])
        else:
            backend.engine.debug.inspect_array_sharding(real_images, callback=lambda sharding: rows.extend(
                len(sharding.device_set) * [sharding.shard_shape(real_images.shape)[0]]))
        return super().update(real_images, latents, label_factor)


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append([float(logs[name]) for name in sorted(logs)])


assert len(keras.distribution.list_devices()) == NUM_DEVICES
with backend.over_devices(CONFIG.batch_size):
    gan = RecordingGAN.from_run_config(CONFIG)
    start = [keras.ops.convert_to_numpy(variable) for variable in gan.ema_generator.variables]
    faces = load_faces("toy", 32, limit=NUM_STEPS * CONFIG.batch_size)
    gan.fit(backend.as_data(faces.batches(CONFIG.batch_size)), steps_per_epoch=NUM_STEPS, shuffle=False, verbose=0, callbacks=[record := Record()])
weights = [keras.ops.convert_to_numpy(variable).ravel() for variable in gan.variables]
moments = [keras.ops.convert_to_numpy(variable).ravel() for variable in gan.optimizer.variables if "momentum" in variable.path]
moved = [keras.ops.convert_to_numpy(variable) - old for variable, old in zip(gan.ema_generator.variables, start)]
np.savez(OUT, moved=np.concatenate([array.ravel() for array in moved]), moments=np.concatenate(moments), rows=np.array(rows), logs=np.array(record.logs), latents=np.array(seen), weights=np.concatenate(weights))
