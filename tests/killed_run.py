"""One session of a run in a process of its own, which may kill itself: python killed_run.py CONFIG [POINT COUNT AFTER].

Without arguments it imports everything once, and then forks a session for each line of its input, [OUTPUT, CONFIG, ...]:
it prints the session's process and, when that has ended, its exit status.
"""

import json
import os
import signal
import sys

import quick_pictures

from facegen_keras import RunConfig
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras.runs import checkpoint as checkpoint_module
from facegen_keras.runs import folder as folder_module
from facegen_keras import training as training_module

POINTS = {  # what a session does: where the function is that does it
    "write a piece of a checkpoint": (checkpoint_module.DigestingFile, "write"),
    "push to the disk": (os, "fsync"),
    "rename": (os, "replace"),
    "delete": (os, "unlink"),
    "draw a picture": (callbacks_module, "to_png"),
    "make the film": (callbacks_module, "film"),
    "add a line to a log": (folder_module.Run, "append"),
    "take a step": (callbacks_module.WriteLog, "on_train_batch_end"),
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def append_half_a_line(run, name, record):
    with open(run.directory / name, "a") as file:
        file.write(str(record)[:20])


def kill_at(point, count, after):
    """Dies at the count-th time that it comes to the point: before or after it, or in mid-line."""
    owner, name = POINTS[point]
    original, left = getattr(owner, name), count

    def counted(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            if after:
                (append_half_a_line if name == "append" else original)(*arguments, **options)
            die()
        return original(*arguments, **options)

    setattr(owner, name, counted)


def session(config, point=None, count=0, after=False):
    callbacks_module.LINES_PER_EPOCH = 2  # of six steps, so that some saves fall between two lines
    if point:
        kill_at(point, int(count), after in (True, "True"))
    training_module.train(RunConfig.from_json(config))


def fork_sessions():
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            file = os.open(output, os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(file, stream)
            return session(*arguments)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    quick_pictures.draw_quickly()
    session(*sys.argv[1:]) if sys.argv[1:] else fork_sessions()
