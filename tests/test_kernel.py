"""The Kaggle kernel against a server that speaks Kaggle's language to Kaggle's own client: what a person sees, and what is kept."""

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from kaggle_server import KaggleServer, faults
from kernel_sessions import DATASET, DIED, REF, begin_of, left_behind, one_epoch_each
from kernel_sessions import with_sessions as sessions_but

from facegen_keras.base.errors import InputError
from facegen_keras.cli import facegen as commands
from facegen_keras.cli import main
from facegen_keras.config import PRESETS, RunConfig
from facegen_keras.kaggle import chain as chain_module
from facegen_keras.kaggle import notebook as notebook_module
from facegen_keras.kaggle import service as service_module
from facegen_keras.kaggle import session as session_module
from facegen_keras.kaggle.chain import SessionChain, run_chain
from facegen_keras.kaggle.notebook import build, check_folder, find_job, locked
from facegen_keras.kaggle.push import push, save_fields
from facegen_keras.kaggle.service import Kaggle, KaggleTrouble, pull
from facegen_keras.kaggle.session import Job
from facegen_keras.runs import shipped

SCRIPT = Path(__file__).parent / "followed_chain.py"
FAST = dict(every=0.02, patience=0.3)


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch, request):
    """No credentials, no proxy and no endpoint but those that a test sets: nothing here may reach Kaggle.

    Only where a test has the server fall silent is the client's patience short: a busy machine may take a second to answer.
    """
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "VERBOSE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(Kaggle, "WAITS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(Kaggle, "TIMEOUT", (10, 2 if "silence" in request.node.name else 60))


@pytest.fixture
def server(monkeypatch):
    from kagglesdk import kaggle_env
    with KaggleServer(datasets={DATASET: {"100k.txt": b""}}) as kaggle:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("KAGGLE_API_TOKEN", kaggle.token)
        for each in kaggle_env.KaggleEnv:
            monkeypatch.setitem(kaggle_env._env_to_endpoint, each, kaggle.url)
        yield kaggle


@pytest.fixture
def folder(tmp_path):
    build(tmp_path / "kernel", Job(), "me")
    return tmp_path / "kernel"


def pushes(server):
    return [request.method for request in server.requests].count("SaveKernel")


def push_once(folder, lines=None):
    return push(Kaggle(), folder, 10, (lines if lines is not None else []).append, patience=0.3)


def pushed_unasked(folder):
    """A push without our questions before it, as from the website or an earlier version of this package."""
    about, text, _ = check_folder(folder)
    assert not Kaggle().call("save_kernel", **save_fields(about, text, 10)).error


def facegen(capfd, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code, *capfd.readouterr()


# Building


def test_build_needs_no_credentials_and_makes_the_same_bytes(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        assert facegen(capfd, "kernel", "build", "--folder", name, "--set", "epochs=3")[0] == 0
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1] and set(contents[0]) == {"facegen.ipynb", "kernel-metadata.json", "chain.lock"}


WRONG = {"machine_shap": ({"machine_shap": 1}, "machine_shap"), "title": ({"title": "other"}, "title"),
         "id": ({"id": "me"}, "id: expected owner/name"), "id_no": ({"id_no": 3}, "got 'id_no'"),
         "dataset": ({"dataset_sources": ["datasets/me/x"]}, "dataset_sources")}


@pytest.mark.parametrize("change, said", WRONG.values(), ids=WRONG)
def test_what_kaggle_would_pass_over_is_found_in_the_folder(folder, change, said):
    about = json.loads((folder / "kernel-metadata.json").read_text())
    (folder / "kernel-metadata.json").write_text(json.dumps(about | change))
    with pytest.raises(InputError, match=said):
        check_folder(folder)


def test_a_folder_that_lacks_something_or_holds_something_else_is_refused(folder, tmp_path):
    (folder / "diary.txt").touch()
    with pytest.raises(InputError, match="which holds diary.txt"):
        build(folder, Job())
    (folder / "facegen.ipynb").write_text('{"metadata": {}}')
    with pytest.raises(InputError, match="kernelspec"):
        check_folder(folder)
    with pytest.raises(InputError, match="make it with facegen kernel build"):
        check_folder(tmp_path / "nowhere")


OTHERS = [".ipynb_checkpoints/facegen-checkpoint.ipynb", ".DS_Store", "Thumbs.db", "desktop.ini", "__pycache__/x.pyc", "@eaDir/x",
          "facegen.ipynb~", ".facegen.ipynb.swp", "$RECYCLE.BIN/x", "facegen.ipynb.0a1b.part", "#facegen.ipynb#", "4913",
          "Network Trash Folder/x", "Temporary Items/x", "@Recently-Snapshot/x", "RECYCLER/x", "nohup.out", "facegen.ipynb.bak",
          "kernel-metadata.json.tmp", "anaconda_projects/db", "LOST.DIR/1", "~snapshot/x", "facegen.ipynb.partial"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_programs_leave_in_the_folder_stops_no_chain(server, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("theirs")
    server.execute = one_epoch_each(2)
    assert chain(folder) == "done" and pushes(server) == 2 and (folder / name).read_text() == "theirs"


def test_nothing_that_comes_into_the_folder_later_stops_a_chain(server, folder):
    honest = one_epoch_each(3)

    def session(version, mounts):
        (folder / f"diary of day {version.number}.txt").write_text("mine")
        return honest(version, mounts)

    server.execute = session
    assert chain(folder) == "done" and pushes(server) == 3 and len(list(folder.glob("diary*"))) == 3


@pytest.mark.parametrize("command", ["build", "run"])
def test_a_folder_with_files_of_a_person_is_refused_and_gets_no_file(server, tmp_path, capfd, command):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    status, _, err = facegen(capfd, "kernel", command, "--folder", tmp_path / "photos")
    assert status == 2 and err.count("\n") == 1 and "which holds a.jpg" in err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("start", ["runs/small", "/home/me/runs/small", ".", "a_folder", "../shipped/pretended"])
def test_a_start_that_stays_on_the_laptop_is_refused_when_built(tmp_path, capfd, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_folder/config.json").write_text("{}")
    for command in ("build", "run"):
        status, _, err = facegen(capfd, "kernel", command, "--set", f"start={start}")
        assert status == 2 and err.count("\n") == 1 and "a generator that comes with the package" in err and start in err
    assert not (tmp_path / "kernel").exists()


@pytest.fixture
def shipping(tmp_path, monkeypatch):
    """Puts a generator among those that come with the package."""
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)

    def ship(name, **settings):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "shipped" / name / "config.json").write_text(RunConfig.preset("article", **settings).to_json())
        (tmp_path / "shipped" / name / "generator.keras").write_bytes(b"weights")
        return tmp_path / "shipped" / name

    return ship


@pytest.mark.parametrize("name", ["celeba-pretended", "drawn_pretended", "x"])
def test_a_start_that_is_shipped_travels_with_the_notebook(shipping, name):
    place = shipping(name)
    for other in (".ipynb_checkpoints/a.ipynb", "Thumbs.db", ".DS_Store"):
        (place / other).parent.mkdir(exist_ok=True)
        (place / other).touch()
    found = zipfile.ZipFile(io.BytesIO(notebook_module.make_wheel(name)[1])).namelist()
    assert [each for each in found if "/shipped/" in each] == [
        f"facegen_keras/shipped/{name}/{file}" for file in ("config.json", "generator.keras")]
    assert notebook_module.make_first_cell(Job(settings={"start": name}))[0] != notebook_module.make_first_cell(Job())[0]


@pytest.mark.parametrize("theirs", [["._a.py", "sub/._b.py"], [".ipynb_checkpoints/a-checkpoint.py", "sub/.ipynb_checkpoints/b.py"],
                                    ["__MACOSX/a.py", "@eaDir/a.py/x.py"]])
def test_what_other_programs_leave_in_the_package_does_not_travel(tmp_path, monkeypatch, theirs):
    package = tmp_path / "facegen_keras"
    monkeypatch.setattr(notebook_module, "PACKAGE", package)
    (package / "sub").mkdir(parents=True)
    for name in ("a.py", "sub/b.py", "_modidx.py"):
        (package / name).write_text("x = 1")
    before = notebook_module.make_wheel()[1]
    for name in theirs:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 2")
    assert notebook_module.make_wheel()[1] == before
    found = zipfile.ZipFile(io.BytesIO(before)).namelist()
    assert [name for name in found if name.endswith(".py")] == ["facegen_keras/a.py", "facegen_keras/sub/b.py"]


TOO_FEW = {"5 images": ["limit=5"], "one image too few": ["limit=63", "epochs=3"], "a large batch": ["batch_size=128", "limit=127"]}


@pytest.mark.parametrize("settings", TOO_FEW.values(), ids=TOO_FEW)
def test_a_batch_that_its_limit_cannot_fill_is_refused_when_built(tmp_path, capfd, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    for command in ("build", "run"):
        status, _, err = facegen(capfd, "kernel", command, *(word for setting in settings for word in ("--set", setting)))
        assert status == 2 and err.count("\n") == 1 and err.startswith("facegen: batch_size: expected at most the ") and "of limit" in err
    assert not (tmp_path / "kernel").exists()


MISFITS = {"image_size": (64, 128), "networks": ("residual", "dcgan"), "width": (32, 64), "latent_dim": (50, 100)}


@pytest.mark.parametrize("name", MISFITS)
def test_a_start_of_another_shape_is_refused_when_built(shipping, tmp_path, capfd, name):
    theirs, ours = MISFITS[name]
    config = RunConfig.preset("article").to_dict() | {name: theirs}
    (shipping("pretended") / "config.json").write_text(json.dumps(config))
    for command in ("build", "run"):
        status, _, err = facegen(capfd, "kernel", command, "--set", "start=pretended")
        assert status == 2 and err.count("\n") == 1 and f"expected {theirs!r}, as that generator has it, got {ours!r}" in err
        assert f"give --set {name}={theirs}, or --set start=none for fresh networks\n" in err
    assert not (tmp_path / "kernel").exists()


@pytest.mark.parametrize("command", ["build", "run"])
@pytest.mark.parametrize("name", ["celeba-pretended", "mine"])
def test_a_start_that_is_also_a_folder_here_is_refused(shipping, tmp_path, capfd, name, command):
    shipping(name)
    Path(name).mkdir()
    status, _, err = facegen(capfd, "kernel", command, "--set", f"start={name}")
    assert status == 2 and err.count("\n") == 1 and "and no folder of that name here" in err
    assert not (tmp_path / "kernel").exists()


def test_the_commands_of_the_kernel_are_listed(capfd):
    status, out, err = facegen(capfd, "kernel")
    assert (status, err) == (0, "") and all(f"  {name} " in out for name in ("build", "try", "push", "status", "pull", "run"))


@pytest.mark.parametrize("name", ["kernel", "other", "my kernels/one", "/tmp/facegen-nowhere"])
def test_hints_name_the_folder_in_use(tmp_path, capfd, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    option = "" if name == "kernel" else f" --folder {shlex.quote(name)}"
    for command in ("push", "status", "pull", "try"):
        assert facegen(capfd, "kernel", command, "--folder", name)[2].endswith(f"make it with facegen kernel build{option}\n")
    if not name.startswith("/"):
        out = facegen(capfd, "kernel", "build", "--folder", name)[1]
        assert f"try it with facegen kernel try{option}, train it with facegen kernel run{option}\n" in out
        assert facegen(capfd, "kernel", "status", "--folder", name)[2].endswith(f"push it first: facegen kernel push{option}, or run\n")
        (tmp_path / name / "kernel-metadata.json").write_text('{"code_file": "facegen.ipynb"}')
        assert facegen(capfd, "kernel", "push", "--folder", name)[2].endswith(f"make it anew with facegen kernel build{option}\n")


def test_hints_after_a_push_name_the_folder_in_use(server, folder, capfd):
    assert f": facegen kernel status --folder {folder} tells how" in facegen(capfd, "kernel", "push", "--folder", folder)[1]
    assert f"wait for it: facegen kernel run --folder {folder} follows it\n" in facegen(capfd, "kernel", "push", "--folder", folder)[2]
    (folder / "chain.json").write_text("{")
    assert f"move it away: facegen kernel run --folder {folder} then" in facegen(capfd, "kernel", "run", "--folder", folder)[2]


WAITING = "import os, time; open('process', 'w').write(str(os.getpid())); "
BUSY = "[None for _ in iter(int, 1)]"
ENDS = {"interrupted": ("time.sleep(600)", [signal.SIGINT], 130, "facegen: interrupted\n"),
        "terminated": ("time.sleep(600)", [signal.SIGTERM], 143, "facegen: terminated\n"),
        "hung up": (BUSY, [signal.SIGHUP], 129, "facegen: terminated\n"),
        "killed": ("time.sleep(600)", None, 2, "Jupyter's process to run until the notebook ends, got 'one that was killed'"),
        "killed by itself": ("os.kill(os.getpid(), 9)", [], 2, "one that was killed"),
        "busy and interrupted": (BUSY, [signal.SIGINT], 130, "facegen: interrupted\n"),
        "busy and interrupted twice": (BUSY, [signal.SIGINT] * 2, 130, "facegen: interrupted\n"),
        "busy and interrupted often": (BUSY, [signal.SIGINT] * 9, 130, "facegen: interrupted\n"),
        "interrupted and terminated": (BUSY, [signal.SIGINT, signal.SIGTERM], 130, "facegen: interrupted\n"),
        "terminated twice": (BUSY, [signal.SIGTERM] * 2, 143, "facegen: terminated\n")}


@pytest.mark.slow
@pytest.mark.parametrize("code, signals, status, said", ENDS.values(), ids=ENDS)
def test_a_trial_that_is_interrupted_or_killed_ends_in_one_line_and_leaves_nothing_running(folder, tmp_path, code, signals, status, said):
    """In a notebook of one cell, which needs no TensorFlow. Signals None: its process is killed."""
    pytest.importorskip("nbclient")
    (tmp_path / "home").mkdir()  # where IPython writes
    notebook = json.loads((folder / "facegen.ipynb").read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:1]
    notebook["cells"][0]["source"] = WAITING.replace("'process'", repr(str(tmp_path / "process"))) + code
    (folder / "facegen.ipynb").write_text(json.dumps(notebook))
    trial = subprocess.Popen([sys.executable, "-m", "facegen_keras", "kernel", "try", "--folder", folder], text=True,
                             env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not ((tmp_path / "process").exists() and (tmp_path / "process").read_text()):
        assert trial.poll() is None
        time.sleep(0.05)
    process = int((tmp_path / "process").read_text())
    if signals is None:
        os.kill(process, signal.SIGKILL)
    for each in signals or ():
        if trial.poll() is None:
            trial.send_signal(each)
        time.sleep(0.1)
    _, err = trial.communicate(timeout=300)
    assert trial.returncode == status and err.count("\n") == 1 and said in err, err
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert not list(tmp_path.glob("tmp*")), "and no file either"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def odd(*_, **__):
    raise OSError("encoder error -2 when writing image file")


NO_ROOM = {"a picture": ("PIL.Image.Image.save", full, "100k/100k"), "a picture, in Pillow's words": ("PIL.Image.Image.save", odd, "100k/100k"),
           "the list": ("pathlib.Path.write_text", full, "100k/100k"), "what comes home": ("shutil.copyfile", full, "tried")}


@pytest.mark.parametrize("place, fail, named", NO_ROOM.values(), ids=NO_ROOM)
def test_a_trial_without_room_names_the_disk_that_is_full(folder, capfd, monkeypatch, place, fail, named):
    """And not stdout, which took what was printed; no old trial is taken for the new one."""
    def run_notebook(text, folder, signals):
        (folder / "working/a.txt").touch()
        return "COMPLETE", ""

    monkeypatch.setattr(notebook_module, "run_notebook", run_notebook)
    monkeypatch.setattr("facegen_keras.toyfaces.ToyFaces", lambda count, size: np.zeros((2, 8, 8, 3), np.uint8))
    assert facegen(capfd, "kernel", "try", "--folder", folder)[0] == 0 and (folder / "tried/a.txt").exists()
    monkeypatch.setattr(place, fail)
    status, _, err = facegen(capfd, "kernel", "try", "--folder", folder)
    assert status == 2 and err.count("\n") == 1 and "stdout" not in err and named in err
    assert "No space left on device" in err or "encoder error -2" in err


def test_a_process_that_does_not_answer_is_not_called_killed(folder, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient").NotebookClient
    said = "Kernel didn't respond in 60 seconds"
    monkeypatch.setattr(client, "execute", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(said)))
    with pytest.raises(InputError, match=said):
        notebook_module.run_notebook((folder / "facegen.ipynb").read_text(), tmp_path)


@pytest.mark.parametrize("command", ["settings", "kernel status", "kernel pull", "kernel run", "train", "check x", "sample x"])
def test_any_command_that_is_interrupted_says_so_in_one_line(monkeypatch, capfd, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    group, name = (commands.commands["kernel"], command.split()[1]) if command.startswith("kernel") else (commands, command.split()[0])
    monkeypatch.setattr(group.commands[name], "callback", interrupted)
    assert facegen(capfd, *command.split()) == (130, "", "facegen: interrupted\n")


def as_before_the_move(folder):
    """The notebook of a folder as it was built when the kernel was one module."""
    path = folder / "facegen.ipynb"
    old = path.read_text().replace("from facegen_keras.kaggle import session", "from facegen_keras import kernel")
    path.write_text(old.replace("job = session.Job(", "job = kernel.Job(").replace("session.begin_session", "kernel.begin_session"))
    return path.read_text()


def test_a_folder_that_was_built_before_the_kernel_was_a_wing_is_read(server, tmp_path):
    job = Job(settings={"epochs": 3}, hours=2, begin=(1, 2), session=2)
    build(tmp_path / "kernel", job, "me")
    text = as_before_the_move(tmp_path / "kernel")
    assert "session.Job" not in text and find_job(text) == job
    build(tmp_path / "kernel", Job(settings={"epochs": 2}), "me")
    as_before_the_move(tmp_path / "kernel")
    server.execute, lines = one_epoch_each(2), []
    push_once(tmp_path / "kernel")
    assert chain(tmp_path / "kernel", lines) == "done" and len(server.kernels[REF]) == 2
    assert f"version 1 of {REF} is there already: going on from it" in lines


def test_push_without_credentials_says_where_they_go(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facegen(capfd, "kernel", "build")
    for command in ("push", "run"):
        status, _, err = facegen(capfd, "kernel", command)
        assert status == 2 and err.count("\n") == 1 and "~/.kaggle/access_token" in err and "KAGGLE_API_TOKEN" in err


# Pushing


def test_a_push_carries_what_the_folder_says(server, folder):
    lines = []
    assert push_once(folder, lines) == 1
    [version] = server.kernels[REF]
    assert version.text == (folder / "facegen.ipynb").read_text()
    sent = version.request
    assert (sent["machineShape"], sent["isPrivate"], sent["enableInternet"]) == ("NvidiaTeslaT4", True, False)
    assert (sent["datasetDataSources"], sent["sessionTimeoutSeconds"]) == ([DATASET], 10.5 * 3600)
    assert lines[0].startswith("this session may cost 10.5 h of GPU quota; 30.0 h are left until ") and len(lines) == 1


ACCEPTED = ["accepted_then_500", "accepted_then_empty", "accepted_then_silence", "accepted_then_disconnect"]
LOST = ["server_error", "too_many_requests", "html", "empty", "silence", "disconnect"]
REFUSED = {"forbidden": "403", "unauthorized": "credentials that it accepts", "bad_request": "400", "not_found": "404"}


@pytest.mark.parametrize("fault", sorted({*LOST} - {"empty"}))  # an empty answer says: of nobody
def test_whose_token_it_is_is_asked_again_where_the_answer_was_lost(server, fault):
    server.next("IntrospectToken", getattr(faults, fault))
    assert Kaggle().owner == "me"


@pytest.mark.parametrize("fault", ACCEPTED)
def test_a_push_that_was_accepted_is_found_and_not_repeated(server, folder, fault):
    server.next("SaveKernel", getattr(faults, fault))
    assert push_once(folder) == 1
    assert pushes(server) == 1 and len(server.kernels[REF]) == 1


@pytest.mark.parametrize("fault", ["server_error", "bad_request", "html", "disconnect", "unauthorized", "empty"])
def test_an_accepted_push_that_cannot_be_read_back_is_pushed(server, folder, fault):
    lines = []
    server.next("GetKernel", faults.honest, *[getattr(faults, fault)] * 8)
    assert push_once(folder, lines) == 1
    assert lines[-1].startswith("take care: what Kaggle made of the settings is not known: ") and pushes(server) == 1


@pytest.mark.parametrize("fault", LOST)
def test_a_push_that_did_not_arrive_is_said_so_and_not_repeated(server, folder, fault):
    server.next("SaveKernel", getattr(faults, fault))
    with pytest.raises(KaggleTrouble, match="Kaggle"):
        push_once(folder)
    assert pushes(server) == 1 and not server.kernels.get(REF)
    assert push_once(folder) == 1, "and a person may try again"


@pytest.mark.parametrize("fault", REFUSED)
def test_a_push_that_is_refused_by_its_status_is_not_looked_for(server, folder, fault):
    server.next("SaveKernel", getattr(faults, fault))
    with pytest.raises(InputError, match=REFUSED[fault]):
        push(Kaggle(), folder, 10, [].append, patience=1000)
    assert pushes(server) == 1


def test_a_version_of_somebody_else_is_not_taken_for_ours(server, folder):
    """Pushed on the website, say, while our answer was lost."""
    push_once(folder)
    server.finish(REF, "COMPLETE")
    original = server.SaveKernel

    def another(body):
        return original(body | {"text": json.dumps({"metadata": {"kernelspec": {"name": "python3"}}})})

    server.SaveKernel = another
    server.next("SaveKernel", faults.accepted_then_500)
    with pytest.raises(KaggleTrouble):
        push_once(folder)


def test_an_older_version_is_not_taken_for_the_one_that_was_lost(server, folder):
    push_once(folder)
    server.finish(REF, "COMPLETE")
    server.next("SaveKernel", faults.server_error)
    with pytest.raises(KaggleTrouble):
        push_once(folder)


def test_kaggles_own_words_are_passed_on(server, folder):
    server.next("SaveKernel", faults.error("Notebook is too beautiful"))
    with pytest.raises(InputError, match="Notebook is too beautiful"):
        push_once(folder)
    server.datasets.clear()
    server.next("GetKernel", faults.honest, faults.forbidden)  # after a first push it may not be seen for a while
    lines = []
    push_once(folder, lines)
    assert f"take care: {DATASET} is not attached" in lines and f"take care: Kaggle does not know {DATASET}" in lines


def test_another_machine_image_or_name_than_was_asked_for_is_said_so(server, folder):
    about = json.loads((folder / "kernel-metadata.json").read_text())
    (folder / "kernel-metadata.json").write_text(json.dumps(about | {"machine_shape": "NvidiaTeslaP100"}))
    lines = []
    push_once(folder, lines)
    assert "take care: it runs on NvidiaTeslaT4 instead of NvidiaTeslaP100" in lines
    server.finish(REF, "COMPLETE")
    (folder / "kernel-metadata.json").write_text(json.dumps(about | {"docker_image": "gcr.io/kaggle-images/python@sha256:1"}))
    changed = faults.edited(lambda answer: answer | {"metadata": answer["metadata"] | {"dockerImage": "another"}})
    stale = faults.edited(lambda answer: answer | {"metadata": answer["metadata"] | {"currentVersionNumber": 1, "dockerImage": "old"}})
    server.next("GetKernel", faults.honest, stale, changed)
    server.next("SaveKernel", faults.edited(lambda answer: answer | {"ref": "/code/me/something-else"}))
    push_once(folder, lines)
    assert lines.count("take care: it runs on another docker image than the session before") == 1
    assert [request.method for request in server.requests[-2:]] == ["GetKernel"] * 2, "the stale answer was not believed"
    assert "take care: Kaggle has named it me/something-else" in lines
    assert not any("Kaggle has named it me/face" in line for line in lines)


def test_what_would_be_refused_or_run_twice_is_not_pushed(server, folder):
    push_once(folder)
    for start in (lambda: None, lambda: server.start(REF)):
        start()
        with pytest.raises(InputError, match="no session that is running, got 'version 1 running"):
            push_once(folder)
    server.finish(REF, "COMPLETE")
    for name in ("first", "other"):
        build(folder.parent / name, Job(slug=f"{name}-kernel"), "me")
        push_once(folder.parent / name)
    with pytest.raises(InputError, match="fewer than two GPU sessions running, got 'me/"):
        push_once(folder)
    server.finish("me/first-kernel", "COMPLETE")
    server.finish("me/other-kernel", "CANCEL_ACKNOWLEDGED")
    build(folder.parent / "short", Job(slug="short-kernel", hours=8), "me")
    push(Kaggle(), folder.parent / "short", 8, [].append)
    server.quota_used = timedelta(hours=13.5)  # and 8.5 more are reserved for the one that runs
    with pytest.raises(InputError, match="GPU quota: expected 10.5 hours for a session, got '8.0 hours left'"):
        push_once(folder)
    assert pushes(server) == 4


# Bringing it home


@pytest.fixture
def ended(server, folder):
    """A version with what a session of three epochs leaves, for which files may be added."""
    push_once(folder)

    def end(**more):
        server.finish(REF, "COMPLETE", outputs=left_behind(3) | more, log="epoch 3/60\n")

    return end


def fetch_all(folder, lines=None):
    pull(Kaggle(), REF, 1, folder, (lines if lines is not None else []).append)


def test_two_pages_of_files_come_home_and_only_what_is_missing_is_fetched_again(server, ended, tmp_path):
    ended(**{f"pictures/{number:03d}.png": bytes([number % 256]) for number in range(210)})
    fetch_all(tmp_path / "home")
    assert sum(path.is_file() for path in (tmp_path / "home").rglob("*")) == 214
    assert (tmp_path / "home/pictures/209.png").read_bytes() == bytes([209])
    (tmp_path / "home/run/status.json").write_text("damaged")
    server.requests.clear()
    fetch_all(tmp_path / "home")
    again = [request.body["file"] for request in server.requests if request.method == "File"]
    assert "run/status.json" in again and not any(name.endswith(".npz") for name in again)


@pytest.mark.parametrize("name", ["../outside", "/tmp/facegen-outside", "a\\..\\outside", "a/../../outside"])
def test_a_name_that_leads_outside_fetches_nothing(server, ended, tmp_path, name):
    ended(**{name: b"outside"})
    with pytest.raises(InputError, match="names inside the output's folder"):
        fetch_all(tmp_path / "home")
    assert not (tmp_path / "outside").exists() and not (tmp_path / "home").exists()


def test_an_error_page_never_becomes_a_checkpoint(server, ended, tmp_path):
    name = "run/checkpoints/epoch_0003_step_000000.npz"
    ended()
    for fault in (faults.forbidden, faults.not_found):
        server.next(f"File {name}", fault)
        with pytest.raises(KaggleTrouble, match="Kaggle answered with 40[34] for epoch_0003"):
            fetch_all(tmp_path / "home")
    server.next(f"File {name}", faults.html, faults.html, faults.html)
    with pytest.raises(KaggleTrouble, match="is not what the session wrote"):
        fetch_all(tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*.npz*"))
    server.next(f"File {name}", faults.truncated, faults.server_error)
    fetch_all(tmp_path / "home")
    assert (tmp_path / "home" / name).read_bytes() == bytes(1003), "and what broke off is fetched again"


def test_what_the_session_wrote_and_kaggle_does_not_list_is_missed(server, ended, tmp_path):
    files = left_behind(3)
    del files["run/config.json"]
    push_files = files
    server.finish(REF, "COMPLETE", outputs=push_files)
    with pytest.raises(KaggleTrouble, match="does not list 1 files that the session wrote, such as run/config.json"):
        fetch_all(tmp_path / "home")


def test_a_link_in_the_folder_is_not_followed(server, ended, tmp_path):
    ended()
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home/run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a folder without links"):
        fetch_all(tmp_path / "home")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_checkpoints_of_an_earlier_chain_do_not_stay_beside_newer_ones(server, ended, tmp_path):
    old = tmp_path / "home/run/checkpoints/epoch_0009_step_000000.npz"
    old.parent.mkdir(parents=True)
    old.touch()
    ended()
    fetch_all(tmp_path / "home")
    assert [path.name for path in old.parent.iterdir()] == ["epoch_0003_step_000000.npz"]


FAILED = {"nothing": {}, "a notebook": {"__notebook__.ipynb": b"{}"}, "a log": {"run/log.jsonl": b"[]", "run/status.json": b"{}"},
          "an older run": left_behind(2)}


@pytest.mark.parametrize("left", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("status", ["ERROR", "CANCEL_ACKNOWLEDGED"])
def test_a_failed_session_takes_no_run_from_home_and_an_older_version_can_be_named(server, folder, ended, capfd, left, status):
    ended()
    pull = ("kernel", "pull", "--folder", folder)
    assert facegen(capfd, *pull)[0] == 0
    before = {path: path.read_bytes() for path in folder.glob("output/run/**/*") if path.is_file()}
    pushed_unasked(folder)
    server.finish(REF, status, outputs=left)
    status, out, _ = facegen(capfd, *pull)
    assert status == 0 and "version 2 left no run as far as the one in" in out and "--version" in out
    assert {path: path.read_bytes() for path in folder.glob("output/run/**/*") if path.is_file()} == before and len(before) == 3
    assert (folder / "output/__notebook__.ipynb").exists() == ("__notebook__.ipynb" in left), "what is no run comes"
    next(iter(before)).unlink()
    assert facegen(capfd, *pull, "--version", 1)[0] == 0 and all(path.read_bytes() == content for path, content in before.items())
    status, _, err = facegen(capfd, *pull, "--version", 3)
    assert status == 2 and err.count("\n") == 1 and "got 'version 3, which is in a state that Kaggle does not tell'" in err


@pytest.mark.parametrize("left", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("home", ["generator.keras", "samples/epoch_0060.png", "checkpoints/notes.txt"])
def test_a_run_at_home_without_checkpoints_is_not_replaced_by_a_failed_session(server, folder, ended, home, left):
    (folder / "home/run" / home).parent.mkdir(parents=True)
    for name in (home, "status.json", "config.json"):
        (folder / "home/run" / name).write_text("at home")
    server.finish(REF, "ERROR", outputs={"run/config.json": b"{}", **left})
    fetch_all(folder / "home")
    assert {path.read_text() for path in (folder / "home/run").rglob("*") if path.is_file()} == {"at home"}


@pytest.mark.parametrize("left", [".DS_Store", ".ipynb_checkpoints/status-checkpoint.json", "Thumbs.db"])
def test_what_other_programs_leave_at_home_is_no_run(server, folder, ended, left):
    (folder / "home/run" / left).parent.mkdir(parents=True)
    (folder / "home/run" / left).touch()
    server.finish(REF, "ERROR", outputs=left_behind(2))
    fetch_all(folder / "home")
    assert (folder / "home/run/checkpoints/epoch_0002_step_000000.npz").exists() and (folder / "home/run" / left).exists()


@pytest.mark.parametrize("copy", ["epoch_0009_step_000000-Copy1.npz", "epoch_0001_step_000000 (1).npz", "epoch_my_best.npz"])
def test_a_copy_of_a_checkpoint_is_kept_and_does_not_count(server, folder, ended, copy):
    ended()
    fetch_all(folder / "home")
    kept = folder / "home/run/checkpoints" / copy
    kept.write_text("mine")
    server.finish(REF, "ERROR", outputs=left_behind(4))
    fetch_all(folder / "home")
    assert {path.name for path in kept.parent.iterdir()} == {copy, "epoch_0004_step_000000.npz"} and kept.read_text() == "mine"


@pytest.mark.parametrize("here, there", [(9_999, 10_000), (9_999, 12_345), (99, 100)])
def test_checkpoints_are_compared_by_their_numbers(server, folder, ended, here, there):
    server.finish(REF, "COMPLETE", outputs=left_behind(here))
    fetch_all(folder / "home")
    server.finish(REF, "ERROR", outputs=left_behind(there))
    fetch_all(folder / "home")
    assert [path.name for path in folder.glob("home/run/checkpoints/*")] == [f"epoch_{there:04d}_step_000000.npz"]


def test_a_list_of_digests_of_another_session_does_not_stay(server, ended, tmp_path):
    ended()
    fetch_all(tmp_path / "home")
    shutil.rmtree(tmp_path / "home/run")
    server.finish(REF, "COMPLETE", outputs={"run/config.json": b"{}"})
    fetch_all(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()] == ["config.json"]


@pytest.mark.parametrize("fault, name", [("forbidden", "run/status.json"), ("disconnect", "run/status.json"),
                                         ("truncated", "run/checkpoints/epoch_0004_step_000000.npz"), ("forbidden", session_module.SUMS)])
def test_a_pull_that_breaks_off_leaves_the_run_at_home_as_it_is(server, folder, ended, fault, name):
    home = folder / "home"
    ended()
    fetch_all(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != session_module.SUMS}
    server.finish(REF, "COMPLETE", outputs=left_behind(4))
    server.next(f"File {name}", *[getattr(faults, fault)] * (1 if fault == "forbidden" else 3))
    with pytest.raises(KaggleTrouble):
        fetch_all(home)
    assert {path: path.read_bytes() for path in before} == before
    fetch_all(home)
    assert [path.name for path in home.glob("run/checkpoints/*")] == ["epoch_0004_step_000000.npz"]
    assert not (home / ".arriving").exists()


def test_kaggle_is_not_asked_again_before_it_wants_to_be(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    account = Kaggle()
    server.next("GetKernel", faults.too_many_requests, faults.server_error)
    service_module.newest_version(account, REF)
    assert pauses == [7.0, 0.02]
    server.next("GetKernel", *[faults.empty] * 9)
    with pytest.raises(KaggleTrouble, match="is empty"):
        service_module.newest_version(account, REF)


def test_a_checkpoint_without_a_list_of_digests_must_prove_itself(server, ended, tmp_path):
    ended(**{session_module.SUMS: b""})
    with pytest.raises(InputError, match="damaged"):
        fetch_all(tmp_path / "home")


def test_status_and_pull_as_commands(server, folder, capfd):
    assert "no version" in facegen(capfd, "kernel", "status", "--folder", folder)[1]
    assert facegen(capfd, "kernel", "push", "--folder", folder)[0] == 0
    assert "version 1: waits for a machine" in facegen(capfd, "kernel", "status", "--folder", folder)[1]
    server.start(REF)
    server.next("GetKernelSessionStatus", faults.status("DREAMING"))
    assert "in a state that Kaggle does not tell" in facegen(capfd, "kernel", "status", "--folder", folder)[1]
    status, _, err = facegen(capfd, "kernel", "pull", "--folder", folder)
    assert status == 2 and "whose session has ended, got 'version 1, which runs'" in err
    server.finish(REF, "COMPLETE", outputs=left_behind(7), log="epoch 7/60\n")
    _, out, _ = facegen(capfd, "kernel", "status", "--folder", folder)
    assert "ended well" in out and "epoch 7/60" in out and "its run is paused at epoch 7, step 0" in out
    status, out, _ = facegen(capfd, "kernel", "pull", "--folder", folder)
    assert status == 0 and (folder / "output/run/status.json").exists()


# The chain


def chain(folder, lines=None, **changes):
    return run_chain(folder, changes, Kaggle(), (lines if lines is not None else []).append, **FAST)


def outcomes(folder):
    return [session["outcome"] for session in SessionChain(folder).sessions]


def test_a_chain_goes_on_until_all_epochs_are_trained(server, tmp_path):
    server.execute, lines = one_epoch_each(4), []
    assert chain(tmp_path / "kernel", lines) == "done"
    assert outcomes(tmp_path / "kernel") == ["paused"] * 3 + ["finished"]
    assert [begin_of(version) for version in server.kernels[REF]] == [None, (1, 0), (2, 0), (3, 0)]
    assert [version.kernel_sources for version in server.kernels[REF]] == [[], [REF], [REF], [REF]]
    assert {version.request.get("dockerImage") for version in server.kernels[REF][1:]} == {server.latest_image}
    asked = [request.body for request in server.requests if request.method.endswith(("SessionStatus", "SessionOutput"))]
    assert all(body.get("versionLabel") for body in asked), "without it Kaggle may speak of the version before"
    assert "  epoch 3/4" in lines and sum("of GPU quota; " in line for line in lines) == 4
    assert (tmp_path / "kernel/output/run/checkpoints/epoch_0004_step_000000.npz").exists()
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 4, "nothing is left to do"


def with_sessions(server, *special):
    """The honest sessions, but for some of them: number, what it returns."""
    server.execute = sessions_but(one_epoch_each(3), special)


def test_a_session_that_dies_without_output_costs_that_session(server, tmp_path):
    with_sessions(server, (2, DIED))
    lines = []
    assert chain(tmp_path / "kernel", lines) == "done"
    assert outcomes(tmp_path / "kernel") == ["paused", "brought nothing", "paused", "finished"]
    assert [begin_of(version) for version in server.kernels[REF]] == [None, (1, 0), (1, 0), (2, 0)]
    assert any(line.startswith("session 2 brought nothing") for line in lines)


def test_a_first_session_that_dies_leaves_nothing_to_attach(server, tmp_path):
    with_sessions(server, (1, DIED))
    assert chain(tmp_path / "kernel") == "done"
    assert [version.kernel_sources for version in server.kernels[REF]] == [[], [], [REF], [REF]]


def test_two_that_die_in_a_row_stop_the_chain_and_a_person_may_start_it_again(server, tmp_path):
    with_sessions(server, (2, DIED), (3, DIED))
    assert chain(tmp_path / "kernel").startswith("2 sessions in a row brought nothing")
    assert pushes(server) == 3 and (tmp_path / "kernel/output/run/status.json").exists(), "what there is is brought home"
    assert chain(tmp_path / "kernel") == "done"


@pytest.mark.parametrize("fault", ["empty", "older"])
def test_a_mount_that_serves_too_little_is_noticed_and_tried_again(server, tmp_path, fault):
    server.execute, lines = one_epoch_each(4), []
    server.next(f"Mount {REF}", faults.honest, getattr(faults, fault))
    assert chain(tmp_path / "kernel", lines) == "done"
    assert outcomes(tmp_path / "kernel") == ["paused", "paused", "refused", "paused", "finished"]
    assert any(line.startswith("session 3 refused: the ") and line.endswith("push again") for line in lines)


def test_a_session_that_went_backwards_stops_the_chain(server, tmp_path):
    with_sessions(server, (3, ("COMPLETE", left_behind(1), "")))
    reason = chain(tmp_path / "kernel")
    assert reason == "session 3 went backwards: it is at epoch 1, step 0 and was at epoch 2, step 0"
    assert outcomes(tmp_path / "kernel") == ["paused", "paused", "went backwards"] and pushes(server) == 3


@pytest.mark.parametrize("output", [{}, {"run/status.json": b"{"}, {"run/status.json": b"[]"}], ids=["none", "damaged", "odd"])
def test_a_session_that_ends_well_without_a_run_would_be_mounted_and_stops_the_chain(server, tmp_path, output):
    with_sessions(server, (2, ("COMPLETE", output, "")))
    assert "delete that version on its website" in chain(tmp_path / "kernel")
    assert outcomes(tmp_path / "kernel") == ["paused", "left no run"]
    assert (tmp_path / "kernel/output/run/checkpoints/epoch_0001_step_000000.npz").exists()


def test_a_session_that_got_no_further_counts_as_nothing(server, tmp_path):
    with_sessions(server, (2, ("COMPLETE", left_behind(1), "")))
    assert chain(tmp_path / "kernel") == "done"
    assert outcomes(tmp_path / "kernel") == ["paused", "brought nothing", "paused", "finished"]


def test_a_session_that_somebody_has_stopped_stops_the_chain(server, tmp_path):
    with_sessions(server, (2, ("CANCEL_ACKNOWLEDGED", {}, "")))
    assert chain(tmp_path / "kernel").startswith("session 2 cancelled: it was stopped on")
    assert pushes(server) == 2


def test_a_kernel_that_was_deleted_on_kaggle_stops_the_chain(server, tmp_path, monkeypatch):
    monkeypatch.setattr(chain_module, "PATIENCE", 0.2)
    honest = one_epoch_each(3)

    def delete_it(version, mounts):
        if version.number == 2:
            server.kernels.pop(REF)
        return honest(version, mounts)

    server.execute = delete_it
    assert "does not show version 2" in chain(tmp_path / "kernel")
    assert outcomes(tmp_path / "kernel") == ["paused", "vanished"]


def test_a_session_that_failed_with_files_says_that_they_are_not_mounted(server, tmp_path):
    with_sessions(server, (2, ("ERROR", left_behind(2), "[stderr] Traceback\n")))
    lines = []
    assert chain(tmp_path / "kernel", lines) == "done"
    assert any("the 4 files that it left are not mounted for the next" in line for line in lines)


def test_a_refusal_is_read_from_either_stream(server, tmp_path):
    with_sessions(server, (2, ("ERROR", {}, "[stderr] --------\n[stderr] facegen: no GPU\n[stderr] SessionError: no GPU\n")))
    lines = []
    assert chain(tmp_path / "kernel", lines) == "done" and "session 2 refused: no GPU" in lines
    assert not any("SessionError" in line for line in lines)


def test_a_log_that_is_odd_or_cut_off_is_read_as_far_as_it_goes():
    entries = [{"stream_name": "stdout", "time": 1.0, "data": text} for text in ('a {"b"},\n', None, "c]\n")]
    whole = json.dumps(entries)
    assert service_module.read_log(whole) == service_module.read_log(whole[:-1]) == ['a {"b"},', "c]"]
    assert service_module.read_log(whole[:-9]) == ['a {"b"},'] and service_module.read_log("") == [] == service_module.read_log("<html>")


def pushed_from_elsewhere(server, folder, *ends):
    """Versions without a record: the beginning of each, how it ended."""
    for number, (begin, end) in enumerate(ends, 1):
        build(folder, Job(session=number, begin=begin, settings={"epochs": 5}), "me")
        pushed_unasked(folder)
        server.finish(REF, *end)


LAST = {"cancelled": ("CANCEL_ACKNOWLEDGED", {}, ""), "failed": DIED, "failed with files": ("ERROR", left_behind(4), ""),
        "refused": ("ERROR", {}, "facegen: the mount came up empty; push again\n"), "only saved": ("NEW_SCRIPT", {}, "")}


@pytest.mark.parametrize("end", LAST.values(), ids=LAST)
def test_a_chain_whose_record_is_lost_never_begins_again(server, folder, end):
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left_behind(1))), ((1, 0), ("COMPLETE", left_behind(2))),
                          ((2, 0), ("COMPLETE", left_behind(3))), ((3, 0), end))
    server.execute = one_epoch_each(5)
    assert [chain(folder) for _ in range(2)][-1] == "done"
    assert [begin_of(version) for version in server.kernels[REF][4:]] == [(3, 0), (4, 0)]


@pytest.mark.parametrize("end", LAST.values(), ids=LAST)
def test_a_session_from_nothing_that_left_none_does_not_hide_the_run_before_it(server, folder, end):
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left_behind(3))), (None, end), (None, end))
    server.execute = one_epoch_each(5)
    assert [chain(folder) for _ in range(2)][-1] == "done"
    assert [begin_of(version) for version in server.kernels[REF][3:]] == [(3, 0), (4, 0)]


@pytest.mark.parametrize("asked", range(5))
@pytest.mark.parametrize("method", ["GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"])
def test_a_version_that_is_hidden_for_a_moment_is_not_taken_for_none(server, folder, method, asked):
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left_behind(3))), (None, DIED))
    server.execute = one_epoch_each(5)
    server.next(method, *[faults.honest] * asked, faults.forbidden)
    for _ in range(2):
        with contextlib.suppress(InputError, KaggleTrouble):
            chain(folder)
    assert chain(folder) == "done" and [begin_of(version) for version in server.kernels[REF][2:]] == [(3, 0), (4, 0)]


@pytest.mark.parametrize("end", LAST.values(), ids=LAST)
def test_a_run_that_is_finished_is_done_whatever_came_after_it(server, folder, end):
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left_behind(5, 0, "finished", ""))), (None, end))
    server.execute = one_epoch_each(6)
    assert [chain(folder) for _ in range(2)][-1] == "done" and len(server.kernels[REF]) == 2
    assert (folder / "output/run/checkpoints/epoch_0005_step_000000.npz").exists()


FIRST = {"refused": None, "cancelled": ("CANCEL_ACKNOWLEDGED", {}, ""), "failed": DIED, "only saved": ("NEW_SCRIPT", {}, "")}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_chain_whose_first_session_brought_nothing_goes_on_with_what_was_pushed_by_hand(server, folder, first, seconds):
    """The session by hand has ended, or runs still, when the chain is started again."""
    honest, by_hand = one_epoch_each(5), []

    def session(version, mounts):
        if version.number in by_hand:
            time.sleep(seconds)
            return "COMPLETE", left_behind(3), ""
        return honest(version, mounts) if by_hand else first

    server.execute = session
    if first is None:
        server.next("SaveKernel", faults.error("Maximum weekly GPU quota of 30.00 hours reached."))
    with contextlib.suppress(InputError):
        chain(folder, settings={"epochs": 5})
    by_hand.append(len(server.kernels.get(REF, [])) + 1)
    push_once(folder)
    if not seconds:
        server.wait(REF)
    assert chain(folder) == "done"
    assert [begin_of(version) for version in server.kernels[REF][by_hand[0]:]] == [(3, 0), (4, 0)]


def saved_on_the_website(server):
    """A quick save of a notebook without a job."""
    notebook = json.dumps({"cells": [], "metadata": {"kernelspec": {"name": "python3"}}})
    server.SaveKernel({"slug": REF, "newTitle": "face-gan-celeba", "text": notebook, "kernelType": "notebook",
                       "kernelExecutionType": "QUICK_SAVE"})


BEFORE = {"paused": left_behind(3), "finished": left_behind(3, 0, "finished", ""), "diverged": left_behind(3, 0, "diverged", "NaN"),
          "ended by an error": left_behind(3, 0, "running", "")}


@pytest.mark.parametrize("left", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("after", ["nothing", "failed", "cancelled", "saved", "another job"])
def test_a_push_from_nothing_after_a_run_is_refused(server, folder, left, after):
    later = {"failed": [((3, 0), DIED)], "cancelled": [(None, LAST["cancelled"])]}.get(after, [])
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left)), *later)
    if after == "saved":
        saved_on_the_website(server)
    if after == "another job":  # of another version of this package
        server.kernels[REF][0].text = server.kernels[REF][0].text.replace("'epochs': 5", "'epocs': 5")
    before = len(server.kernels[REF])
    build(folder, Job(settings={"epochs": 5}), "me")
    with pytest.raises(InputError, match="a session that goes on after epoch 3, step 0, as version 1 left it, got 'one that begins a run'"):
        push_once(folder)
    server.execute = one_epoch_each(5)
    with contextlib.suppress(InputError):
        chain(folder)
    assert None not in [begin_of(version) for version in server.kernels[REF][before:]]


@pytest.mark.parametrize("status", [b"{", b"[]", None], ids=["damaged", "odd", "none"])
def test_a_push_from_nothing_after_a_run_that_cannot_be_read_is_refused(server, folder, status):
    left = {name: content for name, content in left_behind(3).items() if name != session_module.SUMS}
    left = left | {"run/status.json": status} if status else {name: left[name] for name in left if "status" not in name}
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left)), (None, DIED))
    build(folder, Job(settings={"epochs": 5}), "me")
    server.execute = one_epoch_each(5)
    for push_it in (push_once, chain):
        with pytest.raises(InputError, match="versions whose runs can be read, before a session begins a run, got 'version 1'"):
            push_it(folder)
    assert len(server.kernels[REF]) == 2


def test_a_run_that_was_deleted_on_the_website_does_not_keep_another_from_beginning(server, folder):
    pushed_from_elsewhere(server, folder, (None, ("COMPLETE", left_behind(3))), (None, DIED))
    deleted, last = server.kernels[REF]
    server.kernels[REF] = [last]
    assert push_once(folder)


def test_a_session_that_an_error_ended_after_some_epochs_is_gone_on_with(server, folder):
    with_sessions(server, (1, ("COMPLETE", left_behind(1, 0, "running", ""), "facegen: ValueError: a picture\n")))
    assert chain(folder) == "done" and [begin_of(version) for version in server.kernels[REF]] == [None, (1, 0), (2, 0)]


def test_what_was_pushed_by_hand_is_taken_over(server, folder):
    server.execute = one_epoch_each(3)
    push_once(folder)
    lines = []
    assert chain(folder, lines) == "done" and len(server.kernels[REF]) == 3
    assert f"version 1 of {REF} is there already: going on from it" in lines
    (folder / "chain.json").unlink()
    assert chain(folder) == "done" and len(server.kernels[REF]) == 3, "on another laptop, nothing is trained again"
    (folder / "chain.json").unlink()
    with pytest.raises(InputError, match="which holds something else"):
        chain(folder, settings={"width": 32})


def test_a_folder_of_somebody_else_is_not_pushed(server, tmp_path):
    build(tmp_path / "kernel", Job(), "you")
    with pytest.raises(InputError, match="a kernel of me, whose credentials are used, got 'you/"):
        push_once(tmp_path / "kernel")
    assert pushes(server) == 0


@pytest.mark.parametrize("record", ["{", "[1]", '{"kernel": "me/x"}', '{"kernel": 1, "image": "", "job": {"x": 1}, "sessions": []}'])
def test_a_damaged_record_is_not_passed_over(server, folder, record):
    (folder / "chain.json").write_text(record)
    with pytest.raises(InputError, match="the record of a chain, got 'a damaged file'"):
        chain(folder)
    assert pushes(server) == 0


def test_losses_beyond_saving_stop_the_chain(server, tmp_path):
    with_sessions(server, (2, ("COMPLETE", left_behind(1, 40, "diverged", "try smaller rates"), "")))
    assert chain(tmp_path / "kernel") == "session 2 diverged: try smaller rates"


def test_quota_that_runs_out_stops_it_and_the_next_week_goes_on(server, tmp_path):
    lines, first = [], one_epoch_each(3)
    server.quota_used = timedelta(hours=20.4)

    def and_use_it(version, mounts):
        server.quota_used += timedelta(hours=9)
        return first(version, mounts)

    server.execute = and_use_it
    with pytest.raises(InputError, match=r"GPU quota: .* run this again after"):
        chain(tmp_path / "kernel", lines)
    assert outcomes(tmp_path / "kernel") == ["paused"]
    assert "'hours': 9.1" in server.kernels[REF][0].text, "what is left of the week is used"
    assert (tmp_path / "kernel/output/run/checkpoints/epoch_0001_step_000000.npz").exists(), "and what there is comes home"
    server.quota_used, server.execute = timedelta(0), first
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 3


STOPS = {"no quota": "GPU quota: ", "cancelled": "session 2 cancelled: ", "no credentials": "credentials that it accepts"}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("trouble", ["a:b", "../a", "a file in the way"])
def test_an_output_that_cannot_come_home_does_not_hide_why_the_chain_stops(server, tmp_path, stop, trouble):
    lines, first = [], one_epoch_each(3)

    def session(version, mounts):
        if version.number == 2:
            return LAST["cancelled"]
        server.quota_used = timedelta(hours=29.5 if stop == "no quota" else 0)
        if stop == "no credentials":
            server.next("SaveKernel", faults.unauthorized)
        status, files, log = first(version, mounts)
        return status, files | ({trouble: b""} if trouble != "a file in the way" else {}), log

    server.execute = session
    if trouble == "a file in the way":
        (tmp_path / "kernel").mkdir()
        (tmp_path / "kernel/output").touch()
    try:
        reason = chain(tmp_path / "kernel", lines)
    except InputError as error:
        reason = str(error)
    assert STOPS[stop] in reason and any(line.endswith(": the output was not fetched") for line in lines)


@pytest.mark.parametrize("first, then, outcome", [("CANCEL_REQUESTED", "RUNNING", "cancelled"), ("UNKNOWN", "RUNNING", "vanished"),
                                                  ("UNKNOWN", "QUEUED", "vanished"), ("CANCEL_REQUESTED", "COMPLETE", "cancelled")])
def test_a_session_is_judged_by_the_state_in_which_it_was_left(server, tmp_path, monkeypatch, first, then, outcome):
    """After an hour of waiting, which is none here."""
    states = [first, *[then] * 9]  # and no more: nothing is followed for ever
    monkeypatch.setattr(chain_module, "session_status", lambda *_: (states.pop(0), ""))
    monkeypatch.setattr(chain_module, "PATIENCE", -1)
    assert chain(tmp_path / "kernel").startswith(f"session 1 {outcome}: ")


def test_other_settings_do_not_get_into_a_chain(server, tmp_path):
    server.execute = one_epoch_each(2)
    chain(tmp_path / "kernel", settings={"epochs": 2})
    with pytest.raises(InputError, match="--set width: expected 64, with which this chain was begun, got 32"):
        chain(tmp_path / "kernel", settings={"width": 32})
    assert chain(tmp_path / "kernel", settings={"epochs": 2}) == "done"
    assert chain(tmp_path / "kernel", hours=3) == "done" and pushes(server) == 2, "what is not given is as it was"
    server.execute = one_epoch_each(3)
    assert chain(tmp_path / "kernel", settings={"epochs": 3}, hours=2) == "done"
    assert begin_of(server.kernels[REF][2]) == (2, 0) and "'hours': 2" in server.kernels[REF][2].text


def test_a_run_out_of_patience_is_done_and_goes_on_with_more_of_it(server, tmp_path):
    """It has ended within its second epoch, of ten."""
    reason, lines, patient = "patience=2: the last 2 measurements came no nearer than 40.3", [], {"epochs": 10, "patience": 2}
    server.execute = sessions_but(one_epoch_each(10), {2: ("COMPLETE", left_behind(1, 7, "finished", reason), "")})
    for settings in (patient, patient, {"patience": 1}):
        assert chain(tmp_path / "kernel", lines, settings=settings) == "done" and pushes(server) == 2
    assert f"session 2 finished: {reason}" in lines
    server.execute = lambda version, mounts: ("COMPLETE", left_behind(10, 0, "finished", ""), "")
    assert chain(tmp_path / "kernel", settings={"patience": None}) == "done" and pushes(server) == 3
    assert begin_of(server.kernels[REF][2]) == (1, 7) and "'patience': None" in server.kernels[REF][2].text


def test_the_record_keeps_what_it_is_told_and_takes_no_other_training(tmp_path):
    record = SessionChain(tmp_path)
    record.begin(REF, Job(settings={"epochs": 60}))
    record.sessions.append({"number": 1, "outcome": None})
    record.note(record.sessions[0], outcome="finished")
    assert SessionChain(tmp_path).sessions == [{"number": 1, "outcome": "finished"}]
    record.change(Job(settings={"epochs": 60}, hours=3))
    assert SessionChain(tmp_path).record == record.record, "a change is on the disk as well"
    assert record.record["job"]["hours"] == 3 and record.sessions[0]["outcome"] == "finished"
    for other in ({"settings": {"epochs": 59}}, {"settings": {"width": 32}}, {"slug": "other-name"}, {"preset": "demo"}):
        with pytest.raises(InputError, match="with which this chain was begun"):
            record.change(Job(**other))
    record.change(Job(settings={"epochs": 80}))
    assert SessionChain(tmp_path).sessions == [{"number": 1, "outcome": "paused"}]


def test_what_was_built_is_what_is_run(server, tmp_path, capfd):
    server.execute = one_epoch_each(1)
    build(tmp_path / "kernel", Job(settings={"epochs": 1, "width": 32}, hours=3))
    chain(tmp_path / "kernel")
    assert "'width': 32" in server.kernels[REF][0].text and "'hours': 3" in server.kernels[REF][0].text


def test_a_wrong_option_leaves_nothing_behind(server, tmp_path, capfd):
    for wrong in (["--dataset", "nonsense"], ["--slug", "My Faces"], ["--set", "data=x"], ["--hours", "0"]):
        for command in ("build", "run"):
            status, _, err = facegen(capfd, "kernel", command, "--folder", tmp_path / "kernel", *wrong)
            assert status == 2 and err.count("\n") == 1 and wrong[0] in err
    assert not (tmp_path / "kernel").exists() and pushes(server) == 0


def test_a_bad_hour_of_kaggle_is_waited_for_and_no_longer(server, tmp_path, monkeypatch):
    server.execute, lines = one_epoch_each(2), []
    server.next("GetKernelSessionStatus", *[faults.server_error] * 9)
    assert chain(tmp_path / "kernel", lines) == "done" and any(line.endswith("; looking again") for line in lines)
    monkeypatch.setattr(chain_module, "PATIENCE", 0.3)
    server.next("GetKernel", *[faults.server_error] * 100)
    with pytest.raises(KaggleTrouble, match="get_kernel with 500"):
        chain(tmp_path / "other", slug="other-kernel")


LATE = {"GetKernelSessionStatus": faults.server_error, "ListKernelSessionOutput": faults.html, "GetKernel": faults.disconnect,
        "File run/status.json": faults.server_error,  # and those that are asked before the next push
        "GetAcceleratorQuotaStatistics": faults.server_error, "ListKernels": faults.html}


@pytest.mark.slow
@pytest.mark.parametrize("method", LATE)
def test_patience_counts_from_the_last_answer(server, tmp_path, monkeypatch, method):
    """The first session takes longer than an outage may; then an answer is lost."""
    monkeypatch.setattr(chain_module, "PATIENCE", 3.0)
    monkeypatch.setattr(Kaggle, "WAITS", (0.0, 0.0, 0.0))
    honest, lines = one_epoch_each(2), []

    def late(version, mounts):
        if version.number == 1:
            time.sleep(3.3)
            server.next(method, *[LATE[method]] * 4)
            time.sleep(0.2)
        return honest(version, mounts)

    server.execute = late
    assert chain(tmp_path / "kernel", lines) == "done" and pushes(server) == 2
    assert any(line.endswith("; looking again") for line in lines)
    assert sum(line == "  epoch 1/2" for line in lines) == 1, "and nothing is told twice"


@pytest.mark.parametrize("temporary", ["not there", "a file", "full"])
def test_a_chain_needs_no_temporary_folder(server, tmp_path, monkeypatch, temporary):
    (tmp_path / "a file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / temporary))
    if temporary == "full":
        monkeypatch.setattr(tempfile, "mkdtemp", full)
        monkeypatch.setattr(tempfile, "mkstemp", full)
    server.execute = one_epoch_each(2)
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 2


@pytest.mark.parametrize("pushed", [1, 2, 3])
def test_a_version_that_was_only_saved_is_not_followed_for_ever(server, tmp_path, pushed):
    honest = one_epoch_each(4)
    server.execute = lambda version, mounts: ("NEW_SCRIPT", {}, "") if version.number == pushed else honest(version, mounts)
    lines = []
    assert chain(tmp_path / "kernel", lines) == "done"
    assert outcomes(tmp_path / "kernel")[pushed - 1] == "brought nothing" and len(server.kernels[REF]) == 5
    assert f"session {pushed} brought nothing: it was saved on Kaggle, and not run" in lines


@pytest.mark.parametrize("checks", [1, 2])  # GetKernel: before the push, then the check; a chain has asked once more
@pytest.mark.parametrize("fault", ["unauthorized", "forbidden", "bad_request"])
def test_an_accepted_push_whose_check_is_refused_is_pushed(server, tmp_path, fault, checks):
    server.execute, lines = one_epoch_each(2, seconds=0.3), []
    server.next("GetKernel", faults.honest, faults.honest, *[getattr(faults, fault)] * checks)
    for _ in range(2 * checks - 1):  # a second refusal meets the next question, which needs its answer
        with contextlib.suppress(InputError, KaggleTrouble) if checks == 2 else contextlib.nullcontext():
            chain(tmp_path / "kernel", lines)
        assert outcomes(tmp_path / "kernel")[0] != "not pushed"
    assert outcomes(tmp_path / "kernel") == ["paused", "finished"]
    assert "not pushed" not in outcomes(tmp_path / "kernel") and len(server.kernels[REF]) == 2


@pytest.mark.parametrize("fault", ["accepted_then_500", "accepted_then_empty", "accepted_then_disconnect"])
def test_a_lost_answer_and_then_refused_credentials_leave_it_open_whether_it_was_pushed(server, tmp_path, fault):
    server.execute = one_epoch_each(2, seconds=0.3)
    server.next("SaveKernel", getattr(faults, fault))
    server.next("GetKernel", faults.honest, faults.honest, faults.unauthorized, faults.unauthorized)
    with pytest.raises(InputError, match="credentials that it accepts"):
        chain(tmp_path / "kernel")
    assert outcomes(tmp_path / "kernel") == [None]
    assert chain(tmp_path / "kernel") == "done" and len(server.kernels[REF]) == 2


GROWING = {"a refusal in the midst": "epoch 1/3\n[stderr] facegen: a picture is missing\nepoch 2/3\nepoch 3/3\n",
           "other errors": "[stderr] a\nepoch 1/3\n[stderr] b\nepoch 2/3\n[stderr] facegen: c\n",
           "empty lines": "\nepoch 1/3\n\n[stderr] facegen: one\n[stderr] facegen: two\nepoch 2/3\n"}


@pytest.mark.parametrize("log", GROWING.values(), ids=GROWING)
@pytest.mark.parametrize("cut", ["lines", "letters"])
def test_a_log_that_grows_gains_lines_at_its_end(log, cut):
    """Kaggle's entries may hold a line, or a few letters."""
    entries = []
    for line in log.splitlines(keepends=True):
        stream, text = ("stderr", line[9:]) if line.startswith("[stderr] ") else ("stdout", line)
        entries += [{"stream_name": stream, "data": part} for part in ([text] if cut == "lines" else text)]
    seen = []
    for count in range(len(entries) + 1):
        said = service_module.read_log(json.dumps(entries[:count]), ended=False)
        assert said[:len(seen)] == seen
        seen = said
    wanted = [line.removeprefix("[stderr] ") for line in log.splitlines() if not line.startswith("[stderr] ") or "facegen: " in line]
    assert seen == wanted == service_module.read_log(json.dumps(entries))


def test_a_followed_session_is_told_line_by_line(server, tmp_path):
    """Errors among what is printed, and an answer without its log in between."""
    log, lines = "epoch 1/1\n[stderr] facegen: a picture is missing\nsamples\nthe last line", []

    def session(version, mounts):
        for number in range(4):
            version.log = "".join(log.splitlines(keepends=True)[:number])
            time.sleep(0.15)
            if number == 2:
                server.next("ListKernelSessionOutput", faults.empty)
        return "COMPLETE", left_behind(1, 0, "finished", ""), log

    server.execute = session
    assert chain(tmp_path / "kernel", lines) == "done"
    assert [line[2:] for line in lines if line.startswith("  ")] == ["epoch 1/1", "facegen: a picture is missing", "samples", "the last line"]


@pytest.mark.parametrize("command", [["build"], ["build", "--set", "epochs=3"], ["push"], ["pull"], ["run"]], ids=" ".join)
def test_what_changes_the_folder_waits_for_the_chain_that_is_followed(server, folder, capfd, command):
    push_once(folder)
    server.finish(REF, "COMPLETE", outputs=left_behind(1))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with locked(folder):
        status, _, err = facegen(capfd, "kernel", *command, "--folder", folder)
        assert status == 2 and err.count("\n") == 1 and "a chain that no other process follows" in err
        assert facegen(capfd, "kernel", "status", "--folder", folder)[0] == 0
        assert facegen(capfd, "kernel", "pull", "--folder", folder, "--out", folder.parent / command[0])[0] == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "chain.lock"}
    assert after == before and pushes(server) == 1
    assert facegen(capfd, "kernel", "pull", "--folder", folder)[0] == 0


@pytest.mark.parametrize("out", ["{folder}/output", "{folder}/../kernel/output", "link/output", "kernel/output", "kernel/output/other"])
def test_a_pull_into_the_folder_waits_however_it_is_named(server, folder, capfd, monkeypatch, out):
    monkeypatch.chdir(folder.parent)
    Path("link").symlink_to("kernel")
    push_once(folder)
    server.finish(REF, "COMPLETE", outputs=left_behind(1))
    with locked(folder):
        status, _, err = facegen(capfd, "kernel", "pull", "--folder", folder, "--out", out.format(folder=folder))
    assert status == 2 and "a chain that no other process follows" in err and not (folder / "output").exists()


def test_a_push_sends_what_was_built_until_it_has_the_folder_to_itself(server, folder, capfd, monkeypatch):
    sign_in = Kaggle.__init__

    def slowly(self):
        sign_in(self)
        build(folder, Job(slug="other-kernel", hours=3))

    monkeypatch.setattr(Kaggle, "__init__", slowly)
    assert "version 1 of me/other-kernel: " in facegen(capfd, "kernel", "push", "--folder", folder)[1]
    assert list(server.kernels) == ["me/other-kernel"] and check_folder(folder)[0]["id"] == "me/other-kernel"
    assert server.kernels["me/other-kernel"][0].request["sessionTimeoutSeconds"] == 3.5 * 3600


def test_build_has_a_new_folder_to_itself(tmp_path, capfd, monkeypatch):
    def build_it(folder, job):
        with pytest.raises(InputError, match="a chain that no other process follows"), locked(folder):
            pass

    monkeypatch.setattr(notebook_module, "build", build_it)
    assert facegen(capfd, "kernel", "build", "--folder", tmp_path / "new")[0] == 0


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), OSError(37, "No locks available"), NotImplementedError()])
def test_a_folder_on_which_files_cannot_be_locked_is_named(folder, capfd, monkeypatch, error):
    def acquire(self, *arguments, **options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(InputError, match=f"{folder}: expected a folder on which files can be locked"), locked(folder):
        pass


READS = ["GetKernelSessionStatus", "ListKernelSessionOutput", "GetKernel", "GetAcceleratorQuotaStatistics", "ListKernels"]


@pytest.mark.parametrize("method", READS)
def test_a_bad_moment_of_kaggle_is_waited_for(server, tmp_path, method):
    server.execute = one_epoch_each(2)
    server.next(method, faults.server_error, faults.html, faults.disconnect, faults.html)
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 2


def test_a_state_that_the_client_does_not_know_is_waited_for(server, tmp_path):
    server.execute = one_epoch_each(2, seconds=0.3)
    server.next("GetKernelSessionStatus", faults.status("DREAMING"), faults.empty, faults.status(""))
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 2


@pytest.mark.parametrize("fault", ["accepted_then_500", "server_error", "accepted_then_disconnect"])
def test_a_push_in_the_chain_that_is_lost_is_settled_at_the_next_start(server, tmp_path, fault):
    server.execute = one_epoch_each(3)
    server.next("SaveKernel", faults.honest, getattr(faults, fault))
    try:
        assert chain(tmp_path / "kernel") == "done"
    except KaggleTrouble:
        assert chain(tmp_path / "kernel") == "done"
    assert len(server.kernels[REF]) == 3


@pytest.mark.slow
def test_two_who_follow_one_chain_are_one_too_many(server, tmp_path):
    server.execute = one_epoch_each(2, seconds=5)
    first = subprocess.Popen([sys.executable, SCRIPT, tmp_path / "kernel"], env={**os.environ, **server.environment()},
                             stdout=subprocess.PIPE, text=True)
    while "version 1" not in first.stdout.readline():
        assert first.poll() is None
    with pytest.raises(InputError, match="a chain that no other process follows"):
        chain(tmp_path / "kernel")
    first.kill()
    first.communicate()
    assert chain(tmp_path / "kernel") == "done" and pushes(server) == 2


KILLS = 10


@pytest.mark.slow
def test_killing_the_command_leads_to_no_second_session_and_no_lost_one(server, tmp_path):
    epochs, chance, kills = 8, random.Random(0), 0
    server.execute = one_epoch_each(epochs, seconds=0.5)
    environment = {**os.environ, **server.environment()}
    for _ in range(200):
        process = subprocess.Popen([sys.executable, SCRIPT, tmp_path / "kernel"], env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        process.stdout.readline()
        if kills < KILLS:
            time.sleep(0.8 * chance.random())
            process.kill()
            kills += process.wait() == -9
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
    assert kills == KILLS and process.returncode == 0
    assert [begin_of(version) for version in server.kernels[REF]] == [None, *((epoch, 0) for epoch in range(1, epochs))]
    assert [version.status for version in server.kernels[REF]] == ["COMPLETE"] * epochs
    assert [each for each in outcomes(tmp_path / "kernel") if each != "not pushed"] == ["paused"] * (epochs - 1) + ["finished"]


MOMENTS = {"before it was sent": False, "after it was accepted": True}


@pytest.mark.parametrize("sent", MOMENTS.values(), ids=MOMENTS)
def test_a_kill_in_the_midst_of_a_push(server, tmp_path, monkeypatch, sent):
    server.execute, original, killed = one_epoch_each(2), Kaggle.call, []

    def call(self, method, **fields):
        if method == "save_kernel" and not killed:
            killed.append(sent and original(self, method, **fields))
            raise KeyboardInterrupt  # stands for a kill: nothing is done after it
        return original(self, method, **fields)

    monkeypatch.setattr(Kaggle, "call", call)
    with pytest.raises(KeyboardInterrupt):
        chain(tmp_path / "kernel")
    assert outcomes(tmp_path / "kernel") == [None]
    assert chain(tmp_path / "kernel") == "done"
    assert [begin_of(version) for version in server.kernels[REF]] == [None, (1, 0)]


# Credentials


@pytest.mark.parametrize("how", ["token", "token file", "name and key", "kaggle.json"])
def test_each_kind_of_credentials_is_found(server, folder, monkeypatch, tmp_path, how):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    (tmp_path / "home/.kaggle").mkdir(parents=True)
    if how == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
    elif how == "token file":
        (tmp_path / "home/.kaggle/access_token").write_text(server.token + "\n")
    elif how == "name and key":
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", server.key)
    else:
        (tmp_path / "home/.kaggle/kaggle.json").write_text(json.dumps({"username": "me", "key": server.key}))
    assert Kaggle().owner == "me" and push_once(folder) == 1


def test_a_wrong_or_overlong_token_is_answered_in_one_line_without_it(server, folder, capfd, monkeypatch):
    for token in ("secret-but-wrong", "secret-" + "x" * 5000):
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
        status, out, err = facegen(capfd, "kernel", "push", "--folder", folder)
        assert status == 2 and err.count("\n") == 1 and "secret" not in out + err and "KAGGLE_API_TOKEN" in err


def test_no_credential_gets_into_any_line_or_file(server, tmp_path, capfd, monkeypatch):
    server.token = "KGAT_secret_token"
    monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
    server.execute, lines = one_epoch_each(2), []
    server.next("SaveKernel", faults.accepted_then_500)
    server.next("ListKernelSessionOutput", faults.honest, faults.html)
    server.next("File run/config.json", *[faults.truncated] * 3)
    assert chain(tmp_path / "kernel", lines) == "done"
    assert any("run/config.json" in line or "config.json broke off" in line for line in lines)
    server.finish(REF, "COMPLETE", outputs=left_behind(2))
    server.next("File run/config.json", *[faults.disconnect] * 3)
    with pytest.raises(KaggleTrouble) as caught:
        pull(Kaggle(), REF, 2, tmp_path / "home", lines.append)
    lines += [str(caught.value), repr(caught.value)]
    server.next("GetKernelSessionStatus", faults.unauthorized)
    build(tmp_path / "kernel", Job(), "me")
    shown = facegen(capfd, "kernel", "status", "--folder", tmp_path / "kernel")
    everything = "\n".join([*lines, *map(str, shown)]).encode()
    everything += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret_token" not in everything and b"signature" not in everything
    assert hashlib.sha256(everything) and b"epoch 1/2" in everything, "what was looked at is what was printed"


# Where Kaggle mounts things


@pytest.fixture
def kaggle_folder(tmp_path, monkeypatch):
    folder = tmp_path / "kaggle"
    (folder / "working").mkdir(parents=True)
    monkeypatch.setenv("FACEGEN_TRY", json.dumps({"folder": str(folder)}))
    return folder


@pytest.mark.parametrize("mount", ["celebrities-100k", "datasets/greg115/celebrities-100k", "d/greg115/celebrities-100k"])
def test_the_data_are_found_where_kaggle_mounts_them(kaggle_folder, mount):
    (kaggle_folder / "input" / mount).mkdir(parents=True)
    with pytest.raises(session_module.SessionError, match="or it came up empty"):
        session_module.find_data(Job())
    (kaggle_folder / "input" / mount / "100k.txt").touch()
    assert session_module.find_data(Job()) == kaggle_folder / "input" / mount


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_can_be_tried(kaggle_folder, monkeypatch, preset):
    """With few epochs, of which the last one plays."""
    monkeypatch.setenv("FACEGEN_TRY", json.dumps({"folder": str(kaggle_folder), "settings": notebook_module.TRIAL}))
    (kaggle_folder / "input/celebrities-100k").mkdir(parents=True)
    (kaggle_folder / "input/celebrities-100k/100k.txt").touch()
    config = session_module.session_config(Job(preset=preset))
    assert (config.epochs, config.width) == (2, 8) and config.redraw_epochs == min(1, RunConfig.preset(preset).redraw_epochs)
    monkeypatch.setenv("FACEGEN_TRY", json.dumps({"folder": str(kaggle_folder)}))
    assert session_module.session_config(Job(preset=preset)).redraw_epochs == RunConfig.preset(preset).redraw_epochs


@pytest.mark.parametrize("mount", ["face-gan-celeba", "notebooks/me/face-gan-celeba"])
def test_the_run_is_fetched_from_where_kaggle_mounts_it_and_only_if_it_is_as_far_as_it_should_be(kaggle_folder, mount):
    attached = kaggle_folder / "input" / mount / "run"
    with pytest.raises(session_module.SessionError, match="no run is attached"):
        session_module.fetch_run(Job(session=2, begin=(3, 7)))
    for name in ("config.json", "log.jsonl", "checkpoints/epoch_0003_step_000006.npz", "samples/epoch_0003.png"):
        (attached / name).parent.mkdir(parents=True, exist_ok=True)
        (attached / name).write_text(name)
        (attached / name).chmod(0o444)
    with pytest.raises(session_module.SessionError, match="older: it is at epoch 3, step 6"):
        session_module.fetch_run(Job(session=2, begin=(3, 7)))
    assert not (kaggle_folder / "working/run").exists()
    session_module.fetch_run(Job(session=2, begin=(3, 6)))
    copied = [path for path in (kaggle_folder / "working/run").rglob("*") if path.is_file()]
    assert len(copied) == 4 and all(path.stat().st_mode & 0o200 for path in copied), "what is attached is read-only"


def test_a_machine_that_will_not_do_is_refused_in_one_sentence(kaggle_folder, monkeypatch):
    session_module.check_machine()
    monkeypatch.setattr(session_module, "LEAST_DISK", 10**18)
    with pytest.raises(session_module.SessionError, match="4 GB of disk are needed"):
        session_module.check_machine()
    monkeypatch.setattr(session_module, "LEAST_VERSIONS", {"keras": "99.0"})
    with pytest.raises(session_module.SessionError, match="keras 99.0 or newer is needed, this image has"):
        session_module.check_machine()
    monkeypatch.undo()
    monkeypatch.setattr(session_module, "kaggle_folder", lambda: kaggle_folder)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(session_module.SessionError, match="no GPU: choose the accelerator GPU T4 x2"):
        session_module.check_machine()
