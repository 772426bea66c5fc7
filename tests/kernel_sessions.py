"""Sessions on Kaggle, acted out in an instant, for a server that speaks as Kaggle does."""

import contextlib
import hashlib
import json
import os
import re
import time
from unittest import mock

from kaggle_server import KaggleServer

from facegen_keras.kaggle.session import SUMS

REF = "me/face-gan-celeba"
DATASET = "greg115/celebrities-100k"


@contextlib.contextmanager
def pretend_kaggle(execute=None):
    """A server that is this process's only Kaggle; its sessions are played by `execute`, if given."""
    with KaggleServer(execute, {DATASET: {"100k.txt": b""}}) as server, mock.patch.dict(os.environ, server.environment()):
        yield server


def pushed(server):
    """A version with a session that waits for a machine, as a push leaves it."""
    notebook = json.dumps({"metadata": {"kernelspec": {"name": "python3"}}})
    about = {"kernelType": "notebook", "machineShape": "NvidiaTeslaT4", "datasetDataSources": [DATASET]}
    return server.SaveKernel({"slug": REF, "newTitle": REF.split("/")[1], "text": notebook, **about})["versionNumber"]


def left_behind(epoch, step=0, state="paused", reason="the time is used up"):
    """What a session leaves: the run's files, and their digests."""
    status = {"state": state, "epoch": epoch, "step": step, "reason": reason}
    files = {"run/status.json": json.dumps(status).encode(), "run/config.json": json.dumps({"of epoch": epoch}).encode(),
             f"run/checkpoints/epoch_{epoch:04d}_step_{step:06d}.npz": bytes(1000 + epoch)}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return files | {SUMS: sums.encode()}


def begin_of(version):
    """Where the pushed notebook's job says that it begins."""
    found = re.search(r"'begin': \((\d+), (\d+)\)", version.text)
    return tuple(map(int, found.groups())) if found else None


def place_of(files):
    status = json.loads(files["run/status.json"])
    return status["epoch"], status["step"]


def one_epoch_each(epochs, seconds=0.0):
    """An `execute` whose sessions train an epoch each, and refuse what the notebook's first cell would refuse."""

    def execute(version, mounts):
        begin, attached = begin_of(version), mounts.get(version.ref, {})
        if begin and not attached:
            return "ERROR", {}, "facegen: the mount came up empty; push again\n"
        if begin and place_of(attached) < begin:
            return "ERROR", {}, "facegen: the attached run is older; push again\n"
        epoch = place_of(attached)[0] + 1 if begin else 1
        time.sleep(seconds)
        state = ("finished", "") if epoch == epochs else ("paused", "the time is used up")
        return "COMPLETE", left_behind(epoch, 0, *state), f"epoch {epoch}/{epochs}\n"

    return execute


def with_sessions(honest, special):
    """An `execute` as `honest`, but for the sessions in `special`: number -> what it returns."""
    special = dict(special)
    return lambda version, mounts: special.pop(version.number, None) or honest(version, mounts)


DIED = ("ERROR", {}, "epoch 1.7/3\n")
