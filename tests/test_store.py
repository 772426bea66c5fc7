"""Decoded faces are kept: the same bytes as decoding each time, wherever they lie, whatever fails, whatever changes."""

import errno
import importlib.util
import io
import os
import signal
import subprocess
import sys
import zipfile

import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facegen_keras.data import store as store_module

from facegen_keras.base.errors import InputError
from facegen_keras.data.check import check_faces
from facegen_keras.data.pictures import decode_face
from facegen_keras.faces import epoch_flips, epoch_order, load_faces, readable_face

SIDE, COUNT, BAD = 16, 24, (3, 4, 11)
NO_ROOM = 10**18  # bytes that no disk has free


def picture(number):
    "Noise, so that every face differs from every other and from its mirror image."
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def contents():
    return {f"{number:02}.png": b"<html>" if number in BAD else picture(number) for number in range(COUNT)}


@pytest.fixture
def folder(tmp_path, contents):
    (tmp_path / "faces").mkdir()
    for name, data in contents.items():
        (tmp_path / "faces" / name).write_bytes(data)
    return tmp_path / "faces"


@pytest.fixture(params=["memory", "file"])
def place(request, monkeypatch):
    return put(monkeypatch, request.param)


def put(monkeypatch, place):
    "Says where faces are to be kept."
    monkeypatch.setattr(store_module, "LEAST_FREE", 0)
    monkeypatch.setattr(store_module, "MOST_MEMORY", 0 if place == "file" else 10**9)
    return place


def count_reads(faces):
    reads, read = [], faces.source.read
    faces.source.read = lambda index: reads.append(int(index)) or read(index)
    return reads


def arrays(stream):
    return [np.asarray(batch) for batch in stream]


def by_hand(contents, batch_size, seed, epochs):
    "The batches by the rules alone: each picture decoded each time, what is bad replaced by the next in the order."
    names, batches = sorted(contents), []
    for epoch in range(epochs):
        order, flips = epoch_order(len(names), seed, epoch), epoch_flips(len(names), seed, epoch)
        shown = []
        for place in range(len(names) // batch_size * batch_size):
            good = next(index for index in [*order[place:], *order[:place]] if contents[names[index]] != b"<html>")
            face = decode_face(contents[names[good]], SIDE, "square")
            shown.append(face[:, ::-1] if flips[place] else face)
        batches += np.split(np.stack(shown), len(names) // batch_size)
    return batches


# The same bytes

@pytest.mark.parametrize("batch_size", [5, 8])
def test_batches_are_those_of_decoding_each_time_and_each_picture_is_read_once(folder, contents, place, batch_size, monkeypatch):
    monkeypatch.setattr(store_module, "num_threads", lambda: 1)  # two may decode one picture at the same time
    faces = load_faces(folder, image_size=SIDE)
    reads = count_reads(faces)
    for _ in range(2):  # as after a divergence
        assert np.array_equal(arrays(faces.batches(batch_size, seed=4, epochs=3)), by_hand(contents, batch_size, 4, 3))
    assert sorted(reads) == list(range(COUNT)) and (faces.decoded.file is not None) == (place == "file")
    assert np.flatnonzero(~faces.decoded.kept).tolist() == list(BAD)


def test_two_streams_at_once_share_what_was_decoded(folder, contents, place):
    faces = load_faces(folder, image_size=SIDE)
    pairs = list(zip(faces.batches(8, seed=1, epochs=2), faces.batches(8, seed=2, epochs=2)))
    for number, stream in enumerate(zip(*pairs), start=1):
        assert np.array_equal(arrays(stream), by_hand(contents, 8, number, 2))


def test_what_is_kept_is_written_once_and_handed_out_as_a_copy(folder, place):
    faces = load_faces(folder, image_size=SIDE)
    first = readable_face(faces, np.arange(COUNT), 0)
    faces.decoded.keep(0, 255 - first)
    for _ in range(2):
        again = readable_face(faces, np.arange(COUNT), 0)
        assert np.array_equal(again, first)
        again[:] = 0


def test_a_picture_that_was_kept_may_change_and_vanish(folder, contents, place):
    faces = load_faces(folder, image_size=SIDE)
    list(faces.batches(8, seed=4))
    (folder / "00.png").unlink()
    (folder / "01.png").write_bytes(b"<html>")
    assert np.array_equal(arrays(faces.batches(8, seed=4, epochs=3)), by_hand(contents, 8, 4, 3))
    assert sorted(faces.unreadable) == [f"{number:02}.png" for number in BAD]


# Other names are other faces

CHANGES = {
    "leave_out": lambda faces: faces.leave_out(["00.png", "07.png"]),
    "keep": lambda faces: faces.source.keep(list(range(5, COUNT))),
    "follow": lambda faces: faces.source.follow(sorted(faces.source.names, reverse=True)),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_names_forgets_what_was_kept(folder, contents, place, kind, change, tmp_path):
    data = folder
    if kind == "zip":
        data = tmp_path / "faces.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    faces, fresh = load_faces(data, image_size=SIDE), load_faces(data, image_size=SIDE)
    list(faces.batches(8))
    assert faces.decoded.kept.any()
    for each in (faces, fresh):
        CHANGES[change](each)
    assert not faces.decoded.kept.any()
    assert np.array_equal(arrays(faces.batches(8)), arrays(fresh.batches(8)))


def test_drawn_faces_that_follow_a_list_are_drawn_anew(place):
    faces = load_faces("toy", image_size=32, limit=COUNT)
    before = arrays(faces.batches(COUNT, flip=False))
    faces.source.follow(faces.source.names[::-1])
    after = arrays(faces.batches(COUNT, flip=False))
    order = epoch_order(COUNT, 0, 0)
    assert np.array_equal(after[0][np.argsort(order)], before[0][np.argsort(order)][::-1])


def test_a_check_takes_the_pictures_as_they_are_now(folder, contents, place):
    faces = load_faces(folder, image_size=SIDE)
    list(faces.batches(8))
    contents["00.png"] = picture(1000)
    (folder / "00.png").write_bytes(contents["00.png"])
    check_faces(faces)
    assert np.array_equal(arrays(faces.batches(8)), by_hand(contents, 8, 0, 1))


# No room

def fill_up(monkeypatch, after, how):
    "A disk that is full after so many writes."
    writes, pwrite = [], os.pwrite

    def limited(file, data, offset):
        writes.append(offset)
        if len(writes) <= after:
            return pwrite(file, data, offset)
        if how == "short":
            return pwrite(file, data[:100], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "pwrite", limited)
    return writes


@pytest.mark.parametrize("how", ["error", "short"])
@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_disk_that_fills_up_costs_time_and_nothing_else(folder, contents, monkeypatch, after, how):
    put(monkeypatch, "file")
    writes = fill_up(monkeypatch, after, how)
    faces = load_faces(folder, image_size=SIDE)
    assert np.array_equal(arrays(faces.batches(8, seed=4, epochs=2)), by_hand(contents, 8, 4, 2))
    assert len(writes) == after + 1 and faces.decoded.kept.sum() == after
    reads = count_reads(faces)
    assert np.array_equal(arrays(faces.batches(8, seed=4, epochs=2)), by_hand(contents, 8, 4, 2))
    assert len(writes) == after + 1 and set(reads) == set(range(COUNT)) - {*np.flatnonzero(faces.decoded.kept), *BAD}


LIMITED = """
import resource, sys
import numpy as np
from facegen_keras.data import store as store_module
from facegen_keras import faces as faces_module
store_module.MOST_MEMORY = store_module.LEAST_FREE = 0
pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
store = store_module.DecodedStore(list("abcdefgh"), 16)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 768 + 100,) * 2)
for index in (2, 0, 3, 1):
    store.keep(index, pictures[index])
out = np.zeros_like(pictures)
kept = store.gather(np.arange(8), out)
assert np.array_equal(out[kept], pictures[kept]) and not out[~kept].any()
print(np.flatnonzero(kept).tolist())
"""


def test_a_file_that_may_not_grow_keeps_what_was_written_whole():
    assert run(LIMITED).stdout.strip() == "[0, 2]", "the third was written in part, after it nothing is kept"


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))


def no_home(monkeypatch, tmp_path):
    def unknown():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)


def no_long_file(monkeypatch, tmp_path):
    def too_long(*arguments, **options):
        file = io.FileIO(tmp_path / "short", "w+")
        file.close()  # to make it longer now fails
        return io.FileIO(os.open(tmp_path / "short", os.O_RDONLY), "r")
    monkeypatch.setattr(tempfile, "TemporaryFile", too_long)


def no_map(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    monkeypatch.setattr(np, "memmap", refuse)


HINDRANCES = {
    "no folder": no_folder, "no home": no_home, "no long file": no_long_file, "no map": no_map,
    "no pwrite": lambda monkeypatch, tmp_path: monkeypatch.delattr(os, "pwrite"),
    "a disk nearly full": lambda monkeypatch, tmp_path: monkeypatch.setattr(store_module, "LEAST_FREE", NO_ROOM),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_without_a_file_pictures_are_decoded_each_time(folder, contents, monkeypatch, tmp_path, hindrance):
    put(monkeypatch, "file")
    HINDRANCES[hindrance](monkeypatch, tmp_path)
    faces = load_faces(folder, image_size=SIDE)
    assert np.array_equal(arrays(faces.batches(8, seed=4, epochs=2)), by_hand(contents, 8, 4, 2))
    assert not faces.decoded.kept.any()


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_memory_needs_none_of_that(folder, monkeypatch, tmp_path, hindrance):
    HINDRANCES[hindrance](monkeypatch, tmp_path)
    faces = load_faces(folder, image_size=SIDE)
    list(faces.batches(8))
    assert faces.decoded.kept.sum() == COUNT - len(BAD)


def test_without_memory_pictures_are_decoded_each_time(folder, contents, monkeypatch):
    faces, empty = load_faces(folder, image_size=SIDE), np.empty

    def no_memory(shape, *arguments):
        if shape == (COUNT, SIDE, SIDE, 3):
            raise MemoryError
        return empty(shape, *arguments)
    monkeypatch.setattr(np, "empty", no_memory)
    assert np.array_equal(arrays(faces.batches(8, seed=4, epochs=2)), by_hand(contents, 8, 4, 2))
    assert not faces.decoded.kept.any()


# Processes

def run(code, *arguments, **environment):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=120, capture_output=True, text=True,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment})
    assert done.returncode == 0, done.stderr
    return done


HOLDING = """
import sys, time
from facegen_keras.data import store as store_module
from facegen_keras import faces as faces_module
store_module.MOST_MEMORY = store_module.LEAST_FREE = 0
faces = faces_module.load_faces(sys.argv[1], image_size=16)
faces_module.batch_pixels(faces, 0, 24, 0, False)
print(faces.decoded.kept.sum(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which files a process has open")
def test_a_killed_process_leaves_nothing(folder, cache_folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == f"{COUNT - len(BAD)}\n"
        held = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd")]
        assert any(path.startswith(str(cache_folder)) and path.endswith("(deleted)") for path in held)
        assert os.listdir(cache_folder / "facegen_keras") == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert os.listdir(cache_folder / "facegen_keras") == []


MANY = """
import re, sys
from pathlib import Path
import numpy as np
from facegen_keras.data import store as store_module
from facegen_keras import faces as faces_module

def own_memory():
    return 1024 * int(re.search(r"RssAnon:\\s*(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

class Many:
    names = list(map(str, range(200_000)))
    def read(self, index):
        return np.full((16, 16, 3), index % 251, np.uint8)

store_module.MOST_MEMORY, store_module.LEAST_FREE = int(sys.argv[1]), 0
faces = faces_module.Faces(Many(), "folder", "square", 16)
before = own_memory()
for epoch in (0, 1):
    order = faces_module.epoch_order(200_000, 0, epoch)
    for step in range(3125):
        pixels = faces_module.batch_pixels(faces, epoch * 3125 + step, 64, 0, True)
        assert np.array_equal(pixels[:, 3, 3, 1], order[64 * step:64 * step + 64] % 251)
assert faces.decoded.kept.all()
print(own_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks Linux how much memory is a process's own")
def test_200_000_pictures_are_kept_without_holding_them_in_memory():
    held = 200_000 * 16 * 16 * 3
    assert int(run(MANY, 0).stdout) < held / 5


DIGEST = """
import hashlib, os, sys
os.environ["KERAS_BACKEND"] = sys.argv[2]
import numpy as np
from facegen_keras.faces import load_faces
stream = load_faces(sys.argv[1], image_size=16).batches(8, seed=4, epochs=3)
assert all(type(batch) is np.ndarray for batch in stream) if sys.argv[2] == "jax" else True
stream = load_faces(sys.argv[1], image_size=16).batches(8, seed=4, epochs=3)
print(hashlib.sha256(b"".join(np.asarray(batch).tobytes() for batch in stream)).hexdigest(), "tensorflow" in sys.modules)
"""


@pytest.mark.slow
def test_jax_gets_the_same_batches_without_tensorflow(folder):
    if not importlib.util.find_spec("jax"):
        pytest.skip("jax is not installed")
    digests = {backend: run(DIGEST, folder, backend).stdout.split() for backend in ("tensorflow", "jax")}
    assert digests["jax"] == [digests["tensorflow"][0], "False"]


# Parts of a batch

@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_several_processes_are_the_batches_of_one(folder, contents, parts):
    streams = [load_faces(folder, image_size=SIDE).batches(8, seed=4, epochs=3, part=(which, parts)) for which in range(parts)]
    assert [stream.element_spec.shape for stream in streams] == parts * [(8 // parts, SIDE, SIDE, 3)]
    together = np.concatenate(list(map(arrays, streams)), axis=1)
    assert np.array_equal(together, by_hand(contents, 8, 4, 3))


def test_a_part_reads_its_own_rows_alone(folder):
    faces = load_faces(folder, image_size=SIDE)
    faces.leave_out([f"{number:02}.png" for number in BAD])
    reads = count_reads(faces)
    list(faces.batches(7, part=(3, 7)))
    assert set(reads) == set(epoch_order(21, 0, 0)[3::7])


@pytest.mark.parametrize("part, fragment", [((0, 3), "batch_size: expected a multiple of 3"), ((2, 2), "part: expected"),
                                            ((-1, 2), "part: expected"), ((0, 0), "part: expected")])
def test_a_batch_that_cannot_be_divided_is_refused(folder, part, fragment):
    with pytest.raises(InputError, match=fragment):
        load_faces(folder, image_size=SIDE).batches(8, part=part)
