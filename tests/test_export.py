"""Generators leave the package: the same faces in every format, whose terms they carry, and what is refused before anything is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facegen_keras.config import RunConfig
from facegen_keras.faces import to_pixels
from facegen_keras.gan import FaceGAN
from facegen_keras.runs import shipped
from facegen_keras.runs.folder import Run, write_network
from facegen_keras.share import card, commands, directions, export, formats, terms

NEEDED = {"onnx": ["onnx", "onnxruntime", "tf2onnx"], "saved_model": [], "litert": []}


def untrained(folder, name="acts", **settings):
    """A run that has only a generator, whose faces differ."""
    config = RunConfig.preset(name, image_size=32, width=4, latent_dim=16, batch_size=4, out=str(folder), **settings)
    gan, rng = FaceGAN.from_run_config(config), np.random.default_rng(0)
    for layer in gan.ema_generator.layers:
        if hasattr(layer, "kernel") and not layer.name.startswith(("spread", "flow")):
            layer.kernel.assign(rng.normal(0, np.prod(layer.kernel.shape[:-1])**-0.5, layer.kernel.shape))
    size = float(np.std(gan.ema_generator(gan.latents(16, seed=0))))
    gan.ema_generator.get_layer("rgb_conv").kernel.assign(0.3 / size * gan.ema_generator.get_layer("rgb_conv").kernel)
    Path(folder).mkdir(exist_ok=True)
    Run(folder).write("config.json", config.to_json().encode())
    write_network(Run(folder), gan.ema_generator, "generator.keras")
    return gan


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("export") / "run", data="toy", precision="float32")


@pytest.fixture
def here(gan, tmp_path, monkeypatch):
    shutil.copytree(gan.config.out, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def facegen(facegen):
    def call(line):
        status, *said = facegen(*line.split())
        return status or 0, *said
    return call


def faces_of(path, latents):
    """As a person with nothing but the file's own program has them."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        [given], [made] = session.get_inputs(), session.get_outputs()
        assert given.type == made.type == "tensor(float)"
        return session.run(None, {given.name: latents})[0]
    import tensorflow as tf

    if path.is_dir():
        return tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(latents))["output_0"].numpy()
    interpreter = tf.lite.Interpreter(model_path=str(path))
    return np.concatenate([interpreter.get_signature_runner()(latents=row[None])["output_0"] for row in latents])


@pytest.mark.slow
@pytest.mark.parametrize("name", formats.EXPORT_FORMATS)
def test_the_same_faces_in_each_format_and_nothing_is_printed_beside(here, facegen, gan, name):
    for package in NEEDED[name]:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[export]'")
    status, out, err = facegen(f"export run --format {name} --out made")
    path = here / "made" / formats.EXPORT_FORMATS[name].file_name
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith(f"of 255: made/{path.name}") and out.splitlines()[1:] == [terms.TERMS["drawn"].english]
    latents = gan.latents(20, seed=9)
    assert np.abs(to_pixels(faces_of(path, latents)).astype(int) - gan.generate(20, seed=9)).max() <= 2
    assert {each.name for each in (here / "made").iterdir()} == {path.name, "README.md", "faces.png"}
    told = (here / "made/README.md").read_text()
    assert f"`{path.name}`: " in told and terms.TERMS["drawn"].english in told and str(here) not in told
    assert facegen(f"export run --format {name} --out made")[0] == 0, "again, over its own files"


@pytest.mark.slow
def test_onnx_keeps_weights_in_half_the_space(gan, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    done = export.export_generator(gan, tmp_path, "onnx")
    tables = onnx.load(done.path).graph.initializer
    numbers = {kind: sum(int(np.prod(table.dims)) for table in tables if table.data_type == kind) for kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)}
    assert done.weights == "float16" and numbers[onnx.TensorProto.FLOAT16] > 20 * numbers[onnx.TensorProto.FLOAT]


@pytest.mark.slow
def test_weights_that_half_precision_cannot_hold_stay_whole(gan, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="the extra export is not installed")
    network = export.plain_generator(gan)
    network.get_layer("base").kernel.assign(1e6 * network.get_layer("base").kernel)
    network.get_layer("base").bias.assign(1e6 * network.get_layer("base").bias)
    network.get_layer("rgb_conv").kernel.assign(1e-6 * network.get_layer("rgb_conv").kernel)
    for layer in network.layers:
        if layer.name.endswith(("conv1", "conv2", "edge")):
            layer.bias.assign(1e6 * layer.bias)
    monkeypatch.setattr(export, "plain_generator", lambda gan: network)
    with np.errstate(over="ignore"):
        done = export.export_generator(gan, tmp_path, "onnx")
    assert done.weights == "float32" and done.difference <= 2


def test_a_file_with_other_faces_is_not_kept(gan, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write_format", lambda network, path, *rest: path.write_bytes(b"another"))
    monkeypatch.setattr(export, "face_difference", lambda *arguments: 3)
    (tmp_path / "generator.tflite").write_bytes(b"the one before")
    with pytest.raises(RuntimeError, match="differ by 3"):
        export.export_generator(gan, tmp_path, "litert")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("generator.tflite", b"the one before")]


MISTAKES = {"no such format": ("export run --format tf", "--format"), "no run": ("export nowhere", "run: expected"),
            "a strange folder": ("export run --out run", "run, which holds config.json"), "a file": ("export run --out run/config.json", "which is a file"),
            "no run to explore": ("explore nowhere", "run: expected"), "a site in a strange folder": ("explore run --out run", "which holds config.json"),
            "no runtime": ("explore run --runtime run", "without ort.wasm.min.js"), "no real faces": ("explore run --real nowhere", "nothing is there")}


@pytest.mark.parametrize("line, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_before_keras_starts(here, facegen, monkeypatch, line, said):
    monkeypatch.setattr(formats, "missing_packages", lambda name: [])
    monkeypatch.setattr(commands, "start_keras", lambda: pytest.fail("it starts Keras first"))
    before = sorted(here.rglob("*"))
    status, out, err = facegen(line)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("facegen: ") and said in err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("line", ["export run", "explore run"])
def test_a_missing_package_is_named_with_its_extra(here, facegen, monkeypatch, line):
    monkeypatch.setattr(formats, "missing_packages", lambda name: ["tf2onnx"])
    status, _, err = facegen(line)
    assert status == 2 and "no tf2onnx" in err and 'pip install ".[export]"' in err


def test_another_backend_is_refused_in_one_line(tmp_path, gan):
    pytest.importorskip("jax")
    done = subprocess.run([sys.executable, "-m", "facegen_keras", "export", gan.config.out, "--format", "litert", "--out", tmp_path / "made"],
                          env={**os.environ, "KERAS_BACKEND": "jax"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "set it to tensorflow" in done.stderr


@pytest.fixture
def ship(gan, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(terms, "SHIPPED", tmp_path / "shipped")

    def put(name, data):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        config = json.loads(Path(gan.config.out, "config.json").read_text()) | {"data": data}
        (tmp_path / "shipped" / name / "config.json").write_text(json.dumps(config))
        shutil.copy(Path(gan.config.out, "generator.keras"), tmp_path / "shipped" / name)
        return tmp_path / "shipped" / name
    return put


def test_the_first_free_generator_is_found_by_its_terms(ship):
    assert terms.free_generator() is None
    ship("celeba", "celeba-128.zip")
    ship("mine", "mine.zip")
    assert terms.free_generator() is None
    ship("zeichnung", "toy")
    assert terms.free_generator() == "zeichnung"


def test_celebas_terms_go_with_its_faces_through_other_runs(ship, tmp_path):
    ship("celeba", "celeba-128.zip")
    for name, data, start in (("first", "toy", "celeba"), ("second", "mine", str(tmp_path / "first/generator.keras"))):
        (tmp_path / name).mkdir()
        config = RunConfig.preset("small", data=data, start=start)
        Run(tmp_path / name).write("config.json", config.to_json().encode())
        (tmp_path / name / "generator.keras").touch()
        assert terms.find_terms(tmp_path / name) == "celeba"
        assert terms.TERMS["celeba"].english in card.model_card(tmp_path / name)


def test_directions_that_lie_with_a_generator_are_taken(ship, gan):
    folder = ship("drawn", "toy")
    kept = [directions.Direction("glasses: round", "眼镜：圆框", np.eye(16, dtype="float32")[3])]
    directions.write_directions(folder, kept)
    [found] = directions.find_directions("drawn", gan, lambda: pytest.fail("it asks for a reader"))
    assert found[:2] == kept[0][:2] and np.array_equal(found.vector, kept[0].vector)


def test_a_named_direction_leads_to_what_it_is_named_after(gan, monkeypatch):
    """Of a pretended generator whose fourth latent number decides about hats, as read by one who knows."""
    numbers = gan.latents(3000, seed=0)
    answers = np.full((3000, 11), directions.UNSURE)
    hat = [*directions.ATTRIBUTES].index("hat")
    answers[:, hat] = np.where(numbers[:, 4] > 1, 2, 0)
    reader = lambda faces: answers  # noqa: E731
    reader.judged = {name: range(len(kinds)) for name, kinds in directions.ATTRIBUTES.items()}
    monkeypatch.setattr(directions, "in_batches", lambda reader, faces: reader(faces))
    monkeypatch.setattr(type(gan), "generate", lambda self, count, seed: None)
    found = directions.read_directions_of_drawn_faces(gan, reader, num_faces=3000)
    assert found[0].english == "hat: cap" and found[0].vector[4] > 0.9 and len(found) == 8
    vectors = np.stack([row.vector for row in found])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(8), atol=1e-5)


@pytest.mark.slow
def test_a_reader_finds_directions_of_drawn_faces(gan, reader):
    """Of an untrained generator, in whose faces the reader sees this or that."""
    found = directions.find_directions(gan.config.out, gan, lambda: reader)
    vectors = np.stack([row.vector for row in found])
    assert len(found) == 8 and all(row.english.partition(": ")[0].replace(" ", "_") in {"", *directions.ATTRIBUTES} for row in found)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    for place, row in enumerate(found):  # those without a name are perpendicular to all before them
        assert row.english or np.abs(vectors[:place] @ row.vector).max(initial=0) < 1e-4


@pytest.mark.parametrize("networks", ["dcgan", "dcgan_even"])
def test_the_article_s_generator_has_directions_and_can_be_exported(tmp_path, networks):
    gan = untrained(tmp_path / "article", "article", data="my_pictures", precision="float32", networks=networks)
    found = directions.find_directions(tmp_path / "article", gan, lambda: pytest.fail("its faces are not drawn"))
    assert len(found) == 8 and all(row.english == "" for row in found)
    done = export.export_generator(gan, tmp_path, "litert")
    assert done.difference <= 2
    assert terms.TERMS["unknown"].english in card.model_card(tmp_path / "article", done)
