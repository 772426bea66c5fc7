"""Pictures that cannot be used: all are found, each with its reason, at once, once, and whatever happens meanwhile."""

import itertools
import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile

from pathlib import Path

import numpy as np
import pytest
from bad_pictures import BAD, GOOD, HTML, JPEG, make_bad_folder, noise, part, save
from hypothesis import given, settings
from hypothesis import strategies as st

from facegen_keras.data import check as check_module
from facegen_keras.data import patience
from facegen_keras.data import store as store_module
from facegen_keras.base.errors import InputError
from facegen_keras.data.check import check_faces
from facegen_keras.data.pictures import UnreadableImage, check_size, decode_face
from facegen_keras.data.sources import FolderSource, ZipSource
from facegen_keras.data.tree import list_kinds
from facegen_keras.faces import epoch_order, load_faces, require_readable
from facegen_keras.toyfaces import DrawnSource

CHECK = "import json, sys; from facegen_keras.faces import load_faces; from facegen_keras.data.check import check_faces; print(json.dumps(check_faces(load_faces(sys.argv[1]))))"
CHANGED = "changed since it was checked"


def start_check(folder):
    return subprocess.Popen([sys.executable, "-c", CHECK, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def write(root, contents):
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zip_up(path, contents, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def numbered(count):
    return {f"{number:02}.png": save(noise(16, 16)) for number in range(count)}


def make_later(path):
    "A time of change that is surely another one."
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.fixture
def reads(monkeypatch):
    "Which names are read from folders."
    names, read = [], FolderSource.read

    def noting_read(source, index):
        names.append(source.names[index])
        return read(source, index)
    monkeypatch.setattr(FolderSource, "read", noting_read)
    return names


@pytest.fixture
def folder(tmp_path):
    "Ten good pictures, a duplicate and a web page."
    contents = numbered(10)
    return write(tmp_path / "faces", {**contents, "10.png": contents["03.png"], "11.png": HTML})


FOUND = {"10.png": "the same bytes as 03.png", "11.png": "HTML, not a picture"}


# Every kind

def test_every_kind_is_found_with_its_reason_and_nothing_hangs_or_is_said_beside(tmp_path):
    expected = make_bad_folder(tmp_path)
    assert len(expected) >= 25
    process = start_check(tmp_path)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    problems = json.loads(out)
    assert list(problems) == sorted(expected)
    for name, reason in expected.items():
        assert reason in problems[name] and "\n" not in problems[name], name
    assert err == ""


def test_the_second_check_reads_only_what_was_bad_and_finds_the_same(tmp_path, reads):
    make_bad_folder(tmp_path)
    first = check_faces(load_faces(tmp_path, image_size=32))
    assert len(set(reads)) == len(reads) and {f"good/{i}.png" for i in range(4)} < set(reads)
    reads.clear()
    assert check_faces(load_faces(tmp_path, image_size=256, crop="none")) == first
    assert {name.split("/")[0] for name in reads} == {"later"}, "a bad picture may have been repaired"


def test_a_zip_is_judged_like_a_folder(tmp_path):
    contents = {f"good/{number}.png": data for number, data in enumerate(GOOD)}
    contents |= {f"later/{name}": data for name, (data, _) in BAD.items() if isinstance(data, bytes)}
    problems = check_faces(load_faces(zip_up(tmp_path / "a.zip", contents)))
    assert list(problems) == sorted(name for name in contents if name.startswith("later/"))
    for name, reason in problems.items():
        assert BAD[name.removeprefix("later/")][1] in reason, name
    assert check_faces(load_faces(tmp_path / "a.zip")) == problems


@pytest.mark.parametrize("size, reason", [
    ((8, 8), None), ((8, 80), None), ((7, 8), "small"), ((8, 81), "strip"), ((81, 8), "strip"),
    ((10_000, 8_000), None), ((10_000, 8_001), "large")])
def test_sizes_at_their_bounds(size, reason):
    if reason is None:
        return check_size(*size)
    with pytest.raises(UnreadableImage, match=reason):
        check_size(*size)


def test_drawn_faces_need_no_check(cache_folder):
    assert check_faces(load_faces("toy", limit=3)) == {} and list(cache_folder.iterdir()) == []


def test_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.jpg")
    (tmp_path / name).write_bytes(HTML)
    assert check_faces(load_faces(tmp_path)) == {name: "HTML, not a picture"}


def test_everything_left_out_is_said_in_one_line(tmp_path):
    faces = load_faces(write(tmp_path, {"a.png": HTML}))
    faces.leave_out(check_faces(faces))
    with pytest.raises(InputError, match="at least one picture.* got 'none among 0'; run facegen check$"):
        require_readable(faces)


FORMATS = {
    "JPEG": {}, "progressive": dict(format="JPEG", progressive=True), "PNG": {}, "GIF": {}, "BMP": {}, "PPM": {},
    "TIFF": {}, "LZW": dict(format="TIFF", compression="tiff_lzw"), "WEBP": {},
    "lossless": dict(format="WEBP", lossless=True)}
PICTURES = {name: save(noise(300, 200), **{"format": name, **options}) for name, options in FORMATS.items()}


def verdicts(data):
    "Which sizes of face can be made of a file."
    possible = []
    for image_size in (16, 64, 256):
        try:
            decode_face(data, image_size, "square")
            possible.append(image_size)
        except UnreadableImage:
            pass
    return possible


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    "The verdict of a check on a folder with one file."
    path, times = tmp_path_factory.mktemp("one") / "a.jpg", itertools.count(1)

    def check(data):
        path.write_bytes(data)
        os.utime(path, (next(times),) * 2)  # two versions in the same tick of the clock would be one
        reasons = list(check_faces(load_faces(path.parent)).items())
        assert all(name == "a.jpg" and reason and "\n" not in reason for name, reason in reasons)
        return bool(reasons)
    return check


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(list(FORMATS)), length=st.floats(0, 0.99))
@pytest.mark.filterwarnings("ignore")
def test_a_truncated_picture_is_found_at_every_size(one_file, kind, length):
    data = part(PICTURES[kind], length)
    assert one_file(data) and verdicts(data) == []


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(list(FORMATS)),
       changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes_give_one_verdict(one_file, kind, changes):
    data = bytearray(PICTURES[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    assert verdicts(bytes(data)) == ([] if one_file(bytes(data)) else [16, 64, 256])


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_no_picture(one_file, data):
    assert one_file(data)


# Duplicates, blocks, progress

def test_duplicates_are_found_across_blocks_in_the_order_of_the_collection(tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "CHECK_BLOCK", 4)
    contents = numbered(10)
    write(tmp_path, {**contents, "08.png": contents["01.png"], "09.png": contents["01.png"]})
    calls, faces = [], load_faces(tmp_path)
    assert check_faces(faces, lambda *counts: calls.append(counts)) == {
        "08.png": "the same bytes as 01.png", "09.png": "the same bytes as 01.png"}
    assert calls == [(4, 10), (8, 10), (10, 10)]
    faces.source.follow(sorted(faces.source.names, reverse=True))
    assert list(check_faces(faces).items()) == [
        ("08.png", "the same bytes as 09.png"), ("01.png", "the same bytes as 09.png")]
    assert check_faces(faces, duplicates=False) == {}


def test_leaving_out_keeps_the_rest_in_order(folder):
    faces = load_faces(folder, image_size=16)
    faces.leave_out(["02.png", *check_faces(faces)])
    assert [faces.name(index) for index in range(len(faces))] == [f"{i:02}.png" for i in (0, 1, *range(3, 10))]
    make_later(folder / "09.png")
    list(faces.batches(9))
    assert faces.unreadable == {"09.png": CHANGED}, "the stamps were kept with their names"


# The cache

def test_only_what_has_changed_is_read_again(folder, reads):
    check_faces(load_faces(folder))
    reads.clear()
    (folder / "02.png").write_bytes(part(JPEG, 0.5))
    make_later(folder / "05.png")
    write(folder, {"new.png": save(noise())})
    problems = check_faces(load_faces(folder))
    assert sorted(reads) == ["02.png", "05.png", "11.png", "new.png"]
    assert list(problems) == ["02.png", "10.png", "11.png"]


def test_files_alike_in_size_and_time_are_not_mixed_up(tmp_path):
    write(tmp_path, {"1/a.png": GOOD[0], "1/b.png": bytes(len(GOOD[0])), "2/a.png": bytes(len(GOOD[0]))})
    for path in tmp_path.glob("*/*.png"):
        os.utime(path, (1, 1))
    for _ in range(2):
        assert list(check_faces(load_faces(tmp_path / "1"))) == ["b.png"]
        assert list(check_faces(load_faces(tmp_path / "2"))) == ["a.png"]


def test_an_interrupted_check_goes_on_where_it_stopped(folder, reads, monkeypatch):
    monkeypatch.setattr(check_module, "CHECK_BLOCK", 4)

    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        check_faces(load_faces(folder), interrupt)
    reads.clear()
    assert check_faces(load_faces(folder)) == FOUND
    assert sorted(reads) == ["08.png", "09.png", "10.png", "11.png"]


@pytest.mark.parametrize("number", ["CHECK_RULES", "PILLOW_VERSION"])
def test_findings_of_other_rules_do_not_count(folder, reads, monkeypatch, number):
    check_faces(load_faces(folder))
    reads.clear()
    monkeypatch.setattr(check_module, number, "another")
    assert check_faces(load_faces(folder)) == FOUND and len(reads) == 12


def test_what_may_pass_is_not_kept(folder, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(patience, "open", refuse, raising=False)
    problems = check_faces(load_faces(folder))
    assert len(problems) == 12 and set(problems.values()) == {"cannot be opened: Permission denied"}
    monkeypatch.delattr(patience, "open")
    assert check_faces(load_faces(folder)) == FOUND


def test_a_file_without_permission(folder):
    (folder / "04.png").chmod(0)
    if os.access(folder / "04.png", os.R_OK):
        pytest.skip("permissions do not count for root")
    assert check_faces(load_faces(folder)) == {"04.png": "cannot be opened: Permission denied", **FOUND}


def test_a_cache_that_is_no_database_is_made_anew(folder, reads, cache_folder):
    path = cache_folder / "facegen_keras/checked.sqlite"
    write(cache_folder, {"facegen_keras/checked.sqlite": b"nonsense" * 999})
    assert check_faces(load_faces(folder)) == FOUND
    assert path.read_bytes().startswith(b"SQLite format 3")
    reads.clear()
    assert check_faces(load_faces(folder)) == FOUND and reads == ["11.png"]


def test_a_cache_damaged_inside_is_made_anew_by_the_next_check(folder, reads, cache_folder):
    check_faces(load_faces(folder))
    path = cache_folder / "facegen_keras/checked.sqlite"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    for reads_expected in (12, 12, 1):
        reads.clear()
        assert check_faces(load_faces(folder)) == FOUND and len(reads) == reads_expected


def cache_home_is_a_file(cache_folder, monkeypatch):
    write(cache_folder, {"file": b""})
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder / "file"))


def cache_is_a_folder(cache_folder, monkeypatch):
    (cache_folder / "facegen_keras/checked.sqlite").mkdir(parents=True)


def cache_is_locked(cache_folder, monkeypatch):
    (cache_folder / "facegen_keras").mkdir()
    holder = sqlite3.connect(cache_folder / "facegen_keras/checked.sqlite")
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: holder and connect(path, timeout=0.1))


def nobody_is_at_home(cache_folder, monkeypatch):
    def homeless():
        raise RuntimeError("no home")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)


@pytest.mark.parametrize("trouble", [cache_home_is_a_file, cache_is_a_folder, cache_is_locked, nobody_is_at_home])
def test_without_a_cache_a_check_does_its_work(folder, reads, cache_folder, monkeypatch, trouble):
    trouble(cache_folder, monkeypatch)
    assert check_faces(load_faces(folder)) == FOUND
    assert check_faces(load_faces(folder)) == FOUND and len(reads) == 24


def test_a_cache_that_is_locked_for_a_moment_is_waited_for(folder, reads, cache_folder):
    check_faces(load_faces(folder))
    write(folder, {"new.png": save(noise())})
    other = sqlite3.connect(cache_folder / "facegen_keras/checked.sqlite", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.5, other.rollback)
    release.start()
    for _ in range(2):
        reads.clear()
        assert check_faces(load_faces(folder)) == FOUND
    release.join()
    other.close()
    assert reads == ["11.png"]


def test_a_cache_that_fails_in_the_middle_does_not_stop_a_check(folder, reads, cache_folder, monkeypatch):
    monkeypatch.setattr(check_module, "CHECK_BLOCK", 4)
    path = cache_folder / "facegen_keras/checked.sqlite"
    assert check_faces(load_faces(folder), lambda done, total: done == 4 and os.truncate(path, 1000)) == FOUND
    assert len(reads) == 12 and not path.exists()


def test_the_cache_lies_where_xdg_says_and_holds_no_path(folder, cache_folder):
    check_faces(load_faces(folder))
    data = (cache_folder / "facegen_keras/checked.sqlite").read_bytes()
    assert b"faces" not in data and b".png" not in data


def test_two_processes_may_check_at_once(tmp_path, reads):
    write(tmp_path, {**{f"{i:04}.png": save(noise(16, 16)) for i in range(1500)}, "bad.png": HTML})
    processes = [start_check(tmp_path) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [json.loads(out) for out, _ in answers] == 2 * [{"bad.png": "HTML, not a picture"}]
    assert [err for _, err in answers] == ["", ""]
    check_faces(load_faces(tmp_path))
    assert reads == ["bad.png"]


# While training

def test_files_that_change_or_vanish_before_they_are_shown_are_noted_and_later_they_may(folder, monkeypatch):
    monkeypatch.setattr(store_module, "num_threads", lambda: 1)  # looks two batches ahead
    faces = load_faces(folder, image_size=16)
    faces.leave_out(check_faces(faces))
    known = {faces.name(index): face.tobytes() for index, face in enumerate(faces)}
    names = [faces.name(index) for index in epoch_order(10, 0, 0)]
    (shown_and_gone, shown_and_changed), (gone, changed, touched) = names[:2], names[-3:]
    stream = iter(faces.batches(2, epochs=9, flip=False))
    next(stream)
    for name in (shown_and_gone, gone):
        (folder / name).unlink()
    for name in (shown_and_changed, changed):
        (folder / name).write_bytes(save(noise(20, 20)))
    make_later(folder / touched)
    rest = list(stream)
    assert len(rest) == 44
    assert faces.unreadable == {gone: "no longer there", changed: CHANGED, touched: CHANGED}
    last_epoch = {face.numpy().tobytes() for batch in rest[-5:] for face in batch}
    assert last_epoch == {known[name] for name in names[:-3]}
    again = check_faces(faces)
    assert again == dict.fromkeys((shown_and_gone, gone), "no longer there"), "a new check takes files as they are now"


def test_a_file_still_being_written_is_not_taken(folder, monkeypatch):
    monkeypatch.setattr(FolderSource, "traits", lambda self, index: (10, 1, 1))
    with pytest.raises(UnreadableImage, match="changed while it was read"):
        FolderSource(folder).read(0)


def test_a_zip_that_changes_during_training_is_noted(tmp_path):
    path, contents = tmp_path / "a.zip", numbered(4)
    faces = load_faces(zip_up(path, contents), image_size=16)
    assert check_faces(faces) == {}
    zip_up(path, dict(reversed(contents.items())))
    make_later(path)
    with pytest.raises(InputError, match=f"the zip has {CHANGED}"):
        faces.batches(2)
    assert check_faces(faces) == {}, "a new check takes the zip as it is now"
    path.unlink()
    with pytest.raises(UnreadableImage, match="no longer there"):
        faces[0]


# Following a list

@pytest.mark.parametrize("kind", ["folder", "zip", "drawn"])
def test_a_run_goes_on_with_the_order_it_began_with(tmp_path, kind):
    contents = numbered(8)
    data = {"folder": lambda: write(tmp_path / "tree", contents), "drawn": lambda: "toy",
            "zip": lambda: zip_up(tmp_path / "tree.zip", contents)}[kind]()
    before = load_faces(data, image_size=16, limit=8)
    before.leave_out([before.name(2)])
    names = [before.name(index) for index in range(7)]
    if kind == "folder":
        (data / names[3]).unlink()
        write(data, {"00 new.png": GOOD[0]})
    if kind == "zip":
        zip_up(data, {"00 new.png": GOOD[0], **{name: contents[name] for name in contents if name != names[3]}})
    if kind == "drawn":
        names[3] = "toy-000099"
    after = load_faces(data, image_size=16, limit=8 if kind == "drawn" else 3)
    after.source.follow(names)
    assert [after.name(index) for index in range(len(after))] == names
    for index in (0, 1, 2, 4, 5, 6):
        name = names[index]
        expected = before[index] if kind == "drawn" else decode_face(contents[name], 16, "square")
        assert np.array_equal(after[index], expected)
    with pytest.raises(UnreadableImage, match="no longer there"):
        after[3]
    with pytest.raises(IndexError):
        after[7]
    assert check_faces(after) == ({} if kind == "drawn" else {names[3]: "no longer there"})
    list(after.batches(7))
    assert after.unreadable == {names[3]: "no longer there"}


def test_a_list_may_name_what_must_not_be_opened(tmp_path):
    write(tmp_path, {"a.png": GOOD[0]})
    os.mkfifo(tmp_path / "pipe.png")
    source = FolderSource(tmp_path)
    assert source.names == ["a.png"]
    source.follow(["pipe.png", "a.png", "."])
    for index in (0, 2):
        with pytest.raises(UnreadableImage, match="not a regular file"):
            source.read(index)
    assert source.read(1) == GOOD[0]


def test_stamps_tell_versions_apart(tmp_path):
    write(tmp_path, {"a.png": GOOD[0]})
    for source in (FolderSource(tmp_path), ZipSource(zip_up(tmp_path / "a.zip", {"a.png": GOOD[0]}))):
        size, changed = source.stamp(0)
        assert size == len(GOOD[0]) and 0 < changed < 2**63
    folder = FolderSource(tmp_path)
    stamps = [folder.stamp(0)]
    make_later(tmp_path / "a.png")
    stamps.append(folder.stamp(0))
    in_zip = []
    for data, seconds in ((bytes(9), 1), (bytes([9] * 9), 1), (bytes(9), 2)):
        os.utime(zip_up(tmp_path / "a.zip", {"a.png": data}), (seconds, seconds))
        in_zip.append(ZipSource(tmp_path / "a.zip").stamp(0))
    assert len(set(stamps)) == 2 and len(set(in_zip)) == 3
    assert not hasattr(DrawnSource(1, 16, 0), "stamp")


def test_stamps_stay_small(folder):
    faces = load_faces(folder)
    check_faces(faces)
    assert faces.source.stamps.dtype == np.int64 and faces.source.stamps.shape == (12, 2)


# Zips that mean no good

def bomb(path):
    "An entry that says it is 99 bytes long and unpacks to 300 megabytes."
    zip_up(path, {"bomb.png": bytes(300_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 300_000_000), struct.pack("<L", 99)))


def boast(path):
    "An entry that says it is a gigabyte long."
    data = zip_up(path, {"bomb.png": bytes(1000)}).read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 1000), struct.pack("<L", 10**9)))


@pytest.mark.parametrize("make, reason", [(bomb, "damaged in the zip"), (boast, "too large: 1,000,000,000 bytes")])
def test_a_bomb_in_a_zip_does_not_fill_the_memory(tmp_path, make, reason):
    make(tmp_path / "a.zip")
    tracemalloc.start()
    try:
        assert check_faces(load_faces(tmp_path / "a.zip")) == {"bomb.png": reason}
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_names_that_lead_out_of_a_zip_write_nothing(tmp_path):
    evil = {"../../evil.jpg": JPEG, "/etc/evil.jpg": JPEG, "C:\\evil.jpg": GOOD[0], "good.png": GOOD[1]}
    (tmp_path / "deep/in").mkdir(parents=True)
    path = zip_up(tmp_path / "deep/in/a.zip", evil)
    before = sorted(tmp_path.rglob("*"))
    faces = load_faces(path, image_size=16)
    assert faces.source.names == ["/etc/evil.jpg", "C:/evil.jpg", "good.png"] and check_faces(faces) == {}
    assert np.array_equal(faces[0], decode_face(JPEG, 16, "square"))
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/etc/evil.jpg")


def test_of_two_entries_with_one_name_the_last_counts(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", GOOD[0])
        archive.writestr("a.png", GOOD[1])
    source = load_faces(tmp_path / "a.zip").source
    assert source.names == ["a.png"] and source.read(0) == GOOD[1]


@settings(deadline=None, max_examples=150)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_zip_is_refused_or_checked(damaged_zip, changes):
    path, whole = damaged_zip
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    try:
        assert all(check_faces(load_faces(path)).values())
    except InputError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def damaged_zip(tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    zip_up(path, {f"{number}.gif": save(noise(8, 8), "GIF")[:40] for number in range(3)})
    return path, path.read_bytes()


def test_a_pipe_instead_of_a_zip_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    began = time.monotonic()
    with pytest.raises(InputError, match="not a regular file"):
        load_faces(tmp_path / "pipe.zip")
    assert time.monotonic() - began < 5


# What is not looked at

OTHERS = {
    **{f"{number}.HEIC": b"" for number in range(3)}, "a/notes.txt": b"", "a/README": b"", "a/more.txt": b"",
    ".hidden.txt": b"", "__MACOSX/a.heic": b"", ".git/config": b"", "100k.txt": b"", "good.png": GOOD[0]}


def test_other_files_are_counted(tmp_path):
    expected = {".heic": 3, ".txt": 2, "": 1}
    for source in (FolderSource(write(tmp_path / "tree", OTHERS)), ZipSource(zip_up(tmp_path / "tree.zip", OTHERS))):
        assert list(source.others.items()) == list(expected.items())
    assert list_kinds(expected) == "3 .heic, 2 .txt, 1 without ending"
    assert list_kinds({f".{number}": 1000 for number in range(9)}).endswith("1,000 .5 and 3,000 others")


def test_who_gives_no_picture_is_told_what_is_there(tmp_path):
    contents = {name: data for name, data in OTHERS.items() if name != "good.png"}
    for path in (write(tmp_path / "tree", contents), zip_up(tmp_path / "tree.zip", contents)):
        with pytest.raises(InputError, match=r"or the like \(there: 3 \.heic, 2 \.txt, 1 without ending\)$"):
            load_faces(path)
