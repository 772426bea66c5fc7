"""Faces of photographs in CelebA's frame: where they lie, what is left out and why, killed and resumed, as a person types it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from photographs import (
    DoubtfulFinder, MarkedFinder, background, drawn_points, marked_face, marked_photographs, on_its_side, photograph, saved)

from facegen_keras import load_faces
from facegen_keras.base.errors import InputError
from facegen_keras.data import align
from facegen_keras.data.align import Alignment, align_photographs, faces_of, read_photograph
from facegen_keras.data.find_faces import FaceFinder, FoundFace, find_faces
from facegen_keras.data.frame import (
    FACE_POINTS, Similarity, cut_face, fit_similarity, frame_points, pad_softly, share_outside, sharpness)
from facegen_keras.toyfaces import ToyFaces

TESTS = Path(__file__).parent
FRAME = (178, 218)


def contents(folder):
    """Bytes of all files but the lock."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".align.lock"}


def reasons(rows):
    return [(row["why"] or "").partition(":")[0] for row in rows]


# Geometry

angles = st.floats(-np.pi, np.pi)


@given(angles, st.floats(0.1, 10), st.floats(-500, 500), st.floats(-500, 500))
def test_a_similarity_is_found_again(angle, scale, x, y):
    moved = Similarity(scale * np.exp(1j * angle), complex(x, y))(FACE_POINTS)
    np.testing.assert_allclose(fit_similarity(moved, FACE_POINTS)(moved), FACE_POINTS, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_no_other_similarity_is_better(seed):
    random = np.random.default_rng(seed)
    points = FACE_POINTS + random.normal(0, 10, (5, 2))
    best = fit_similarity(points, FACE_POINTS)
    error = lambda how: ((how(points) - FACE_POINTS) ** 2).sum()
    other = Similarity(best.turn + complex(*random.normal(0, 0.01, 2)), best.shift + complex(*random.normal(0, 1, 2)))
    assert error(best) <= error(other) + 1e-9


@settings(max_examples=12, deadline=None)
@given(st.floats(-60, 60), st.floats(0.3, 2.5), st.sampled_from([FRAME, (356, 436), (128, 128)]), st.floats(0, 0.3))
def test_a_face_comes_out_the_same_however_it_lay(degrees, scale, size, margin):
    head = ToyFaces(1, 256)
    points = drawn_points(head.attributes(0), 256)
    straight = cut_face(photograph([(head[0], None)], [(400, 400, 0, 1)], (800, 800))[0], points + 400 - 128, size, margin)
    picture, [placed] = photograph([(head[0], points)], [(400, 400, degrees, scale)], (800, 800))
    face = cut_face(picture, placed, size, margin)
    inner = np.s_[size[1] // 3:-size[1] // 4, size[0] // 4:-size[0] // 4]
    blurred = [np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(size[0] / 40)), int)[inner]
               for each in (face, straight)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 4
    off = np.abs(blurred[0][4:] - blurred[1][:-4]).mean()  # the test would notice four pixels
    assert off > np.abs(blurred[0] - blurred[1]).mean()


def test_what_is_aligned_stays_as_it_was():
    face = np.asarray(background(FRAME, 3).filter(ImageFilter.SHARPEN))
    assert np.abs(cut_face(Image.fromarray(face), FACE_POINTS).astype(int) - face).max() <= 1
    square = np.asarray(background((168, 168), 4))
    assert np.abs(cut_face(Image.fromarray(square), frame_points((168, 168)), (168, 168)).astype(int) - square).max() <= 1


def test_a_square_is_what_training_crops_of_the_whole_frame(tmp_path):
    whole = cut_face(background((400, 400)), FACE_POINTS * 1.5 + 30, (356, 436))
    left, top, right, bottom = (2 * edge for edge in (5, 28, 173, 196))
    square = cut_face(background((400, 400)), FACE_POINTS * 1.5 + 30, (336, 336))
    assert np.abs(square.astype(int) - whole[top:bottom, left:right]).max() <= 3


@settings(max_examples=30, deadline=None)
@given(st.tuples(*4 * [st.integers(0, 90)]), st.integers(0, 100))
def test_what_is_filled_is_neither_black_nor_a_mirror(gaps, seed):
    picture = np.asarray(background((60, 50), seed))
    padded = pad_softly(picture, gaps[:2], gaps[2:])
    assert padded.shape == (50 + gaps[1] + gaps[3], 60 + gaps[0] + gaps[2], 3)
    assert (padded[gaps[1]:gaps[1] + 50, gaps[0]:gaps[0] + 60] == picture).all()
    assert padded.min() >= picture.min() - 1 and padded.max() <= picture.max() + 1
    noise = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), np.uint8)
    if gaps[0] > 30:
        filled = pad_softly(noise, gaps[:2], gaps[2:])
        assert filled[:, :gaps[0] - 30].std() < noise.std() / 2, "far out it is blurred"


@given(st.floats(0, 1), st.sampled_from([FRAME, (128, 128)]))
@settings(deadline=None)
def test_what_lies_outside_is_measured(share, size):
    box = (0, size[0]) if size[0] == size[1] else (5 * size[0] / 178, 173 * size[0] / 178)
    edge = box[0] + (1 - share) * (box[1] - box[0])  # the photograph ends there
    assert share_outside((edge, 10_000), frame_points(size), size) == pytest.approx(share, abs=0.02)


def test_blur_is_noticed_whatever_the_contrast():
    face = cut_face(Image.fromarray(ToyFaces(1, 256)[0]), drawn_points(ToyFaces(1, 256).attributes(0), 256))
    blurred = np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(5)))
    for contrast in (1, 0.4):
        assert sharpness((face * contrast).astype(np.uint8)) > 0.2 > 0.06 > sharpness((blurred * contrast).astype(np.uint8))


# One photograph, with a finder that needs no detector


def marked(*boxes, size=(420, 300), seed=0):
    """A photograph with marked faces: left, top, width."""
    picture = background(size, seed)
    for number, (left, top, width) in enumerate(boxes):
        picture.paste(Image.fromarray(marked_face(seed + number, (width, round(width * 120 / 98)))), (left, top))
    return picture


def aligned(picture, finder=MarkedFinder, **options):
    rows, faces = zip(*faces_of(picture, 1, finder(), Alignment(**options)))
    assert [row["why"] is None for row in rows] == [face is not None for face in faces]
    return list(rows)


def test_each_reason():
    blurred = marked((60, 80, 98)).filter(ImageFilter.GaussianBlur(6))
    for picture, options, expected in [
            (marked((60, 80, 98), (230, 80, 98)), {}, ["", ""]), (marked((60, 80, 98), (230, 80, 40)), {}, ["", "too small"]),
            (marked((60, 80, 98), (230, 80, 140)), {"faces": "largest"}, ["not the largest good one", ""]),
            (marked((60, 80, 98)), {"least_size": 140}, ["too small"]), (marked((10, 80, 98)), {}, ["cut off"]),
            (marked((10, 80, 98)), {"size": (128, 128)}, ["cut off"]), (blurred, {}, ["blurred"]),
            (marked((60, 80, 98), (309, 80, 98)), {"faces": "largest"}, ["", "cut off"])]:
        assert reasons(aligned(picture, **options)) == expected
    assert reasons(aligned(marked((60, 80, 98)), DoubtfulFinder)) == ["no face at a second look"]


def test_a_profile_is_left_out():
    class Profile(MarkedFinder):
        def detection(self, *where):
            found = super().detection(*where)
            return found._replace(points=(found.points - found.points.mean(axis=0)) * (0.1, 1) + found.points.mean(axis=0))
    [row] = aligned(marked((160, 80, 98)), Profile)
    assert row["why"].startswith(("turned away, or no face", "no face at a second look"))


def test_boxes_are_in_pixels_of_the_whole_photograph(monkeypatch):
    picture = marked((160, 80, 98)).resize((1680, 1200))
    rows = {}
    for least in (3000, 400):
        monkeypatch.setattr(align, "ENOUGH_PIXELS", least)
        smaller, ratio = read_photograph(saved(picture, "JPEG", quality=95))
        [(rows[least], _)] = faces_of(smaller, ratio, MarkedFinder(), Alignment())
    assert smaller.width < 1680
    for name in ("box", "points", "size"):
        np.testing.assert_allclose(rows[400][name], rows[3000][name], atol=10)
    np.testing.assert_allclose(rows[400]["box"], [640, 320, 1032, 800], atol=10)


# A folder


@pytest.fixture
def in_this_process(monkeypatch):
    """For tests of what is done with faces: starting a process for them takes a second."""
    def work_through(source, indices, options, processes, start):
        monkeypatch.setattr(align.Worker, "source", source)
        monkeypatch.setattr(align.Worker, "options", options)
        monkeypatch.setattr(align.Worker, "finder", start())
        yield from map(align.work_on, indices)

    monkeypatch.setattr(align, "work_through", work_through)


def run(photographs, out, options=Alignment(), finder=MarkedFinder, processes=1):
    return align_photographs(photographs, out, options, processes, start=finder)


def test_one_picture_a_face_and_a_report(tmp_path):
    photographs = marked_photographs(tmp_path / "photographs", 3)
    (photographs / "sub").mkdir()
    (photographs / "sub" / "page.jpg").write_text("<!doctype html>")
    background((100, 100)).save(photographs / "sea.png")
    (photographs / "film.mov").write_bytes(b"...")
    marked((60, 80, 98), seed=77).save(photographs / "z.jpg", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    shutil.copy(photographs / "00.png", photographs / "y.png")
    done, remarks = [], []
    rows = align_photographs(photographs, tmp_path / "faces", processes=2, start=MarkedFinder,
                             progress=lambda *at: done.append(at), remark=remarks.append)
    assert (done, remarks) == ([(number, 7) for number in range(1, 8)], ["not looked at: 1 .mov"])
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    assert reasons(rows) == 6 * [""] + ["no face found", "HTML, not a picture", "repeated", "repeated", ""]
    assert rows[8]["why"].endswith(rows[0]["face"]) and rows[9]["why"].endswith(rows[1]["face"])
    assert [json.loads(line) for line in (tmp_path / "faces/aligned.jsonl").read_text().splitlines()] == rows
    written = [row["face"] for row in rows if row["face"]]
    assert sorted(path.name for path in (tmp_path / "faces").glob("[!.]*")) == sorted([*written, "aligned.jsonl"])
    for name in written:
        with Image.open(tmp_path / "faces" / name) as face:
            assert (face.size, face.mode, face.info) == (FRAME, "RGB", {})
    assert {"box", "points", "size", "confidence", "outside", "sharpness"} <= rows[0].keys() and rows[0]["size"] == 120


def test_a_report_names_files_that_are_no_text(in_this_process, tmp_path):
    name = os.fsdecode(b"caf\xe9\n" + b"x" * 200 + b".png")
    photographs = marked_photographs(tmp_path / "photographs", 1)
    try:
        (photographs / "00.png").rename(photographs / name)
    except OSError:
        pytest.skip("this disk takes no such name")
    rows = run(photographs, tmp_path / "faces")
    assert rows[0]["source"] == name and run(photographs, tmp_path / "faces") == rows
    assert all(len(row["face"]) < 100 and row["face"].isascii() for row in rows)


def test_what_is_done_is_not_done_again_and_what_changed_is(in_this_process, tmp_path):
    photographs = marked_photographs(tmp_path / "photographs", 3)
    rows = run(photographs, tmp_path / "faces")
    before = contents(tmp_path / "faces")
    assert run(photographs, tmp_path / "faces", finder=None) == rows and contents(tmp_path / "faces") == before
    marked((60, 80, 98), seed=50).save(photographs / "01.png")
    (tmp_path / "faces" / rows[0]["face"]).unlink()  # by a person, who does not want it
    again = run(photographs, tmp_path / "faces")
    assert [row["source"] for row in again] == ["00.png", "00.png", "02.png", "02.png", "01.png"]
    assert {path.name for path in (tmp_path / "faces").glob("*.png")} == {row["face"] for row in again[1:]}


def test_a_copy_takes_the_place_of_a_photograph_that_changed(in_this_process, tmp_path):
    photographs = marked_photographs(tmp_path / "photographs", 3)
    shutil.copy(photographs / "01.png", photographs / "copy.png")
    rows = run(photographs, tmp_path / "faces")
    assert reasons(rows)[-2:] == ["repeated", "repeated"]
    marked((60, 80, 98), seed=50).save(photographs / "01.png")
    again = run(photographs, tmp_path / "faces")
    assert [row["source"] for row in again] == ["00.png", "00.png", "02.png", "02.png", "01.png", "copy.png", "copy.png"]
    assert reasons(again) == 7 * [""]
    assert {path.name for path in (tmp_path / "faces").glob("*.png")} == {row["face"] for row in again}


def test_a_face_that_is_hardly_too_small_is_not_called_as_large_as_asked_for():
    row = align.judge_face(FoundFace(np.array([0, 0, 90, 119.6]), FACE_POINTS, 0.9, None), FRAME, 1, Alignment(least_size=120))
    assert (row["size"], row["why"]) == (119, "too small: 119 pixels")


@pytest.mark.parametrize("damage", ["torn", "a photograph half there", "nothing", "noise"])
def test_a_report_that_is_cut_off_is_gone_on_with(in_this_process, tmp_path, damage):
    photographs = marked_photographs(tmp_path / "photographs", 4)
    run(photographs, tmp_path / "faces")
    before, report = contents(tmp_path / "faces"), tmp_path / "faces" / "aligned.jsonl"
    lines = report.read_bytes().splitlines(keepends=True)
    report.write_bytes({"torn": b"".join(lines[:4]) + lines[4][:30], "a photograph half there": b"".join(lines[:5]),
                        "nothing": b"", "noise": b"".join(lines[:2]) + b"\xff\xfe{]\n"}[damage])
    (tmp_path / "faces" / (next(name for name in before if name.endswith(".png")) + ".0123abcd.part")).write_bytes(b"half")
    run(photographs, tmp_path / "faces")
    assert contents(tmp_path / "faces") == before


@pytest.mark.slow
def test_killed_and_started_again_it_writes_the_same_files(tmp_path):
    photographs = marked_photographs(tmp_path / "photographs", 24, faces=1)
    shutil.copy(photographs / "03.png", photographs / "20 again.png")
    run(photographs, tmp_path / "unbroken")
    command = [sys.executable, "-c", "import sys; from photographs import *; from pathlib import Path; align_slowly(*map(Path, sys.argv[1:]))",
               str(photographs), str(tmp_path / "killed")]
    report, random, kills = tmp_path / "killed" / "aligned.jsonl", np.random.default_rng(), 0
    while kills < 3:
        process = subprocess.Popen(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, start_new_session=True)
        count = report.read_bytes().count(b"\n") if report.exists() else 0
        while process.poll() is None and (not report.exists() or report.read_bytes().count(b"\n") < count + 3):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        for _ in range(100):  # those that worked for it end as well
            if not any_left(process.pid):
                break
            time.sleep(0.1)
        assert not any_left(process.pid)
        if report.read_bytes().count(b"\n") >= 25:
            break
    assert kills >= 2
    subprocess.run(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1])
def test_ctrl_c_says_nothing_of_the_processes_and_is_gone_on_from(tmp_path, seconds):
    photographs = marked_photographs(tmp_path / "photographs", 12, faces=1)
    run(photographs, tmp_path / "unbroken")
    script = "from photographs import *\ntry: align_slowly('photographs', 'faces')\nexcept KeyboardInterrupt: print('interrupted')"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "faces" / "aligned.jsonl").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: all processes
    out, err = process.communicate()
    assert (out in ("interrupted\n", ""), err) == (True, "")
    run(photographs, tmp_path / "faces")
    assert contents(tmp_path / "faces") == contents(tmp_path / "unbroken")


def test_a_script_of_two_lines(tmp_path):
    """It runs once, though it has no `if __name__ == "__main__"`."""
    marked_photographs(tmp_path / "photographs", 2)
    (tmp_path / "script.py").write_text("from photographs import *\n"
                                        "print(len(align_photographs('photographs', 'faces', processes=2, start=MarkedFinder)))\n")
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def any_left(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    stopped = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(state[0] != "Z" for state in stopped)


def test_two_at_work_in_one_folder(in_this_process, tmp_path):
    from facegen_keras.base.locks import lock_folder
    photographs = marked_photographs(tmp_path / "photographs", 1)
    run(photographs, tmp_path / "faces")
    lock = lock_folder(tmp_path / "faces/.align.lock", "", "", "")
    with pytest.raises(InputError, match="no other facegen align is at work"):
        run(photographs, tmp_path / "faces")
    lock.release()
    assert len(run(photographs, tmp_path / "faces")) == 2


@pytest.mark.parametrize("out, said", {"photographs": "outside", "photographs/faces": "outside", "full": "new or empty",
                                       "file": "a folder", "other": "margin"}.items())
def test_a_folder_that_is_refused_stays_as_it_is(in_this_process, tmp_path, out, said):
    photographs = marked_photographs(tmp_path / "photographs", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    (tmp_path / "file").touch()
    run(photographs, tmp_path / "other", Alignment(margin=0.1))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=said):
        run(photographs, tmp_path / out)
    assert contents(tmp_path) == before


def test_a_folder_with_what_other_programs_leave_is_empty(in_this_process, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / ".DS_Store").touch()
    assert len(run(marked_photographs(tmp_path / "photographs", 1), tmp_path / "faces")) == 2


# What training makes of it


def test_training_crops_it_as_celeba(in_this_process, tmp_path):
    photographs = marked_photographs(tmp_path / "photographs", 2)
    rows = run(photographs, tmp_path / "faces")
    faces = load_faces(tmp_path / "faces", image_size=64)
    assert (faces.layout, faces.crop, len(faces), faces.remarks) == ("aligned", "article", 4, [])
    whole = Image.open(tmp_path / "faces" / faces.name(0))
    expected = whole.resize((64, 64), Image.Resampling.BICUBIC, box=(5, 28, 173, 196))
    assert (faces[0] == np.asarray(expected)).all()
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in (tmp_path / "faces").glob("[!.]*"):
            archive.write(path, f"people/{path.name}")
    background(FRAME).save(tmp_path / "faces" / "by hand.png")
    (tmp_path / "faces" / rows[0]["face"]).unlink()
    assert len(load_faces(tmp_path / "faces.zip")) == 4 and load_faces(tmp_path / "faces.zip").crop == "article"
    left = load_faces(tmp_path / "faces")
    assert len(left) == 3 and left.remarks == ["not looked at: 1 that aligned.jsonl does not name"]


def test_a_square_is_taken_whole(in_this_process, tmp_path):
    run(marked_photographs(tmp_path / "photographs", 1), tmp_path / "faces", Alignment(size=(64, 64)))
    faces = load_faces(tmp_path / "faces", image_size=64)
    assert faces.crop == "square" and (faces[0] == np.asarray(Image.open(tmp_path / "faces" / faces.name(0)))).all()


# The command


@pytest.mark.parametrize("arguments, said", [
    (["nowhere", "--out", "faces"], "photographs: expected a folder of pictures or a .zip of one, got 'nowhere'; check the path, nothing is there"),
    (["photographs/00.png", "--out", "faces"], "give the folder that it lies in"), (["photographs"], "Missing option '--out'"),
    (["photographs", "--out", "faces", "--size", "200x100"], "178x218"), (["photographs", "--out", "faces", "--size", "wide"], "such as 178x218"),
    (["photographs", "--out", "faces", "--size", "4"], "from 16 to 2048"), (["photographs", "--out", "faces", "--faces", "some"], "'all', 'largest'"),
    (["photographs", "--out", "faces", "--margin", "1"], "0<=x<1"), (["photographs", "--out", "faces", "--least-size", "3"], "20<=x"),
    (["photographs", "--out", "photographs/faces"], "outside"), (["photographs", "--out", "photographs/00.png"], "outside")])
def test_a_mistake_is_one_line_and_writes_nothing(facegen, tmp_path, monkeypatch, arguments, said):
    marked_photographs(tmp_path / "photographs", 1)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    status, out, err = facegen("align", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err
    assert contents(tmp_path) == before


def test_a_detector_that_is_not_there_is_one_line(facegen, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    status, out, err = facegen("align", marked_photographs(tmp_path / "photographs", 1), "--out", tmp_path / "faces")
    assert (status, out) == (2, "") and err == (
        'facegen: mtcnn: expected the package that finds faces, got \'none\'; type pip install ".[align]" in the clone of this package, or pip install mtcnn\n')
    assert not (tmp_path / "faces").exists()


# The detector


@pytest.fixture(scope="module")
def finder():
    return FaceFinder()


@pytest.fixture(scope="module")
def generated():
    from facegen_keras import load_gan
    return load_gan("celeba").generate(40, seed=1)


def eye_errors(found, expected):
    """For each expected face its nearest found one: the error of the eyes in shares of their distance; inf: none is near."""
    errors = []
    for points in expected:
        width = np.hypot(*(points[1] - points[0]))
        errors.append(min((np.hypot(*(face.points - points)[:2].T).mean() / width for face in found), default=np.inf))
    return np.where(np.array(errors) < 0.5, errors, np.inf)


def alone(finder, face, scale=3):
    """The points of a face on a picture of its own, in pixels of the face; None: it is not found there."""
    middle = np.array([face.shape[1], face.shape[0]]) / 2
    picture, _ = photograph([(face, None)], [(*(2 * scale * middle), 0, scale)], tuple((4 * scale * middle).astype(int)))
    found = [each for each in find_faces(finder, picture) if each.upright is not None]
    return (found[0].points - 2 * scale * middle) / scale + middle if found else None


def groups(faces, points, seed, per=3, sizes=(1.8, 4)):
    """Photographs of several faces each, turned by up to 30 degrees."""
    random = np.random.default_rng(seed)
    for first in range(0, len(faces), per):
        some = list(zip(faces[first:first + per], points[first:first + per]))
        places = [(200 + 320 * number, random.uniform(170, 230), random.uniform(-30, 30), random.uniform(*sizes)) for number in range(len(some))]
        yield photograph(some, places, (80 + 320 * per, 400), seed + first)


@pytest.mark.slow
def test_generated_faces_are_found_where_they_are(finder, generated):
    points = [alone(finder, face) for face in generated]
    seen = [number for number, each in enumerate(points) if each is not None]
    assert len(seen) >= 0.95 * len(generated)
    errors, false_finds = [], 0
    for picture, expected in groups([generated[number] for number in seen], [points[number] for number in seen], seed=0):
        found = [face for face in find_faces(finder, picture) if face.upright is not None]
        errors.extend(eye_errors(found, expected))
        false_finds += len(found) - np.isfinite(errors[-len(expected):]).sum()
    errors = np.array(errors)
    print(f"{np.isfinite(errors).sum()} of {len(generated)} found, {false_finds} false, eyes off by {np.median(errors):.1%} in the median")
    assert np.isfinite(errors).sum() >= 0.95 * len(generated)
    assert np.median(errors) <= 0.08 and false_finds <= 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["on its side", "grey", "with alpha", "16 bits", "large", "progressive", "CMYK"])
def test_however_it_is_stored(finder, generated, how):
    face = generated[0]
    points = alone(finder, face)
    picture, [expected] = photograph([(face, points)], [(200, 160, 12, 3)], (420, 320))
    clear = Image.merge("RGBA", (*picture.split(), Image.new("L", picture.size, 255)))
    clear.paste((0, 0, 0, 0), (0, 0, 40, 320))
    large = picture.resize((3360, 2560), Image.Resampling.BICUBIC)
    data = {"on its side": on_its_side(picture), "grey": saved(picture.convert("L"), "JPEG", quality=95), "with alpha": saved(clear),
            "16 bits": saved(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)), "large": saved(large, "JPEG"),
            "progressive": saved(picture, "JPEG", quality=95, progressive=True), "CMYK": saved(picture.convert("CMYK"), "JPEG", quality=95)}[how]
    [(row, cut)] = faces_of(*read_photograph(data), finder, Alignment())
    assert row["why"] is None and cut.shape == (218, 178, 3)
    width = np.hypot(*(expected[1] - expected[0]))
    off = np.hypot(*(np.array(row["points"]) / (8 if how == "large" else 1) - expected)[:2].T).mean() / width
    assert off <= 0.08
    [again] = find_faces(finder, Image.fromarray(cut))
    assert np.abs(again.points[:2] - FACE_POINTS[:2]).max() < 6


@pytest.mark.slow
def test_drawn_heads(finder):
    """They are no photographs; how many are found is told, and at least not lost."""
    heads = ToyFaces(20, 128)
    found = sum(alone(finder, head, 1.5) is not None for head in heads)
    print(f"{found} of 20 drawn heads found")
    assert found >= 1


def test_weights_in_the_current_folder_are_not_read(finder, tmp_path, monkeypatch):
    for name in ("pnet.lz4", "rnet.lz4", "onet.lz4"):
        (tmp_path / name).write_bytes(b"not weights")
    monkeypatch.chdir(tmp_path)
    assert FaceFinder()(np.full((64, 64, 3), 128, np.uint8)) == []


def test_nothing_is_found_where_nothing_is(finder):
    for size in ((1, 1), (19, 400), (24, 24), (300, 200)):
        assert finder(np.asarray(background(size))) == []


@pytest.mark.slow
def test_the_command_from_photographs_to_faces(generated, tmp_path):
    """In a process of its own, as a person types it, with another backend chosen and a keras.json that is none of the detector's."""
    (tmp_path / "photographs").mkdir()
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(json.dumps({"image_data_format": "channels_first", "backend": "jax"}))
    for number, (picture, _) in enumerate(groups(generated[6:12], 6 * [None], seed=3)):
        picture.save(tmp_path / "photographs" / f"{number}.jpg", quality=95)
    (tmp_path / "photographs" / "page.jpg").write_text("<!doctype html>")
    (tmp_path / "photographs" / "phone.heic").write_bytes(b"...")
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras"), "KERAS_BACKEND": "jax", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run([sys.executable, "-m", "facegen_keras", "align", "photographs", "--out", "faces", "--size", "128"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if not line.startswith("finding faces")]  # a line each half a minute
    assert done.returncode == 0 and told == [], done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3 photographs: 6 faces in faces" and "not looked at: 1 .heic" in lines and "page.jpg: HTML, not a picture" in done.stdout, done.stdout
    assert {Image.open(path).size for path in (tmp_path / "faces").glob("*.png")} == {(128, 128)}
