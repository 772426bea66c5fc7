"""The command as a user meets it: what it refuses, in one line, with nothing written; what it leaves behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.runs.folder import SEE_TO_THE_DISK, Run

TINY = ["--preset", "article_small"] + [word for setting in ("image_size=32", "width=4", "batch_size=8", "limit=16", "epochs=2")
                                       for word in ("--set", setting)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def save_image(path, size=(40, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def prepare_mistakes(folder):
    (folder / "empty").mkdir()
    (folder / "letters").mkdir()
    (folder / "letters" / "letter.txt").write_text("dear")
    (folder / "broken.zip").write_bytes(b"this is not a zip")
    with zipfile.ZipFile(folder / "letters.zip", "w") as archive:
        archive.writestr("letter.txt", "dear")
    for number in range(3):
        save_image(folder / "three" / f"{number}.png", seed=number)
    (folder / "pages").mkdir()
    for number in range(3):
        (folder / "pages" / f"{number}.jpg").write_text("<html>not found</html>")


MISTAKES = {
    "a path that is not there": (["--data", "nowhere"], "data", "nothing is there"),
    "an empty folder": (["--data", "empty"], "data", "empty"),
    "a folder with no image": (["--data", "letters"], "data", ".jpg"),
    "a zip that is not a zip": (["--data", "broken.zip"], "data", "zip"),
    "a zip with no image": (["--data", "letters.zip"], "data", ".jpg"),
    "an image size that no network has": (["--set", "image_size=100"], "image_size", "32, 64, 128, 256"),
    "a batch larger than the data": (["--data", "three", "--set", "batch_size=4"], "batch_size", "at most the 3 images"),
    "an unknown preset": (["--preset", "articel"], "preset", "did you mean 'article'"),
    "an unknown field": (["--set", "image_sise=64"], "setting", "did you mean 'image_size'"),
    "an unknown value": (["--set", "noise=loud"], "noise", "as_described, as_run"),
    "a value of the wrong kind": (["--set", "epochs=many"], "epochs", "whole number"),
    "a setting without a value": (["--set", "epochs"], "--set", "key=value"),
    "an unknown option": (["--epochs", "3"], "", "--epochs"),
    "a folder that holds something else": (["--out", "letters"], "out", "new or empty folder"),
    "an out that is a file": (["--out", "broken.zip"], "out", "folder"),
    "a folder in which nothing can be read": (["--data", "pages", "--set", "batch_size=2"], "data", "facegen check"),
    "an out inside the data": (["--data", "three", "--out", "three/run", "--set", "batch_size=2"], "out", "outside"),
    "hours that are no number": (["--hours", "nan"], "hours", "from 0"),
    "a seed too large": (["--set", "seed=4294967296"], "seed", "4294967295"),
    "a number too large": (["--set", "epsilon=1" + 400 * "0"], "epsilon", "below 1"),
    "an out with too long a name": (["--out", 300 * "x"], "out", "choose another"),
    "patience where nothing is measured": (["--set", "patience=2", "--set", "measure_images=0"], "patience", "measures nothing"),
    "patience where nothing is held out": (["--data", "three", "--set", "patience=2", "--set", "batch_size=2"], "patience",
                                           "none where no images are held out"),
    "a start that is no generator": (["--set", "start=broken.zip"], "start", "whole generator.keras"),
    "a crop for other pictures": (["--data", "three", "--set", "crop=article", "--set", "batch_size=2"], "crop", "square"),
}


@pytest.mark.parametrize("arguments, what, hint", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_changes_nothing(facegen, tmp_path, monkeypatch, arguments, what, hint):
    monkeypatch.chdir(tmp_path)
    prepare_mistakes(tmp_path)
    before = contents(tmp_path)
    outcome = facegen("train", *arguments)
    assert outcome.status == 2
    assert outcome.err.startswith(f"facegen: {what}") and hint in outcome.err
    assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err and outcome.out == ""
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_from_start_to_finish(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = facegen("train", *TINY, "--out", "run")
    assert outcome.status == 0 and "\r" not in outcome.out and "\x1b" not in outcome.out, "a log file gets no bar"
    assert "16 images" in outcome.out and "s a step" in outcome.out and "100 hours" in outcome.out
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"
    before = contents(tmp_path / "run")

    other = facegen("train", *TINY, "--out", "run", "--set", "width=8")
    assert other.status == 2 and other.err.count("\n") == 1 and "holds another run; width: expected 4, got 8" in other.err
    refused = facegen("train", *TINY, "--out", "run", "--fresh")
    assert refused.status == 2 and "--yes" in refused.err
    assert contents(tmp_path / "run") == before, "nothing is lost"

    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/page.jpg").write_text("<html>not found</html>")
    mistaken = facegen("train", "--data", "pages", "--out", "run", "--set", "batch_size=2", "--fresh", "--yes")
    assert mistaken.status == 2 and mistaken.err.count("\n") == 1
    assert contents(tmp_path / "run") == before, "a mistake does not cost the old run"

    grid = facegen("sample", "run", "--count", "9", "--out", "nine.png")
    assert grid.status == 0 and Image.open(tmp_path / "nine.png").size == (3 * 34 + 2,) * 2
    singles = facegen("sample", "run", "--count", "3", "--seed", "5", "--out", "singles/")
    assert singles.status == 0 and len(list((tmp_path / "singles").glob("*.png"))) == 3
    assert "do not exist" in Image.open(tmp_path / "singles/face_00000.png").text["Description"]
    from facegen_keras import load_gan
    from facegen_keras.runs.viz import to_png
    many = facegen("sample", "run", "--count", "70", "--seed", "5", "--out", "many/")
    expected = load_gan("run").generate(70, 5)
    assert many.status == 0 and [path.read_bytes() for path in sorted((tmp_path / "many").iterdir())] == list(map(to_png, expected))
    for count in ("100000000", "77842", "999999999999999999999"):
        refused = facegen("sample", "run", "--count", count, "--out", "grid.png")
        assert refused.status == 2 and "--out DIR/" in refused.err and refused.err.count("\n") == 1
        assert not (tmp_path / "grid.png").exists()
    for wrong in ("nine.jpg", "nine.png/"):
        assert facegen("sample", "run", "--out", wrong).status == 2

    same = contents(tmp_path / "run")
    repeated = facegen("train", *TINY, "--out", "run")
    assert repeated.status == 0 and "nothing left to do after epoch 2" in repeated.out
    fewer = facegen("train", *TINY, "--out", "run", "--set", "epochs=1")
    assert fewer.status == 2 and fewer.err.startswith("facegen: epochs: expected at least the 2")
    assert contents(tmp_path / "run") == same

    alone = facegen("train", "--out", "run")
    assert alone.status == 0 and "nothing left to do after epoch 2" in alone.out and contents(tmp_path / "run") == same
    another = facegen("train", "--out", "run", "--preset", "modern")
    assert another.status == 2 and contents(tmp_path / "run") == same
    assert another.err.index("type facegen train --out run alone") < another.err.index("choose another --out") < another.err.index("--fresh")

    again = facegen("train", *TINY, "--out", "run", "--set", "width=8", "--fresh", "--yes")
    assert again.status == 0 and json.loads((tmp_path / "run/config.json").read_text())["width"] == 8


BEGUN = {"modern": dict(width=8, image_size=64), "article": dict(data="faces.zip", crop="square", seed=7), "article_small": dict(width=4, epochs=3)}


@pytest.mark.parametrize("preset", BEGUN)
def test_out_alone_goes_on_with_the_run_as_it_was_begun(facegen, tmp_path, monkeypatch, preset):
    """What the run was begun with need not be typed again; what is typed is laid over it; a named preset is meant."""
    from facegen_keras import training

    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(training, "train", lambda config, **options: trained.append(config) or Run("run"))
    begun = RunConfig.preset(preset, **BEGUN[preset], out="before it was moved")
    (tmp_path / "run").mkdir()
    Run("run").write("config.json", begun.to_json().encode())
    for options in ((), ("--set", "epochs=90"), ("--fresh", "--yes"), ("--preset", "article_small"), ("--out", "new")):
        assert facegen("train", "--out", "run", *options).status == 0
    was = begun.to_dict() | {"out": "run"}
    assert [config.to_dict() for config in trained] == [
        was, was | {"epochs": 90}, was, RunConfig.preset("article_small", out="run").to_dict(), RunConfig.preset("small", out="new").to_dict()]


@pytest.mark.parametrize("option, hint", [("--epochs", "--set epochs=VALUE"), ("--width", "--set width=VALUE"),
                                          ("--yess", ""), ("--frest", ""), ("--hour", "--hours")])
def test_a_misspelt_option_is_never_answered_with_one_that_deletes(facegen, option, hint):
    outcome = facegen("train", option, "3")
    assert outcome.status == 2 and hint in outcome.err and "--yes'" not in outcome.err and "--fresh'" not in outcome.err


@pytest.mark.slow
def test_fresh_deletes_only_what_a_run_has_written(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/samples").mkdir(parents=True)
    (tmp_path / "own/config.json").write_text('{"model": "resnet"}')
    (tmp_path / "own/samples/thesis.txt").write_text("years")
    before = contents(tmp_path / "own")
    assert facegen("train", *TINY, "--out", "own", "--fresh", "--yes").status == 2
    assert contents(tmp_path / "own") == before
    assert facegen("train", *TINY, "--out", "run", "--hours", "0").status == 0
    (tmp_path / "outside").mkdir()
    (tmp_path / "run/linked").symlink_to(tmp_path / "outside")
    mine = [tmp_path / name for name in ("outside/download.part", "run/mine.part", "run/samples/notes.txt")]
    for path in mine:
        path.write_text("kept")
    assert facegen("train", *TINY, "--out", "run", "--fresh", "--yes").status == 0
    assert [path.read_text() for path in mine] == 3 * ["kept"]


@pytest.mark.slow
def test_more_epochs_go_on_and_hours_pause(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paused = facegen("train", *TINY, "--out", "run", "--hours", "0")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert paused.status == 0 and status["state"] == "paused" and (status["epoch"], status["step"]) == (0, 1)
    assert facegen("train", *TINY, "--out", "run").status == 0
    more = facegen("train", *TINY, "--out", "run", "--set", "epochs=3")
    assert more.status == 0 and "going on after epoch 2" in more.out
    assert json.loads((tmp_path / "run/status.json").read_text()) == {
        "state": "finished", "epoch": 3, "step": 0, "reason": ""}


@pytest.mark.slow
def test_diverging_losses_exit_with_3(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from facegen_keras.gan import FaceGAN

    monkeypatch.setattr(FaceGAN, "draw_noise", lambda self: (float("nan"), 1.0))
    outcome = facegen("train", *TINY, "--out", "run")
    assert outcome.status == 3 and outcome.err.count("\n") == 1
    assert "a loss is not finite" in outcome.err and "try smaller d_learning_rate" in outcome.err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["epoch_0000_step_000000.npz"]


@pytest.mark.slow
def test_a_log_line_cut_off_by_a_kill_does_not_matter(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert facegen("train", *TINY, "--out", "run").status == 0
    with open(tmp_path / "run/log.jsonl", "a") as log:
        log.write('{"kind": "steps", "ep')
    assert facegen("train", *TINY, "--out", "run", "--set", "epochs=3").status == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6], "two steps, their mean and the samples of each epoch"


def test_check_names_what_cannot_be_used(facegen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "faces/good.png")
    (tmp_path / "faces/page.jpg").write_text("<html>not found</html>")
    (tmp_path / "faces/empty.jpg").write_bytes(b"")
    save_image(tmp_path / "faces/same.png")
    (tmp_path / "faces/a\nb.jpg").write_bytes(b"%PDF-1.7")
    (tmp_path / "faces/phone.HEIC").write_bytes(b"")
    before = contents(tmp_path / "faces")
    outcome = facegen("check", "faces", "--out", "report.json")
    assert outcome.status == 0 and outcome.err == "" and outcome.out.splitlines() == [
        "a b.jpg: a PDF document, not a picture", "empty.jpg: the file is empty", "page.jpg: HTML, not a picture",
        "same.png: the same bytes as good.png",
        "5 images (folder): 1 good, 4 cannot be used (1 duplicate)", "not looked at: 1 .heic"]
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "a\nb.jpg": "a PDF document, not a picture", "empty.jpg": "the file is empty",
        "page.jpg": "HTML, not a picture", "same.png": "the same bytes as good.png"}
    assert contents(tmp_path / "faces") == before


def test_check_prints_names_that_are_not_text(facegen, tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    assert "caf\N{REPLACEMENT CHARACTER}.jpg: the file is empty" in facegen("check", tmp_path).out


def test_check_of_drawn_faces_has_nothing_to_say(facegen):
    outcome = facegen("check", "toy")
    assert outcome.status == 0 and outcome.out == "4,000 images (toy): 4,000 good, 0 cannot be used\n"


def test_check_shows_a_bar_on_a_terminal(tmp_path):
    """On stderr, and what stdout gets does not change."""
    save_image(tmp_path / "good.png")
    terminal, inner = os.openpty()
    command = [sys.executable, "-c", "from facegen_keras.cli import main; main()", "check", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=inner, text=True, timeout=60)
    os.close(inner)
    assert done.stdout == "1 images (folder): 1 good, 0 cannot be used\n"
    assert b"reading images" in os.read(terminal, 100_000)
    os.close(terminal)


OTHERS = [["sample", "nowhere"], ["film", "nowhere"], ["project", "nowhere", "face.png"], ["morph", "nowhere", "a.png", "b.png"],
          ["evaluate", "nowhere", "--count", "500"], ["check", "nowhere"], ["nonsense"]]


@pytest.mark.parametrize("arguments", OTHERS)
def test_other_commands_refuse_in_one_line(facegen, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    outcome = facegen(*arguments)
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and contents(tmp_path) == {}


@pytest.mark.slow
def test_a_signal_pauses(tmp_path):
    """SIGTERM: the step is finished, saved, and the exit status says that this was meant."""
    settings = [*TINY[:-2], "--set", "epochs=100000"]
    command = [sys.executable, "-c", "from facegen_keras.cli import main; main()", "train", "--out", "run", *settings]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert process.returncode == 0 and status["state"] == "paused" and "SIGTERM" in status["reason"]
    assert (tmp_path / f"run/checkpoints/epoch_{status['epoch']:04d}_step_{status['step']:06d}.npz").is_file()


@pytest.mark.slow
def test_bench_measures_every_contender_in_one_run(facegen, tmp_path):
    outcome = facegen("bench", "--size", "32", "--batch", "4", "--width", "4", "--rounds", "2", "--out", tmp_path / "record.json")
    assert outcome.status == 0 and "| published, float32 |" in outcome.out and "ceiling: convolution" in outcome.out
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"published, float32", "keras, float32", "package, float32"} <= record["contenders"].keys()
    assert all(row["gigabytes"] > 0.1 for row in record["contenders"].values())
    assert record["contenders"]["published, float32"]["times_first"] == 1 and record["about"]["rounds"] == 2
    assert facegen("bench", "--size", "100").status == 2


ENDED_BY_ITSELF = {"an error": ("import sys; print('a\\nno memory', file=sys.stderr); sys.exit(1)", "no memory"),
                   "killed": ("import os; os.kill(os.getpid(), 9)", "a process of its own ended with -9"),
                   "nothing said": ("import sys; sys.exit(3)", "a process of its own ended with 3")}


@pytest.mark.parametrize("code, said", ENDED_BY_ITSELF.values(), ids=ENDED_BY_ITSELF)
def test_a_contender_that_cannot_be_measured_is_one_line(monkeypatch, capsys, code, said):
    from facegen_keras.measure import benchmark

    popen = subprocess.Popen
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda command, **options: popen([*command[:2], code], **options))
    with benchmark.Contender("torch, float32") as contender:
        assert contender.steps(1) == [] and contender.process.returncode is not None
    assert capsys.readouterr().err == f"torch, float32: {said}\n"


def test_a_contender_that_ends_is_left_out_of_the_record(monkeypatch, capsys):
    from facegen_keras.measure import benchmark

    class Made:
        """Takes so many steps."""
        lives = {"published, float32": 100, "package, float32": 3, "acts, float32": 1, "matrix product": 3, "convolution": 0}

        def __init__(self, name, **size):
            self.left = self.lives[name]

        def step(self):
            self.left -= 1
            return {"seconds": 2.0 if self.left > 50 else 1.0, "gigabytes": 1.0} if self.left >= 0 else None

        __enter__, __exit__ = lambda self: self, lambda self, *problem: None

    monkeypatch.setattr(benchmark, "Contender", Made)
    monkeypatch.setattr(benchmark, "contenders", lambda **size: dict.fromkeys(list(Made.lives)[:3]))
    told = []
    record = benchmark.measure(32, 4, 4, rounds=2, report=told.append)
    assert record["contenders"].keys() == {"published, float32", "package, float32"}
    assert record["contenders"]["package, float32"]["times_first"] == 2 and record["contenders"]["published, float32"]["times_first"] == 1
    assert list(record["ceilings_gflop_per_s"]) == ["matrix product"]
    assert record["left_out"] == ["acts, float32", "convolution"] and benchmark.as_table(record)
    assert told == ["package, float32: done", "acts, float32: left out", "matrix product: done", "convolution: left out"]
    monkeypatch.setitem(Made.lives, "published, float32", 0)
    with pytest.raises(ValueError, match="^bench: expected that a step of published, float32 can be taken"):
        benchmark.measure(32, 4, 4, rounds=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_contender_does_not_outlive_the_command(tmp_path, monkeypatch, number):
    from facegen_keras.measure import benchmark

    codes, popen = [], subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(benchmark.subprocess, "Popen", lambda command, **options: codes.append(command[2]) or popen([sys.executable, "-c", "1"], **options))
        with benchmark.Contender("package, float32"): pass
    assert codes[0].startswith(benchmark.DIES_WITH_ITS_PARENT)
    waits = benchmark.DIES_WITH_ITS_PARENT + "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    command = subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {waits!r}])"],
                               stdout=subprocess.PIPE, text=True)
    process = int(command.stdout.readline())
    try:
        command.send_signal(number)
        command.communicate(timeout=20)  # both have let go of the pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_the_rivals_of_a_benchmark_are_at_their_best(monkeypatch):
    import keras
    import tensorflow as tf

    from facegen_keras.measure import benchmark

    size = dict(image_size=32, width=4)
    config = RunConfig.preset("article", **size, batch_size=4, precision="float32")
    *networks, g_optimizer, d_optimizer = benchmark.plain_parts(config)
    assert type(g_optimizer) is type(d_optimizer) is keras.optimizers.Adam, "Keras' own"
    biases = [layer.bias for network in networks for layer in network.layers if hasattr(layer, "bias")]
    assert len(biases) == 8 and all(bias.trainable for bias in biases)
    *_, optimizer = benchmark.plain_parts(RunConfig.preset("article", **size, precision="float16"))
    assert type(optimizer) is keras.optimizers.LossScaleOptimizer

    asked = []
    monkeypatch.setattr(tf, "function", lambda function=None, jit_compile=None: asked.append(jit_compile) or (lambda f: f))
    for cards in ([], ["a card"]):
        with monkeypatch.context() as patch:
            patch.setattr(tf.config, "list_physical_devices", lambda kind, cards=cards: cards)
            benchmark.keras_step(config, np.zeros((4, 32, 32, 3), "float32"))
    assert asked == [False, True], "XLA as `fit` chooses it"

    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: name == "torch")
    names = benchmark.contenders(32, 4, 4)
    assert {"torch, float32", "torch, float32, compiled"} <= names.keys()


def test_pytorch_in_a_benchmark_has_no_bias_that_batch_norm_takes_away():
    torch = pytest.importorskip("torch")
    from facegen_keras.measure import benchmark

    config = RunConfig.preset("article", image_size=32, width=4, batch_size=4)
    convolutions = [layer for network in benchmark.torch_networks(config) for layer in network
                    if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert [layer.bias is not None for layer in convolutions].count(True) == 1, "the one before tanh"
    torch.backends.cudnn.benchmark = False
    step = benchmark.torch_step(config, np.zeros((4, 32, 32, 3), "float32"))
    assert torch.backends.cudnn.benchmark and np.isfinite(step())


@pytest.mark.parametrize("target", ["not there/record.json", ".", "file/record.json"])
def test_bench_refuses_a_record_that_it_could_not_write(facegen, tmp_path, monkeypatch, target):
    from facegen_keras.measure import benchmark

    (tmp_path / "file").touch()
    monkeypatch.setattr(benchmark, "measure", lambda *arguments: pytest.fail("it measures first"))
    outcome = facegen("bench", "--out", tmp_path / target)
    assert outcome.status == 2 and outcome.err.startswith("facegen: --out: ") and outcome.err.count("\n") == 1


def test_progress_is_told_where_there_is_no_terminal(monkeypatch, capsys):
    from facegen_keras import cli

    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli.progress_bar("reading") as progress:
        for done in range(1, 101):
            now[0] += 1
            progress(done, 100)
    assert capsys.readouterr().err.splitlines() == ["reading: 30%", "reading: 60%", "reading: 90%"]


@pytest.mark.parametrize("option", ["--size", "--batch", "--width", "--rounds"])
def test_bench_refuses_with_costs_what_that_would_ignore(facegen, option):
    outcome = facegen("bench", "--costs", option, "32")
    assert outcome.status == 2 and outcome.err.startswith(f"facegen: {option}: ") and outcome.err.count("\n") == 1


NOT_THERE = {"jax": ("jax", 'pip install ".[jax]"'), "torch": ("torch", "KERAS_BACKEND=tensorflow"), "nonsense": (None, "nonsense")}


@pytest.mark.parametrize("backend", NOT_THERE)
def test_a_backend_that_is_not_there_is_one_line(tmp_path, backend):
    """In a process of its own, which ends before any backend has started."""
    module, hint = NOT_THERE[backend]
    code = f"import sys; sys.modules[{module!r}] = None; from facegen_keras.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "train", "--out", tmp_path / "run"], capture_output=True, text=True,
                          env={**os.environ, "KERAS_BACKEND": backend})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and hint in done.stderr and done.stdout == ""
    assert not any(tmp_path.iterdir())


START = {"numpy": (dict(KERAS_BACKEND="numpy"), "expected tensorflow or jax, got 'numpy'"),
         "a keras.json of a list": (dict(KERAS_BACKEND="numpy", KERAS_HOME="."), "keras.json"),
         "channels first": (dict(KERAS_BACKEND="jax", KERAS_HOME="first"), "expected channels_last among Keras' own settings, got 'channels_first'; set it so in first/keras.json"),
         "half numbers": (dict(KERAS_BACKEND="jax", KERAS_HOME="half"), "expected float32 among Keras' own settings, got 'float16'; set it so in half/keras.json"),
         "no such device": (dict(KERAS_BACKEND="jax", JAX_PLATFORMS="nonsense"), "a backend that finds its devices, got"),
         "no such process": (dict(KERAS_BACKEND="jax", KERAS_DISTRIBUTION_NUM_PROCESSES="two"), "a backend that finds its devices, got")}


@pytest.mark.parametrize("variables, said", START.values(), ids=START)
def test_keras_that_cannot_start_is_one_line(tmp_path, variables, said):
    """In a process of its own, with JAX or NumPy, which takes some of JAX."""
    pytest.importorskip("jax")
    homes = {".": [1], "first": {"image_data_format": "channels_first"}, "half": {"floatx": "float16"}}
    for home, content in homes.items():
        (tmp_path / home).mkdir(exist_ok=True)
        (tmp_path / home / "keras.json").write_text(json.dumps(content))
    code = "from facegen_keras.cli import main; main(['train', '--out', 'run'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **variables})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr and done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "half", "keras.json"]


class Pictures(list):
    layout = "folder"


@pytest.mark.parametrize("command", ["evaluate", "bench", "bench --costs"])
def test_a_record_is_kept_where_its_table_cannot_be_printed(facegen, monkeypatch, tmp_path, command):
    from facegen_keras import cli, metrics
    from facegen_keras.measure import benchmark, costs
    from facegen_keras.runs import start

    def show(text):
        raise InputError("stdout: a full disk")

    pictures = Pictures(np.zeros((100, 4, 4, 3), np.uint8))
    for place, name, answer in ((benchmark, "measure", {"found": 1}), (costs, "measure_costs", {"found": 1}), (metrics, "evaluate", {"found": 1}),
                                (benchmark, "as_table", ""), (costs, "costs_table", ""), (metrics, "metrics_table", ""),
                                (start, "load_gan", None), (metrics, "real_faces", (pictures, pictures))):
        monkeypatch.setattr(place, name, lambda *arguments, answer=answer: answer)
    monkeypatch.setattr(cli, "show", show)
    Run(tmp_path).write("config.json", RunConfig().to_json().encode())
    run = [tmp_path] if command == "evaluate" else []
    outcome = facegen(*command.split(), *run, "--out", tmp_path / "record.json")
    assert outcome.status == 2 and json.loads((tmp_path / "record.json").read_text()) == {"found": 1}


@pytest.mark.parametrize("arguments", [("train", "--out", "run"), ("sample", "celeba"), ("film", "celeba"), ("evaluate", "run")])
def test_no_memory_is_one_line_of_any_command(facegen, monkeypatch, tmp_path, arguments):
    from facegen_keras import cli
    from facegen_keras.use import commands

    def start():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes\nand a page of remarks")

    monkeypatch.chdir(tmp_path)
    for module in (cli, commands):
        monkeypatch.setattr(module, "start_keras", start)
    outcome = facegen(*arguments)
    assert outcome.status == 2 and outcome.err.startswith("facegen: memory: expected more than there is") and outcome.err.count("\n") == 1


ENDED = {"running": SEE_TO_THE_DISK, "No space left on device": "make room", "Read-only file system": SEE_TO_THE_DISK,
         "Disk quota exceeded": "make room", "Input/output error": SEE_TO_THE_DISK}


@pytest.mark.parametrize("said", ENDED)
def test_a_session_that_its_disk_has_ended_is_no_success(facegen, monkeypatch, tmp_path, said):
    from facegen_keras import training

    status = {"state": said} if said == "running" else {
        "state": "paused", "reason": f"log.jsonl could not be written ({said}); {SEE_TO_THE_DISK}"}
    run = Run(tmp_path)
    run.write("status.json", {"epoch": 1, "step": 0, "reason": ""} | status)
    monkeypatch.setattr(training, "train", lambda config, **options: run)
    outcome = facegen("train", "--out", tmp_path / "other")
    assert outcome.status == 2 and outcome.err.endswith(f"; {ENDED[said]}, then go on by the same command\n")
    run.write("status.json", {"state": "paused", "epoch": 1, "step": 0, "reason": "the time is used up"})
    assert facegen("train", "--out", tmp_path / "other").status == 0
