"""A loopback server that answers as Kaggle's kernels API does, for the unmodified `kaggle` client.

`KaggleServer` keeps what Kaggle keeps (kernels, versions, sessions, outputs, quota), refuses what Kaggle refuses, and
goes wrong in the ways that `faults` lists, once for each fault that a test has queued:

    with KaggleServer(datasets={"me/faces-100k": {"faces.csv": b"..."}}) as server:
        server.next("SaveKernel", faults.accepted_then_500)
        ...                                             # the client pushes, and sees a 500
        server.start("me/face-gan")
        server.finish("me/face-gan", "COMPLETE", outputs={"generator.keras": b"..."})

With `execute=` the server runs every pushed version itself, in a thread, as a Kaggle session would.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import traceback
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

Files = dict[str, bytes]

DEFAULT_GPU = "NvidiaTeslaT4"
RETIRED_SHAPES = {"NvidiaTeslaP100": DEFAULT_GPU}  # accepted without a word; another machine runs
ACTIVE = {"QUEUED", "RUNNING", "CANCEL_REQUESTED"}
QUICK_SAVE = "NEW_SCRIPT"  # the status of a version that was saved without a session
SESSION_LIMIT = timedelta(hours=12)
MAX_GPU_SESSIONS = 2


@dataclass(frozen=True)
class Fault:
    """One way for one answer to go wrong. When `accepted`, the request takes effect before its answer is spoilt."""

    accepted: bool = False
    status: int = 200
    body: dict | str | None = None  # sent in place of the honest answer; a str is sent as HTML
    headers: dict[str, str] = field(default_factory=dict)
    edit: Callable[[dict], dict] | None = None  # changes the honest answer
    older: bool = False  # answers for the version before, as a cache that lags does
    wait: float = 0.0  # seconds of silence first; infinite: until the server closes
    drop: bool = False  # the connection closes without an answer
    keep: float = 1.0  # the part of a file that is sent under its full Content-Length


class faults:
    """Faults that were seen on Kaggle, or that a client must survive. `KaggleServer.next` queues them."""

    honest = Fault(accepted=True)
    server_error = Fault(status=500)
    too_many_requests = Fault(status=429, headers={"Retry-After": "7"})
    bad_request = Fault(status=400)
    unauthorized = Fault(status=401)
    forbidden = Fault(status=403)
    not_found = Fault(status=404)
    html = Fault(body="<!doctype html><title>Checking your browser</title>")
    empty = Fault(body={})  # on "Mount <ref>": the source mounts without its files
    silence = Fault(wait=math.inf)
    disconnect = Fault(drop=True)
    accepted_then_500 = replace(server_error, accepted=True)
    accepted_then_empty = replace(empty, accepted=True)
    accepted_then_silence = replace(silence, accepted=True)
    accepted_then_disconnect = replace(disconnect, accepted=True)
    older = Fault(accepted=True, older=True)  # a status: of the run before; "Mount <ref>": the checkpoint before
    truncated = Fault(accepted=True, keep=0.5)

    @staticmethod
    def slow(seconds: float) -> Fault:
        """The honest answer, late."""
        return Fault(accepted=True, wait=seconds)

    @staticmethod
    def edited(edit: Callable[[dict], dict]) -> Fault:
        """The honest answer, changed by `edit`: another machine, a prefix before the sources, a missing field."""
        return Fault(accepted=True, edit=edit)

    @staticmethod
    def error(text: str) -> Fault:
        """A push that is refused in a 200, which the command line reports with exit status 0."""
        return Fault(body={"error": text, "versionNumber": 0})

    @staticmethod
    def invalid(**lists: list[str]) -> Fault:
        """An accepted push that reports sources invalid: `invalid(invalidKernelSources=["me/other"])`."""
        return faults.edited(lambda answer: answer | lists)

    @staticmethod
    def status(value: str) -> Fault:
        """A session status, known to the client or not."""
        return faults.edited(lambda answer: answer | {"status": value})


class Request(NamedTuple):
    """A request as it arrived. The method is the API's ("SaveKernel"), or "File" for the download of an output."""

    method: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Version:
    """A pushed version and the session that runs it."""

    ref: str
    number: int
    text: str  # the notebook's JSON
    request: dict[str, Any]  # the whole body of SaveKernel
    machine_shape: str
    docker_image: str
    dataset_sources: list[str]
    kernel_sources: list[str]
    status: str = "QUEUED"
    failure_message: str = ""
    log: str = ""
    outputs: Files = field(default_factory=dict)
    queued: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def uses_gpu(self) -> bool:
        """Whether the session takes one of the account's GPU sessions, and its quota."""
        return self.machine_shape.startswith("Nvidia")


Execute = Callable[[Version, dict[str, Files]], tuple[str, Files, str]]


class Refusal(Exception):
    """An HTTP status and Kaggle's message, which the client leaves in the body and out of its exception's text."""


class KaggleServer:
    """Kaggle for one account, on a free loopback port. A context manager; `url` is where it listens.

    `execute(version, mounts)` plays the session: `mounts` maps each attached source to its files, and the result is
    (status, outputs, log). Without it, tests call `start` and `finish`.
    """

    def __init__(self, execute: Execute | None = None, datasets: dict[str, Files] | None = None, user: str = "me"):
        self.execute, self.datasets, self.user = execute, datasets or {}, user
        self.token, self.key = "KGAT_dummy_token", "dummy_key"
        self.kernels: dict[str, list[Version]] = {}  # an empty list: the first push was refused its session
        self.requests: list[Request] = []
        self.quota_used, self.quota_total = timedelta(0), timedelta(hours=30)  # used before this server's sessions
        self.latest_image = "gcr.io/kaggle-images/python@sha256:" + "0" * 64
        self.closing = threading.Event()
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._ids: dict[str, int] = {}
        self._changed = threading.Condition(threading.RLock())  # guards everything above
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads, self._http.kaggle = True, self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> KaggleServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    # What tests call

    def next(self, method: str, *queue: Fault) -> None:
        """Spoil the next answers to `method`, one each.

        Besides the API's methods: "File", "File <name>" for one output, and "Mount <owner>/<slug>" for a kernel source.
        """
        with self._changed:
            self._faults[method] += queue

    def environment(self) -> dict[str, str]:
        """Variables with which the unmodified `kaggle` command, in a process of its own, talks to this server.

        The command can be sent to http://localhost only, so this server stands in as its proxy.
        """
        proxy = {"http_proxy": self.url, "no_proxy": "", "NO_PROXY": ""}
        return proxy | {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": self.token}

    def start(self, ref: str) -> None:
        """Let the last version's session leave the queue."""
        self._set(self.kernels[ref][-1], "RUNNING")

    def finish(
        self, ref: str, status: str, outputs: Files | None = None, log: str = "", failure_message: str = ""
    ) -> None:
        """End the last version's session. The names in `outputs` are listed as they are, `../` and all."""
        self._set(self.kernels[ref][-1], status, outputs, log, failure_message)

    def wait(self, ref: str, timeout: float = 10.0) -> Version:
        """The last version of a kernel, once `execute` has ended its session."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.kernels[ref][-1].ended, timeout):
                raise TimeoutError(f"{ref} is still {self.kernels[ref][-1].status} after {timeout} s")
            return self.kernels[ref][-1]

    # Sessions

    def _set(
        self, version: Version, status: str, outputs: Files | None = None, log: str = "", failure_message: str = ""
    ) -> None:
        with self._changed:
            version.status, version.log, version.failure_message = status, log, failure_message
            version.outputs = dict(outputs or {})
            version.started = version.started or datetime.now(timezone.utc)
            version.ended = None if status in ACTIVE else datetime.now(timezone.utc)
            self._changed.notify_all()

    def _run(self, version: Version) -> None:
        self._set(version, "RUNNING")
        try:
            self._set(version, *self.execute(version, self._mounts(version)))
        except Exception:
            self._set(version, "ERROR", log=traceback.format_exc(), failure_message="execute raised: see the log")

    def _mounts(self, version: Version) -> dict[str, Files]:
        """The attached files. A kernel serves its last COMPLETE version here, not the last one that ran."""
        with self._changed:
            mounts = {ref: self.datasets[ref] for ref in version.dataset_sources}
            for ref in version.kernel_sources:
                fault = self._pop(f"Mount {ref}")
                complete = self._complete(ref)[: -1 if fault.older else None]
                mounts[ref] = dict(complete[-1].outputs) if complete and fault.body is None else {}
            return mounts

    def _complete(self, ref: str) -> list[Version]:
        return [version for version in self.kernels.get(ref, []) if version.status == "COMPLETE"]

    def _gpu_use(self) -> tuple[timedelta, timedelta, int]:
        """The quota used, the quota that active sessions hold in reserve, and how many are active."""
        now, used, reserved, active = datetime.now(timezone.utc), self.quota_used, timedelta(0), 0
        for version in (version for versions in self.kernels.values() for version in versions if version.uses_gpu):
            used += (version.ended or now) - (version.started or version.ended or now)
            if version.status in ACTIVE:
                limit = version.request.get("sessionTimeoutSeconds", SESSION_LIMIT.total_seconds())
                reserved, active = reserved + timedelta(seconds=limit), active + 1
        return used, reserved, active

    # The API's methods: from the body of a request to the body of its answer

    def IntrospectToken(self, body: dict) -> dict:
        return {"active": True, "username": self.user} if body.get("token") == self.token else {"active": False}

    def SaveKernel(self, body: dict) -> dict:
        ref = next((ref for ref, number in self._ids.items() if number == body.get("id")), body.get("slug", ""))
        if ref.split("/")[0] != self.user or (body.get("id") and ref not in self.kernels):
            return {"error": "Notebook not found", "versionNumber": 0}
        if ref not in self.kernels:  # a new kernel is named from its title, whatever slug the push has
            ref = f"{self.user}/{slugify(body.get('newTitle', '')) or ref.split('/')[1]}"
        versions = self.kernels.setdefault(ref, [])
        number = self._ids.setdefault(ref, 1000 + len(self._ids))
        answer = {"ref": f"/code/{ref}", "url": f"{self.url}/code/{ref}", "kernelId": number}
        answer |= {"versionNumber": 0, "error": ""}
        version, invalid = self._new_version(ref, body)
        if version.status != QUICK_SAVE and version.uses_gpu:
            used, _, active = self._gpu_use()
            if used >= self.quota_total:
                hours = self.quota_total / timedelta(hours=1)
                return answer | {"error": f"Maximum weekly GPU quota of {hours:.2f} hours reached."}
            if active >= MAX_GPU_SESSIONS:
                return answer | {"error": f"Maximum batch GPU session count of {MAX_GPU_SESSIONS} reached."}
        versions.append(version)
        if version.status != QUICK_SAVE and not names_its_kernel(version):
            error = "ValueError: No kernel name found in notebook and no override provided.\n"
            self._set(version, "ERROR", log=error)
        elif version.status != QUICK_SAVE and self.execute:
            threading.Thread(target=self._run, args=(version,), daemon=True).start()
        return answer | {"versionNumber": version.number} | invalid

    def _new_version(self, ref: str, body: dict) -> tuple[Version, dict]:
        """The version that a push makes, with the sources that exist; and the lists of those that do not."""
        versions, datasets = self.kernels[ref], body.get("datasetDataSources", [])
        kernels = body.get("kernelDataSources", [])
        shape = body.get("machineShape") or (DEFAULT_GPU if body.get("enableGpu") else "None")
        image = body.get("dockerImage") or self.latest_image
        if versions and body.get("dockerImagePinningType") == "original":
            image = versions[0].docker_image
        version = Version(
            ref, len(versions) + 1, body.get("text", ""), body, RETIRED_SHAPES.get(shape, shape), image,
            [source for source in datasets if source in self.datasets],
            [source for source in kernels if self._complete(source)],
            status=QUICK_SAVE if body.get("kernelExecutionType") == "QUICK_SAVE" else "QUEUED",
        )
        invalid = {
            "invalidDatasetSources": [source for source in datasets if source not in version.dataset_sources],
            "invalidKernelSources": [source for source in kernels if source not in version.kernel_sources],
            "invalidCompetitionSources": body.get("competitionDataSources", []),
            "invalidModelSources": body.get("modelDataSources", []),
        }
        return version, {key: sources for key, sources in invalid.items() if sources}

    def _version(self, body: dict, ran: Callable[[Version], bool] = lambda version: True) -> Version:
        """The version that a request names by "v<N>", or else the last one for which `ran` holds."""
        ref = f"{body.get('userName') or body.get('ownerSlug')}/{body.get('kernelSlug')}"
        if ref not in self.kernels:  # Kaggle does not say whether a kernel exists
            raise Refusal(403, "Permission 'kernels.get' was denied")
        label = body.get("versionLabel") or (f"v{body['versionNumber']}" if "versionNumber" in body else "")
        found = [each for each in self.kernels[ref] if (label == f"v{each.number}" if label else ran(each))]
        if not found:
            raise Refusal(404, "Not found" if label else "No runs found for this kernel.")
        return found[-1]

    def _output(self, body: dict) -> Version:
        """The version whose output is served: the last one that ran, be it running still, failed or complete."""
        return self._version(body, lambda version: version.started is not None)

    def GetKernelSessionStatus(self, body: dict) -> dict:
        version = self._version(body, lambda version: version.status != QUICK_SAVE)
        failure = {"failureMessage": version.failure_message} if version.failure_message else {}
        return {"status": version.status} | failure

    def ListKernelSessionOutput(self, body: dict) -> dict:
        version = self._output(body)
        names, after = self._page(sorted(version.outputs), body, largest=200)
        files = [{"fileName": name, "url": self._file_url(version, name)} for name in names]
        lines = enumerate(version.log.splitlines(keepends=True))
        log = [{"stream_name": "stderr" if line.startswith("[stderr] ") else "stdout", "time": float(second),
                "data": line.removeprefix("[stderr] ")} for second, line in lines]
        return {"files": files, "log": json.dumps(log)} | after

    def DownloadKernelOutput(self, body: dict) -> str:
        """Where one file of the output is; a str is sent as a redirect."""
        return self._file_url(self._output(body), body.get("filePath", ""))

    def File(self, body: dict) -> bytes:
        outputs = self._version(body).outputs
        if body["file"] not in outputs:
            raise Refusal(404, "Not found")
        return outputs[body["file"]]

    def GetKernel(self, body: dict) -> dict:
        version = self._version(body)
        blob = {key: version.request.get(key, "") for key in ("language", "kernelType")}
        blob |= {"source": version.text, "slug": version.ref.split("/")[1]}
        return {"metadata": self._metadata(version), "blob": blob}

    def ListKernels(self, body: dict) -> dict:
        """One's own kernels, last run first. No status is told: a client must ask for it, kernel by kernel."""
        if body.get("group") != "PROFILE" and body.get("user") != self.user:
            return {}
        latest = [versions[-1] for versions in self.kernels.values() if versions]
        latest.sort(key=lambda version: version.queued, reverse=True)
        versions, after = self._page(latest, body, largest=100)
        return {"kernels": [self._metadata(version) for version in versions]} | after

    def DeleteKernel(self, body: dict) -> dict:
        """Delete a kernel and, the only way that the API has, stop its sessions."""
        ref = f"{body.get('userName')}/{body.get('kernelSlug')}"
        if self.kernels.pop(ref, None) is None:
            raise Refusal(403, "Permission 'kernels.delete' was denied")
        del self._ids[ref]
        return {}

    def GetAcceleratorQuotaStatistics(self, body: dict) -> dict:
        used, reserved, _ = self._gpu_use()
        times = {"timeUsed": used, "timeReserved": reserved, "totalTimeAllowed": self.quota_total}
        refresh = datetime.now(timezone.utc) + timedelta(days=3)
        gpu = {key: f"{time.total_seconds():.3f}s" for key, time in times.items()}
        return {"quotaRefreshTime": f"{refresh:%Y-%m-%dT%H:%M:%SZ}", "gpuQuota": gpu}

    def _metadata(self, version: Version) -> dict:
        request, slug = version.request, version.ref.split("/")[1]
        copied = ("language", "kernelType", "isPrivate", "enableInternet", "enableTpu", "categoryIds")
        return {key: request[key] for key in copied if key in request} | {
            "id": self._ids[version.ref], "ref": version.ref, "slug": slug, "author": self.user,
            "title": request.get("newTitle") or slug, "lastRunTime": f"{version.queued:%Y-%m-%dT%H:%M:%S.%fZ}",
            "enableGpu": version.uses_gpu, "machineShape": version.machine_shape, "dockerImage": version.docker_image,
            "datasetDataSources": version.dataset_sources, "kernelDataSources": version.kernel_sources,
            "currentVersionNumber": len(self.kernels[version.ref]),
        }

    def _file_url(self, version: Version, name: str) -> str:
        """An address that needs no credentials and must stay out of logs: its signature is what opens it."""
        owner, slug = version.ref.split("/")
        query = {"userName": owner, "kernelSlug": slug, "versionLabel": f"v{version.number}", "file": name}
        return f"{self.url}/output?" + urlencode(query | {"signature": "dummy-signature"})

    @staticmethod
    def _page(items: list, body: dict, largest: int) -> tuple[list, dict]:
        """One page of a list, and the token of the next."""
        token, size = body.get("pageToken", ""), min(body.get("pageSize", 20), largest)
        if token and not re.fullmatch(r"from-\d+", token):
            raise Refusal(400, "Invalid page token")
        first = int(token[5:]) if token else size * (body.get("page", 1) - 1)
        after = {"nextPageToken": f"from-{first + size}"} if first + size < len(items) else {}
        return items[first : first + size], after

    # Requests

    def _pop(self, *methods: str) -> Fault:
        """The next fault that is queued for one of these methods; without any, an honest answer."""
        queues = [self._faults[method] for method in methods if self._faults[method]]
        return queues[0].pop(0) if queues else faults.honest

    def answer(self, request: Request) -> tuple[Fault, Any]:
        """Record a request, and let it take effect unless its fault forbids that: the fault, and the honest answer."""
        method, body = request.method, request.body
        with self._changed:
            self.requests.append(request)
            fault = self._pop(f"{method} {body.get('file')}", method)
            if not fault.accepted:
                return fault, None
            try:
                legacy = base64.b64encode(f"{self.user}:{self.key}".encode()).decode()
                known = request.headers.get("Authorization") in (f"Bearer {self.token}", f"Basic {legacy}")
                if not known and method not in ("File", "IntrospectToken"):
                    raise Refusal(401, "Unauthenticated")
                if not re.fullmatch("([A-Z][a-z]+)+", method) or not hasattr(self, method):
                    raise Refusal(404, f"Not found: {method}")
                if fault.older:
                    body = body | {"versionLabel": f"v{max(1, self._version(body).number - 1)}"}
                return fault, getattr(self, method)(body)
            except Refusal as refusal:
                return fault, refusal


class _Handler(BaseHTTPRequestHandler):
    """HTTP around `KaggleServer.answer`. A request line may hold a whole address, as a proxy's does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._reply(urlsplit(self.path).path.rpartition("/")[2], json.loads(content or "{}"))

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self._reply("File" if address.path == "/output" else address.path, dict(parse_qsl(address.query)))

    def _reply(self, method: str, body: dict) -> None:
        kaggle = self.server.kaggle
        fault, answer = kaggle.answer(Request(method, body, dict(self.headers)))
        if kaggle.closing.wait(None if fault.wait == math.inf else fault.wait) or fault.drop:
            self.close_connection = True
            return
        status, headers = fault.status, dict(fault.headers)
        if isinstance(answer, str):
            status, headers["Location"] = 302, answer
        if isinstance(answer, Refusal):
            status, answer = answer.args[0], {"error": {"code": answer.args[0], "message": answer.args[1]}}
        elif fault.body is not None:
            answer = fault.body
        elif fault.status >= 400:
            answer = {"error": {"code": status, "message": "a fault"}}
        elif fault.edit:
            answer = fault.edit(answer)
        self._send(status, headers, answer, fault.keep)

    def _send(self, status: int, headers: dict[str, str], answer: Any, keep: float) -> None:
        kind = {bytes: "application/octet-stream", str: "text/html; charset=utf-8"}.get(type(answer))
        content = answer if isinstance(answer, bytes) else (answer if kind else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": kind or "application/json"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: int(len(content) * keep)])
        self.close_connection = self.close_connection or keep < 1

    def log_message(self, *_: object) -> None:
        """Quiet: tests read `KaggleServer.requests`."""


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title: lower case ASCII, words joined by single dashes."""
    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[a-z0-9]+", ascii_title.lower()))


def names_its_kernel(version: Version) -> bool:
    """Whether a session can start at all: the code is a script, or a notebook whose metadata name a kernel."""
    if version.request.get("kernelType") != "notebook":
        return True
    return bool(json.loads(version.text).get("metadata", {}).get("kernelspec", {}).get("name"))
