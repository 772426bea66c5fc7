"""Faces into batches: layouts as folder and zip, every kind of file, order, faults, and the user's mistakes."""

import io
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facegen_keras.data import sources as sources_module

from facegen_keras.data import store as store_module
from facegen_keras.base.errors import InputError
from facegen_keras.data.check import check_faces
from facegen_keras.data.pictures import ARTICLE_BOX, UnreadableImage, crop_box, decode_face
from facegen_keras.data.layouts import spread
from facegen_keras.faces import epoch_flips, epoch_order, load_faces, to_float, to_pixels
from facegen_keras.toyfaces import ToyFaces

SIDE = 16
HTML = b"<!DOCTYPE html><title>404</title>"
sizes = st.integers(1, 5000)


def save(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def numbered(number, size=(SIDE, SIDE)):
    "A picture that says which one it is: red is the number; its left half is darker in blue."
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = number
    pixels[:, size[0] // 2:, 2] = 255
    return save(Image.fromarray(pixels))


def numbers(batches):
    "Which pictures the batches hold."
    return [np.asarray(batch)[:, 0, 0, 0].tolist() for batch in batches]


def is_flipped(image):
    return image[0, 0, 2] > 0


def folder_of(root, contents):
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zip_of(path, contents, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "stored zip", "deflated zip"])
def put(request, tmp_path):
    "Writes a tree in one of the forms in which it may be given."
    def write(contents):
        if request.param == "folder":
            return folder_of(tmp_path / "tree", contents)
        method = zipfile.ZIP_STORED if request.param == "stored zip" else zipfile.ZIP_DEFLATED
        return zip_of(tmp_path / "tree.zip", contents, compression=method)
    return write


@pytest.fixture
def many(tmp_path):
    "Forty numbered pictures in a folder."
    return folder_of(tmp_path / "many", {f"{i:03}.png": numbered(i) for i in range(40)})


# Numbers

def test_pixels_there_and_back_lose_at_most_one_level():
    levels = np.arange(256, dtype=np.uint8)
    values = to_float(levels)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
    lost = levels.astype(int) - to_pixels(values)
    assert set(lost) <= {0, 1}


def test_to_pixels_truncates_and_clips():
    assert to_pixels([-3, -1, 0, 0.9999, 1, 3]).tolist() == [0, 0, 127, 254, 255, 255]


def test_the_stream_has_the_bytes_of_the_pictures(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    data = folder_of(tmp_path / "one", {"a.png": save(Image.fromarray(pixels))})
    batch, = load_faces(data, image_size=16).batches(1, flip=False)
    assert batch.dtype == "uint8" and np.array_equal(batch[0].numpy(), pixels)


# Crops

@given(width=sizes, height=sizes, crop=st.sampled_from(["article", "square", "none"]))
def test_a_box_lies_inside_the_picture(width, height, crop):
    left, top, right, bottom = crop_box(crop, width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@given(width=sizes, height=sizes)
def test_a_square_box_is_the_largest_and_in_the_middle(width, height):
    left, top, right, bottom = crop_box("square", width, height)
    assert right - left == bottom - top == min(width, height)
    assert left == width - right and top == height - bottom


@given(scale=st.integers(1, 20))
def test_the_articles_box_is_square_on_aligned_celeba_of_any_size(scale):
    left, top, right, bottom = crop_box("article", 89 * scale, 109 * scale)
    assert right - left == pytest.approx(bottom - top) == pytest.approx(84 * scale)
    assert (left, top) == (pytest.approx(2.5 * scale), pytest.approx(14 * scale))


def test_the_articles_box_is_what_the_article_trained_on():
    pixels = np.zeros((218, 178, 3), np.uint8)
    left, top, right, bottom = ARTICLE_BOX
    pixels[top:bottom, left:right] = 200
    assert (decode_face(save(Image.fromarray(pixels)), 168, "article") == 200).all()
    assert (decode_face(save(Image.fromarray(pixels)), 168, "none") != 200).any()


# Files

def rgb(colour=(200, 100, 50)):
    return Image.new("RGB", (SIDE, SIDE), colour)


def exif(orientation):
    note = Image.Exif()
    note[0x0112] = orientation
    return note


MODES = {
    "RGB": (save(rgb()), (200, 100, 50)),
    "grey": (save(Image.new("L", (SIDE, SIDE), 90)), (90, 90, 90)),
    "grey, one bit": (save(Image.new("1", (SIDE, SIDE), 1)), (255, 255, 255)),
    "16-bit grey": (save(Image.fromarray(np.full((SIDE, SIDE), 90 * 257, np.uint16))), (90, 90, 90)),
    "16-bit grey, PGM": (b"P5 16 16 65535\n" + np.full((SIDE, SIDE), 90 * 257, ">u2").tobytes(), (90, 90, 90)),
    "palette": (save(rgb().quantize(4)), (200, 100, 50)),
    "CMYK": (save(rgb().convert("CMYK"), "JPEG", quality=100), (200, 100, 50)),
    "CMYK, TIFF": (save(rgb().convert("CMYK"), "TIFF"), (200, 100, 50)),
    "half transparent": (save(Image.new("RGBA", (SIDE, SIDE), (200, 0, 0, 127))), (228, 128, 128)),
    "transparent grey": (save(Image.new("LA", (SIDE, SIDE), (0, 0))), (255, 255, 255)),
    "transparent colour": (save(rgb(), transparency=(200, 100, 50)), (255, 255, 255)),
    "transparent palette": (save(rgb().quantize(4), "GIF", transparency=0), (255, 255, 255)),
    "animated": (save(rgb(), "GIF", save_all=True, append_images=[rgb((0, 0, 0))]), (200, 100, 50)),
    "WebP": (save(rgb(), "WEBP", lossless=True), (200, 100, 50)),
    "BMP": (save(rgb(), "BMP"), (200, 100, 50)),
    "broken EXIF": (save(rgb(), "JPEG", quality=100, exif=b"Exif\0\0garbage"), (200, 100, 50)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_picture_becomes_rgb(mode):
    data, colour = MODES[mode]
    face = decode_face(data, 8, "square")
    assert face.shape == (8, 8, 3) and face.dtype == np.uint8
    assert np.abs(face.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation):
    corner = rgb((0, 0, 0))
    corner.paste((255, 255, 255), (0, 0, 8, 8))
    back = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    stored = corner.transpose(back[orientation]) if orientation in back else corner
    face = decode_face(save(stored, "JPEG", quality=100, exif=exif(orientation)), SIDE, "square")
    assert face[4, 4].min() > 240 and face[12, 12].max() < 15 and face[4, 12].max() < 15


def test_a_damaged_note_does_not_cost_the_picture():
    note = exif(6)
    note[0x010E] = "hello"
    damaged = note.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x3e\x00\x02")  # a text where fractions belong
    corner = rgb((0, 0, 0))
    corner.paste((255, 255, 255), (0, 0, 8, 8))
    face = decode_face(save(corner, "JPEG", quality=100, exif=damaged), SIDE, "square")
    assert face[4, 12].min() > 240 and face[4, 4].max() < 15


BROKEN = {
    "empty": (b"", "empty"),
    "HTML": (HTML, "HTML"),
    "noise": (bytes(range(256)), "not a picture"),
    "half a JPEG": (save(rgb().resize((64, 64)), "JPEG")[:400], "cut off"),
    "half a PNG": (save(Image.effect_noise((64, 64), 90))[:900], "cut off"),
    "bomb": (b"P6 50000 50000 255\n", "too large"),
    "large": (b"P6 9000 9000 255\n", "too large"),
    "floats": (save(Image.new("F", (16, 16), 0.5), "TIFF"), "floating"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_has_a_plain_reason(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_face(data, 8, "square")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), length=st.floats(0, 1),
       changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_face_or_a_reason_and_nothing_else(kind, length, changes):
    whole = save(Image.effect_noise((SIDE, SIDE), 90).convert("RGB"), kind)
    data = bytearray(whole[:round(len(whole) * length)])
    for place, value in changes if data else ():
        data[int(place * len(data))] = value
    try:
        assert decode_face(bytes(data), 8, "square").shape == (8, 8, 3)
    except UnreadableImage as error:
        assert str(error) and "\n" not in str(error)


def test_decoding_leaves_pillows_global_state_alone():
    from PIL import ImageFile
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    for data, _ in [*MODES.values(), *BROKEN.values()]:
        try:
            decode_face(data, 8, "square")
        except UnreadableImage:
            pass
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_a_large_jpeg_read_smaller_looks_the_same():
    drawn = Image.fromarray(ToyFaces(1, 256, 0)[0])
    small = decode_face(save(drawn, "JPEG", quality=95), 64, "square")
    assert np.abs(small.astype(int) - drawn.resize((64, 64), Image.Resampling.BICUBIC)).mean() < 2


# Layouts

def test_a_tree_of_pictures(put):
    faces = load_faces(put({"b/2.PNG": numbered(2), "a/1.png": numbered(1), "z.txt": b"", ".hidden.png": numbered(9),
                            ".git/3.png": numbered(3), "__MACOSX/a/1.png": b"", "a/.DS_Store": b""}), image_size=SIDE)
    assert (faces.layout, faces.crop, len(faces)) == ("folder", "square", 2)
    assert [faces.name(i) for i in range(2)] == ["a/1.png", "b/2.PNG"]
    assert [face[0, 0, 0] for face in faces] == [1, 2]


@pytest.mark.parametrize("prefix", ["", "celebrities-100k/"])
@pytest.mark.parametrize("listing", [b"b\na.jpg\n", b"\xef\xbb\xbfb.jpg\r\na\r\nnot there\r\n\r\n"])
def test_celebrities_100k(put, prefix, listing):
    contents = {f"{prefix}100k/100k/{name}.jpg": save(rgb(), "JPEG") for name in "abc"}
    faces = load_faces(put({f"{prefix}100k.txt": listing, f"{prefix}other.jpg": b"", **contents}))
    assert (faces.layout, faces.crop) == ("celebrities-100k", "square")
    assert [faces.name(i) for i in range(len(faces))] == [f"{prefix}100k/100k/{name}.jpg" for name in "ab"]


PARTITIONS = {
    None: (b"", [0, 1, 2, 3]),
    "list_eval_partition.csv": (b"image_id,partition\n0.jpg,0\n1.jpg,1\n2.jpg,0\n3.jpg,2\n", [0, 2]),
    "list_eval_partition.txt": (b"0.jpg 2\r\n1.jpg 0\r\n2.jpg 1\r\n3.jpg 0\r\n", [1, 3]),
    "Eval/list_eval_partition.txt": (b"0.jpg 0\n9.jpg 0\n", [0]),
}


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("place", ["img_align_celeba/", "img_align_celeba/img_align_celeba/", "Img/img_align_celeba/",
                                   "celeba/img_align_celeba/img_align_celeba/"])
def test_celeba(put, place, partition):
    listing, expected = PARTITIONS[partition]
    lists = {partition: listing} if partition else {}
    contents = {f"{place}{i}.jpg": numbered(i, (89, 109)) for i in range(4)}
    faces = load_faces(put({**lists, **contents, "preview.png": numbered(9)}), image_size=SIDE)
    assert (faces.layout, faces.crop) == ("celeba", "article")
    assert [face[0, 0, 0] for face in faces] == expected


@pytest.mark.parametrize("given_folder", ["img_align_celeba", "img_align_celeba/img_align_celeba"])
def test_celeba_given_by_its_inner_folder_still_obeys_the_list(tmp_path, monkeypatch, given_folder):
    listing, expected = PARTITIONS["list_eval_partition.csv"]
    contents = {f"img_align_celeba/img_align_celeba/{i}.jpg": numbered(i, (89, 109)) for i in range(4)}
    root = folder_of(tmp_path, {"list_eval_partition.csv": listing, "elsewhere/a.jpg": HTML, **contents})
    monkeypatch.chdir(root / given_folder)
    for data in (root / given_folder, "."):
        faces = load_faces(data, image_size=SIDE)
        assert faces.layout == "celeba" and [face[0, 0, 0] for face in faces] == expected


def test_limit_spreads_over_the_list_and_ignores_the_seed(put):
    data = put({f"{person}/{i}.png": numbered(i) for person in "abcde" for i in range(10)})
    for seed in (0, 1):
        faces = load_faces(data, image_size=SIDE, limit=5, seed=seed)
        assert [faces.name(i)[0] for i in range(5)] == list("abcde")
        assert [face[0, 0, 0] for face in faces] == [int(faces.name(i)[2]) for i in range(5)]


@given(count=st.integers(1, 3000), limit=st.integers(1, 3000))
def test_spread_takes_as_many_as_it_may_each_once_in_order(count, limit):
    taken = spread(list(range(count)), limit)
    assert len(taken) == min(count, limit) and taken == sorted(set(taken))
    assert limit < 2 or taken[-1] == count - 1


def test_drawn_faces():
    faces = load_faces("toy", image_size=32, limit=6, seed=3)
    assert (len(faces), faces.layout, faces.crop, faces[5].shape) == (6, "toy", "square", (32, 32, 3))
    assert np.array_equal(faces[5], load_faces("toy", image_size=32, limit=6, seed=3)[5])
    assert not np.array_equal(faces[5], load_faces("toy", image_size=32, limit=6, seed=4)[5])
    martians = load_faces("martians", image_size=32, limit=6, seed=3)
    assert martians.layout == "martians" and martians.source.names[5] == "martians-000005"
    assert not np.array_equal(faces[5], martians[5])
    assert len(list(faces.batches(2))) == 3 and check_faces(faces) == {}
    with pytest.raises(IndexError):
        faces[6]


def test_zips_in_odd_forms(tmp_path):
    contents = {f"bücher\\{i}.png": numbered(i) for i in range(3)}
    plain = zip_of(tmp_path / "plain.zip", contents)
    prefixed = tmp_path / "prefixed.zip"
    prefixed.write_bytes(b"#!/bin/sh\n" * 9 + plain.read_bytes())
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.comment = b"a comment"
        for name, data in contents.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    for name in ("plain.zip", "prefixed.zip", "large.zip"):
        faces = load_faces(tmp_path / name, image_size=SIDE)
        assert [faces.name(i) for i in range(3)] == [f"bücher/{i}.png" for i in range(3)]
        assert [face[0, 0, 0] for face in faces] == [0, 1, 2]
    faces = load_faces(zip_of(tmp_path / "lzma.zip", contents, compression=zipfile.ZIP_LZMA))
    assert [reason[:10] for reason in check_faces(faces).values()] == ["compressed"] * 3


def test_a_damaged_entry_of_a_zip_is_noticed(tmp_path):
    path = zip_of(tmp_path / "a.zip", {f"{i}.bmp": save(rgb(), "BMP") for i in range(3)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert check_faces(load_faces(path), duplicates=False) == {"1.bmp": "damaged in the zip"}


# Order

@settings(deadline=None)
@given(count=st.integers(1, 500), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_and_a_pure_function(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(count))
    epoch_order.cache_clear()
    epoch_flips.cache_clear()
    assert np.array_equal(order, epoch_order(count, seed, epoch))
    assert epoch_flips(count, seed, epoch).shape == (count,)


def test_seeds_and_epochs_give_different_orders_and_half_the_flips():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    flips = {tuple(epoch_flips(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == len(flips) == 25
    assert 0.48 < epoch_flips(10_000, 0, 0).mean() < 0.52


def test_batches_follow_the_order_and_drop_the_remainder(many):
    faces = load_faces(many, image_size=SIDE)
    batches = list(faces.batches(12, seed=7, epochs=2))
    assert all(batch.shape == (12, SIDE, SIDE, 3) and batch.dtype == "uint8" for batch in batches)
    assert numbers(batches) == [epoch_order(40, 7, epoch)[i:i + 12].tolist() for epoch in (0, 1) for i in (0, 12, 24)]


def test_flips_are_where_epoch_flips_says_and_nowhere_without(many):
    faces = load_faces(many, image_size=SIDE)
    flipped = [is_flipped(image) for batch in faces.batches(10, seed=1, epochs=2) for image in batch]
    assert np.array_equal(flipped, [*epoch_flips(40, 1, 0), *epoch_flips(40, 1, 1)])
    for batch in faces.batches(40, flip=False):
        assert not any(map(is_flipped, batch))


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_start_gives_the_tail_and_reads_nothing_before_and_nothing_twice(many_once, data):
    folder, whole = many_once
    epoch, step = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 5))
    faces, reads = load_faces(folder, image_size=SIDE), []
    read = faces.source.read
    faces.source.read = lambda index: reads.append(index) or read(index)
    tail = [batch.numpy() for batch in faces.batches(6, seed=3, epochs=3, start_epoch=epoch, start_step=step)]
    assert np.array_equal(tail, whole[epoch * 6 + step:])
    shown = [epoch_order(40, 3, e)[start * 6:start * 6 + 6] for e in range(epoch, 3)
             for start in range(step if e == epoch else 0, 6)]
    assert sorted(reads) == sorted(set(np.concatenate(shown)))


@pytest.fixture(scope="module")
def many_once(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("many"), {f"{i:03}.png": numbered(i) for i in range(40)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "num_threads", lambda: 1)  # two may decode one picture at the same time
        whole = load_faces(folder, image_size=SIDE).batches(6, seed=3, epochs=3)
        yield folder, [batch.numpy() for batch in whole]


def test_a_stream_can_be_run_twice_and_beside_itself(many):
    stream = load_faces(many, image_size=SIDE).batches(8, seed=2)
    pairs = list(zip(stream, stream))
    assert len(pairs) == 5 and all(np.array_equal(a, b) for a, b in pairs)


def test_a_start_at_or_after_the_end_is_an_empty_stream(many):
    faces = load_faces(many, image_size=SIDE)
    assert list(faces.batches(8, epochs=1, start_epoch=1)) == []
    assert list(faces.batches(8, epochs=1, start_step=5)) == []


# Pictures that cannot be read

def replaced(order, bad, place):
    "What stands at a place once unreadable pictures gave way to the next in the order."
    while order[place % len(order)] in bad:
        place += 1
    return int(order[place % len(order)])


@pytest.mark.parametrize("threads", [1, 4])
def test_unreadable_pictures_give_way_to_the_next_whatever_the_threads_do(many, monkeypatch, threads):
    bad = {3, 4, 5, 17, int(epoch_order(40, 0, 0)[-1])}
    for index in bad:
        (many / f"{index:03}.png").write_bytes(HTML)
    monkeypatch.setattr(store_module, "num_threads", lambda: threads)
    faces, random = load_faces(many, image_size=SIDE), np.random.default_rng()
    read = faces.source.read
    faces.source.read = lambda index: time.sleep(random.random() / 200) or read(index)
    expected = [[replaced(epoch_order(40, 0, epoch), bad, place) for place in range(start, start + 8)]
                for epoch in (0, 1) for start in range(0, 40, 8)]
    assert numbers(faces.batches(8, epochs=2)) == expected
    assert faces.unreadable == {f"{index:03}.png": "HTML, not a picture" for index in bad}


def test_a_file_that_vanishes_is_recorded(many):
    faces = load_faces(many, image_size=SIDE)
    (many / "007.png").unlink()
    list(faces.batches(40))
    assert faces.unreadable == {"007.png": "no longer there"}


def test_check_faces_finds_all_and_changes_nothing(put):
    contents = {f"{i}.png": (HTML if i % 3 == 0 else numbered(i)) for i in range(10)}
    faces = load_faces(put({**contents, "empty.jpg": b""}), image_size=SIDE)
    expected = {**{f"{i}.png": "HTML, not a picture" for i in (0, 3, 6, 9)}, "empty.jpg": "the file is empty"}
    assert list(check_faces(faces).items()) == list(expected.items())
    assert faces.unreadable == {}


def test_a_file_too_long_is_not_read(tmp_path, monkeypatch):
    contents = {"a.bmp": save(rgb().resize((99, 99)), "BMP")}
    monkeypatch.setattr(sources_module, "MAX_BYTES", 1000)
    for data in (folder_of(tmp_path / "a", contents), zip_of(tmp_path / "a.zip", contents)):
        reason, = check_faces(load_faces(data)).values()
        assert reason.startswith("too large")


# The user's mistakes

def empty_folder(root):
    (root / "empty").mkdir()
    return root / "empty"


def one_file(root, name, data):
    return folder_of(root, {name: data}) / name


def half_a_zip(root):
    whole = zip_of(root / "whole.zip", {"a.png": numbered(1)}).read_bytes()
    return one_file(root, "half.zip", whole[:-30])


def encrypted_zip(root):
    data = bytearray(zip_of(root / "secret.zip", {"a.png": numbered(1)}).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return one_file(root, "secret.zip", bytes(data))


def squares(root):
    return folder_of(root, {"a.png": HTML, "b.png": numbered(1)})


def only_held_out(root):
    return folder_of(root, {"img_align_celeba/1.jpg": numbered(1), "list_eval_partition.csv": b"1.jpg,2"})


MISTAKES = {  # what: (how to make it, options, what the message must name)
    "nothing there": (lambda root: root / "nowhere", {}, "nothing is there"),
    "empty folder": (empty_folder, {}, "is empty"),
    "no picture": (lambda root: folder_of(root, {"a.txt": b"hello"}), {}, ".jpg"),
    "no picture in a zip": (lambda root: zip_of(root / "a.zip", {"a.txt": b"hello"}), {}, ".jpg"),
    "empty zip": (lambda root: zip_of(root / "a.zip", {}), {}, ".jpg"),
    "no zip": (lambda root: one_file(root, "a.zip", b"hello"), {}, "whole .zip"),
    "half a zip": (half_a_zip, {}, "whole .zip"),
    "another file": (lambda root: one_file(root, "a.png", numbered(1)), {}, "a folder or a whole .zip"),
    "encrypted zip": (encrypted_zip, {}, "password"),
    "crop": (squares, {"crop": "round"}, "auto, article, square, none"),
    "limit": (squares, {"limit": 0}, "at least 1"),
    "article's box on squares": (squares, {"crop": "article"}, "16 x 16 in b.png"),
    "article's box on drawn faces": (lambda root: "toy", {"crop": "article", "limit": 2}, "128 x 128"),
    "nobody to train on": (only_held_out, {}, "partition"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, mistake):
    make, options, fragment = MISTAKES[mistake]
    data = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        load_faces(data, **options)
    message = str(caught.value)
    assert fragment in message and "\n" not in message and "expected" in message and "got" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_batch_larger_than_the_data(many):
    with pytest.raises(InputError, match="batch_size: expected at most 40"):
        load_faces(many).batches(41)


def test_nothing_readable_is_said_before_training(tmp_path):
    faces = load_faces(folder_of(tmp_path, {f"{i}.png": HTML for i in range(5)}))
    with pytest.raises(InputError, match="at least one picture that can be read.*HTML"):
        faces.batches(2)


def test_proportions_may_differ_a_little(tmp_path):
    data = folder_of(tmp_path, {"a.png": numbered(1, (178, 220))})
    assert load_faces(data, crop="article").crop == "article"


# Processes

def run(code, *arguments):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=120, env=environment,
                          capture_output=True, text=True)


def test_loading_and_checking_need_no_tensorflow(many):
    done = run("import sys; from facegen_keras.faces import load_faces; from facegen_keras.data.check import check_faces; print(len(load_faces(sys.argv[1])),"
               "check_faces(load_faces(sys.argv[1])), 'tensorflow' in sys.modules)", many)
    assert done.stdout.strip() == "40 {} False", done.stderr


@pytest.mark.slow
def test_a_process_may_end_in_the_middle_of_a_stream(tmp_path):
    noise = save(Image.effect_noise((256, 256), 90).convert("RGB"), "JPEG")
    folder_of(tmp_path, {f"{i}.jpg": noise for i in range(256)})
    done = run("import sys; from facegen_keras.faces import load_faces\n"
               "stream = iter(load_faces(sys.argv[1], image_size=256).batches(64, epochs=9))\n"
               "[next(stream) for _ in range(3)]\nsys.exit(7)", tmp_path)
    assert done.returncode == 7, done.stderr
