"""The page of `facegen explore` in Chromium, from a loopback server, by keyboard. Needs Chromium, Playwright, and the npm package onnxruntime-web."""

import base64
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import untrained

from facegen_keras.base.errors import InputError
from facegen_keras.gan import generate_faces
from facegen_keras.share import explorer, quiz, runtime
from facegen_keras.share.directions import principal_directions
from facegen_keras.share.runtime import CONTENT_NETWORK, RUNTIME_FILES, SITE_FILES
from facegen_keras.toyfaces import ToyFaces
from facegen_keras.use.film import latent_walk
from facegen_keras.use.latents import from_normal

REQUIRED = os.environ.get("FACEGEN_BROWSER") == "required"
RUNTIME = Path(os.environ.get("FACEGEN_RUNTIME") or Path(__file__).parent.parent / "build/onnxruntime-web")
CHROMIUM = os.environ.get("FACEGEN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
pytestmark = pytest.mark.slow


def need(there, what):
    """Skips with a word, or fails where a browser is required."""
    if not there:
        (pytest.fail if REQUIRED else pytest.skip)(what)


@pytest.fixture(scope="module")
def needed():
    for name in ("onnx", "onnxruntime", "tf2onnx", "playwright"):
        need(importlib.util.find_spec(name), f"{name} is not installed: pip install -e '.[dev]'")
    need(CHROMIUM, "no Chromium: apt-get install chromium")
    need(RUNTIME.is_dir(), f"no {RUNTIME}: make build/onnxruntime-web, which needs npm")


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("explore") / "run", data="toy", precision="float32")


def build(gan, folder, files, real="drawn"):
    """Without a reader of drawn faces, which takes a minute."""
    folder.mkdir()
    faces = quiz.real_faces_for(gan.config.out, None) if real == "drawn" else real
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "find_directions", lambda run, gan, make_reader: principal_directions(gan.ema_generator))
        return explorer.build_site(gan.config.out, gan, folder, faces, files)


@pytest.fixture(scope="module")
def site(needed, gan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    built = build(gan, folder, runtime.find_runtime(RUNTIME))
    assert built.num_bytes < 3e6 and built.num_real == 24 and {path.name for path in folder.iterdir()} == SITE_FILES
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@contextlib.contextmanager
def served(folder):
    """A loopback server of a folder; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def address(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(needed):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    contexts, said, asked = [], [], []

    def call(size="desktop", language="en", scheme="light", place=address):
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, locale=language, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(place)
        page.wait_for_function("document.documentElement.dataset.state === 'ready'", timeout=120_000)
        return page
    yield call
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))} == set()


def about(site):
    return json.loads((site / "explore.json").read_text())


def canvas(page):
    """The stage's pixels, once nothing is left to draw."""
    page.wait_for_timeout(100)
    page.wait_for_function("!working && !wanted")
    png = page.evaluate("canvas.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def differ(page, gan, numbers):
    """From Python's face of the same standard normal numbers, in grey levels."""
    face = generate_faces(gan.ema_generator, from_normal(np.atleast_2d(numbers), gan.config.latents))[0]
    return np.abs(canvas(page).astype(int) - face).max()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_a_slider_moves_the_face_as_python_does(open_page, site, gan):
    page, told = open_page(), about(site)
    first = np.array(told["faces"][0])
    assert differ(page, gan, first) <= 3
    before = canvas(page)
    page.focus("#rows .row:nth-child(2) input")
    press(page, *["ArrowRight"] * 15)
    vector = np.array(told["directions"][1]["vector"])
    assert differ(page, gan, first + 1.5 * vector) <= 3
    page.focus("#rows .row:nth-child(5) input")
    press(page, "Home")
    other = np.array(told["directions"][4]["vector"])
    assert differ(page, gan, first + 1.5 * vector - 3 * other) <= 3
    assert np.abs(canvas(page).astype(int) - before).mean() > 2, "and it is another face"
    page.focus("#reset")
    press(page, "Enter")
    assert np.array_equal(canvas(page), before)
    page.focus("#another")
    press(page, "Enter")
    assert not np.array_equal(canvas(page), before)


def test_a_morph_and_a_film_by_keyboard(open_page, site, gan):
    page, told = open_page(), about(site)
    page.focus("#tab-sliders")
    press(page, "ArrowRight", "Tab")
    assert page.evaluate("document.activeElement.closest('#grid') !== null"), "from the tab straight to the first face"
    press(page, "Enter", "Tab", "Tab", "Tab", "Space")
    picked = np.array([told["faces"][0], told["faces"][3]])
    assert [button.get_attribute("aria-pressed") for button in page.query_selector_all("#grid button")].count("true") == 2
    assert differ(page, gan, picked[1]) <= 3
    page.focus("#way")
    press(page, "Home")
    assert differ(page, gan, picked[0]) <= 3
    press(page, *["PageUp"] * 5)
    assert page.input_value("#way") == "50"
    middle = latent_walk(from_normal(picked, gan.config.latents), np.array([0.25]), gan.config.latents)
    face = generate_faces(gan.ema_generator, middle)[0]
    assert np.abs(canvas(page).astype(int) - face).max() <= 3
    press(page, "End")
    assert differ(page, gan, picked[1]) <= 3
    press(page, "Tab")
    count = int(page.get_attribute("#canvas", "data-faces"))
    press(page, "Enter")
    page.wait_for_function(f"Number(canvas.dataset.faces) > {count + 10}", timeout=60_000)
    assert page.text_content("#film") == "Stop the film"
    press(page, "Enter")
    still = canvas(page)
    page.wait_for_timeout(300)
    assert page.text_content("#film") == "Play the film" and np.array_equal(canvas(page), still)


@pytest.mark.parametrize("size, language, scheme", [("desktop", "en", "light"), ("phone", "zh-CN", "dark")])
def test_a_quiz_to_its_end_by_keyboard(open_page, site, size, language, scheme):
    page, told = open_page(size, language, scheme), about(site)
    sheet = np.asarray(Image.open(site / told["real"]["file"]).convert("RGB"))
    real = [sheet[32 * row:32 * row + 32, 32 * column:32 * column + 32] for row in range(4) for column in range(6)]
    page.focus("#tab-sliders")
    press(page, "ArrowRight", "ArrowRight", "Tab", "Enter")
    right = 0
    for number in range(10):
        page.wait_for_function(f"quiz && quiz.now === {number} && document.activeElement.id === 'real'")
        picture, says_real = canvas(page), number % 2 == 0
        is_real = any(np.array_equal(picture, face) for face in real)
        press(page, *(["Enter"] if says_real else ["Tab", "Enter"]))
        right += is_real == says_real
        verdict = page.text_content("#verdict")
        assert verdict == {"en": f"{'Right' if is_real == says_real else 'Wrong'}. It is {'real' if is_real else 'generated'}.",
                           "zh-CN": f"答{'对' if is_real == says_real else '错'}了。 这张是{'真' if is_real else '生成'}的。"}[language]
        assert page.evaluate("document.activeElement.id") == "next"
        press(page, "Enter")
    assert page.evaluate("document.activeElement.id") == "result"
    assert page.text_content("#result") == {"en": f"{right} of 10 right", "zh-CN": f"10 张里答对了 {right} 张"}[language]
    assert page.locator("#tells li").count() == 4 and page.locator("#shown canvas").count() == 10
    press(page, "Tab", "Enter")
    page.wait_for_function("quiz.now === 0 && document.activeElement.id === 'real'")
    page.focus("#tab-quiz")
    press(page, "ArrowLeft")
    assert page.is_visible("#grid") and page.is_visible("#save")


def test_a_saved_picture_says_what_it_is(open_page, site):
    page = open_page()
    shown = canvas(page)
    with page.expect_download() as download:
        page.focus("#save")
        press(page, "Enter")
    picture = Image.open(download.value.path())
    picture.verify()  # each chunk's sum
    picture = Image.open(download.value.path())
    assert "do not exist" in picture.text["Description"] and picture.text["Software"] == "facegen_keras"
    assert np.array_equal(np.asarray(picture.convert("RGB")), shown)


def test_it_fits_and_can_be_read(open_page, site):
    page, told = open_page("phone", "zh-CN", "dark"), about(site)["terms"]
    for language in ("zh-CN", "en"):
        assert page.evaluate("document.documentElement.lang") == language
        text = page.inner_text("body")
        assert ("do not exist" in text) == (language == "en") and ("不存在" in text) == (language != "en")
        assert page.text_content("#terms") == told["english" if language == "en" else "chinese"] and "MIT" in told["english"]
        for width, height in SIZES.values():
            page.set_viewport_size({"width": width, "height": height})
            for tab in ("#tab-sliders", "#tab-morph", "#tab-quiz"):
                page.click(tab)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{tab} is wider than {width} pixels"
        page.click("#language")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (red > 128) == (scheme == "light")


def test_a_face_is_there_before_the_network(open_page):
    marks = open_page().evaluate("Object.fromEntries(performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime]))")
    assert {"picture", "network"} <= marks.keys()


def test_uniform_latents_give_the_same_faces(open_page, tmp_path):
    """The page knows normal numbers only, and makes the latents of the article's generator from them."""
    gan = untrained(tmp_path / "run", "article", data="toy", precision="float32")
    build(gan, tmp_path / "site", runtime.find_runtime(RUNTIME))
    with served(tmp_path / "site") as place:
        page, told = open_page(place=place), about(tmp_path / "site")
        assert differ(page, gan, told["faces"][0]) <= 3
        page.focus("#rows .row:nth-child(1) input")
        press(page, "End")
        assert differ(page, gan, told["faces"][0] + 3 * np.array(told["directions"][0]["vector"])) <= 3


def test_a_damaged_runtime_is_not_run(chromium, site, address, tmp_path):
    script = site / "runtime" / RUNTIME_FILES["module"][0]
    whole = script.read_bytes()
    script.write_bytes(whole + b"\n// another one")
    try:
        page = chromium.new_page()
        page.goto(address)
        page.wait_for_selector("#status.failed", timeout=60_000)
        assert page.get_attribute("html", "data-state") is None and page.is_disabled("#save")
        page.close()
    finally:
        script.write_bytes(whole)


def test_without_real_faces_there_is_no_quiz_and_the_network_is_fetched_by_its_version(gan, tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra export is not installed")
    built = build(gan, tmp_path / "site", None, real=None)
    told = about(tmp_path / "site")
    assert built.num_real == 0 and told["real"] is None
    assert told["runtime"] == {"base": CONTENT_NETWORK, **{name: list(pair) for name, pair in RUNTIME_FILES.items()}}
    assert f"@{runtime.RUNTIME_VERSION}/" in CONTENT_NETWORK and all(pair[1].startswith("sha384-") for pair in RUNTIME_FILES.values())
    assert {path.name for path in (tmp_path / "site").iterdir()} == SITE_FILES - {"real.png", "runtime"}


def test_celeba_s_pictures_are_refused_for_the_quiz(tmp_path):
    for number, face in enumerate(ToyFaces(12, 32)):
        Image.fromarray(face).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert quiz.given_faces(tmp_path, 32).shape == (12, 32, 32, 3)
    for size in ((178, 218), (89, 109)):
        buffer = io.BytesIO()
        Image.effect_noise(size, 50).convert("RGB").save(buffer, "JPEG")
        (tmp_path / "aaa.jpg").write_bytes(buffer.getvalue())
        with pytest.raises(InputError, match="CelebA"):
            quiz.given_faces(tmp_path, 32)
