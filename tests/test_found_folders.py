"""Folders, zips and pictures as they are found: other programs' files, links, lists, colours, sizes."""

import errno
import importlib
import io
import os
import struct
import subprocess
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from facegen_keras.base.errors import InputError
from facegen_keras.base.files import is_foreign, is_leftover, write_file
from facegen_keras.config import RunConfig
from facegen_keras.data import layouts
from facegen_keras.data import pictures as pictures_module
from facegen_keras.data import tree
from facegen_keras.data.check import check_faces, examine
from facegen_keras.data.pictures import Budget, UnreadableImage, decode_face, open_picture, read_picture
from facegen_keras.data.sources import FolderSource
from facegen_keras.faces import NOT_KEPT_APART, load_faces


def save(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def picture(number=0, size=(16, 16)):
    return save(Image.new("RGB", size, (number, 2 * number, 255 - number)))


def write(root, contents):
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zip_up(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def names(faces):
    return [faces.name(index) for index in range(len(faces))]


# Other programs' files

FOREIGN = [".DS_Store", "._a.jpg", ".ipynb_checkpoints", "__MACOSX", "Thumbs.db", "thumbs.db", "desktop.ini", "Icon\r",
           "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "__pycache__", ".nfs0001", "notes.txt~",
           "a.jpg:Zone.Identifier", "~$table.xlsx", ".directory", "~snapshot", "LOST.DIR"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_other_programs_leave_is_foreign(name):
    assert is_foreign(name) and is_leftover(name)


@pytest.mark.parametrize("name", ["a.jpg", "config.json", "thumbs", "Icons", "lost", "macosx", "a~b.png", "snapshot", "partial"])
def test_what_a_person_makes_is_not(name):
    assert not is_leftover(name)


@pytest.mark.parametrize("name", ["anaconda_projects", "facegen.ipynb.partial", "a.png.filepart", "nohup.out"])
def test_what_may_also_be_a_persons_is_left_out_of_no_collection(name):
    assert is_leftover(name) and not is_foreign(name)


@pytest.mark.parametrize("name", [".DS_Store", ".ipynb_checkpoints/a.ipynb", "Thumbs.db", "@eaDir/a.jpg", "anaconda_projects/db",
                                  "config.json.0123abcd.part"])
def test_a_run_may_begin_beside_them(tmp_path, name):
    folder = importlib.import_module("facegen_keras.runs.folder")
    write(tmp_path, {name: b""})
    folder.refuse_folder(folder.Run(tmp_path), RunConfig.preset("article_small", out=str(tmp_path)))
    write(tmp_path, {"thesis.txt": b""})
    with pytest.raises(InputError, match="a new or empty folder"):
        folder.refuse_folder(folder.Run(tmp_path), RunConfig.preset("article_small", out=str(tmp_path)))


@pytest.mark.parametrize("name", ["@eaDir/a.jpg/SYNOPHOTO_THUMB.jpg", "__MACOSX/._a.jpg", "$RECYCLE.BIN/a.jpg", "._a.jpg"])
def test_their_pictures_are_not_taken(tmp_path, name):
    contents = {"a.png": picture(), name: b""}
    for data in (write(tmp_path / "tree", contents), zip_up(tmp_path / "tree.zip", contents)):
        faces = load_faces(data)
        assert names(faces) == ["a.png"] and faces.remarks == []


@pytest.mark.parametrize("contents, line", [
    (("Anna~/a.png", "Anna~/b.png", "~$c.png", "x.tmp/d.png", "notes.txt~", "~$table.xlsx"), None),
    (("a.png", "lost+found/#12/b.png", "lost+found/#13"), "1 in lost+found"),
    (("a.png", "LOST.DIR/12.jpg", "LOST.DIR/13.jpg", "anaconda_projects/b.png"), "2 in LOST.DIR"),
    (("a.png", ".private/b.HEIC", ".private/c.mov", ".private/d.txt", ".e.jpg"), "3 hidden"),
    (("a.png", ".Trash-1000/files/b.png", ".thumbnails/c.png", ".git/d.png", "#recycle/e.png", ".snapshot/x/f.png"), None)])
def test_no_picture_of_a_persons_is_taken_for_another_programs(tmp_path, contents, line):
    pictures = {name: picture(number) for number, name in enumerate(contents)}
    taken = [name for name in sorted(contents) if name.endswith(".png") and not name.startswith((".", "lost", "LOST", "#"))]
    for data in (write(tmp_path / "tree", pictures), zip_up(tmp_path / "tree.zip", pictures)):
        faces = load_faces(data)
        assert names(faces) == taken and faces.remarks == ([f"not looked at: {line}"] if line else [])


@pytest.mark.parametrize("name", [".snapshot", ".git", ".Trash-1000", "@eaDir", ".ipynb_checkpoints", ".venv", "~snapshot", ".AppleDouble",
                                  ".@__thumb", ".stversions"])
def test_folders_of_copies_are_not_entered(tmp_path, monkeypatch, name):
    write(tmp_path, {"a.png": picture(), f"{name}/deep/b.png": b"", f"mine/{name}/c.png": b""})
    entered, look_into = [], tree.look_into
    monkeypatch.setattr(tree, "look_into", lambda place, prefix: entered.append(prefix) or look_into(place, prefix))
    assert names(load_faces(tmp_path)) == ["a.png"] and entered == ["", "mine/"]


@pytest.mark.parametrize("name, ours", [
    ("checkpoints.tar.gz.part", False), ("config.json.tmp.part", False), ("samples.part", False), ("samples-old.zip.part", False),
    ("samples/epoch_0001-mine.png.part", False), ("faces_seed_3.png.0123abcd.part", False), ("log.jsonl.0123abc.part", False),
    ("log.jsonl.0123abcd.part", True), ("status.json.part", True), ("samples/epoch_0001.png.0123abcd.part", True),
    ("checkpoints/epoch_0001_step_000002.npz.part", True), ("images.json.gz.00000000.part", True), ("best.keras.part", True)])
def test_half_written_files_of_a_run_and_no_others_are_swept(tmp_path, name, ours):
    folder = importlib.import_module("facegen_keras.runs.folder")
    write(tmp_path, {name: b""})
    assert folder.half_written(folder.Run(tmp_path)) == ([tmp_path / name] if ours else [])


def test_a_copy_of_a_runs_file_is_not_deleted_with_the_run(tmp_path):
    folder = importlib.import_module("facegen_keras.runs.folder")
    copies = ["samples/epoch_0001-Copy1.png", "samples/epoch_0002 (1).png", "checkpoints/epoch_0001_step_000000-Copy1.npz", "faces_seed_my_best.png"]
    own = ["samples/epoch_0001.png", "checkpoints/epoch_0001_step_000000.npz", "faces_seed_3.png", "config.json", "log.jsonl"]
    folder.delete_run(folder.Run(write(tmp_path, dict.fromkeys(copies + own, b""))))
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(copies)


def test_a_copy_of_a_grid_is_no_grid(tmp_path):
    folder = importlib.import_module("facegen_keras.runs.folder")
    write(tmp_path / "samples", dict.fromkeys(("epoch_0010.png", "epoch_0002.png", "epoch_0001-Copy1.png", "epoch_1 (2).png"), b""))
    assert [path.name for path in folder.Run(tmp_path).samples()] == ["epoch_0002.png", "epoch_0010.png"]


# CelebA

LIST = b"".join(b"%06d.jpg %d\n" % (number, (0, 0, 0, 0, 0, 1, 2, 2)[number - 1]) for number in range(1, 9))
PLACES = {
    "official": ("Img/img_align_celeba/", "Eval/list_eval_partition.txt"),
    "beside": ("img_align_celeba/", "list_eval_partition.csv"),
    "twice": ("img_align_celeba/img_align_celeba/", "list_eval_partition.csv"),
    "deep": ("data/faces/Img/img_align_celeba/", "data/faces/Eval/list_eval_partition.txt"),
    "annotated": ("Img/img_align_celeba_png/", "Anno/list_eval_partition.txt"),
    "above": ("Img/aligned/img_align_celeba/", "list_eval_partition.txt"),
    "renamed": ("Img/pictures/", "Eval/list_eval_partition.txt"),
    "parts": ("Img/img_align_celeba/part 1/", "Eval/list_eval_partition.txt"),
    "far below": ("Img/a/b/c/img_align_celeba/", "Eval/list_eval_partition.txt"),
    "renamed far below": ("celeba64/a/b/c/", "list_eval_partition.csv"),
    "another list folder": ("Img/img_align_celeba/", "Partition/list_eval_partition.txt"),
    "list in its own folder": ("img_align_celeba/", "list_eval_partition.csv/list_eval_partition.csv"),
    "capitals": ("IMG/Img_Align_CelebA/", "EVAL/List_Eval_Partition.TXT"),
}
TAKEN = "8 pictures are taken for CelebA's, since {} names them"


def celeba(root, place, size=(89, 109)):
    folder, listing = PLACES[place]
    write(root, {f"{folder}{number:06d}.jpg": picture(number, size) for number in range(1, 9)})
    return folder, listing


@pytest.mark.parametrize("place", PLACES)
def test_celeba_is_the_same_wherever_one_points(tmp_path, place):
    folder, listing = celeba(tmp_path / "CelebA", place)
    write(tmp_path / "CelebA", {listing: LIST})
    innermost = tmp_path / "CelebA" / folder
    (tmp_path / "link").symlink_to(innermost)
    for data in (tmp_path / "CelebA", innermost.parent, innermost, tmp_path / "link"):
        faces = load_faces(data)
        assert (faces.layout, faces.crop, len(faces)) == ("celeba", "article", 5), data
        assert [Path(name).stem for name in names(faces)] == [f"{number:06d}" for number in range(1, 6)]
        listed = Path(listing).name
        assert faces.remarks == [f"not looked at: 3 held out by {listed}"] + [TAKEN.format(listed)] * ("renamed" in place)


@pytest.mark.parametrize("links", [
    {"faces": "Img/img_align_celeba"}, {"img_align_celeba": "Img/img_align_celeba"}, {"deep/celeb": "."}, {"my faces": "Img"},
    {f"{number:06d}.jpg": f"Img/img_align_celeba/{number:06d}.jpg" for number in range(1, 9)},
    {f"a/b/{number}/{number:06d}.jpg": f"Img/img_align_celeba/{number:06d}.jpg" for number in range(1, 9)}])
@pytest.mark.parametrize("place", ["official", "renamed"])
def test_links_to_celeba_leak_nothing(tmp_path, place, links):
    folder, listing = celeba(tmp_path / "CelebA", place)
    write(tmp_path / "CelebA", {listing: LIST})
    for link, target in links.items():
        (tmp_path / "mine" / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / link).symlink_to(tmp_path / "CelebA" / target.replace("Img/img_align_celeba", folder.rstrip("/")))
    faces = load_faces(tmp_path / "mine")
    assert faces.layout == "celeba" and [Path(name).stem for name in names(faces)] == [f"{number:06d}" for number in range(1, 6)]
    assert faces.remarks[0] == "not looked at: 3 held out by list_eval_partition.txt"


@pytest.mark.parametrize("more, left_out", [
    ({"celeba64/000000_preview.png": picture()}, "3 held out by list_eval_partition.csv, 1 that are not CelebA's"),
    ({"extra/x.png": picture()}, "3 held out by list_eval_partition.csv, 1 that are not CelebA's"),
    ({f"mine/{number}.png": picture() for number in range(9)}, "3 held out by list_eval_partition.csv")])
def test_a_renamed_celeba_is_recognised_among_others(tmp_path, more, left_out):
    write(tmp_path, {f"celeba64/{number:06d}.png": picture(number, (89, 109)) for number in range(1, 9)})
    faces = load_faces(write(tmp_path, {"list_eval_partition.csv": LIST, **more}))
    assert faces.remarks == [f"not looked at: {left_out}", TAKEN.format("list_eval_partition.csv")]
    assert not any(Path(name).stem in ("000006", "000007", "000008") for name in names(faces))
    assert ("mine/8.png" in names(faces)) == ("mine/8.png" in more)


@pytest.mark.parametrize("size", [(16, 16), (100, 80), (80, 100)])
@pytest.mark.parametrize("place", ["anime/", "", "a/b/"])
def test_other_pictures_with_numbers_for_names_are_no_celeba(tmp_path, size, place):
    write(tmp_path, {"list_eval_partition.csv": LIST, **{f"{place}{number:06d}.png": picture(number, size) for number in range(1, 9)}})
    faces = load_faces(tmp_path / place)
    assert (faces.layout, len(faces)) == ("folder", 8)
    assert faces.remarks == ["8 pictures are used though list_eval_partition.csv names them: "
                             "they have other proportions than CelebA's"]


ROWS = {"quoted": b"image_id,partition\n" + LIST.replace(b" ", b'",').replace(b"0000", b'"0000'), "with semicolons": LIST.replace(b" ", b";"),
        "of Windows": b"\xef\xbb\xbfimage_id,partition\r\n" + LIST.replace(b" ", b",").replace(b"\n", b"\r\n"), "with tabs": LIST.replace(b" ", b"\t")}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_list_is_read_as_other_programs_have_saved_it(tmp_path, rows):
    celeba(tmp_path, "beside")
    assert len(load_faces(write(tmp_path, {"list_eval_partition.csv": rows}))) == 5


@pytest.mark.parametrize("inside", ["", "100k", "100k/100k"])
def test_celebrities_100k_is_the_same_wherever_one_points(tmp_path, inside):
    write(tmp_path, {"100k.txt": b"a\nb\n", **{f"100k/100k/{name}.png": picture(number) for number, name in enumerate("abc")}})
    faces = load_faces(tmp_path / inside)
    assert names(faces) == ["100k/100k/a.png", "100k/100k/b.png"]
    assert faces.remarks == ["not looked at: 1 that 100k.txt does not name"]


def begun(root, data, names):
    "A run as an earlier version left it."
    folder = importlib.import_module("facegen_keras.runs.folder")
    config = RunConfig.preset("article_small", data=str(data), out=str(root / "run"), batch_size=2)
    run = folder.Run(config.out)
    run.directory.mkdir()
    run.write("config.json", config.to_json().encode())
    run.write("images.json.gz", names)
    run.write("held_out.json.gz", {"choose": names[:1], "report": names[1:2]})
    run.write("environment.json", {"images": len(names)})
    return config, run


NUMBERS = [f"{number:06d}.jpg" for number in range(1, 9)]


@pytest.mark.parametrize("folder, given, old, crop", [
    ("Img/img_align_celeba/", "Img", [f"img_align_celeba/{name}" for name in NUMBERS], "article"),
    ("Img/img_align_celeba/", "Img/img_align_celeba", [f"img_align_celeba/{name}" for name in NUMBERS], "article"),
    ("img_align_celeba_png/", "img_align_celeba_png", NUMBERS, "square"),
    ("img_align_celeba/part1/", "img_align_celeba/part1", NUMBERS, "square"),
    ("a/b/img_align_celeba/", ".", [f"a/b/img_align_celeba/{name}" for name in NUMBERS], "square"),
    ("100k/100k/", "100k/100k", NUMBERS, "square")])
def test_a_run_of_an_earlier_version_goes_on_with_its_pictures_and_its_crop(tmp_path, folder, given, old, crop):
    images, held_out = importlib.import_module("facegen_keras.runs.images"), importlib.import_module("facegen_keras.runs.held_out")
    write(tmp_path / "data", {f"{folder}{name}": picture(number, (89, 109)) for number, name in enumerate(NUMBERS)})
    write(tmp_path / "data", {"Eval/list_eval_partition.txt": LIST, "100k.txt": b"000001\n"})
    lines, (config, run) = [], begun(tmp_path, tmp_path / "data" / given, old)
    faces, _ = images.load_images(config, run, lines.append)
    assert (names(faces), faces.crop, faces.unreadable) == (old, crop, {}) and not any("new" in line for line in lines)
    assert faces[7].shape == (64, 64, 3)
    choosing = held_out.choosing_faces(config, run.read("held_out.json.gz"))
    assert (names(choosing), choosing.crop) == (old[:1], crop)
    train, fresh = importlib.import_module("facegen_keras.metrics").real_faces(run, config.data, 2)
    assert (names(train), train.crop, fresh.crop) == (old, crop, crop)
    assert images.environment(config, faces)["crop"] == crop
    run.write("environment.json", {"crop": "none"})
    assert images.load_images(config, run, lines.append)[0].crop == "none"


def test_a_run_on_other_pictures_is_still_refused(tmp_path):
    images = importlib.import_module("facegen_keras.runs.images")
    celeba(tmp_path / "data", "beside")
    config, run = begun(tmp_path, tmp_path / "data", [f"img_align_celeba/{number:06d}.jpg" for number in range(5, 13)])
    with pytest.raises(InputError, match="without 4 of them"):
        images.load_images(config, run, lambda line: None)


@pytest.mark.parametrize("inside", ["img_align_celeba/", "Img/img_align_celeba/", "CelebA/Img/img_align_celeba/", "",
                                    "./img_align_celeba/"])
def test_a_zip_of_the_pictures_finds_the_list_around_it(tmp_path, inside):
    data = zip_up(tmp_path / "CelebA/Img/img_align_celeba.zip",
                  {f"{inside}{number:06d}.jpg": picture(number, (89, 109)) for number in range(1, 9)})
    assert load_faces(data).remarks == [NOT_KEPT_APART] and len(load_faces(data)) == 8
    write(tmp_path / "CelebA/Eval", {"list_eval_partition.txt": LIST})
    assert len(load_faces(data)) == 5


@pytest.mark.parametrize("place", ["official", "beside", "deep"])
def test_without_a_list_one_line_says_so(tmp_path, place):
    folder, _ = celeba(tmp_path, place)
    for data in (tmp_path, tmp_path / folder):
        faces = load_faces(data)
        assert len(faces) == 8 and faces.remarks == [NOT_KEPT_APART]


def test_numbers_that_the_list_does_not_know_are_no_celeba(tmp_path):
    write(tmp_path, {"Eval/list_eval_partition.txt": LIST, **{f"mine/{i:06d}.jpg": picture() for i in range(8, 30)}})
    faces = load_faces(tmp_path / "mine")
    assert (faces.layout, len(faces), faces.remarks) == ("folder", 22, [])


def test_celeba_in_other_proportions_is_square(tmp_path):
    celeba(tmp_path, "beside", (16, 16))
    assert load_faces(tmp_path).crop == "square"
    with pytest.raises(InputError, match="16 x 16 in img_align_celeba"):
        load_faces(tmp_path, crop="article")


def test_a_list_among_more_files_than_are_looked_at_is_found_by_its_name(tmp_path, monkeypatch):
    folder, listing = celeba(tmp_path, "beside")
    write(tmp_path, {listing: LIST})
    monkeypatch.setattr(layouts, "MOST_ENTRIES", 0)
    assert len(load_faces(tmp_path / folder)) == 5


# Nothing vanishes without a word

def test_links_are_followed_and_circles_end(tmp_path):
    write(tmp_path, {"set/own/a.png": picture(1), "else/b.png": picture(2), "else/deep/c.png": picture(3), "far/d.png": picture(4)})
    for link, target in {"set/other": "../else", "set/own/up": "..", "set/twice": "own", "set/gone": "nowhere",
                         "else/back": "../set", "else/far": "../far", "set/top": ".."}.items():
        (tmp_path / link).symlink_to(target)
    faces = load_faces(tmp_path / "set")
    assert names(faces) == ["other/b.png", "other/deep/c.png", "other/far/d.png", "own/a.png"]
    assert check_faces(faces) == {}
    assert faces.remarks == ["not looked at: 3 behind a link to what is listed anyway, 1 behind a link to a folder above, "
                             "1 behind a link to nothing"]


@pytest.mark.parametrize("files, links, listed, line", [
    ([".worktrees/abc/a.png", ".worktrees/abc/b.png"], {"current": ".worktrees/abc"}, ["current/a.png", "current/b.png"], None),
    ([".worktrees/abc/a.png", ".worktrees/old/b.png"], {"current": ".worktrees/abc"}, ["current/a.png"], "1 hidden"),
    (["a.png", "../other/b.png"], {"more": ".."}, ["a.png"], "1 behind a link to a folder above"),
    (["a.png", "../else/b.png", "../else/deep/c.png"], {"o": "../else/deep", "../else/deep/back": ".."},
     ["a.png", "o/back/b.png", "o/c.png"], "1 behind a link to what is listed anyway"),
    (["a.png", ".h/b.png"], {".h/up": "..", ".h/far": "../../else"}, ["a.png"], "1 hidden"),
    (["a.png", "../else/b.png", "../else/c.heic"], {".h": "../else"}, ["a.png"], "2 hidden"),
    (["a.png", "../album/b.png"], {"b.jpg": "../album"}, ["a.png", "b.jpg/b.png"], None)])
def test_a_link_is_followed_or_called_what_it_is(tmp_path, files, links, listed, line):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", {name: picture(number) for number, name in enumerate(files)})
    for link, target in links.items():
        (tmp_path / "set" / link).symlink_to(target)
    faces = load_faces(tmp_path / "set")
    assert names(faces) == listed and faces.remarks == ([f"not looked at: {line}"] if line else [])
    assert check_faces(faces) == {}


def test_a_link_to_nothing_is_counted_and_a_second_name_of_a_picture_is_found_by_the_check(tmp_path):
    write(tmp_path / "set", {"a/x.png": picture(1), "a/z.png": picture(2)})
    for link, target in {"gone.jpg": "nowhere.jpg", "circle.png": "circle.png", "through.png": "a/x.png/y", "gone": "nowhere",
                         "y.png": "a/x.png"}.items():
        (tmp_path / "set" / link).symlink_to(target)
    faces = load_faces(tmp_path / "set")
    assert names(faces) == ["a/x.png", "a/z.png", "y.png"] and faces.remarks == ["not looked at: 4 behind a link to nothing"]
    assert check_faces(faces) == {"y.png": "the same bytes as a/x.png"}


def test_a_link_that_breaks_after_it_was_listed_is_a_bad_picture(tmp_path):
    write(tmp_path, {"else/a.png": picture(1), "set/b.png": picture(2)})
    (tmp_path / "set/a.png").symlink_to("../else/a.png")
    (tmp_path / "set/c.png").symlink_to("../else/a.png")
    faces = load_faces(tmp_path / "set")
    (tmp_path / "set/c.png").unlink(), (tmp_path / "set/c.png").symlink_to("c.png"), (tmp_path / "else/a.png").unlink()
    assert check_faces(faces) == {"a.png": "a link to nothing", "c.png": "a link that leads in a circle"}


def test_a_link_to_a_list_that_is_gone_stops(tmp_path):
    """Without the list its test pictures would be trained on."""
    celeba(tmp_path / "set", "beside")
    (tmp_path / "set/list_eval_partition.csv").symlink_to("nowhere")
    with pytest.raises(InputError, match="expected a list that can be read, got 'list_eval_partition.csv'"):
        load_faces(tmp_path / "set")


def test_a_drive_that_stumbles_at_a_link_loses_no_picture(tmp_path, monkeypatch):
    write(tmp_path, {"else/a.png": picture(1), "set/b.png": picture(2)})
    (tmp_path / "set/a.png").symlink_to("../else/a.png")

    def stumbles(path, *arguments, stat=os.stat, **options):
        if os.fspath(path).endswith("set/a.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(tree.os, "stat", stumbles)
        faces = load_faces(tmp_path / "set")
    assert names(faces) == ["a.png", "b.png"] and check_faces(faces) == {}


@pytest.mark.parametrize("others, line", [
    ({f"{i}.HEIC": b"" for i in range(20)} | {f"{i}.MOV": b"" for i in range(10)}, "20 .heic, 10 .mov"),
    ({".private/b.png": b"", ".private/c.png": b"", "README": b""}, "2 hidden, 1 without ending"),
    ({"b.cr2": b"", "b.xmp": b"", "c.cr2": b""}, "2 .cr2, 1 .xmp")])
def test_all_that_is_left_out_is_counted(tmp_path, others, line):
    contents = {"a.png": picture(), **others}
    for data in (write(tmp_path / "tree", contents), zip_up(tmp_path / "tree.zip", contents)):
        faces = load_faces(data)
        assert names(faces) == ["a.png"] and faces.remarks == [f"not looked at: {line}"]


@pytest.mark.parametrize("layout", [
    {"100k.txt": b"a\n", "100k/100k/a.png": picture(), "100k/100k/b.png": b"", "x/c.png": b"", "d.png": b""},
    {"deep/down/100k.txt": b"a\n", "deep/down/100k/100k/a.png": picture(), "b.png": b"", "c.png": b"", "d.png": b""}])
def test_pictures_beside_a_list_of_names_are_counted(tmp_path, layout):
    assert load_faces(write(tmp_path, layout)).remarks == ["not looked at: 3 that 100k.txt does not name"]


def test_pictures_beside_celeba_are_counted(tmp_path):
    folder, listing = celeba(tmp_path, "official")
    write(tmp_path, {listing: LIST, "more/a.jpg": b"", "more/b.jpg": b"", f"{folder}new.jpg": b""})
    assert load_faces(tmp_path).remarks == ["not looked at: 3 held out by list_eval_partition.txt, 3 that are not CelebA's"]


def test_training_says_what_a_check_says(tmp_path, capsys):
    images = importlib.import_module("facegen_keras.runs.images")
    write(tmp_path, {"a.png": picture(1), "b.png": picture(2), "c.heic": b"", ".d/e.jpg": b"", ".d/f.jpg": b""})
    lines = []
    images.load_images(RunConfig.preset("article_small", data=str(tmp_path), batch_size=2), None, lines.append)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("facegen_keras.cli").main(["check", str(tmp_path)])
    said = capsys.readouterr()
    assert ended.value.code == 0 and lines == ["not looked at: 2 hidden, 1 .heic"]
    assert lines[0] in (said.out + said.err).splitlines()


@pytest.mark.parametrize("top, start", [("set/d", "d/"), ("else", "link/"), ("set/.d", None)])
def test_a_thousand_nested_folders(tmp_path, top, start):
    """In a folder, behind a link, and hidden, where a picture is only counted."""
    write(tmp_path, {"set/b.png": picture()})
    (tmp_path / "set/link").symlink_to("../else")
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for name in (top, *1100 * ["d"]):
            os.mkdir(name)
            os.chdir(name)
        Path("a.png").write_bytes(picture(1))
    finally:
        os.chdir(before)
    try:
        faces = load_faces(tmp_path / "set")
        assert names(faces) == ["b.png"] + [f"{start}{1100 * 'd/'}a.png"] * (start is not None)
        counted = {"d/": "1 behind a link to nothing", "link/": None, None: "1 behind a link to nothing, 1 hidden"}[start]
        assert faces.remarks == ([f"not looked at: {counted}"] if counted else [])
    finally:  # pytest cannot
        subprocess.run(["rm", "-rf", tmp_path / top], check=True)


@pytest.mark.parametrize("deep", [1, 1100, 5000])
def test_nested_folders_of_a_zip(tmp_path, deep):
    assert names(load_faces(zip_up(tmp_path / "a.zip", {deep * "d/" + "a.png": picture()}))) == [deep * "d/" + "a.png"]


@pytest.mark.parametrize("before", ["./", "/", "a/./", "./././"])
def test_zips_with_dots_in_their_names(tmp_path, before):
    faces = load_faces(zip_up(tmp_path / "a.zip", {f"{before}a.png": picture(), f"{before}b/c.png": picture(1)}))
    assert names(faces) == [f"{before}a.png", f"{before}b/c.png"] and faces.remarks == [] and check_faces(faces) == {}


@pytest.mark.parametrize("field", ["out", "start", "data"])
@pytest.mark.parametrize("path, text", [("r1", "r1"), ("toy", "./toy"), ("martians", "./martians"), ("a/toy", "a/toy")])
def test_a_path_stays_as_it_is_unless_it_would_be_a_name(field, path, text):
    assert getattr(RunConfig.preset("small", **{field: Path(path)}), field) == text


@pytest.mark.parametrize("place", ["toy", "./toy", "toy/"])
def test_a_folder_called_toy(tmp_path, monkeypatch, place):
    monkeypatch.chdir(write(tmp_path, {"toy/a.png": picture()}))
    assert load_faces(Path(place)).layout == load_faces(RunConfig.preset("article_small", data=Path(place)).data).layout == "folder"
    faces = load_faces(place, image_size=16, limit=1)
    assert (faces.layout, faces.remarks) == (
        ("toy", ["toy are drawn faces; the folder toy is ./toy"]) if place == "toy" else ("folder", []))


def tar(path, mode):
    with tarfile.open(path, f"w:{mode}") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    return path


@pytest.mark.parametrize("make", [
    lambda root: tar(root / "a.tar.gz", "gz"), lambda root: tar(root / "a.tar", ""), lambda root: tar(root / "a.zip", "bz2"),
    lambda root: tar(root / "faces", "xz"), lambda root: write(root, {"a.7z": b"7z\xbc\xaf\x27\x1c"}) / "a.7z",
    lambda root: write(root, {"a.zip.001": b"PK\3\4"}) / "a.zip.001", lambda root: write(root, {"b/a.tgz": b""}) / "b"])
def test_an_archive_that_is_no_zip_is_to_be_unpacked(tmp_path, make):
    with pytest.raises(InputError, match="unpack .*first"):
        load_faces(make(tmp_path))


# What a pixel's numbers mean

XYZ = {  # D50-adapted primaries, and gamma
    "Display P3": ([[.51512, .29198, .15710], [.24120, .69225, .06657], [-.00105, .04189, .78407]], 2.2),
    "ProPhoto": ([[.79767, .13519, .03135], [.28804, .71188, .00009], [0, 0, .82521]], 1.8),
    "Adobe RGB": ([[.60974, .20528, .14919], [.31111, .62567, .06322], [.01947, .06087, .74457]], 2.2)}


def profile(space):
    "An ICC profile of three primaries and a gamma, or of linear grey."
    matrix, gamma = XYZ.get(space, ([], 1))
    xyz = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in column)) for column in zip(*matrix)]
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = [(b"desc", text), (b"wtpt", white), (b"kTRC", curve)] if space == "grey" else [
        (b"desc", text), (b"wtpt", white), *zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz), *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC"))]
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">2I", place + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s12x4s", place + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY" if space == "grey" else b"RGB ",
                         b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + struct.pack(">I", len(tags)) + table + body


GREY = Image.new("L", (16, 16), 64)


@pytest.mark.parametrize("stored, options", [
    (GREY, {}), (GREY, {"transparency": 3}), (Image.merge("LA", (GREY, Image.new("L", (16, 16), 255))), {}),
    (Image.fromarray(np.full((16, 16), 64 * 257, np.uint16)), {})])
def test_grey_has_its_own_profile_transparent_or_not(stored, options):
    face = decode_face(save(stored, icc_profile=profile("grey"), **options), 8, "square").astype(int)
    assert np.abs(face - 137).max() <= 1, "64 of linear grey"


def test_without_a_colour_library_pictures_are_taken_as_stored(monkeypatch):
    def missing(*arguments, **options):
        raise ImportError("The _imagingcms C module is not installed")

    pictures_module.transform_to_srgb.cache_clear()
    monkeypatch.setattr(ImageCms, "createProfile", missing)
    data = save(Image.new("RGB", (32, 32), (200, 120, 80)), icc_profile=profile("ProPhoto"))
    assert (decode_face(data, 16, "square") == (200, 120, 80)).all()
    pictures_module.transform_to_srgb.cache_clear()


@pytest.mark.parametrize("space", XYZ)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "transparent"])
def test_colours_are_what_their_profile_says(space, form):
    icc = profile(space)
    stored = Image.new("RGB", (32, 32), (200, 120, 80))
    if form == "transparent":
        stored.putalpha(255)
    data = save(stored, "PNG" if form == "transparent" else form, icc_profile=icc, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    expected = ImageCms.profileToProfile(Image.new("RGB", (1, 1), (200, 120, 80)), ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"))
    face = decode_face(data, 16, "square").astype(int)
    assert np.abs(face - expected.getpixel((0, 0))).max() <= 2
    assert np.abs(face - (200, 120, 80)).max() > 3


@pytest.mark.parametrize("damage", [lambda icc: icc[:150], lambda icc: bytes(len(icc)), lambda icc: icc.replace(b"RGB ", b"CMYK"), lambda icc: b"x"])
def test_with_a_damaged_profile_a_picture_is_taken_as_stored(damage):
    data = save(Image.new("RGB", (32, 32), (200, 120, 80)), icc_profile=damage(profile("ProPhoto")))
    assert (decode_face(data, 16, "square") == (200, 120, 80)).all()


def tiff(values, bits, white_is_zero=False, kind=1, most=None):
    "A grey TIFF; kind: 1 unsigned, 2 signed, 3 floating point."
    data, tags = bytes(values), ()
    for tag, value in ((256, 16), (257, 16), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8), (277, 1),
                       (278, 16), (279, len(data)), *([(281, most)] if most else []), (339, kind)):
        tags += (struct.pack("<2H2I", tag, 4, 1, value),)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


def png(kind, values, hidden=b""):
    "A PNG of 16 bits a channel; kind: 0 grey, 2 RGB, 6 RGB and alpha."
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.tobytes() for row in np.broadcast_to(np.array(values, ">u2"), (16, 16, len(values))))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 16, 16, 16, kind, 0, 0, 0))
            + (chunk(b"tRNS", hidden) if hidden else b"") + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("data, level", [
    (tiff(np.full(256, 120 * 257, "<u2"), 16), 120), (tiff(np.full(256, 55 * 257, "<u2"), 16, white_is_zero=True), 200),
    (tiff(128 * b"\x78\x07\x80", 12), 120), (tiff(np.full(256, 1920, "<u2"), 16, most=4095), 120),
    (tiff(np.full(256, 120, "<u2"), 16, most=255), 120), (tiff(np.full(256, 120 * 257, "<u2"), 16, most=30_840), 120)])
def test_grey_of_many_levels_has_its_own_range(data, level):
    assert np.abs(decode_face(data, 8, "square").astype(int) - level).max() <= 1


def colour_tiff(*values):
    "A TIFF of 16 bits a channel."
    data, count = np.tile(np.array(values, "<u2"), 256).tobytes(), len(values)
    tags = ((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, count, 8 + len(data) + 126), (259, 4, 1, 1), (262, 4, 1, 2), (273, 4, 1, 8),
            (277, 4, 1, count), (278, 4, 1, 16), (279, 4, 1, len(data)), (339, 4, 1, 1))
    return (struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in tags)
            + bytes(4) + struct.pack(f"<{count}H", *count * [16]))


def ppm(level):
    return b"P6 16 16 65535\n" + np.full(3 * 256, level, ">u2").tobytes()


@pytest.mark.parametrize("data, level", [(colour_tiff(200 * 257, 0, 257), 200), (ppm(200 * 257), 200), (ppm(600), 2), (png(2, [51_400, 51_400, 9]), 200),
                                         (b"P6 16 16 1023\n" + np.full(3 * 256, 200, ">u2").tobytes(), 50)])
def test_colours_of_many_levels_have_their_own_range(data, level):
    assert np.abs(decode_face(data, 8, "square")[..., 0].astype(int) - level).max() <= 1


@pytest.mark.parametrize("data", [colour_tiff(9, 200, 3), colour_tiff(255, 200, 3, 65_535), ppm(255), b"P3 16 16 65535\n" + 768 * b"200 ",
                                  b"P2 16 16 65535\n" + 256 * b"200 ", png(4, [200, 65_535]), tiff(np.full(256, 200, "<u4"), 32), tiff(np.full(256, 200, "<i4"), 32, kind=2),
                                  tiff(np.full(256, 2**31, "<u4"), 32), tiff(np.full(256, 9000, "<i2"), 16, kind=2),
                                  tiff(np.full(256, 200, "<f4"), 32, kind=3), tiff(np.full(256, 200, "<u2"), 16),
                                  save(Image.fromarray(np.full((16, 16), 255, np.uint16))), png(2, [9, 200, 3]),
                                  png(6, [9, 200, 3, 65_535]), b"Pf\n16 16\n-1\n" + np.ones(256, "<f4").tobytes()])
def test_numbers_of_unknown_range_are_refused(data):
    for read in (lambda: decode_face(data, 8, "square"), lambda: read_picture(data, 64, only_check=True)):
        with pytest.raises(UnreadableImage, match="whose range is unknown: convert it"):
            read()


def test_the_hidden_colour_of_16_bits_lies_on_white():
    assert (decode_face(png(0, [30_000], struct.pack(">H", 30_000)), 8, "square") == 255).all()
    assert (decode_face(png(0, [30_001], struct.pack(">H", 30_000)), 8, "square") == 30_001 * 255 // 65_535).all()


def test_large_grey_takes_little_memory():
    data = save(Image.fromarray(np.full((2000, 2000), 30_000, np.uint16)))
    tracemalloc.start()
    levels = np.asarray(read_picture(data).getchannel("R"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2000 * 2000, "bytes a pixel"
    assert (levels == 30_000 * 255 // 65_535).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L"])
def test_a_check_decodes_all_and_makes_colours_of_a_corner(tmp_path, monkeypatch, mode):
    write(tmp_path, {"a.tif": save(Image.new(mode, (300, 200)), "TIFF", icc_profile=profile("ProPhoto"))})
    sizes, to_rgb = [], pictures_module.to_rgb
    monkeypatch.setattr(pictures_module, "to_rgb", lambda picture, grey: sizes.append(picture.size) or to_rgb(picture, grey))
    assert examine(FolderSource(tmp_path), 0)[1] is None and sizes == [(8, 8)]


# Files

def test_two_writers_of_one_file_publish_one_of_theirs(tmp_path):
    path, barrier, wrote = tmp_path / "status.json", threading.Barrier(3), []

    def slowly(letter):
        def write(file):
            for _ in range(100):
                file.write(letter)
                file.flush()
                barrier.wait(timeout=60) if file.tell() in (1, 50) else None
        write_file(path, write)
        wrote.append(letter)
    threads = [threading.Thread(target=slowly, args=(letter,)) for letter in (b"a", b"b", b"c")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(wrote) == 3 and path.read_bytes() in (100 * b"a", 100 * b"b", 100 * b"c")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("replace", [
    lambda path, data: path.write_bytes(data),
    lambda path, data: (path.with_name("new").write_bytes(data), path.with_name("new").replace(path)),
    lambda path, data: (path.unlink(), path.write_bytes(data))])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_repaired_file_is_good_again_though_size_and_time_are_the_same(tmp_path, replace, zipped):
    good = picture()
    bad = good[:50] + bytes([good[50] ^ 1]) + good[51:]
    path = tmp_path / ("a.zip" if zipped else "a.png")
    if zipped:
        whole = zip_up(path, {"a.png": good}).read_bytes()
        good, bad = whole, whole.replace(good, bad)
    for data, found in ((bad, 1), (good, 0), (bad, 1)):
        replace(path, data) if path.exists() else path.write_bytes(data)
        os.utime(path, (1, 1))
        assert len(check_faces(load_faces(path if zipped else tmp_path))) == found


def test_a_repaired_file_is_good_again_though_nothing_shows_it(tmp_path, monkeypatch):
    write(tmp_path, {"a.png": picture(2), "b.png": picture()})
    monkeypatch.setattr(FolderSource, "traits", lambda self, index: (9, 9, 9))
    misread = {"a.png": picture(2), "b.png": picture()[:-20]}
    monkeypatch.setattr(FolderSource, "read", lambda self, index: misread[self.names[index]])
    assert check_faces(load_faces(tmp_path)).keys() == {"b.png"}
    monkeypatch.setattr(FolderSource, "read", lambda self, index: (tmp_path / self.names[index]).read_bytes())
    assert check_faces(load_faces(tmp_path)) == {}


def test_large_pictures_are_read_one_at_a_time():
    budget, inside, most = Budget(10), [], []

    def work():
        with budget.borrow(99):
            inside.append(1)
            most.append(len(inside))
            time.sleep(.01)
            inside.pop()
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == 8 * [1] and budget.free == 10


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_picture_of_many_pixels_asks_for_its_memory(monkeypatch, mode):
    asked = []
    monkeypatch.setattr(pictures_module, "PIXEL_BUDGET", type("", (), {"borrow": lambda self, amount: asked.append(amount) or Budget(1).borrow(0)})())
    face = decode_face(save(Image.new(mode, (1200, 1000))), 16, "square")
    assert asked == [1_200_000] and face.shape == (16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mode, size", [("L", (12_000, 9_000)), ("L", (16_320, 12_240)), ("RGB", (12_000, 9_000))])
def test_a_phones_largest_jpeg_is_read(mode, size):
    image = Image.new(mode, size, 90 if mode == "L" else (90, 90, 90))
    data = save(image, "JPEG")
    del image
    assert np.abs(decode_face(data, 32, "square").astype(int) - 90).max() <= 2
    assert min(read_picture(data, 64).size) < 2_500


def test_a_progressive_jpeg_may_be_no_larger_than_other_pictures():
    def claim(data, marker):
        start = data.index(marker) + 5
        return open_picture(data[:start] + struct.pack(">2H", 9_000, 9_000) + data[start + 4:])
    assert claim(save(GREY, "JPEG"), b"\xff\xc0").size == (9_000, 9_000)
    with pytest.raises(UnreadableImage, match="too large: 9000 x 9000 pixels, of 80,000,000"):
        claim(save(GREY, "JPEG", progressive=True), b"\xff\xc2")


@pytest.mark.parametrize("data", [b"P6 12000 9000 255\n", b"P6 50000 50000 255\n", save(Image.new("1", (9_000, 9_000)))])
def test_what_is_too_large_is_refused_with_the_limit_and_a_remedy(data):
    with pytest.raises(UnreadableImage, match="too large: .*80,000,000.*: make it smaller"):
        decode_face(data, 32, "square")
