"""Folders, zips and pictures as they are found: other programs' files, links, lists, colours, sizes."""

import io
import os
import struct
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from facegen_keras.base.errors import InputError
from facegen_keras.base.files import is_foreign, is_leftover, write_file
from facegen_keras.config import RunConfig
from facegen_keras.data import pictures as pictures_module
from facegen_keras.data.check import check_faces
from facegen_keras.data.pictures import Budget, UnreadableImage, decode_face, read_picture
from facegen_keras.faces import NOTHING_HELD_OUT, load_faces


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
           "a.jpg:Zone.Identifier", "~$table.xlsx", ".directory"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_other_programs_leave_is_foreign(name):
    assert is_foreign(name) and is_leftover(name)


@pytest.mark.parametrize("name", ["a.jpg", "config.json", "thumbs", "Icons", "lost", "macosx", "a~b.png"])
def test_what_a_person_makes_is_not(name):
    assert not is_leftover(name)


@pytest.mark.parametrize("name", [".DS_Store", ".ipynb_checkpoints/a.ipynb", "Thumbs.db", "@eaDir/a.jpg",
                                  "config.json.0123abcd.part"])
def test_a_run_may_begin_beside_them(tmp_path, name):
    folder = pytest.importorskip("facegen_keras.runs.folder")
    write(tmp_path, {name: b""})
    folder.refuse_folder(folder.Run(tmp_path), RunConfig.preset("demo", out=str(tmp_path)))
    write(tmp_path, {"thesis.txt": b""})
    with pytest.raises(InputError, match="a new or empty folder"):
        folder.refuse_folder(folder.Run(tmp_path), RunConfig.preset("demo", out=str(tmp_path)))


@pytest.mark.parametrize("name", ["@eaDir/a.jpg/SYNOPHOTO_THUMB.jpg", "__MACOSX/._a.jpg", "$RECYCLE.BIN/a.jpg", "._a.jpg"])
def test_their_pictures_are_not_taken(tmp_path, name):
    contents = {"a.png": picture(), name: b""}
    for data in (write(tmp_path / "tree", contents), zip_up(tmp_path / "tree.zip", contents)):
        faces = load_faces(data)
        assert names(faces) == ["a.png"] and faces.remarks == []


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
}


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
        assert faces.remarks == [f"not looked at: 3 held out by {Path(listing).name}"]


@pytest.mark.parametrize("inside", ["img_align_celeba/", "Img/img_align_celeba/", "CelebA/Img/img_align_celeba/"])
def test_a_zip_of_the_pictures_finds_the_list_around_it(tmp_path, inside):
    data = zip_up(tmp_path / "CelebA/Img/img_align_celeba.zip",
                  {f"{inside}{number:06d}.jpg": picture(number, (89, 109)) for number in range(1, 9)})
    assert load_faces(data).remarks == [NOTHING_HELD_OUT] and len(load_faces(data)) == 8
    write(tmp_path / "CelebA/Eval", {"list_eval_partition.txt": LIST})
    assert len(load_faces(data)) == 5


@pytest.mark.parametrize("place", ["official", "beside", "deep"])
def test_without_a_list_one_line_says_so(tmp_path, place):
    folder, _ = celeba(tmp_path, place)
    for data in (tmp_path, tmp_path / folder):
        faces = load_faces(data)
        assert len(faces) == 8 and faces.remarks == [NOTHING_HELD_OUT]


def test_numbers_that_the_list_does_not_know_are_no_celeba(tmp_path):
    write(tmp_path, {"Eval/list_eval_partition.txt": LIST, **{f"mine/{i:06d}.jpg": picture() for i in range(8, 30)}})
    faces = load_faces(tmp_path / "mine")
    assert (faces.layout, len(faces), faces.remarks) == ("folder", 22, [])


def test_celeba_in_other_proportions_is_square(tmp_path):
    celeba(tmp_path, "beside", (16, 16))
    assert load_faces(tmp_path).crop == "square"
    with pytest.raises(InputError, match="16 x 16 in img_align_celeba"):
        load_faces(tmp_path, crop="article")


# Nothing vanishes without a word

def test_links_are_followed_and_circles_end(tmp_path):
    write(tmp_path, {"set/own/a.png": picture(1), "else/b.png": picture(2), "else/deep/c.png": picture(3), "far/d.png": picture(4)})
    for link, target in {"set/other": "../else", "set/own/up": "..", "set/twice": "own", "set/gone": "nowhere",
                         "else/back": "../set", "else/far": "../far", "set/top": ".."}.items():
        (tmp_path / link).symlink_to(target)
    faces = load_faces(tmp_path / "set")
    assert names(faces) == ["other/b.png", "other/deep/c.png", "other/far/d.png", "own/a.png"]
    assert check_faces(faces) == {}
    assert faces.remarks == ["not looked at: 4 behind a link to what is listed anyway, 1 behind a link to nothing"]


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


def test_training_says_what_a_check_says(tmp_path):
    images = pytest.importorskip("facegen_keras.runs.images")
    write(tmp_path, {"a.png": picture(1), "b.png": picture(2), "c.heic": b""})
    lines = []
    images.load_images(RunConfig.preset("demo", data=str(tmp_path), batch_size=2), None, lines.append)
    assert lines == ["not looked at: 1 .heic"]


def test_a_thousand_nested_folders(tmp_path):
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").write_bytes(picture())
    finally:
        os.chdir(before)
    assert names(load_faces(tmp_path)) == [1100 * "d/" + "a.png"]


@pytest.mark.parametrize("place", ["toy", "./toy", "toy/"])
def test_a_folder_called_toy(tmp_path, monkeypatch, place):
    monkeypatch.chdir(write(tmp_path, {"toy/a.png": picture()}))
    assert load_faces(Path(place)).layout == load_faces(RunConfig.preset("demo", data=Path(place)).data).layout == "folder"
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
    "An ICC profile of three primaries and a gamma."
    matrix, gamma = XYZ[space]
    xyz = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in column)) for column in zip(*matrix)]
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = [(b"desc", text), (b"wtpt", white), *zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz), *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC"))]
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">2I", place + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s12x4s", place + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + struct.pack(">I", len(tags)) + table + body


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


def tiff(values, bits, white_is_zero=False, kind=1):
    "A grey TIFF; kind: 1 unsigned, 2 signed, 3 floating point."
    data, tags = bytes(values), ()
    for tag, value in ((256, 16), (257, 16), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8), (277, 1),
                       (278, 16), (279, len(data)), (339, kind)):
        tags += (struct.pack("<2H2I", tag, 4, 1, value),)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize("data, level", [
    (tiff(np.full(256, 120 * 257, "<u2"), 16), 120), (tiff(np.full(256, 55 * 257, "<u2"), 16, white_is_zero=True), 200),
    (tiff(128 * b"\x78\x07\x80", 12), 120)])
def test_grey_of_many_levels_has_its_own_range(data, level):
    assert np.abs(decode_face(data, 8, "square").astype(int) - level).max() <= 1


@pytest.mark.parametrize("data", [tiff(np.full(256, 200, "<u4"), 32), tiff(np.full(256, 200, "<i4"), 32, kind=2),
                                  tiff(np.full(256, 2**31, "<u4"), 32), tiff(np.full(256, 9000, "<i2"), 16, kind=2),
                                  tiff(np.full(256, 200, "<f4"), 32, kind=3), b"Pf\n16 16\n-1\n" + np.ones(256, "<f4").tobytes()])
def test_grey_of_unknown_range_is_refused(data):
    with pytest.raises(UnreadableImage, match="whose range is unknown: convert it"):
        decode_face(data, 8, "square")


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


def test_large_pictures_are_read_one_at_a_time():
    budget, inside, most = Budget(10), [], []

    def work():
        with budget.spend(99):
            inside.append(1)
            most.append(len(inside))
            inside.pop()
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == 8 * [1] and budget.free == 10


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_picture_of_many_pixels_asks_for_its_memory(monkeypatch, mode):
    asked = []
    monkeypatch.setattr(pictures_module, "PIXELS", type("", (), {"spend": lambda self, amount: asked.append(amount) or Budget(1).spend(0)})())
    face = decode_face(save(Image.new(mode, (1200, 1000))), 16, "square")
    assert asked == [1_200_000] and face.shape == (16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240), (6_000, 18_000)])
def test_a_phones_largest_jpeg_is_read(size):
    image = Image.new("L", size, 90)
    data = save(image, "JPEG")
    del image
    assert np.abs(decode_face(data, 32, "square").astype(int) - 90).max() <= 2
    assert min(read_picture(data, 64).size) < 2_500


@pytest.mark.parametrize("data", [b"P6 12000 9000 255\n", b"P6 50000 50000 255\n", save(Image.new("1", (9_000, 9_000)))])
def test_what_is_too_large_is_refused_with_the_limit_and_a_remedy(data):
    with pytest.raises(UnreadableImage, match="too large: .*80,000,000.*: make it smaller"):
        decode_face(data, 32, "square")
