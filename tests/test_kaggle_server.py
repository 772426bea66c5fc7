"""The loopback server against the unmodified client: `kaggle` and `kagglesdk` as pip installs them, and the command."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import requests

from kaggle_server import KaggleServer, faults, slugify

REF = "me/face-gan"
DATASET = "me/faces-100k"
NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": "print(1)", "metadata": {}, "outputs": [], "execution_count": None}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
SDK = pytest.importorskip("kagglesdk.kernels.types.kernels_api_service")


@pytest.fixture
def server():
    with KaggleServer(datasets={DATASET: {"faces.csv": b"1,2"}}) as kaggle:
        yield kaggle


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """No credentials, no proxy and no endpoint but those that a test sets: nothing here may reach Kaggle."""
    for name in os.environ:
        if name.startswith(("KAGGLE_", "VERBOSE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "KAGGLE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def client(server, monkeypatch):
    """The `KaggleApi` class, pointed at the server before the import of `kaggle` can look for an account."""
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    for env in kaggle_env.KaggleEnv:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, env, server.url)
    from kaggle.api.kaggle_api_extended import KaggleApi

    monkeypatch.setattr(KaggleApi, "args", ["--local"])
    return KaggleApi


@pytest.fixture
def api(server, client, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
    api = client()
    api.authenticate()
    return api


def call(api, method: str, **fields):
    """One call of the SDK: `call(api, "get_kernel", user_name="me", kernel_slug="face-gan")`."""
    request = getattr(SDK, "Api" + "".join(word.title() for word in method.split("_")) + "Request")()
    for name, value in fields.items():
        setattr(request, name, value)
    with api.build_kaggle_client() as kaggle:
        return getattr(kaggle.kernels.kernels_api_client, method)(request)


def push(api, **fields):
    defaults = {"slug": REF, "new_title": "Face GAN", "text": json.dumps(NOTEBOOK), "language": "python"}
    defaults |= {"kernel_type": "notebook", "is_private": True, "enable_internet": False}
    defaults |= {"machine_shape": "NvidiaTeslaT4", "session_timeout_seconds": 36000}
    return call(api, "save_kernel", **defaults | fields)


def status(api, **fields):
    return call(api, "get_kernel_session_status", user_name="me", kernel_slug="face-gan", **fields).status


def outputs(api, **fields):
    return call(api, "list_kernel_session_output", user_name="me", kernel_slug="face-gan", **fields)


def newer(version: str) -> bool:
    """Whether the installed client is at least this one: 2.2.5 checks what it downloads, 2.2.4 did not."""
    import kaggle

    return tuple(map(int, kaggle.__version__.split("."))) >= tuple(map(int, version.split(".")))


# Push and read back


def test_a_push_is_read_back(server, api):
    response = push(api, dataset_data_sources=[DATASET], docker_image="gcr.io/kaggle-images/python@sha256:abc")
    assert (response.version_number, response.error, response.ref) == (1, "", f"/code/{REF}")
    assert json.loads(server.kernels[REF][0].text) == NOTEBOOK
    sent = server.requests[-1].body
    assert (sent["machineShape"], sent["sessionTimeoutSeconds"], sent["isPrivate"]) == ("NvidiaTeslaT4", 36000, True)

    kernel = call(api, "get_kernel", user_name="me", kernel_slug="face-gan")
    metadata = kernel.metadata
    assert (metadata.ref, metadata.current_version_number, metadata.is_private) == (REF, 1, True)
    assert (metadata.machine_shape, metadata.docker_image[-10:]) == ("NvidiaTeslaT4", "sha256:abc")
    assert (metadata.dataset_data_sources, metadata.enable_internet) == ([DATASET], False)
    assert json.loads(kernel.blob.source) == NOTEBOOK


def test_pull_writes_what_was_pushed(server, api, tmp_path):
    push(api, machine_shape="NvidiaTeslaP100", dataset_data_sources=[DATASET])
    api.kernels_pull(REF, str(tmp_path / "pulled"), metadata=True)
    pulled = json.loads((tmp_path / "pulled/kernel-metadata.json").read_text())
    assert (pulled["id"], pulled["dataset_sources"]) == (REF, [DATASET])
    assert pulled["machine_shape"] == "NvidiaTeslaT4"  # P100 is retired: Kaggle runs another machine and says nothing


def test_sources_that_do_not_exist_are_left_out_of_an_accepted_push(server, api):
    missing = {"dataset_data_sources": [DATASET, "me/none"], "model_data_sources": ["a/b/c/d"]}
    first = push(api, kernel_data_sources=[REF], **missing)
    assert (first.version_number, first.error) == (1, "")
    assert first.invalid_dataset_sources == ["me/none"]
    assert first.invalid_kernel_sources == [REF]  # itself, with no COMPLETE version yet
    assert first.invalid_model_sources == ["a/b/c/d"]
    server.finish(REF, "COMPLETE")
    assert push(api, kernel_data_sources=[REF]).invalid_kernel_sources == []
    assert server.kernels[REF][1].kernel_sources == [REF]


def test_a_new_kernel_is_named_from_its_title(server, api):
    assert slugify("  Visages célèbres, no. 2!") == "visages-celebres-no-2"
    assert push(api, new_title="Another Title").ref == "/code/me/another-title"
    assert list(server.kernels) == ["me/another-title"]
    with pytest.raises(requests.HTTPError, match="403"):
        status(api)


def test_a_notebook_without_a_kernelspec_dies_at_once(server, api):
    assert push(api, text=json.dumps(NOTEBOOK | {"metadata": {}})).version_number == 1
    assert status(api).name == "ERROR"
    assert "No kernel name found" in outputs(api).log


def test_another_owner_and_an_unknown_id_are_refused(server, api):
    assert push(api, slug="you/face-gan").error == "Notebook not found"
    assert push(api, id=7).error == "Notebook not found"
    assert push(api, id=push(api).kernel_id, slug=None).version_number == 2


def test_a_pinned_image_stays_and_a_quick_save_does_not_run(server, api):
    from kagglesdk.kernels.types.kernels_enums import KernelExecutionType

    push(api, machine_shape=None)
    server.latest_image = "gcr.io/kaggle-images/python@sha256:new"
    push(api, machine_shape=None, docker_image_pinning_type="original")
    push(api, machine_shape=None, kernel_execution_type=KernelExecutionType.QUICK_SAVE)
    images = [version.docker_image[-3:] for version in server.kernels[REF]]
    assert images == ["000", "000", "new"]
    assert [version.machine_shape for version in server.kernels[REF]] == ["None"] * 3
    server.kernels[REF][1].status = "RUNNING"
    assert status(api).name == "RUNNING"


# Sessions


def test_the_status_of_a_session_and_of_one_version(server, api):
    with pytest.raises(requests.HTTPError, match="403"):
        status(api)
    push(api)
    assert status(api).name == "QUEUED"
    server.start(REF)
    assert status(api).name == "RUNNING"
    server.finish(REF, "CANCEL_ACKNOWLEDGED", failure_message="Your notebook was stopped")
    push(api)
    assert (status(api).name, status(api, version_label="v1").name) == ("QUEUED", "CANCEL_ACKNOWLEDGED")
    with pytest.raises(requests.HTTPError, match="404"):
        status(api, version_label="1")  # the API wants the v
    server.next("GetKernelSessionStatus", faults.older)
    assert status(api).name == "CANCEL_ACKNOWLEDGED"


def test_statuses_that_the_client_does_not_know(server, api):
    push(api)
    server.start(REF)
    server.next("GetKernelSessionStatus", *map(faults.status, ("PAUSED", "cancelled", "")), faults.empty)
    for _ in range(2):
        with pytest.raises(KeyError):
            status(api)
    assert not hasattr(status(api), "name")  # "" is some attribute of the enum's class
    assert status(api).name == "QUEUED"  # {}: the default, though the session runs


def test_running_gpu_sessions_can_be_counted_and_are_limited(server, api):
    push(api, slug="me/kernel-one", new_title="Kernel one", machine_shape=None)  # the list tells the last version
    for name in ("one", "two"):
        push(api, slug=f"me/kernel-{name}", new_title=f"Kernel {name}")
    push(api, slug="me/on-a-cpu", new_title="On a CPU", machine_shape=None)
    third = push(api)
    assert (third.version_number, third.error) == (0, "Maximum batch GPU session count of 2 reached.")
    with pytest.raises(requests.HTTPError) as refused:
        status(api)  # the kernel is there, without a run
    assert refused.value.response.status_code == 404 and "No runs found" in refused.value.response.text

    mine = api.kernels_list(mine=True, sort_by="dateRun", page_size=100)
    assert [kernel.ref for kernel in mine] == ["me/on-a-cpu", "me/kernel-two", "me/kernel-one"]
    gpu = [kernel.ref for kernel in mine if (kernel.machine_shape or "").startswith("Nvidia")]
    assert len([ref for ref in gpu if api.kernels_status(ref).status.name in ("QUEUED", "RUNNING")]) == 2
    server.finish("me/kernel-one", "COMPLETE")
    assert push(api).error == ""


def test_quota_is_used_reserved_and_used_up(server, api):
    server.quota_used = timedelta(hours=29)
    push(api)
    quota = api.quota_view().gpu_quota
    assert (quota.time_used, quota.time_reserved) == (timedelta(hours=29), timedelta(hours=10))
    assert quota.total_time_allowed == timedelta(hours=30)
    assert '"totalTimeAllowed": "21600s"' in repr(quota)  # 6 h: the client's text of a time drops whole days
    server.finish(REF, "COMPLETE")
    server.quota_used = timedelta(hours=31)
    refused = push(api)
    assert (refused.version_number, refused.error) == (0, "Maximum weekly GPU quota of 30.00 hours reached.")


def test_deleting_a_kernel_stops_it(server, api):
    push(api)
    api.kernels_delete(REF, no_confirm=True)
    assert server.kernels == {}
    with pytest.raises(requests.HTTPError, match="403"):
        call(api, "delete_kernel", user_name="me", kernel_slug="face-gan")


# Outputs


def test_450_files_come_in_pages(server, api, tmp_path):
    push(api)
    files = {f"faces/{index:03d}.png": str(index).encode() for index in range(450)}
    server.finish(REF, "COMPLETE", outputs=files, log="step 1\nstep 2\n")
    first = outputs(api)
    assert len(first.files) == 20 and first.next_page_token
    assert [line["data"] for line in json.loads(first.log)] == ["step 1\n", "step 2\n"]
    paths, _ = api.kernels_output(REF, str(tmp_path / "output"), page_size=500)
    pages = [request.body for request in server.requests if request.method == "ListKernelSessionOutput"][1:]
    assert [page.get("pageToken", "") for page in pages] == ["", "from-200", "from-400"]
    assert len(paths) == 451 and (tmp_path / "output/faces/449.png").read_bytes() == b"449"
    assert not any("Authorization" in request.headers for request in server.requests if request.method == "File")


def test_output_is_of_the_last_run_and_empty_until_it_ends(server, api):
    def names() -> list[str]:
        return [file.file_name for file in outputs(api).files]

    push(api)
    server.finish(REF, "COMPLETE", outputs={"complete": b""})
    push(api)
    assert names() == ["complete"]  # the second version is in the queue
    server.start(REF)
    assert names() == []
    server.finish(REF, "ERROR", outputs={"partial": b""})
    assert names() == ["partial"]


def test_one_file_of_one_version_is_found_without_listing(server, api):
    push(api)
    server.finish(REF, "COMPLETE", outputs={"status.json": b"{}"})
    file = {"owner_slug": "me", "kernel_slug": "face-gan", "file_path": "status.json", "version_number": 1}
    response = call(api, "download_kernel_output", **file)
    assert (response.status_code, response.content, len(response.history)) == (200, b"{}", 1)


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/kaggle-server-outside.txt"])
def test_a_name_outside_the_folder_is_listed_as_it_is(server, api, tmp_path, name):
    push(api)
    server.finish(REF, "COMPLETE", outputs={name: b"outside", "a\\..\\b": b""})
    assert {file.file_name for file in outputs(api).files} == {name, "a\\..\\b"}
    if newer("2.2.5"):  # before, the client writes it
        with pytest.raises(ValueError, match="resolves outside destination"):
            api.kernels_output(REF, str(tmp_path / "output"))


def test_a_file_that_is_forbidden(server, api, tmp_path):
    push(api)
    server.finish(REF, "COMPLETE", outputs={"generator.keras": b"weights", "log.csv": b"1"})
    server.next("File generator.keras", faults.forbidden)
    if newer("2.2.5"):
        with pytest.raises(requests.HTTPError, match="signature="):  # the message holds the signed address
            api.kernels_output(REF, str(tmp_path))
    else:
        api.kernels_output(REF, str(tmp_path))
        assert b"a fault" in (tmp_path / "generator.keras").read_bytes()


def test_a_file_that_breaks_off(server, api, tmp_path, monkeypatch):
    push(api)
    server.finish(REF, "COMPLETE", outputs={"generator.keras": b"weights!"})
    server.next("File", faults.truncated)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if newer("2.2.5"):  # tries again
        api.kernels_output(REF, str(tmp_path))
        assert (tmp_path / "generator.keras").read_bytes() == b"weights!"
    else:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            api.kernels_output(REF, str(tmp_path))
    assert [request.method for request in server.requests].count("File") == (2 if newer("2.2.5") else 1)


# Sessions that the server runs


def test_sessions_hand_their_complete_outputs_on(client, monkeypatch):
    def session(version, mounts):
        before = mounts.get(REF, {}).get("step", b"0")
        step = int(before) + 1
        return ("ERROR" if step == 2 and version.number == 2 else "COMPLETE"), {"step": str(step).encode()}, "trained\n"

    with KaggleServer(session) as server:
        from kagglesdk import kaggle_env

        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.url)
        monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
        api = client()
        api.authenticate()
        server.next(f"Mount {REF}", faults.honest, faults.honest, faults.empty, faults.older)  # of pushes 2 to 5
        for _ in range(5):
            push(api, kernel_data_sources=[REF])
            server.wait(REF)
        assert [version.status for version in server.kernels[REF]] == ["COMPLETE", "ERROR"] + ["COMPLETE"] * 3
        # the third starts from the first, as the second failed; the fourth from nothing; the fifth from the third
        assert [version.outputs["step"] for version in server.kernels[REF]] == [b"1", b"2", b"2", b"1", b"3"]

        server.execute = lambda version, mounts: 1 / 0
        push(api)
        assert "ZeroDivisionError" in server.wait(REF).log


# Answers that go wrong


@pytest.mark.parametrize(
    ("name", "error", "versions"),
    [
        ("accepted_then_500", requests.HTTPError, 1),
        ("accepted_then_disconnect", requests.ConnectionError, 1),
        ("server_error", requests.HTTPError, 0),
        ("too_many_requests", requests.HTTPError, 0),
        ("forbidden", requests.HTTPError, 0),
        ("disconnect", requests.ConnectionError, 0),
        ("html", json.JSONDecodeError, 0),
    ],
)
def test_a_push_whose_answer_goes_wrong_is_sent_once(server, api, name, error, versions):
    server.next("SaveKernel", getattr(faults, name))
    with pytest.raises(error) as caught:
        push(api)
    assert [request.method for request in server.requests].count("SaveKernel") == 1
    assert len(server.kernels.get(REF, [])) == versions
    assert server.token not in str(caught.value)
    if name == "too_many_requests":
        assert caught.value.response.headers["Retry-After"] == "7"
    assert push(api).version_number == versions + 1  # one fault spoils one answer


def test_refusals_and_empty_answers_in_a_200(server, api):
    server.next("SaveKernel", faults.error("Try later"), faults.empty, faults.accepted_then_empty)
    assert push(api).error == "Try later"
    for _ in range(2):
        answer = push(api)
        assert (answer.version_number, answer.error, answer.ref, answer.kernel_id) == (0, "", "", 0)
    assert len(server.kernels[REF]) == 1
    server.next("SaveKernel", faults.invalid(invalidKernelSources=["me/other"]))
    assert push(api).invalid_kernel_sources == ["me/other"]
    server.next("GetKernel", faults.edited(lambda answer: answer | {"metadata": {"machineShape": "Gpu"}}))
    assert call(api, "get_kernel", user_name="me", kernel_slug="face-gan").metadata.machine_shape == "Gpu"


def test_silence_ends_with_a_timeout_of_the_sessions_adapter(server, api):
    class Bounded(requests.adapters.HTTPAdapter):
        def send(self, request, **kwargs):
            return super().send(request, **kwargs | {"timeout": (5, 0.3)})

    server.next("SaveKernel", faults.accepted_then_silence)
    request = SDK.ApiSaveKernelRequest()
    request.slug, request.new_title, request.text = REF, "Face GAN", json.dumps(NOTEBOOK)
    with api.build_kaggle_client() as kaggle:
        kaggle.http_client()._session.mount("http://", Bounded())
        with pytest.raises(requests.Timeout):
            kaggle.kernels.kernels_api_client.save_kernel(request)
    assert len(server.kernels[REF]) == 1


# Accounts


def test_without_an_account_the_client_exits(server, client, capsys):
    with pytest.raises(SystemExit):
        client().authenticate()
    assert "Authentication required" in capsys.readouterr().out
    assert not [request for request in server.requests if request.method != "IntrospectToken"]


def test_a_wrong_token_is_as_good_as_none(server, client, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    with pytest.raises(SystemExit):
        client().authenticate()
    monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
    server.next("IntrospectToken", faults.server_error)
    with pytest.raises(requests.HTTPError):
        client().authenticate()


def test_a_legacy_key_is_not_checked_before_its_first_use(server, client, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", server.key)
    api = client()
    api.authenticate()
    assert push(api).version_number == 1
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    api = client()
    api.authenticate()
    with pytest.raises(requests.HTTPError, match="401"):
        status(api)


def test_the_sdk_alone_is_enough(server, client, monkeypatch):
    from kagglesdk import KaggleClient
    from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

    monkeypatch.setenv("KAGGLE_API_TOKEN", server.token)
    request = IntrospectTokenRequest()
    request.token = server.token
    with KaggleClient() as kaggle:  # finds the token and the environment by itself
        assert kaggle.security.oauth_client.introspect_token(request).username == "me"
        assert kaggle.kernels.kernels_api_client.list_kernels().kernels == []


# The command, as a process


@pytest.fixture
def command(server, tmp_path):
    """Run `kaggle` with the server as its proxy."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        script = Path(sys.executable).with_name("kaggle")
        env = os.environ | server.environment() | environment
        return subprocess.run([script, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def folder(tmp_path) -> str:
    """A folder for `kaggle kernels push`."""
    metadata = {"id": REF, "title": "Face GAN", "code_file": "run.ipynb", "language": "python"}
    metadata |= {"kernel_type": "notebook", "machine_shape": "NvidiaTeslaT4", "dataset_sources": [DATASET]}
    (tmp_path / "push").mkdir()
    (tmp_path / "push/kernel-metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "push/run.ipynb").write_text(json.dumps(NOTEBOOK))
    return str(tmp_path / "push")


def test_the_command_line_from_push_to_output(server, command, folder, tmp_path):
    pushed = command("kernels", "push", "-p", folder, "-t", "3600")
    assert pushed.returncode == 0 and "Kernel version 1 successfully pushed" in pushed.stdout, pushed
    version = server.kernels[REF][0]
    assert (version.machine_shape, version.request["sessionTimeoutSeconds"]) == ("NvidiaTeslaT4", 3600)
    assert server.requests[-1].headers["Host"] == "localhost"

    server.finish(REF, "COMPLETE", outputs={"models/generator.keras": b"weights"}, log="done\n")
    assert "COMPLETE" in command("kernels", "status", REF).stdout
    assert command("kernels", "pull", REF, "-p", "pulled", "-m").returncode == 0
    assert json.loads((tmp_path / "pulled/kernel-metadata.json").read_text())["machine_shape"] == "NvidiaTeslaT4"
    assert command("kernels", "output", REF, "-p", "output").returncode == 0
    assert (tmp_path / "output/models/generator.keras").read_bytes() == b"weights"
    assert "30.00h" in command("quota").stdout
    assert command("kernels", "list", "-m", "--csv").stdout.splitlines()[1].startswith(REF)


def test_the_command_line_calls_failures_a_success(server, command, folder):
    server.next("SaveKernel", faults.error("Maximum batch GPU session count of 2 reached."), faults.empty)
    refused = command("kernels", "push", "-p", folder)
    assert (refused.returncode, refused.stdout.startswith("Kernel push error: Maximum")) == (0, True)
    empty = command("kernels", "push", "-p", folder)
    assert (empty.returncode, "successfully pushed" in empty.stdout) == (0, True)
    assert server.kernels == {}
    server.next("SaveKernel", faults.accepted_then_500, faults.html)
    assert command("kernels", "push", "-p", folder).returncode == 1
    assert command("kernels", "push", "-p", folder).returncode == 1
    assert len(server.kernels[REF]) == 1


def test_verbose_prints_the_token(server, command):
    assert server.token not in command("quota").stdout
    assert f"Bearer {server.token}" in command("quota", VERBOSE="1").stdout
