"""Generators that come with the package: found by name, your own run first, as good in 16 bits as they were."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from facegen_keras.cli import main
from facegen_keras.config import RunConfig
from facegen_keras.faces import load_faces
from facegen_keras.gan import MAKERS, FaceGAN, make_networks
from facegen_keras.metrics import real_faces
from facegen_keras.runs import shipped
from facegen_keras.runs.folder import Run
from facegen_keras.runs.held_out import choosing_faces, hold_out
from facegen_keras.runs.shipped import find_run, generator_settings, ship_generator, shipped_names
from facegen_keras.runs.start import begin_with_another, check_start, load_encoder, load_gan
from facegen_keras.share.terms import find_terms, terms_of_data

NAMES = shipped_names()  # before any test puts others in their place


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A GAN that is shipped as `tiny`, in an empty working folder."""
    config = RunConfig.preset("acts", image_size=32, width=4, latent_dim=8, batch_size=8, data=str(tmp_path / "faces.zip"),
                              out=str(tmp_path / "run"), precision="float32")
    gan = FaceGAN.from_run_config(config)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    ship_generator(gan, tmp_path / "shipped" / "tiny", gan.frozen_encoder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return gan


def test_faces_by_name(tiny, tmp_path):
    differences = load_gan("tiny").generate(16, seed=3).astype(int) - tiny.generate(16, seed=3)
    assert np.abs(differences).max() <= 1, "half precision is a grey level at most"
    assert str(tmp_path) not in (tmp_path / "shipped/tiny/config.json").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["sample", "tiny", "--count", "4"])
    assert not ended.value.code
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["tiny_seed_0.png"]
    assert sorted(path.name for path in (tmp_path / "shipped/tiny").iterdir()) == [
        "config.json", "encoder.keras", "generator.keras"]


def test_an_encoder_by_name(tiny, tmp_path):
    pictures = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype("float32")
    ours, theirs = (np.asarray(network(pictures)) for network in (load_encoder("tiny"), tiny.frozen_encoder))
    np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())
    ship_generator(tiny, tmp_path / "shipped" / "without")
    assert load_encoder("without") is None


def test_a_run_of_that_name_goes_first(tiny, tmp_path):
    another = dataclasses.replace(tiny.config, seed=1)
    gan = FaceGAN.from_run_config(another)
    ship_generator(gan, tmp_path / "here" / "tiny")
    assert np.abs(load_gan("tiny").generate(2).astype(int) - gan.generate(2)).max() <= 1
    assert find_run("tiny").resolve() == tmp_path / "here" / "tiny"


def test_another_run_begins_with_one(tiny):
    config = dataclasses.replace(tiny.config, start="tiny", seed=1, redraw_epochs=0)
    gan = FaceGAN.from_run_config(config)
    assert begin_with_another(gan) == (
        "beginning with the generator of tiny and a fresh discriminator: it has no trained discriminator")
    for ours, theirs in zip(gan.generator.get_weights(), tiny.ema_generator.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=1e-2)


@pytest.mark.parametrize("networks", MAKERS)
def test_a_file_tells_which_networks_it_is_from(tmp_path, networks):
    shape = dict(networks=networks, image_size=32, latent_dim=8, width=4)
    make_networks(RunConfig.preset("article", **shape), "noisy_labels")[0].save(tmp_path / "generator.keras")
    assert generator_settings(tmp_path / "generator.keras") == shape | {"flow_blocks": 0}


def test_a_name_that_is_none(tiny, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sample", "tinny"])
    assert ended.value.code == 2 and "tinny" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_each_that_comes_with_the_package(name):
    gan, folder = load_gan(shipped.SHIPPED / name), shipped.SHIPPED / name
    assert gan.config.image_size == 64 and gan.generate(4).std() > 20
    assert (folder / "generator.keras").stat().st_size < (2e6 if name == "drawn" else 4e6)
    assert (load_encoder(folder) is not None) == (gan.config.redraw_epochs > 0)
    assert (folder / "README.md").read_text().startswith("# ")
    assert "/" not in Run(folder).config.data


def test_the_demo_begins_with_drawn_and_holds_martians_out(tmp_path, monkeypatch):
    """Both halves of what it measures by are martians that it is not taught."""
    monkeypatch.chdir(tmp_path)
    config = RunConfig.preset("demo", limit=1_000)
    check_start(config)
    assert find_terms("drawn") == terms_of_data(config.data) == "drawn"
    faces = load_faces(config.data, config.image_size, limit=config.limit, seed=config.seed)
    division = hold_out(config, faces)
    choosing, (_, reporting) = choosing_faces(config, division), real_faces(
        SimpleNamespace(config=config, read=lambda name: division), config.data, 50)
    assert {choosing.layout, reporting.layout, faces.layout} == {"martians"}
    assert len({sets[7].tobytes() for sets in (faces, choosing, reporting)}) == 3
