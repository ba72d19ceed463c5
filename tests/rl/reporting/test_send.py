"""Metrics that are sent to W&B and MLflow: each line once, and never at the cost of the run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

import rltrain
from rltrain import cli
from rltrain.errors import ConfigError
from rltrain.reporting import send
from rltrain.reporting.metrics import FILE, read

QUICK: dict[str, Any] = {
    "algo": "ppo", "env": "probe:counter", "steps": 96, "workers": 0, "streams": 2, "unroll": 8, "minibatches": 1,
    "widths": (4,), "eval_every": 32, "eval_episodes": 1, "preset": "none", "quiet": True,
}  # fmt: skip


class Kept:
    """A target that keeps everything in memory."""

    at_once: ClassVar[bool] = True
    runs: ClassVar[dict[str, list[tuple[int, dict[str, float]]]]] = {}
    closed: ClassVar[int] = 0

    def __init__(self, address: str, folder: Path, settings: dict[str, Any], id: str | None) -> None:
        self.id = id or f"{address}-{len(self.runs)}"
        self.settings = settings
        self.lines = self.runs.setdefault(self.id, [])

    def log(self, step: int, seconds: float, values: dict[str, float]) -> None:
        if values.get("fails"):
            raise ConnectionError("no route\nto the host")
        self.lines.append((step, values))

    def close(self) -> None:
        Kept.closed += 1


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    monkeypatch.setitem(send.TARGETS, "wandb", Kept)
    monkeypatch.setattr(Kept, "runs", {})
    monkeypatch.setattr(Kept, "closed", 0)
    return Kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> rltrain.Result:
    return rltrain.train(**QUICK, out=str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def run(trained: rltrain.Result, tmp_path: Path) -> Path:
    """A run's folder with its metrics, and nothing else."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", FILE):
        (folder / name).write_bytes((trained.run / name).read_bytes())
    return folder


def test_every_line_is_sent_once(run: Path, kept: type[Kept]) -> None:
    lines = read(run)

    assert send.send(run, "wandb", "project") == len(lines) > 2
    assert send.send(run, "wandb", "project") == 0
    with (run / FILE).open("a") as file:
        file.write('{"step": 200, "seconds": 9.0, "a": 1.5, "b": null, "c": "text"}\n{"step": 201, "sec')
    assert send.send(run, "wandb", "project") == 1
    assert send.send(run, "wandb", "other") == len(lines) + 1

    (first, second) = kept.runs.values()
    assert first == second
    assert first[-1] == (200, {"a": 1.5})
    assert [step for step, _ in first[:-1]] == [line["step"] for line in lines]
    assert kept.closed == 4


def test_lines_of_a_file_that_grows_and_is_cut_back(tmp_path: Path) -> None:
    file = tmp_path / FILE
    lines = send.Lines(file, 0)
    assert list(lines) == []

    def line(step: int) -> str:
        return json.dumps({"step": step}) + "\n"

    file.write_text(line(1) + line(2) + '{"st')
    assert [item["step"] for item in lines] == [1, 2]
    with file.open("a") as more:
        more.write('ep": 3}\n' + line(4))
    assert [item["step"] for item in lines] == [3, 4]
    other = tmp_path / "other"
    other.write_text(line(1) + line(2))  # as a resume does, which cuts off what came after its checkpoint
    other.replace(file)
    assert list(lines) == []
    assert lines.sent == 2
    file.write_text(line(1) + '{"step"')  # cut in place, within a line
    assert list(lines) == []
    with file.open("a") as more:
        more.write(": 6}\n")
    assert [item["step"] for item in lines] == [6]
    with file.open("a") as more:
        more.write(line(5))
    assert [item["step"] for item in lines] == [5]
    lines.close()


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "MAX_LINE", 8)
    (tmp_path / FILE).write_text("x" * 20)
    lines = send.Lines(tmp_path / FILE, 0)
    with pytest.raises(rltrain.CheckpointError, match="a line of more than 8 bytes"):
        list(lines)
    lines.close()


ENTRY = '{"wandb project": {"id": %s, "lines": %s}}'


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"wandb project": 3}', "[" * 5000]
    + [ENTRY % ('"a"', lines) for lines in ('"x"', "null", "[1]", "1e400", "-3", "true", "1.5")]
    + [ENTRY % (id, "1") for id in ("3", "null", '"../a"', '""', f'"{"a" * 100}"')],
)
def test_a_damaged_record_of_what_was_sent_sends_everything_again(content: str, run: Path, kept: type[Kept]) -> None:
    (run / send.SENT_FILE).write_text(content)
    assert send.send(run, "wandb", "project") == len(read(run))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["no-such-run", "--wandb", "p"], ["no-such-run", "is not a run's folder"]),
        (["RUN"], ["--wandb", "--mlflow"]),
        (["RUN", "--wandb", "p", "--mlflow", "u"], ["not allowed with"]),
        (["--wandb", "p"], ["RUN"]),
        (["RUN", "--wand", "p"], ["--wandb"]),
    ],
)
def test_wrong_calls_get_one_line(
    words: list[str], parts: list[str], run: Path, kept: type[Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main_send([str(run) if word == "RUN" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(part in line for part in parts), line


def test_a_target_that_refuses_is_one_line_and_the_rest_is_sent_later(
    run: Path, kept: type[Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / FILE).read_text()
    (run / FILE).write_text(before + '{"step": 300, "fails": 1}\n')
    assert cli.main_send([str(run), "--wandb", "p"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "wandb p: ConnectionError: no route to the host" in line
    (run / FILE).write_text(before + '{"step": 301}\n')
    assert cli.main_send([str(run), "--wandb", "p"]) == 0
    assert "1 lines of metrics sent to wandb p, run p-0" in capsys.readouterr().out
    assert [step for step, _ in kept.runs["p-0"]] == [line["step"] for line in read(run)]


def test_what_arrives_at_the_end_only_is_sent_again_if_there_was_no_end(
    run: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with W&B, which sends in a thread of its own until `finish`."""

    def no_route(self: Kept) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Kept, "at_once", False)
    with monkeypatch.context() as broken:
        broken.setattr(Kept, "close", no_route)
        with pytest.raises(rltrain.RunFailed, match="no route"):
            send.send(run, "wandb", "p")
    assert send.send(run, "wandb", "p") == len(read(run))
    assert list(kept.runs) == ["p-0"]
    assert send.send(run, "wandb", "p") == 0


def test_numbers_that_no_service_takes_are_left_out(run: Path, kept: type[Kept]) -> None:
    (run / FILE).write_text('{"step": 1, "a": NaN, "b": Infinity, "c": 1%s, "d": 2, "e": true}\n' % ("0" * 400))
    assert send.send(run, "wandb", "p") == 1
    assert kept.runs["p-0"] == [(1, {"d": 2.0, "e": 1.0})]


@pytest.mark.parametrize("name", [FILE, "wandb", send.SEND_LOG, send.SENT_FILE])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_outside_of_the_folder_is_read_or_written(
    name: str, kind: str, trained: rltrain.Result, tmp_path: Path
) -> None:
    shutil.copytree(trained.run, run := tmp_path / "run")
    (outside := tmp_path / "outside").write_text('{"step": 1}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside) if kind == "link" else os.mkfifo(run / name)
    if name in (FILE, "wandb"):
        with pytest.raises(rltrain.CheckpointError, match=r"is a link|is not a f"):
            list(send.Lines(run / FILE, 0)) if name == FILE else send.WandB("p", run, {}, None)
    if name != "wandb":
        with pytest.raises(rltrain.CheckpointError, match=r"is a link|is not a file"):
            rltrain.train(resume=run, steps=128, wandb="p")
    assert outside.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("address", "said"), [("http://me:secret@host", "MLFLOW_TRACKING_PASSWORD"), ("a\0b", "zero byte")]
)
def test_an_address_that_cannot_be_used(address: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        rltrain.train(**QUICK, out=str(tmp_path), mlflow=address)


def test_a_missing_package_is_said_before_the_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--mlflow needs the package mlflow: pip install 'rltrain\[mlflow\]'"):
        rltrain.train(**QUICK, out=str(tmp_path), mlflow="http://localhost:1")
    assert not any(tmp_path.iterdir())


INFO = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING", "artifact_uri": "x"}


class Recorder(BaseHTTPRequestHandler):
    """As much of MLflow's protocol as the client uses."""

    def do_GET(self) -> None:
        if "runs/get" in self.path:
            self._answer(200, {"run": {"info": INFO, "data": {}}})
        else:
            self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.path.rpartition("mlflow/")[2]
        self.server.calls.append((what, body))  # type: ignore[attr-defined]
        answers = {"experiments/create": {"experiment_id": "7"}, "runs/create": {"run": {"info": INFO, "data": {}}}}
        self._answer(200, answers.get(what, {"run_info": INFO}))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.calls = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_mlflow_gets_settings_and_metrics_and_the_run_continues(
    run: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(send, "BATCH", 20)
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    lines = read(run)
    os.utime(run / FILE, (1e9, 1e9))  # the run was made long ago

    assert send.send(run, "mlflow", uri) == len(lines)
    calls: list[tuple[str, Any]] = server.calls  # type: ignore[attr-defined]
    params = {item["key"]: item["value"] for what, body in calls for item in body.get("params", [])}
    metrics = [item for what, body in calls if what == "runs/log-batch" for item in body.get("metrics", [])]
    expected = {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "seconds") and value is not None
    }
    assert {(int(item["step"]), item["key"]): item["value"] for item in metrics} == pytest.approx(expected)
    assert params["algo"] == "ppo"
    assert params["unroll"] == "8"
    assert len(params) > 20
    assert all(len(body.get("params", [])) <= 20 for _, body in calls)
    last = (run / FILE).stat().st_mtime
    assert {line["step"]: last - lines[-1]["seconds"] + line["seconds"] for line in lines} == pytest.approx(
        {int(item["step"]): int(item["timestamp"]) / 1000 for item in metrics}, rel=0, abs=0.01
    )
    assert calls[-1][1]["status"] == "FINISHED"

    calls.clear()
    with (run / FILE).open("a") as file:
        file.write('{"step": 200, "seconds": 9.0, "odd:name!": 1.5}\n')
    assert send.send(run, "mlflow", uri) == 1
    assert [what for what, _ in calls if what.endswith("create")] == []
    ((item,),) = [body["metrics"] for what, body in calls if what == "runs/log-batch"]
    assert (item["key"], item["value"]) == ("odd:name_", 1.5)


def test_wandb_offline_during_a_run(trained: rltrain.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are those of the run without it, and the rest is sent after a resume."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(send, "END_SECONDS", 60.0)
    result = rltrain.train(**QUICK, out=str(tmp_path), wandb="project")

    assert result.fingerprint == trained.fingerprint
    sent = json.loads((result.run / send.SENT_FILE).read_text())
    assert sent["wandb project"]["lines"] == len(read(result.run)) > 2
    (data,) = result.run.glob("wandb/offline-run-*/*.wandb")
    assert b"rollout/return_mean" in data.read_bytes()

    again = rltrain.train(resume=result.run, steps=128, quiet=True)
    assert len(list(result.run.glob("wandb/*"))) == 1, "a resume sends only if it is asked again"
    assert send.send(result.run, "wandb", "project") == len(read(again.run)) - sent["wandb project"]["lines"] > 0


def test_a_server_that_does_not_answer_costs_a_line_and_a_limited_time(
    trained: rltrain.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(send, "END_SECONDS", 0.5)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        result = rltrain.train(**{**QUICK, "quiet": False}, out=str(tmp_path), mlflow=uri)
        assert time.monotonic() - began < 30  # MLflow's client alone would wait for an hour, or for its retries

    assert result.fingerprint == trained.fingerprint
    assert f"--mlflow: not all metrics were sent, see {result.run / send.SEND_LOG}" in capfd.readouterr().out
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
