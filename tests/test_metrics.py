"""Each metric on data whose answer is known, what the faults of a generator do to it, and the command that measures a run."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import under_jax
from PIL import Image

from facegen_keras.features import distances as distances_module
from facegen_keras.features import features as features_module
from facegen_keras import metrics as metrics_module
from facegen_keras.measure import reader as reader_module
from facegen_keras.runs.folder import Run
from facegen_keras.config import RunConfig
from facegen_keras.base.errors import InputError
from facegen_keras.data.attributes import ATTRIBUTES
from facegen_keras.toyfaces import ToyFaces

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((1500, 8)).astype("float32")
OTHERS = RNG.standard_normal((1500, 8)).astype("float32")


def draw(count, seed, size=32):
    faces = ToyFaces(count, size, seed)
    return np.stack([faces[index] for index in range(count)])


FACES, FRESH = draw(300, 0), draw(300, 1)


def blurred(images, times=1):
    for _ in range(times):
        for axis in (1, 2):
            images = (np.roll(images, 1, axis) + 2.0 * images + np.roll(images, -1, axis)) / 4
    return np.round(images).astype("uint8")


# features

def test_features_are_pinned_and_refuse_other_weights(monkeypatch):
    assert features_module.fingerprint(features_module.random_kernels()) == features_module.FEATURES_SHA256
    assert features_module.FEATURES_SHA256.startswith("bb449853e1b8d8e7")
    pattern = (np.arange(32 * 32 * 3) ** 2 // 97 % 256).reshape(1, 32, 32, 3).astype("uint8")
    features = features_module.RandomFeatures(32)(pattern)
    assert features.dtype == np.float32 and features.shape == (1, 496)
    np.testing.assert_allclose(features[0, [0, 47, 48, 200, 495]], PINNED, rtol=5e-3, atol=0.01)  # a GPU rounds to 10 bits
    monkeypatch.setattr(features_module, "random_kernels", lambda: [kernel + 1 for kernel in RANDOM_KERNELS()])
    with pytest.raises(InputError, match="hash bb449853"):
        features_module.RandomFeatures(32)


RANDOM_KERNELS = features_module.random_kernels
PINNED = [-0.3619, -0.0015, 11.7157, 25.0403, 3.632]


def test_features_know_colour_texture_and_layout_at_every_size():
    grey = np.full((1, 64, 64, 3), 128, "uint8")
    changed = {name: grey.copy() for name in ("colour", "texture", "top", "bottom")}
    changed["colour"][..., 0] += 40
    changed["texture"][:, ::2, ::2] += 40
    changed["top"][:, :32] += 40
    changed["bottom"][:, 32:] += 40
    network = features_module.RandomFeatures(64)
    seen = {name: network(images)[0] for name, images in changed.items()}
    for name, features in seen.items():
        assert np.linalg.norm(features - network(grey)[0]) > 3, name
    assert np.linalg.norm(seen["top"] - seen["bottom"]) > 3
    for size in (32, 128, 256):
        assert features_module.RandomFeatures(size)(np.zeros((1, size, size, 3), "uint8")).shape == (1, 496)
    with pytest.raises(InputError, match="image_size: expected one of 32, 64, 128, 256, got 48"):
        features_module.RandomFeatures(48)


def test_features_are_float32_whatever_the_policy_says():
    import keras

    before = features_module.RandomFeatures(32)(FACES[:4])
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        after = features_module.RandomFeatures(32)(FACES[:4])
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert np.array_equal(before, after)


# distances

def test_frechet_is_zero_for_a_set_and_itself():
    assert distances_module.frechet_distance(POINTS, POINTS) < 1e-6
    assert distances_module.frechet_distance(POINTS, POINTS[::-1]) < 1e-6


def test_frechet_of_gaussians_is_the_analytic_one():
    centred = POINTS - POINTS.mean(0)
    white = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred.T)).T)  # covariance exactly 1
    scales, shift = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8)
    expected = np.square(shift).sum() + np.square(scales - 1).sum()  # commuting covariances
    assert distances_module.frechet_distance(white, white * scales + shift) == pytest.approx(expected, rel=1e-5)
    turn, _ = np.linalg.qr(RNG.standard_normal((8, 8)))
    one, other = white * scales, white * scales @ turn  # not commuting: the root of a product that is not symmetric
    first, second = np.diag(scales**2), turn.T @ np.diag(scales**2) @ turn
    roots = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    assert distances_module.frechet_distance(one, other) == pytest.approx(2 * np.square(scales).sum() - 2 * roots, rel=1e-4)
    assert distances_module.frechet_distance(one, other) == pytest.approx(distances_module.frechet_distance(other, one), rel=1e-6)


def test_kernel_distance_is_the_brute_force_formula():
    x, y = POINTS[:40].astype(float), OTHERS[:40].astype(float) + 0.5
    centre = y.mean(0)

    def kernel(a, b):
        return ((a - centre) @ (b - centre) / 8 + 1) ** 3

    def brute_force(x, y):
        n = len(x)
        within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        return within - 2 * sum(kernel(a, b) for a in x for b in y) / n**2

    rng = np.random.default_rng(3)
    first, second = rng.choice(40, 20, replace=False), rng.choice(40, 20, replace=False)
    found, _ = distances_module.kernel_distance(x.astype("float32"), y.astype("float32"), num_subsets=1, seed=3)
    assert found == pytest.approx(brute_force(x[first], y[second]), rel=1e-4)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    values = [distances_module.kernel_distance(*np.split(np.random.default_rng(seed).standard_normal((400, 8)), 2),
                                      num_subsets=4)[0] for seed in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    near, error = distances_module.kernel_distance(POINTS, OTHERS)
    assert abs(near) < 0.02 and 0 < error < 0.01
    assert distances_module.kernel_distance(POINTS + 0.5, OTHERS)[0] > 20 * max(abs(near), error)


# patches

def patches_of(images, places=None):
    places = np.random.default_rng(0).random((len(images), 16, 2)) if places is None else places
    return distances_module.sample_patches(images, places)


def test_a_pyramid_adds_up_and_a_flat_picture_has_no_detail():
    flat = distances_module.laplacian_pyramid(np.full((1, 64, 64, 3), 77, "uint8"))
    assert [level.shape[1] for level in flat] == [64, 32, 16]
    assert np.abs(flat[0]).max() < 1e-4 and np.abs(flat[1]).max() < 1e-4 and np.allclose(flat[2], 77)
    checkerboard = np.indices((64, 64)).sum(0)[None, :, :, None] % 2 * 40 * np.ones(3)
    fine, middle, _ = distances_module.laplacian_pyramid(checkerboard.astype("uint8"))
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert fine[inner].std() > 19 and middle[inner].std() < 0.1


def test_swd_is_zero_for_itself_and_ordered_by_blur():
    reference = patches_of(FACES)
    assert sorted(reference) == [16, 32] and reference[32].shape == (300, 16, 147)
    assert distances_module.sliced_wasserstein(reference[32], reference[32]) == 0
    values = [distances_module.sliced_wasserstein(patches_of(blurred(FRESH, times))[32], reference[32]) for times in range(4)]
    assert values == sorted(values) and values[1] > 5 * values[0]


def test_swd_of_shifted_patches_is_the_shift_and_sees_contrast():
    reference = RNG.standard_normal((400, 8, 147)).astype("float32")
    directions = np.random.default_rng(0).standard_normal((128, 147))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.abs(0.5 * directions.sum(1)).mean()
    assert distances_module.sliced_wasserstein(reference + 0.5, reference) == pytest.approx(expected, rel=0.02)
    assert distances_module.sliced_wasserstein(2 * reference, reference) == pytest.approx(np.sqrt(2 / np.pi), rel=0.05)
    assert distances_module.sliced_wasserstein(2 * reference, 2 * reference + 1) == pytest.approx(expected, rel=0.02)


def test_a_fine_checkerboard_is_seen_at_the_finest_scale_only():
    checkerboard = np.indices((32, 32)).sum(0)[..., None] % 2 * 20 - 10
    spoilt = np.clip(FRESH.astype(int) + checkerboard, 0, 255).astype("uint8")
    reference, clean, bad = map(patches_of, (FACES, FRESH, spoilt))
    ratio = {side: distances_module.sliced_wasserstein(bad[side], reference[side])
             / distances_module.sliced_wasserstein(clean[side], reference[side]) for side in (32, 16)}
    assert ratio[32] > 2 and 0.8 < ratio[16] < 1.25


# neighbourhoods

def test_a_set_and_itself_have_full_marks():
    scores = distances_module.neighbourhoods(POINTS, POINTS)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1
    assert scores["density"] == pytest.approx(1.2, abs=0.05)  # itself, and k others on average


def test_neighbourhoods_against_plain_loops():
    generated, real, k = OTHERS[:60] + 0.7, POINTS[:50], 3

    def radius(points, i):
        return np.sort(np.linalg.norm(points - points[i], axis=1))[k]

    real_radii, generated_radii = ([radius(points, i) for i in range(len(points))] for points in (real, generated))
    distance = np.linalg.norm(generated[:, None] - real[None], axis=2)
    expected = {"precision": np.mean([(row <= real_radii).any() for row in distance]),
                "recall": np.mean([(column <= generated_radii).any() for column in distance.T]),
                "density": (distance <= real_radii).sum() / (k * 60),
                "coverage": np.mean([column.min() <= radius for column, radius in zip(distance.T, real_radii)])}
    found = distances_module.neighbourhoods(generated, real, k)
    assert found == pytest.approx(expected, abs=1e-9)
    assert len(set(found.values())) == 4


def test_blocks_do_not_change_distances():
    whole = next(distances_module.distance_blocks(POINTS, OTHERS, most=1500 * len(OTHERS)))[1]
    parts = np.concatenate([squares.copy() for _, squares in distances_module.distance_blocks(POINTS, OTHERS, most=400 * len(OTHERS))])
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    np.testing.assert_allclose(whole[7, 11], np.square(POINTS[7] - OTHERS[11]).sum(), rtol=1e-4)
    radii = distances_module.neighbour_radii(POINTS, 5)
    expected = [np.sort(np.square(POINTS - POINTS[i]).sum(1))[5] for i in (0, 999, 1000, 1499)]
    np.testing.assert_allclose(radii[[0, 999, 1000, 1499]], expected, rtol=1e-4)


def test_a_dropped_mode_lowers_recall_and_coverage_and_leaves_precision():
    modes = np.repeat(np.eye(8, dtype="float32")[:4] * 30, 300, axis=0)
    real, fresh = modes + POINTS[:1200], modes + OTHERS[:1200]
    whole, part = distances_module.neighbourhoods(fresh, real), distances_module.neighbourhoods(fresh[:900], real)
    assert part["precision"] == pytest.approx(whole["precision"], abs=0.02) and part["precision"] > 0.9
    assert part["recall"] == pytest.approx(0.75 * whole["recall"], abs=0.02)
    assert part["coverage"] == pytest.approx(0.75 * whole["coverage"], abs=0.02)
    astray = distances_module.neighbourhoods(np.concatenate([fresh[:900], fresh[900:] - 60]), real)
    assert astray["precision"] == pytest.approx(0.75 * whole["precision"], abs=0.02)


# layout

def test_layouts_are_small_grey_and_of_one_brightness_and_contrast():
    pattern = np.zeros((1, 32, 32, 3), "uint8")
    pattern[:, :16, :, 1] = 90  # the upper half, in green
    flat = distances_module.layouts(pattern)
    assert flat.shape == (1, 256) and flat.dtype == np.float32
    np.testing.assert_allclose(flat.reshape(16, 16), np.repeat([1, -1], 8)[:, None] * np.ones(16), atol=1e-4)
    np.testing.assert_allclose(distances_module.layouts(pattern * 2 + 20), flat, atol=1e-4)
    assert not distances_module.layouts(np.full((1, 32, 32, 3), 77, "uint8")).any()


def test_layout_distance_of_a_set_moved_along_an_eigenface_is_in_standard_deviations():
    scales = np.geomspace(0.5, 2, 8)
    points = (POINTS - POINTS.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(POINTS, rowvar=False)).T) * scales
    assert distances_module.layout_distance(points, points) < 1e-6
    assert distances_module.layout_distance(points + 3 * scales * np.eye(8)[0], points) == pytest.approx(9, rel=1e-4)
    assert distances_module.layout_distance(points * 1.5, points) == pytest.approx(8 * 0.25, rel=1e-4)


def test_layout_distance_takes_the_largest_eigenfaces_and_no_more_than_the_pictures_can_bear():
    few = np.random.default_rng(5).standard_normal((40, 256)) * np.geomspace(100, 1, 256)
    moved_largest, moved_smallest = few.copy(), few.copy()
    moved_largest[:, 0] += 300
    moved_smallest[:, 255] += 30
    assert distances_module.layout_distance(moved_largest, few) > 1
    assert distances_module.layout_distance(moved_smallest, few) < 0.2, "forty pictures, so eight axes"


def test_layout_distances_are_along_the_axes_that_are_given():
    real, half = POINTS * np.geomspace(0.5, 2, 8), POINTS[:750] * np.geomspace(0.5, 2, 8)
    axes = distances_module.layout_axes(real)
    assert axes.shape == (8, 8) and np.allclose(np.cov(real @ axes, rowvar=False), np.eye(8), atol=1e-6)
    assert distances_module.layout_distance(half + 3, half, axes) != distances_module.layout_distance(half + 3, half)
    assert distances_module.layout_distance(half, real, axes) == distances_module.layout_distance(half, real)


def test_layout_sees_what_is_out_of_place_and_no_texture():
    real = distances_module.layouts(FACES)
    floor = distances_module.layout_distance(distances_module.layouts(FRESH), real)
    noisy = np.clip(FRESH + np.random.default_rng(0).normal(0, 8, FRESH.shape), 0, 255).astype("uint8")
    mixed = np.concatenate([FRESH[:, :16], np.roll(FRESH[:, 16:], 1, axis=0)], axis=1)
    times = {name: distances_module.layout_distance(distances_module.layouts(images), real) / floor for name, images in
             {"noise": noisy, "mixed": mixed, "swapped": np.roll(FRESH, 16, axis=2), "upside down": FRESH[:, ::-1]}.items()}
    assert times["noise"] < 1.1 and min(times["mixed"], times["swapped"], times["upside down"]) > 2, times


# copies and collapse

@pytest.mark.parametrize("copies, found", {
    "copies": (FACES, True),
    "mirrored": (FACES[:, :, ::-1], True),
    "noisy": (np.clip(FACES + RNG.normal(0, 8, FACES.shape), 0, 255).astype("uint8"), True),
    "fresh": (draw(300, 2), False),
}.values(), ids=("copies", "mirrored", "noisy", "fresh"))
def test_copies_are_found(copies, found):
    train = distances_module.thumbnails(FACES)
    held_out = distances_module.nearest_distances(distances_module.thumbnails(FRESH), train)
    scores = distances_module.copying(distances_module.nearest_distances(distances_module.thumbnails(copies), train), held_out)
    if found:
        assert scores["copy_ratio"] < 0.3 and scores["copy_share"] > 0.95
    else:
        assert scores["copy_ratio"] == pytest.approx(1, abs=0.1) and scores["copy_share"] < 0.04
    assert distances_module.copying(held_out, held_out) == {"copy_ratio": 1, "copy_share": pytest.approx(0.01, abs=0.005)}


@pytest.mark.slow
def test_copies_moved_by_a_pixel_are_found():
    large = draw(200, 0, 64)
    train = distances_module.thumbnails(large)
    held_out = distances_module.nearest_distances(distances_module.thumbnails(draw(300, 1, 64)), train)
    for pixels, ratio in ((1, 0.3), (2, 0.55)):
        moved = distances_module.nearest_distances(distances_module.thumbnails(np.roll(large, pixels, axis=2)), train)
        assert distances_module.copying(moved, held_out)["copy_ratio"] < ratio


@pytest.mark.parametrize("size", [32, 64, 128, 176, 256])
def test_similarity_is_tensorflows(size):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(size)
    one = np.repeat(np.repeat(rng.integers(0, 256, (3, size // 8, size // 8, 3)), 8, 1), 8, 2).astype("uint8")
    other = np.clip(one + rng.normal(0, (5, 20, 60), (size, size, 3, 3)).transpose(3, 0, 1, 2), 0, 255).astype("uint8")
    num_scales = {32: 2, 64: 3, 128: 4, 176: 5, 256: 5}[size]
    weights = np.array(distances_module.SCALE_WEIGHTS[:num_scales])
    expected = tf.image.ssim_multiscale(one, other, 255, power_factors=weights / weights.sum())
    np.testing.assert_allclose(distances_module.multiscale_ssim(one, other), expected, atol=1e-5)
    np.testing.assert_allclose(distances_module.multiscale_ssim(one, one), 1, atol=1e-5)


def test_collapse_is_seen_by_pairs():
    real, fresh = distances_module.pair_scores(FACES, 500).mean(), distances_module.pair_scores(FRESH, 500).mean()
    assert abs(real - fresh) < 0.03
    assert distances_module.pair_scores(np.repeat(FRESH[:3], 100, axis=0), 500).mean() > real + 0.2
    assert distances_module.pair_scores(np.repeat(FRESH[:1], 100, axis=0), 100).mean() == pytest.approx(1, abs=1e-5)
    assert distances_module.pair_scores(FRESH, 500).max() < 0.999, "no picture with itself"


# modes

def true_answers(count, seed):
    faces, kinds = ToyFaces(count, 16, seed), reader_module.KINDS
    return np.array([[kinds[name].index(kind) for name, kind in faces.attributes(index).visible.items()]
                     for index in range(count)], "int8")


EVERYTHING = {name: list(range(len(kinds))) for name, kinds in ATTRIBUTES.items()}
ANSWERS, FRESH_ANSWERS = true_answers(4000, 0), true_answers(4000, 1)


def test_real_faces_cover_every_mode():
    scores, missing = reader_module.mode_coverage(FRESH_ANSWERS, ANSWERS, EVERYTHING)
    assert scores["kinds_covered"] == 1 and scores["pairs_covered"] == 1 and missing == []
    assert scores["frequency_gap"] < 0.03
    assert reader_module.mode_coverage(ANSWERS, ANSWERS, EVERYTHING)[0]["frequency_gap"] == 0


@pytest.mark.parametrize("name, kind", [("hat", "straw"), ("beard", "goatee"), ("hair_shape", "mohawk"), ("skin", "deep")])
def test_a_dropped_kind_is_the_one_that_is_missing(name, kind):
    column, value = list(ATTRIBUTES).index(name), list(ATTRIBUTES[name]).index(kind)
    kept = FRESH_ANSWERS[FRESH_ANSWERS[:, column] != value]
    scores, missing = reader_module.mode_coverage(kept, ANSWERS, EVERYTHING)
    assert missing == [f"{name} {kind}"]
    assert scores["kinds_covered"] == pytest.approx(49 / 50)
    false_alarms = kept.copy()
    share = (ANSWERS[:, column] == value).mean()
    false_alarms[: int(0.1 * share * len(kept)), column] = value  # as many as a judged kind may have
    assert reader_module.mode_coverage(false_alarms, ANSWERS, EVERYTHING)[1] == [f"{name} {kind}"]


def test_a_dropped_pair_is_seen_while_both_kinds_survive():
    pair = (FRESH_ANSWERS[:, 0] == 0) & (FRESH_ANSWERS[:, 10] == 0)
    whole = reader_module.mode_coverage(FRESH_ANSWERS, ANSWERS, EVERYTHING)[0]
    scores, missing = reader_module.mode_coverage(FRESH_ANSWERS[~pair], ANSWERS, EVERYTHING)
    assert missing == [] and scores["kinds_covered"] == 1 and scores["pairs_covered"] < whole["pairs_covered"]


def test_unsure_answers_cover_nothing_and_rare_modes_are_not_judged():
    unsure = FRESH_ANSWERS.copy()
    unsure[:, 8] = reader_module.UNSURE
    scores, missing = reader_module.mode_coverage(unsure, ANSWERS, EVERYTHING)
    assert [kind for kind in missing if kind.startswith("hat")] == missing and len(missing) == 4
    assert scores["frequency_gap"] > 0.08  # a whole attribute of eleven
    few, none = reader_module.mode_coverage(FRESH_ANSWERS[FRESH_ANSWERS[:, 8] != 3][:50], ANSWERS, EVERYTHING)
    assert few["kinds_covered"] == 1 and none == []  # straw hats: one or two were expected


class Canned(reader_module.ModeReader):
    "A reader that answers what it is told."

    def __init__(self, answers):
        self.answers = iter(np.array_split(answers, range(250, len(answers), 250)))

    def __call__(self, images):
        return next(self.answers)


def test_a_kind_is_judged_only_if_nine_answers_in_ten_are_right():
    answers = ANSWERS.copy()
    others = np.flatnonzero(ANSWERS[:, 8] == 0)
    straw = (ANSWERS[:, 8] == 3).sum()
    answers[others[: straw // 8], 8] = 3  # one false alarm to eight that are right
    answers[others[-1000:], 7] = reader_module.UNSURE
    reader = Canned(answers)
    reader.examine(np.zeros((4000, 1), "uint8"), ANSWERS)
    assert reader.judged == {**EVERYTHING, "hat": [0, 1, 2]}
    assert reader.accuracy["beard"] == pytest.approx(0.75) and reader.accuracy["skin"] == 1


def test_an_answer_counts_only_if_it_is_sure():
    reader = Canned(ANSWERS)
    reader.side, logits = 32, np.zeros((2, reader_module.KIND_ENDS[-1]))
    logits[:, 2] = np.log(5) + np.log([0.79 / 0.21, 0.81 / 0.19])  # against the five other kinds of skin
    reader.network = types.SimpleNamespace(predict_on_batch=lambda images: logits)
    answers = reader_module.ModeReader.__call__(reader, np.zeros((2, 32, 32, 3), "uint8"))
    assert answers[:, 0].tolist() == [reader_module.UNSURE, 2] and (answers[:, 1:] == reader_module.UNSURE).all()


def test_disturbed_faces_are_the_same_faces():
    shown = reader_module.disturbed(FACES, np.random.default_rng(0))
    assert shown.dtype == "uint8" and np.array_equal(shown, reader_module.disturbed(FACES, np.random.default_rng(0)))
    assert not np.array_equal(shown, reader_module.disturbed(FACES, np.random.default_rng(1)))
    to_face, to_mirrored = (np.abs(shown - other.astype(int)).mean((1, 2, 3)) for other in (FACES, FACES[:, :, ::-1]))
    assert 120 < (to_mirrored < to_face).sum() < 180, "half of 300 are mirrored"
    nearest = np.minimum(to_face, to_mirrored)
    assert 4 < nearest.min() and nearest.max() < 60


@pytest.fixture(scope="module")
def read(reader):
    """Drawn faces, what is in them, what is seen in them, and what is seen in others."""
    images, labels = reader_module.drawn_faces(1500, 32, 78)
    return images, labels, features_module.in_batches(reader, images), features_module.in_batches(reader, draw(1500, 79))


@pytest.mark.slow
def test_faults_do_not_hide_which_kinds_there_are(reader, read):
    fresh, _, seen, real = read
    assert reader_module.mode_coverage(seen, real, reader.judged)[1] == []
    for faulty in (fresh[:, :, ::-1], blurred(fresh)):
        seen = features_module.in_batches(reader, faulty)
        scores, missing = reader_module.mode_coverage(seen, real, reader.judged)
        assert scores["kinds_covered"] > 0.9 and scores["pairs_covered"] > 0.85, (missing, scores)


def test_a_reader_is_kept_for_the_next_call(tmp_path, monkeypatch):
    learn = reader_module.ModeReader.learn
    calls = []
    monkeypatch.setattr(reader_module.ModeReader, "learn", lambda *arguments: [calls.append(1), learn(*arguments)])

    def make(cache, num_faces=64):
        return reader_module.ModeReader(16, num_faces, 1, cache=cache)

    first, second = make(tmp_path), make(tmp_path)
    assert len(calls) == 1 and (second.accuracy, second.judged) == (first.accuracy, first.judged)
    assert np.array_equal(*(reader(FACES[:8, ::2, ::2]) for reader in (first, second)))
    kept, = tmp_path.iterdir()
    with np.load(kept) as file:
        arrays = dict(file)

    def whole_but(found):
        np.savez(kept, **arrays | {"found": found})
        return kept.read_bytes()

    for damage in (b"", kept.read_bytes()[:1000], b"not a zip", whole_but("5"), whole_but("[")):
        calls.clear()
        kept.write_bytes(damage)  # learned again, and kept again
        assert make(tmp_path).accuracy == make(tmp_path).accuracy == first.accuracy
        assert len(calls) == 1
    calls.clear()
    make(tmp_path, 65)
    make(kept / "below a file"), make(None)
    monkeypatch.setattr(reader_module, "lessons_digest", lambda: "of other lessons")
    make(tmp_path)
    assert len(calls) == 4 and len([*tmp_path.iterdir()]) == 2


@pytest.mark.slow
def test_a_reader_tells_how_far_its_lessons_are():
    calls = []
    reader_module.ModeReader(16, 130, 2, progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls)
    assert set(totals) == {130 * 3 + 500} and done[:130] == tuple(range(1, 131)) and done == tuple(sorted(done))
    assert len(done) == 130 + 2 * 3 + 500 and done[-1] == totals[-1]


@pytest.mark.parametrize("count", [100, 5_000, 100_000_000, 10**30])
def test_no_more_faces_are_held_out_than_could_be_compared(tmp_path, count):
    run = Run(tmp_path)
    run.write("config.json", RunConfig.preset("article_small", limit=120).to_json().encode())
    train, held_out = metrics_module.real_faces(run, "toy", count)
    assert len(train) == 120 and len(held_out) == min(count, metrics_module.MOST_DRAWN)


@pytest.mark.slow
def test_a_reader_knows_what_it_can_tell(reader, read):
    assert reader.accuracy["background"] > 0.9 and reader.accuracy["hat"] > 0.8
    _, labels, answers, _ = read
    for column, (name, kinds) in enumerate(reader.judged.items()):
        for kind in kinds:
            given = answers[:, column] == kind
            assert given.sum() < 20 or (labels[given, column] == kind).mean() > 0.8, (name, kind)
    left_out = sum(map(len, ATTRIBUTES.values())) - sum(map(len, reader.judged.values()))
    assert left_out > 0, "a small reader cannot tell everything"


@pytest.mark.slow
def test_faces_without_hats_are_found_out_by_their_pictures(reader, read):
    _, labels, seen, real = read
    scores, missing = reader_module.mode_coverage(seen[labels[:, 8] == 0], real, reader.judged)
    assert missing and all(kind.startswith("hat ") for kind in missing)
    fresh, none = reader_module.mode_coverage(seen, real, reader.judged)
    assert none == [] and fresh["pairs_covered"] > 0.98


# the record

@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_the_record(tmp_path):
    calls = []
    record = metrics_module.evaluate([FRESH[:100], blurred(FRESH[100:200])], FACES, FRESH[200:], (4, 5),
                              progress=lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(record)) == record
    assert record["counts"] == {"generated": 100, "train": 100, "held_out": 100} and record["seeds"] == [4, 5]
    assert record["features_sha256"] == features_module.FEATURES_SHA256
    assert calls[0] == (1, 2 * 200 + 2 * 100 + 300), "each picture as it is read"
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted(done for done, _ in calls)
    for name, metric in record["metrics"].items():
        assert metric["mean"] == pytest.approx(np.mean(metric["values"])) and len(metric["values"]) == 2
        assert set(metric["floors"]) == {"held_out", "halves"} and metric["better"], name
    assert record["metrics"]["swd_32"]["values"][1] > 3 * record["metrics"]["swd_32"]["values"][0]
    again = metrics_module.evaluate([FRESH[:100], blurred(FRESH[100:200])], FACES, FRESH[200:], (4, 5))
    assert again == record, "the same figures to the bit"
    assert metrics_module.metrics_table(record).count("\n") == len(record["metrics"])


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize("count", [100, 201, 300])
def test_floors_are_measured_along_the_axes_of_the_values(count):
    record = metrics_module.evaluate([draw(count, 5)], FACES[:count], FRESH)
    real = distances_module.layouts(FACES[:count])
    halves = distances_module.layout_distance(real[:count // 2 * 2:2], real[1::2], distances_module.layout_axes(real))
    assert record["metrics"]["layout"]["floors"]["halves"] == halves
    assert record["counts"] == {"generated": count, "train": count, "held_out": count}


@pytest.mark.usefixtures("few_pairs")
def test_sets_of_unequal_size_are_refused():
    network = features_module.RandomFeatures(32)
    sets = {count: metrics_module.digest_images(FACES[:count], network, None, 4) for count in (110, 119, 120)}
    for judged, reference in ((110, 120), (120, 110), (119, 120)):
        with pytest.raises(InputError, match=f"^pictures: expected {reference} in each set.*got '?a set of {judged}") as caught:
            metrics_module.compare(sets[judged], sets[reference], None)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected 120 in each set.*a set of 110"):
        metrics_module.evaluate([FRESH[:120], FRESH[:110]], FACES[:120], FRESH[120:], (0, 1))
    assert metrics_module.choose_compared(1000, 130, 250)[2] == 130, "no more held-out ones than there are of the others"
    assert list(map(len, metrics_module.choose_compared(1000, 250, 130)[:2])) == [130, 130]


def test_what_shares_bytes_with_a_trained_picture_is_neither_trained_on_nor_held_out(tmp_path):
    """b is trained on. Its twin a sorts before it: a check of all pictures together would drop b and hold a out."""
    photos, run = tmp_path / "photos", Run(tmp_path / "run")
    photos.mkdir()
    run.directory.mkdir()
    for name, face in dict(b=0, c=1, d=2, e=3, f=4).items():
        Image.fromarray(FACES[face]).save(photos / f"{name}.png")
    for twin, name in dict(a="b", g="c", h="e", z="b").items():
        (photos / f"{twin}.png").write_bytes((photos / f"{name}.png").read_bytes())
    config = RunConfig.preset("article_small", data=photos, image_size=32, batch_size=2, out=run.directory)
    run.write("config.json", config.to_json().encode())
    run.write("images.json.gz", ["b.png", "c.png", "d.png"])
    found = metrics_module.real_faces(run, photos, 10)
    assert [faces.source.names for faces in found] == [["b.png", "c.png", "d.png"], ["e.png", "f.png"]]
    run.write("held_out.json.gz", {"choose": ["f.png"], "report": ["a.png", "e.png", "gone.png", "h.png"]})
    found = metrics_module.real_faces(run, photos, 10)
    assert [faces.source.names for faces in found] == [["b.png", "c.png", "d.png"], ["e.png"]]


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_perfect_generator_scores_as_held_out_faces_do():
    record = metrics_module.evaluate([draw(300, 5)], FACES, FRESH)
    for name in ("frechet", "precision", "recall", "density", "coverage", "pair_similarity", "copy_ratio"):
        metric = record["metrics"][name]
        assert metric["mean"] == pytest.approx(metric["floors"]["held_out"], rel=0.2), name


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_without_held_out_faces_half_of_those_trained_on_stand_in():
    record = metrics_module.evaluate([FRESH[:200]], FACES)
    assert record["stand_in"] and record["counts"] == {"generated": 150, "train": 150, "held_out": 150}
    assert "copy_ratio" not in record["metrics"] and "frechet" in record["metrics"]
    assert record["metrics"] == metrics_module.evaluate([FRESH[:150]], FACES)["metrics"], "as many generated as real ones"
    with pytest.raises(InputError, match="at least 100"):
        metrics_module.evaluate([FRESH[:99]], FACES, FRESH)


FIGURES = """
import json, sys
from functools import partial
import numpy as np
from facegen_keras import metrics
metrics.pair_scores = partial(metrics.pair_scores, num_pairs=200)
faces = np.load(sys.argv[1])
print(json.dumps(metrics.evaluate([faces["generated"]], faces["train"], faces["held_out"])["metrics"]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_jax_gives_the_same_figures(tmp_path):
    pytest.importorskip("jax")
    np.savez(tmp_path / "faces.npz", generated=blurred(FRESH[:150]), train=FACES, held_out=FRESH[150:])
    done = subprocess.run([sys.executable, "-c", FIGURES, tmp_path / "faces.npz"], capture_output=True, text=True,
                          env=under_jax.environment())
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    here = metrics_module.evaluate([blurred(FRESH[:150])], FACES, FRESH[150:])["metrics"]
    assert there.keys() == here.keys()
    for name, metric in here.items():
        assert there[name]["mean"] == pytest.approx(metric["mean"], rel=1e-3, abs=1e-4), name


# the command

TINY = ["--preset", "article_small"] + [word for setting in ("image_size=32", "width=4", "batch_size=8", "limit=120", "epochs=1")
        for word in ("--set", setting)]


@pytest.fixture
def facegen(facegen, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return facegen


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_run_on_drawn_faces_is_measured(facegen, tmp_path, monkeypatch, reader):
    monkeypatch.setattr(reader_module, "ModeReader", lambda size, **options: reader)
    assert facegen("train", *TINY, "--out", "run").status == 0
    outcome = facegen("evaluate", "run", "--count", "100", "--seeds", "2", "--out", "record.json")
    assert outcome.status == 0 and outcome.err == "", outcome.err
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["counts"] == {"generated": 100, "train": 100, "held_out": 100}
    assert record["metrics"]["kinds_covered"]["mean"] < 0.5 and record["metrics"]["copy_share"]["mean"] == 0
    for name in record["metrics"]:
        assert name in outcome.out
    assert facegen("evaluate", "run", "--count", "100", "--truncation", "0", "--out", "plain.json").status == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert (plain["truncation"], round(plain["metrics"]["pair_similarity"]["mean"], 3)) == (0, 1) and "truncation" not in record, "all alike"
    without = facegen("evaluate", "run", "--count", "100", "--fid")
    assert without.status == 2 and without.err.startswith("facegen: --fid") and without.err.count("\n") == 1
    for arguments in (["run", "--data", "nowhere"], ["nowhere"], ["run", "--count", "5"], ["run", "--out", "no/x.json"],
                      ["run", "--truncation", "nan"]):
        wrong = facegen("evaluate", *arguments)
        assert wrong.status == 2 and wrong.err.count("\n") == 1, arguments


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_pictures_that_were_trained_on_are_told_from_the_others(facegen, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for index, face in enumerate(FACES[:160]):
        Image.fromarray(face).save(tmp_path / "photos" / f"{index:03d}.png")
    (tmp_path / "photos" / "broken.png").write_text("no picture")
    assert facegen("train", *TINY, "--data", "photos", "--set", "max_bad=0.1", "--out", "run").status == 0
    train, held_out = metrics_module.real_faces(Run(tmp_path / "run"), "photos", 100)
    names = [{faces.name(index) for index in range(len(faces))} for faces in (train, held_out)]
    assert len(names[0]) in (119, 120) and len(names[0]) + len(names[1]) == 160 and not names[0] & names[1]
    assert names[0] == set(Run(tmp_path / "run").read("images.json.gz", list))
    outcome = facegen("evaluate", "run", "--count", "60", "--seeds", "1")
    assert outcome.status == 2 and "at least 100" in outcome.err
    for index, face in enumerate(FACES[160:220], 160):
        Image.fromarray(face).save(tmp_path / "photos" / f"{index:03d}.png")
    outcome = facegen("evaluate", "run", "--count", "110", "--seeds", "1")
    assert outcome.status == 0 and "copy_share" in outcome.out and "kinds_covered" not in outcome.out
    assert "real faces were not seen in training" in outcome.err
    other = facegen("evaluate", "run", "--data", "toy", "--count", "60")
    assert other.status == 2 and other.err.startswith("facegen: --data") and other.err.count("\n") == 1
