"""What a trained run is used for: faces of latents in a file, films, latents of pictures, and which generator makes them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import under_jax
from PIL import Image

from facegen_keras.cli import main
from facegen_keras.config import RunConfig
from facegen_keras.gan import FaceGAN
from facegen_keras.runs.folder import Run, write_network
from facegen_keras.runs.start import load_encoder
from facegen_keras.toyfaces import ToyFaces
from facegen_keras.use import commands
from facegen_keras.use.film import write_video
from facegen_keras.use.project import project_faces

SETTINGS = {"normal": dict(name="acts", width=4, latent_dim=16), "uniform": dict(name="article", width=4, latent_dim=16)}


def untrained(folder, kind="normal"):
    """A run that has only a generator, whose faces differ."""
    config = RunConfig.preset(**SETTINGS[kind], image_size=32, batch_size=4, precision="float32", out=str(folder))
    gan, rng = FaceGAN.from_run_config(config), np.random.default_rng(0)
    for layer in gan.ema_generator.layers:
        if hasattr(layer, "kernel") and not layer.name.startswith(("spread", "flow")):
            layer.kernel.assign(rng.normal(0, np.prod(layer.kernel.shape[:-1])**-0.5, layer.kernel.shape))
    size = float(keras.ops.std(gan.ema_generator(gan.latents(16, seed=0))))
    gan.ema_generator.get_layer("rgb_conv").kernel.assign(0.3 / size * gan.ema_generator.get_layer("rgb_conv").kernel)
    run = Run(folder)
    Path(folder).mkdir(exist_ok=True)
    run.write("config.json", config.to_json().encode())
    write_network(run, gan.ema_generator, "generator.keras")
    return gan


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("use") / "run")


@pytest.fixture
def here(gan, tmp_path, monkeypatch):
    """A working folder in which `run` is one, and a few files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.json", "generator.keras"):
        (tmp_path / "run" / name).symlink_to(Path(gan.config.out) / name)
    np.save("two.npy", gan.latents(2, seed=7))
    for name, face in zip(("face.png", "other.png"), gan.generate(2, seed=7)):
        Image.fromarray(face).save(name)
    (tmp_path / "letter.txt").write_text("dear")
    return tmp_path


@pytest.fixture
def facegen(facegen):
    def call(line):
        outcome = facegen(*line.split())
        assert not outcome.status, outcome.err
        return outcome.out
    return call


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_latents_leave_and_come_back(here, facegen, gan):
    facegen("sample run --count 70 --seed 3 --truncation 0.5 --save-latents kept.npy --out first/")
    assert np.array_equal(np.load("kept.npy"), np.float32(0.5) * gan.latents(70, seed=3))
    assert facegen("sample run --latents kept.npy --out second/") == "70 faces: second\n"
    for first, second in zip(sorted(Path("first").iterdir()), sorted(Path("second").iterdir()), strict=True):
        assert np.array_equal(pixels(first), pixels(second))
    said = {name: Image.open(f"{name}/face_00069.png").text["Description"] for name in ("first", "second")}
    assert "do not exist" in said["first"] and "do not exist" not in said["second"], "a latent may have come from a picture"


@pytest.mark.parametrize("name", ["film.webp", "film.gif", "film.mp4"])
def test_a_film_is_as_long_and_as_large_as_asked_for(here, facegen, name):
    if name.endswith("mp4"):
        av = pytest.importorskip("av")
    assert facegen(f"film run --seconds 1.2 --fps 20 --count 3 --side 64 --out {name}") == f"24 frames, 3 faces: {name}\n"
    if name.endswith("mp4"):
        with av.open(name) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
            assert film.streams.video[0].average_rate == 20 and "neural network" in film.metadata["comment"]
    else:
        with Image.open(name) as film:
            frames, times = [], []
            for number in range(film.n_frames):
                film.seek(number)
                frames.append(np.asarray(film.convert("RGB")))
                times.append(film.info["duration"])
            assert film.info["loop"] == 0 and sum(times) == 1200
    assert len(frames) == 24 and frames[0].shape == (64, 64, 3)
    if not name.endswith("mp4"):  # whose encoder now and then decides otherwise
        for copy in ("one", "other"):
            write_video(Path(copy + name), np.stack(frames), 20)
        assert Path("one" + name).read_bytes() == Path("other" + name).read_bytes()
    jumps = [np.abs(one.astype(int) - other).mean() for one, other in zip(frames, [*frames[1:], frames[0]])]
    assert jumps[-1] < 1.5 * max(jumps[:-1]) and min(jumps) > 0, "the seam is a step like any other"


def test_latents_may_lie_with_the_faces(here, facegen):
    facegen("sample run --count 2 --save-latents new/kept.npy --out new/")
    assert {path.name for path in Path("new").iterdir()} == {"face_00000.png", "face_00001.png", "kept.npy"}


def test_a_film_is_as_long_as_its_faces_need_or_has_as_many_as_fit(here, facegen):
    assert facegen("film run --latents two.npy --fps 5") == "20 frames, 2 faces: run/film_two.webp\n"
    assert facegen("film run --seconds 6 --fps 5") == "30 frames, 3 faces: run/film_seed_0.webp\n"
    assert facegen("film run --fps 5 --out five.gif") == "50 frames, 5 faces: five.gif\n"


def found_again(folder, kind):
    """How near two generated faces come, as shares of the mean face's errors; and latents."""
    gan = untrained(folder, kind)
    found = project_faces(gan, gan.generate(2, seed=11), num_steps=60)
    return (found.errors / found.mean_face_errors).tolist(), found.latents


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_generated_face_is_found_again(tmp_path, kind):
    shares, latents = found_again(tmp_path / kind, kind)
    assert max(shares) < 1 / 3 and np.isfinite(latents).all() and (kind == "normal" or np.abs(latents).max() <= 1)
    if kind == "uniform":
        assert np.array_equal(found_again(tmp_path / kind, kind)[1], latents), "the same twice"


def test_a_face_does_not_depend_on_those_beside_it(gan):
    faces = gan.generate(9, seed=11)
    together, alone = (project_faces(gan, each, num_steps=3).latents for each in (faces, faces[8:]))
    assert together.shape == (9, 16) and np.allclose(together[8:], alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_under_jax_too(tmp_path):
    code = "import sys; sys.modules['tensorflow'] = None; import test_use; print(max(test_use.found_again(sys.argv[1], 'uniform')[0]))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, cwd=Path(__file__).parent,
                          env=under_jax.environment())
    assert done.returncode == 0 and float(done.stdout.splitlines()[-1]) < 1 / 3, done.stderr


def test_what_project_writes_goes_on(here, facegen, gan):
    said = facegen("project run face.png other.png")
    assert said.splitlines()[-1] == "2 faces redrawn: run/projected" and said.startswith("face.png: mean error ")
    names = {path.name for path in Path("run/projected").iterdir()}
    assert names == {"projected.png", "latents.npy", "errors.json", *(f"{which}_0000{number}.png" for which in ("picture", "redrawn") for number in (0, 1))}
    assert np.array_equal(pixels("run/projected/picture_00000.png"), pixels("face.png"))
    errors = json.loads(Path("run/projected/errors.json").read_text())
    measured = np.abs(pixels("face.png").astype(int) - pixels("run/projected/redrawn_00000.png")).mean()
    assert errors[0]["picture"] == "face.png" and abs(errors[0]["error"] - measured) < 1e-3 < errors[0]["mean_face"]
    facegen("sample run --latents run/projected/latents.npy --out again/")
    assert np.array_equal(pixels("again/face_00001.png"), pixels("run/projected/redrawn_00001.png"))


def test_projecting_replaces_what_was_found_for_the_same_pictures_alone(here, facegen, capfd):
    for steps in (1, 2):
        facegen(f"project run face.png --steps {steps}")
    latents = np.load("run/projected/latents.npy")
    for line in ("project run other.png", "project run face.png other.png", "project run face.png --out ."):
        with pytest.raises(SystemExit):
            main(line.split())
        assert "--out: expected a new or empty folder, or one that holds these pictures" in capfd.readouterr().err
    assert np.array_equal(np.load("run/projected/latents.npy"), latents)


@pytest.mark.parametrize("options, out, seen", [("--count 4", "run/morph_face_other.png", (6 * 34 + 2, 36)),
                                                ("--seconds 1 --out way.webp", "way.webp", (32, 32))])
def test_the_way_from_picture_to_picture(here, facegen, options, out, seen):
    assert facegen(f"morph run face.png other.png --steps 1 {options}").endswith(f" of 255: {out}\n")
    with Image.open(out) as picture:
        assert picture.size == seen and (getattr(picture, "n_frames", 1) > 10) == out.endswith("webp"), "frames that are alike are one"


def test_the_last_generator_makes_the_faces_or_the_best(here, facegen, gan):
    best = untrained(here / "other")
    best.ema_generator.set_weights([1.1 * weight for weight in gan.ema_generator.get_weights()])
    write_network(Run("run"), best.ema_generator, "best.keras")
    for options, words, maker in (("", "by the last generator (--best for the one that measured best)", gan),
                                  (" --best", "by best.keras, which measured best", best)):
        assert facegen(f"sample run --count 4{options} --out faces/") == f"4 faces {words}: faces\n"
        for index, face in enumerate(maker.generate(4, seed=0)):
            assert np.array_equal(pixels(f"faces/face_{index:05d}.png"), face)
    assert facegen("film run --seconds 0.2 --best").endswith(f" {words}: run/film_seed_0_best.webp\n")


def test_an_encoder_is_read_without_what_else_its_file_says(tmp_path):
    from facegen_keras.engine.encoder import latents_encoder
    from facegen_keras.gan import make_networks

    config = RunConfig.preset("acts", image_size=32, width=4, latent_dim=16, batch_size=4, precision="float32", out=str(tmp_path))
    run = Run(tmp_path)
    run.write("config.json", config.to_json().encode())
    assert load_encoder(tmp_path) is None
    generator, encoder = make_networks(config, "redraw")
    kept = latents_encoder(encoder, generator)
    write_network(run, kept, "encoder.keras")
    faces = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(load_encoder(tmp_path)(faces), kept(faces))
    (tmp_path / "encoder.keras").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="expected weights of this config's encoder"):
        load_encoder(tmp_path)


MISTAKES = {
    "latents of another length": ("sample run --latents short.npy", "short.npy", "expected shape (N, 16), a latent a row, got (3, 10)"),
    "a NaN": ("film run --latents nan.npy", "nan.npy", "got 'nan in row 1'"),
    "a text as latents": ("sample run --latents letter.txt", "letter.txt", "a .npy file of numbers"),
    "no such latents": ("sample run --latents nowhere.npy", "nowhere.npy", "No such file"),
    "a seed beside latents": ("sample run --latents two.npy --seed 3", "--seed", "nothing beside --latents"),
    "a count beside latents": ("film run --latents two.npy --count 3", "--count", "nothing beside --latents"),
    "one latent": ("film run --latents one.npy", "latents", "at least two to walk between"),
    "a truncation that is none": ("sample run --truncation nan", "truncation", "from 0 to 1"),
    "a truncation too large": ("sample run --truncation 1.5", "", "--truncation"),
    "latents kept nowhere": ("sample run --save-latents nowhere/kept.npy", "--save-latents", "a folder that can be written"),
    "latents kept as text": ("sample run --save-latents kept.txt", "--save-latents", "ends in .npy"),
    "another picture": ("sample run --out faces.jpg", "--out", "ends in .png"),
    "another film": ("film run --out film.avi", "--out", "ends in .webp or .gif or .mp4"),
    "a film nowhere": ("film run --out nowhere/film.webp", "--out", "a folder that can be written"),
    "a film too large": ("film run --seconds 100000", "film", "2 to 131,072 frames of 32 pixels, got 2500000"),
    "a film of one frame": ("film run --seconds 0.01", "film", "got 0"),
    "more faces than frames": ("film run --seconds 1 --count 26", "film", "at least 26 frames, one for each face"),
    "a film for a row": ("morph run face.png other.png --seconds 3", "--seconds", "none for a row of faces"),
    "a row for a film": ("morph run face.png other.png --count 3 --out way.webp", "--count", "none for a film"),
    "a folder of other things": ("project run face.png --out run", "--out", "a new or empty folder"),
    "a cut archive": ("sample run --latents cut.npz", "cut.npz", "a .npy file of numbers"),
    "no time at all": ("film run --seconds nan", "seconds", "above 0"),
    "an odd side": ("film run --side 65 --out film.mp4", "--side", "even"),
    "no picture": ("project run letter.txt", "letter.txt", "plain text"),
    "a picture nowhere": ("project run face.png nowhere.png", "nowhere.png", "nothing of that name"),
    "a folder that is a file": ("project run face.png --out letter.txt", "letter.txt", "File exists"),
    "a morph of one": ("morph run face.png letter.txt", "letter.txt", "plain text"),
    "another row": ("morph run face.png face.png --out row.jpg", "--out", ".png or .webp or .gif or .mp4"),
    "no run": ("morph nowhere face.png face.png", "run", "facegen train has written"),
}


@pytest.mark.parametrize("line, what, hint", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_before_keras_starts(here, monkeypatch, capfd, line, what, hint):
    if line.endswith(".mp4"):
        pytest.importorskip("av")
    np.save("short.npy", np.zeros((3, 10)))
    np.save("one.npy", np.zeros((1, 16)))
    Path("cut.npz").write_bytes(b"PK\3\4")
    np.save("nan.npy", np.where(np.arange(32).reshape(2, 16) == 20, np.nan, 0))
    monkeypatch.setattr(commands, "start_keras", lambda: pytest.fail("it starts Keras first"))
    before = {path.name for path in here.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capfd.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith(f"facegen: {what}") and hint in error
    assert {path.name for path in here.rglob("*")} == before


def test_an_mp4_needs_its_extra(here, monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: find(name) if name != "av" else None)
    with pytest.raises(SystemExit):
        main("film run --out film.mp4".split())
    assert 'pip install ".[video]"' in capfd.readouterr().err


def test_a_drawn_face_is_cropped_as_a_run_on_drawn_faces_has_it(here):
    from facegen_keras.use.pictures import read_face

    drawn = ToyFaces(1, 32, seed=5)[0]
    Image.fromarray(drawn).save("drawn.png")
    assert np.array_equal(read_face("drawn.png", Run("run")), drawn)
