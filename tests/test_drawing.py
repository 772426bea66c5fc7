"""Drawn faces: frequencies and independence of attributes, what a picture shows and hides, and the data set as a sequence."""

import dataclasses
import itertools
import math
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facegen_keras.base.settings import DRAWN_SETS
from facegen_keras.data.attributes import ATTRIBUTES, CONTINUOUS, MARTIAN, TABLES, FaceAttributes, draw_attributes
from facegen_keras.data.canvas import Canvas
from facegen_keras.data.pictures import UnreadableImage
from facegen_keras.toyfaces import LAYERS, DrawnSource, ToyFaces, render_face

ORDINARY = FaceAttributes(skin="beige")


@pytest.fixture(scope="module")
def many():
    return [draw_attributes(seed=0, index=index) for index in range(2_000)]


# attributes: a deviation of four would happen by chance in one seed out of three hundred, since there are 50 kinds

def largest_deviation(faces):
    "How many standard deviations a kind's count lies from its expectation, at most."
    counts = {name: Counter(getattr(face, name) for face in faces) for name in ATTRIBUTES}
    return max(abs(counts[name][kind] - len(faces) * p) / math.sqrt(len(faces) * p * (1 - p))
               for name, kinds in ATTRIBUTES.items() for kind, p in kinds.items())


def dependence(faces, first, second):
    "Standard deviations by which a pair's chi-squared statistic exceeds that of independence."
    pairs = Counter((getattr(face, first), getattr(face, second)) for face in faces)
    expected = {(one, other): len(faces) * p * q for one, p in ATTRIBUTES[first].items()
                for other, q in ATTRIBUTES[second].items()}
    statistic = sum((pairs[pair] - e) ** 2 / e for pair, e in expected.items())
    freedom = len(expected) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_kinds_are_as_frequent_as_the_tables_say(many):
    assert largest_deviation(many) < 4


def test_kinds_that_are_too_rare_would_be_noticed(many):
    assert largest_deviation([dataclasses.replace(face, hat="none") for face in many]) > 4


def test_martians_are_the_same_faces_but_for_what_martians_have(many):
    """Their own tables alone differ, so nothing else about a face depends on its kind."""
    assert tuple(TABLES) == DRAWN_SETS
    martians = [draw_attributes(0, index, "martians") for index in range(len(many))]
    for name, kinds in MARTIAN.items():
        assert {getattr(face, name) for face in martians} == set(kinds)
    alike = {name: getattr(ORDINARY, name) for name in MARTIAN}
    with pytest.raises(ValueError, match="kind: expected one of toy, martians; received 'mars'"):
        ToyFaces(4, 64, kind="mars")
    assert [dataclasses.replace(face, **alike) for face in martians] == [dataclasses.replace(face, **alike) for face in many]


def test_attributes_are_independent_of_each_other(many):
    assert max(dependence(many, *pair) for pair in itertools.combinations(ATTRIBUTES, 2)) < 5


def test_a_dependence_would_be_noticed(many):
    tied = [dataclasses.replace(face, hat="none") if face.beard == "none" else face for face in many]
    assert dependence(tied, "hat", "beard") > 5


def test_continuous_attributes_fill_their_range_evenly(many):
    for name in CONTINUOUS:
        counts, _ = np.histogram([getattr(face, name) for face in many], bins=10, range=(-1, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 40  # 9 degrees of freedom: by chance once in 100,000


def test_attributes_depend_on_seed_and_number_alone(many):
    assert [draw_attributes(0, index) for index in (1_999, 3)] == [many[1_999], many[3]]
    assert draw_attributes(1, 3) != many[3]
    assert ToyFaces(10, 32, seed=3).attributes(0) == ToyFaces(2_000, 64, seed=3).attributes(0)


# pictures

def is_seen(change, **face):
    "Whether a change shows in the picture of a face."
    face = FaceAttributes(**face)
    return not np.array_equal(render_face(face, 64), render_face(dataclasses.replace(face, **change), 64))


DISGUISE = dict(hat="cap", glasses="sunglasses", hair_shape="bun")


@pytest.mark.parametrize("name", ["eyes", "eye_colour"])
def test_hidden_attributes_do_not_change_a_pixel(name):
    assert not any(is_seen({name: kind}, **DISGUISE) for kind in ATTRIBUTES[name])


def test_a_hat_hides_a_bun_and_not_a_bald_head():
    assert not is_seen({"hair_shape": "short"}, **DISGUISE)
    assert is_seen({"hair_shape": "bald"}, **DISGUISE)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_kind_changes_pixels_at_the_smallest_size(name):
    pictures = {render_face(dataclasses.replace(ORDINARY, **{name: kind}), 16).tobytes() for kind in ATTRIBUTES[name]}
    assert len(pictures) == len(ATTRIBUTES[name])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_each_scale_changes_the_picture(name):
    pictures = {render_face(dataclasses.replace(ORDINARY, **{name: end}), 64).tobytes() for end in (-.5, 0, .5)}
    assert len(pictures) == 3


def test_every_layer_shows():
    canvas = Canvas(FaceAttributes(hair_shape="bob", beard="goatee", glasses="round", hat="beanie"), 64)
    pictures = [canvas.picture()]
    for draw_layer in LAYERS:
        draw_layer(canvas)
        pictures.append(canvas.picture())
    assert all((before != after).any() for before, after in itertools.pairwise(pictures))
    assert np.array_equal(pictures[-1], render_face(canvas.face, 64))


@pytest.mark.parametrize("image_size", [16, 33, 200, 512])
def test_a_picture_has_the_size_that_is_asked_for(image_size):
    picture = render_face(ORDINARY, image_size)
    assert picture.shape == (image_size, image_size, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, render_face(ORDINARY, image_size))


# the set as a sequence

def test_no_two_faces_are_alike():
    faces = np.stack(list(ToyFaces(200, 32, seed=3))).astype(np.float32)
    distances = np.abs(faces[1:] - faces[:-1]).mean(axis=(1, 2, 3))  # in levels of 255
    assert faces.std() > 40 and distances.min() > 8
    assert len({face.tobytes() for face in faces}) == len(faces)


def test_the_same_bits_in_any_order_and_for_any_size_of_set():
    few, more = ToyFaces(10, 32, seed=3), ToyFaces(2_000, 32, seed=3)
    assert all(np.array_equal(few[index], more[index]) for index in reversed(range(10)))
    assert np.array_equal(more[-1], more[1_999]) and not np.array_equal(few[0], ToyFaces(10, 32, seed=4)[0])


def test_a_face_is_read_only():
    for face in ToyFaces(2, 16), ToyFaces(2, 16, cache_bytes=0):
        with pytest.raises(ValueError, match="read-only"):
            face[0][0, 0] = 255


def test_the_first_faces_are_kept_as_many_as_fit():
    faces = ToyFaces(20, 16, cache_bytes=5 * 3 * 16 * 16)
    assert len(list(faces)) == 20 and sorted(faces.drawn) == [0, 1, 2, 3, 4]
    assert faces[0] is faces[0] and faces[9] is not faces[9]


def test_threads_get_the_same_faces():
    faces = ToyFaces(20, 16)
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(ToyFaces(20, 16).__getitem__, [*range(20)] * 3))
    assert all(np.array_equal(face, faces[index % 20]) for index, face in enumerate(shared))


def test_a_set_can_be_pickled():
    faces = ToyFaces(20, 16)
    assert np.array_equal(pickle.loads(pickle.dumps(faces))[3], faces[3])


def test_a_collection_of_drawn_faces_follows_a_list():
    source = DrawnSource(3, 16, seed=0)
    face = source.read(2)
    source.keep([0, 2])
    assert source.names == ["toy-000000", "toy-000002"] and np.array_equal(source.read(1), face)
    source.follow(["toy-000002", "gone.jpg"])
    assert np.array_equal(source.read(0), face)
    with pytest.raises(UnreadableImage, match="no longer there"):
        source.read(1)


# mistakes

@pytest.mark.parametrize("call, message", [
    (lambda: ToyFaces(0, 64), "count: expected a whole number from 1 to 4,294,967,295; received 0"),
    (lambda: ToyFaces(True, 64), "count: .* received True"),
    (lambda: ToyFaces(10, 8), "image_size: expected a whole number from 16 to 512; received 8"),
    (lambda: ToyFaces(10, 513), "received 513"),
    (lambda: ToyFaces(10, 64.0), "received 64.0"),
    (lambda: ToyFaces(10, 64, seed=-1), "seed: .* received -1"),
    (lambda: render_face(ORDINARY, 15), "image_size"),
    (lambda: draw_attributes(0, -1), "index"),
    (lambda: FaceAttributes(yaw=1.5), "yaw: expected a number from -1 to 1; received 1.5"),
    (lambda: FaceAttributes(jaw=math.nan), "jaw"),
    (lambda: FaceAttributes(hat="fez"), "hat: expected one of none, beanie, cap, straw"),
])
def test_a_mistake_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_beyond_the_set():
    faces = ToyFaces(10, 16)
    for index in (10, -11):
        with pytest.raises(IndexError, match="expected -10 to 9; .* there are 10 faces: ask for a larger count"):
            faces[index]
        with pytest.raises(IndexError):
            faces.attributes(index)
    for index in (1.5, slice(3)):
        with pytest.raises(TypeError):
            faces[index]
