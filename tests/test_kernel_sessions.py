"""The pushed notebook itself, executed by Jupyter in folders laid out like Kaggle's."""

import json
import shutil

import pytest
from kaggle_server import KaggleServer
from kernel_sessions import DATASET, REF

from facegen_keras import RunConfig
from facegen_keras.kaggle import session as session_module
from facegen_keras.kaggle.chain import SessionChain, run_chain
from facegen_keras.kaggle.notebook import TRIAL, build, lay_out, run_notebook
from facegen_keras.kaggle.service import Kaggle
from facegen_keras.kaggle.session import Job
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.runs.folder import Run
from facegen_keras.training import train

pytest.importorskip("nbclient")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("like") / "kaggle"
    lay_out(folder, DATASET, 80)
    return folder


def all_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_notebook_runs_offline_with_the_package_that_it_carries(laid_out, tmp_path, monkeypatch):
    """Also run on Kaggle's versions, with none of the development requirements installed."""
    decoy = tmp_path / "decoy/facegen_keras"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise ImportError('the one that is installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "decoy"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    shutil.copytree(laid_out, tmp_path / "kaggle")
    build(tmp_path / "kernel", Job())
    status, said = run_notebook((tmp_path / "kernel/facegen.ipynb").read_text(), tmp_path / "kaggle")
    working = tmp_path / "kaggle/working"
    assert status == "COMPLETE", said
    assert said.startswith("session 1 of face-gan-celeba begins a run: ") and "finished: " in said
    assert Run(working / "run").status["state"] == "finished"
    sums = dict(reversed(line.split("  ")) for line in (working / session_module.SUMS).read_text().splitlines())
    assert {name for name in all_files(working) if name.startswith("run/")} - {"run/lock"} == sums.keys()
    assert all(session_module.file_sha256(working / name) == digest for name, digest in sums.items())


@pytest.mark.parametrize("lack", ["data", "run"])
def test_a_session_that_lacks_something_says_so_and_fails(laid_out, tmp_path, lack):
    shutil.copytree(laid_out, tmp_path / "kaggle")
    if lack == "data":
        shutil.rmtree(tmp_path / "kaggle/input/celebrities-100k")
    build(tmp_path / "kernel", Job(session=2, begin=(3, 1)))
    status, said = run_notebook((tmp_path / "kernel/facegen.ipynb").read_text(), tmp_path / "kaggle")
    expected = {"data": "no data: attach the dataset greg115/celebrities-100k",
                "run": "session 2 should go on after epoch 3, step 1, and no run is attached"}
    assert status == "ERROR" and said.startswith(f"facegen: {expected[lack]}") and said.count("\n") == 1


def test_three_sessions_end_as_one_unbroken_run(laid_out, tmp_path, monkeypatch):
    def session(version, mounts):
        place = tmp_path / f"session{version.number}"
        shutil.copytree(laid_out, place)
        for name, content in mounts.get(REF, {}).items():
            target = place / "input" / REF.split("/")[1] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        hours = 0 if version.number < 3 else None  # one step is always taken
        status, said = run_notebook(version.text, place, hours=hours)
        return status, all_files(place / "working"), said

    from kagglesdk import kaggle_env
    with KaggleServer(session, datasets={DATASET: {"100k.txt": b""}}) as server:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.url)
        lines = []
        assert run_chain(tmp_path / "kernel", {}, Kaggle(), lines.append, every=0.2) == "done", lines
    record = [(each["outcome"], each["place"]) for each in SessionChain(tmp_path / "kernel").sessions]
    assert record == [("paused", [0, 1]), ("paused", [0, 2]), ("finished", [2, 0])]
    assert any("session 2 of face-gan-celeba goes on after epoch 0, step 1" in line for line in lines)
    config = RunConfig.preset("article", data=laid_out / "input/celebrities-100k", out=tmp_path / "whole", **TRIAL)
    whole, chained = train(config, report=lambda line: None), Run(tmp_path / "kernel/output/run")
    assert chained.status == whole.status and whole.status["state"] == "finished"
    states = [checkpoints(run.directory / "checkpoints")[-1].read_bytes() for run in (whole, chained)]
    assert states[0] == states[1], "weights, optimizers, random numbers and place"
    assert (whole.directory / "log.jsonl").read_bytes() == (chained.directory / "log.jsonl").read_bytes()
    assert [path.read_bytes() for path in whole.samples()] == [path.read_bytes() for path in chained.samples()]
    notebook = json.loads((tmp_path / "kernel/output/__notebook__.ipynb").read_text())
    assert any(output.get("data", {}).get("image/png") for cell in notebook["cells"] for output in cell.get("outputs", []))
