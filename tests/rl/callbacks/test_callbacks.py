"""Callbacks: when they are called, what they may ask of the run, exact resume, and the messages about their faults."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.forged import forge, forge_config

import rltrain
from rltrain import cli
from rltrain.callbacks.callback import packed, unpacked
from rltrain.callbacks.loading import make_callbacks
from rltrain.config.load import load
from rltrain.errors import CheckpointError, ConfigError
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint

TINY: dict[str, Any] = {
    "algo": "ppo", "env": "CartPole-v1", "preset": "none", "workers": 0, "streams": 4, "unroll": 32, "epochs": 1,
    "minibatches": 2, "widths": (8, 8), "eval_episodes": 2, "steps": 640, "eval_every": 300, "checkpoint_every": 250,
    "quiet": True,
}  # fmt: skip
FLAGS = "--algo ppo --env CartPole-v1 --preset none --workers 0 --streams 4 --unroll 32 --epochs 1 --minibatches 2 "
FLAGS += "--widths 8,8 --eval-episodes 2 --steps 1600 --eval-every 200 --checkpoint-every 150 --json --quiet"

WATCH = """
from collections import deque

import rltrain


class Watch(rltrain.Callback):
    def __init__(self):
        self.episodes, self.saved, self.worse, self.best = 0, 0, 0, None
        self.last = deque(maxlen=3)

    def on_start(self, run):
        self.episodes = 0
        run.change("value", 0.25)

    def on_update(self, run):
        if run.metrics["learner/entropy"] < 0.69 and run.settings.entropy < 0.02:
            run.change("entropy", 0.02)

    def on_episode(self, run, episode):
        self.episodes += 1
        self.last.append(episode.ret)
        if self.episodes % 10 == 0:
            run.change("lr", run.settings.lr * (0.9 if sum(self.last) / 3 > 20 else 1.1))
        if self.episodes == 25:
            run.evaluate()

    def on_evaluation(self, run, evaluation):
        if self.best is None or evaluation.return_mean > self.best:
            self.best, self.worse = evaluation.return_mean, 0
        else:
            self.worse += 1
        run.checkpoint()
        if self.worse > PATIENCE:
            run.stop(f"worse {self.worse} times after {self.episodes} episodes and {self.saved} checkpoints")

    def on_checkpoint(self, run, path):
        self.saved += 1
        run.change("clip", 0.2 + 0.01 * (self.saved % 3))
"""


class Diary(rltrain.Callback):
    """Notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.views: list[rltrain.RunView] = []

    def on_start(self, run: rltrain.RunView) -> None:
        self.views.append(run)
        self.calls.append(("start", run.steps, run.resumed))

    def on_update(self, run: rltrain.RunView) -> None:
        self.calls.append(("update", run.steps, run.updates))

    def on_log(self, run: rltrain.RunView, values: dict[str, float]) -> None:
        self.calls.append(("log", run.steps, values["rollout/episodes"]))

    def on_episode(self, run: rltrain.RunView, episode: Any) -> None:
        self.calls.append(("episode", episode.ret, episode.length))

    def on_evaluation(self, run: rltrain.RunView, evaluation: Any) -> None:
        self.calls.append(("evaluation", evaluation.step, evaluation.return_mean))

    def on_checkpoint(self, run: rltrain.RunView, path: Path) -> None:
        assert (path / "meta.json").exists()
        self.calls.append(("checkpoint", run.steps, path.name))

    def on_end(self, run: rltrain.RunView) -> None:
        self.calls.append(("end", run.steps, run.stopped))


def train(tmp_path: Path, *callbacks: Any, **changes: Any) -> rltrain.Result:
    return rltrain.train(**{**TINY, "out": str(tmp_path / "runs"), **changes}, callbacks=list(callbacks))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> rltrain.Result:
    """A run without callbacks."""
    return train(tmp_path_factory.mktemp("plain"))


def failure(tmp_path: Path, *callbacks: Any, **changes: Any) -> str:
    """The message of the run, without a last line with the command that continues it."""
    with pytest.raises(rltrain.RunFailed) as raised:
        train(tmp_path, *callbacks, **changes)
    *lines, last = str(raised.value).splitlines()
    return "\n".join(lines if last.startswith("to continue: rltrain --resume ") else [*lines, last])


# --- when they are called ---


def test_every_hook_is_called_at_its_moment_and_changes_nothing(tmp_path: Path, plain: rltrain.Result) -> None:
    diary = Diary()

    result = train(tmp_path, rltrain.Callback(), diary)

    assert result.fingerprint == plain.fingerprint

    calls = diary.calls
    assert calls[0] == ("start", 0, False)
    assert calls[-1] == ("end", result.steps, "steps")
    assert len([call for call in calls if call[0] == "update"]) == 6
    assert len([call for call in calls if call[0] == "episode"]) == result.episodes
    assert [call[1] for call in calls if call[0] == "evaluation"][-1] == result.steps
    assert len([call for call in calls if call[0] == "evaluation"]) == 3
    saved = [call for call in calls if call[0] == "checkpoint"]
    assert len(saved) == 3
    assert saved[-1][2] == result.checkpoint.name
    assert ("log", result.steps, float(result.episodes)) in calls


class Reader(rltrain.Callback):
    """Looks at everything that a run offers."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.actions: list[int] = []

    def on_update(self, run: rltrain.RunView) -> None:
        self.seen.append(dict(run.metrics))
        assert run.folder.is_dir()
        assert 0 < run.progress <= 1
        assert run.spec.id == run.config.env == "CartPole-v1"
        assert sum(parameter.numel() for parameter in run.modules["policy"].parameters()) > 100
        noisy = [run.policy.act(np.zeros(4, np.float32), explore=True) for _ in range(3)]
        self.actions += [int(action) for action in noisy]
        run.policy.policy.load_state_dict(run.policy.policy.state_dict())
        with torch.no_grad():
            for parameter in run.policy.policy.parameters():
                parameter.zero_()  # a copy


def test_what_a_run_shows_changes_nothing_and_is_the_same_with_workers(tmp_path: Path, plain: rltrain.Result) -> None:
    reader, other = Reader(), Reader()

    result, again = train(tmp_path, reader, workers=0), train(tmp_path, other, workers=2)

    assert result.fingerprint == again.fingerprint == plain.fingerprint
    assert reader.seen == other.seen
    assert reader.actions == other.actions
    assert {"rollout/return_mean", "learner/loss_value", "learner/lr", "eval/return_mean"} <= reader.seen[-1].keys()


# --- what they may ask of the run ---


class Late(rltrain.Callback):
    """Asks for one thing at the second update."""

    def __init__(self, ask: Any) -> None:
        self.ask, self.updates = ask, 0

    def on_update(self, run: rltrain.RunView) -> None:
        self.updates += 1
        if self.updates == 2:
            self.ask(run)


def test_a_run_is_stopped_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(tmp_path, Late(lambda run: run.stop("I have\nseen enough")))

    assert result.stopped == "I have seen enough"
    assert result.steps < 300
    assert result.eval_return is not None
    again = rltrain.train(resume=result.run, callbacks=[Late(None)], quiet=True)
    assert (again.stopped, again.steps, again.fingerprint) == (result.stopped, result.steps, result.fingerprint)
    longer = rltrain.train(resume=result.run, callbacks=[], steps=700, quiet=True)
    assert (longer.stopped, longer.steps >= 700) == ("steps", True)


def test_evaluations_and_checkpoints_are_made_when_asked_for(tmp_path: Path) -> None:
    diary = Diary()

    def ask(run: rltrain.RunView) -> None:
        run.evaluate()
        run.checkpoint()

    result = train(tmp_path, Late(ask), diary, eval_every=0, checkpoint_every=0)

    second = [call[1] for call in diary.calls if call[0] == "update"][1]
    assert [call[1] for call in diary.calls if call[0] == "evaluation"] == [second]
    assert [call[1] for call in diary.calls if call[0] == "checkpoint"] == [second, result.steps]


def test_logged_values_are_in_the_next_line(tmp_path: Path) -> None:
    class Logs(rltrain.Callback):
        def on_update(self, run: rltrain.RunView) -> None:
            run.log("my/updates", run.updates)
            run.log("mine", np.float32(0.5))

        def on_end(self, run: rltrain.RunView) -> None:
            run.log("my/end", torch.tensor(math.inf))

    result = train(tmp_path, Logs())

    lines = read(result.run)
    assert [line["my/updates"] for line in lines if "my/updates" in line][-1] == 6
    assert lines[-1] == {"step": result.steps, "seconds": lines[-1]["seconds"], "my/end": None}


REFUSED = [
    ("log", "step", 1, "run.log: the platform itself writes 'step'; choose another name, such as my/step"),
    ("log", "eval/success", 1, "the platform itself writes 'eval/success'"),
    ("log", "my/x", "high", "run.log: my/x must be a number, got 'high'"),
    ("log", "my/x", None, "run.log: my/x must be a number, got None"),
    ("change", "gamma", 0.5, "gamma cannot change during a run; what can: lr, lr_end, max_grad_norm, lam, "),
    ("change", "learnrate", 0.5, "unknown setting learnrate; known: "),
    ("change", "lr", -1, "run.change: lr must be greater than 0, got -1"),
    ("change", "lr", "fast", "run.change: lr must be a number, got 'fast'"),
    ("change", "steps", 5, "unknown setting steps; "),
]


def test_what_is_refused_is_one_line_and_changes_nothing(tmp_path: Path, plain: rltrain.Result) -> None:
    def ask(run: rltrain.RunView) -> None:
        for method, name, value, text in REFUSED:
            with pytest.raises(ConfigError, match=re.escape(text)) as raised:
                getattr(run, method)(name, value)
            assert len(str(raised.value).splitlines()) == 1

    assert train(tmp_path, Late(ask)).fingerprint == plain.fingerprint


def test_a_refusal_ends_the_run_in_one_line_with_the_place(tmp_path: Path) -> None:
    line, saved = failure(tmp_path, Late(lambda run: run.change("gamma", 0.5))).splitlines()

    assert line.startswith(f"callback Late, on_update at step {int(saved[-12:]):,} ({__file__}, line ")
    assert "gamma cannot change during a run" in line


def test_a_hook_by_the_clock_cannot_steer_the_run(tmp_path: Path) -> None:
    class Clock(rltrain.Callback):
        def on_log(self, run: rltrain.RunView, values: dict[str, float]) -> None:
            for call in (run.evaluate, run.checkpoint, lambda: run.change("lr", 1.0)):
                with pytest.raises(ConfigError, match="on_log is called by the clock"):
                    call()
            run.evaluate()

    assert "run.evaluate: on_log is called by the clock" in failure(tmp_path, Clock())


def test_all_learners_get_a_changed_setting(tmp_path: Path) -> None:
    """One whose step size had stayed as it was would compute gradients of other weights."""
    few = {"steps": 512, "eval_every": 0, "checkpoint_every": 0, "lr": 1e-9, "lr_end": None, "streams": 4}
    few |= {"normalize_obs": False, "normalize_return": False, "minibatches": 1, "epochs": 8}
    results = [train(tmp_path, Late(lambda run: run.change("lr", 1e-2)), learners=n, **few) for n in (1, 2)]

    one, two = (checkpoint.load(each.checkpoint).state["learner"]["parts"]["policy"] for each in results)
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-4


# --- exact resume ---


def folder_of(out: Path) -> Path:
    (run,) = out.iterdir()
    return run


@pytest.mark.parametrize("patience", [0, pytest.param(100, marks=pytest.mark.sweep)])
def test_killed_and_resumed_with_a_callback_is_as_if_nothing_had_been(
    patience: int, launch: Any, tmp_path: Path
) -> None:
    (tmp_path / "watch.py").write_text(WATCH.replace("PATIENCE", str(patience)))
    argv = [*FLAGS.split(), "--callback", "watch.py:Watch"]
    whole = launch(tmp_path, *argv, "--out", "whole").result
    plain = launch(tmp_path, *FLAGS.split(), "--out", "plain").result

    assert launch(tmp_path, *argv, "--out", "cut", kill=("step", 2)).status == -9
    run = folder_of(tmp_path / "cut")
    for kill in [("step", 3), ("write", 3), ("rename", 4), ("step", 3)][: 2 if patience == 0 else 4]:
        launch(tmp_path, "--resume", str(run), kill=kill)
    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    same = ("fingerprint", "steps", "episodes", "train_return", "eval_return", "stopped")
    assert {key: result[key] for key in same} == {key: whole[key] for key in same}
    assert (patience == 100) == (whole["stopped"] == "steps")
    assert whole["fingerprint"] != plain["fingerprint"]
    state = [checkpoint.load(Path(tmp_path, each["checkpoint"])).state["callbacks"] for each in (whole, result)]
    assert state[0]["entries"] == state[1]["entries"]
    assert state[0]["requests"]["changes"] == state[1]["requests"]["changes"]


def test_a_run_with_callbacks_from_a_program_needs_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, rltrain.StopOnPlateau(patience=7), steps=300)

    assert cli.main(["--resume", str(result.run), "--steps", "600"]) == 2
    assert "the run's callbacks StopOnPlateau were given as objects" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="resume from Python"):
        rltrain.train(resume=result.run, steps=600)
    plateau = rltrain.StopOnPlateau(patience=7)
    assert rltrain.train(resume=result.run, steps=600, quiet=True, callbacks=[plateau]).steps >= 600
    assert plateau.best is not None


def test_plain_data_keeps_its_types() -> None:
    value = {
        "a": [1, (2.5, None), {3, 4}], 5: deque([1, 2], maxlen=7), (1, "b"): {"c": np.arange(3)}, "d": np.float32(2),
        "e": frozenset({"x"}), "t": torch.ones(2), "g": True,
    }  # fmt: skip

    saved = checkpoint._to_structure(packed(value), "", {})
    again = unpacked(packed(value))

    assert saved
    assert {key: again[key] for key in again if key not in ((1, "b"), "t")} == {
        key: value[key] for key in value if key not in ((1, "b"), "t")
    }
    assert again[5].maxlen == 7
    assert again[(1, "b")]["c"].tolist() == [0, 1, 2]
    assert torch.equal(again["t"], torch.ones(2))
    with pytest.raises(TypeError):
        packed({"f": object()})


# --- faults of callbacks ---


class Boom(rltrain.Callback):
    """Raises in one hook."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        def fail(*_: Any) -> None:
            raise error("of the user")

        setattr(self, hook, fail)


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("on_start", ValueError),
        ("on_update", SystemExit),
        pytest.param("on_evaluation", KeyError, marks=pytest.mark.sweep),
        pytest.param("on_checkpoint", OSError, marks=pytest.mark.sweep),
    ],
)
def test_an_exception_shows_the_users_traceback_and_leaves_a_checkpoint(
    hook: str, error: type[BaseException], tmp_path: Path
) -> None:
    text = failure(tmp_path, Boom(hook, error))

    assert text.startswith(f"callback Boom, {hook} at step ")
    assert f'File "{__file__}"' in text
    assert 'raise error("of the user")' in text
    assert "dispatch.py" not in text
    assert text.splitlines()[-2].startswith(f"{error.__name__}: ")
    assert checkpoint.load(Path(text.splitlines()[-1].removeprefix("checkpoint "))).meta["exact"]


def test_an_exception_at_the_end_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    text = failure(tmp_path, Boom("on_end", KeyError), diary := Diary())

    assert "on_end at step" in text
    assert diary.calls[-1][0] == "end"
    assert checkpoint.load(Path(text.splitlines()[-1].removeprefix("checkpoint "))).meta["step"] >= 640


def test_a_state_that_cannot_be_saved_ends_the_run_in_one_line(tmp_path: Path) -> None:
    class Odd(rltrain.Callback):
        def state(self) -> Any:
            return {"file": open}

    line, _ = failure(tmp_path, Odd()).splitlines()

    assert "callback" in line
    assert "state() must return plain data: not plain data: builtin_function_or_method" in line


def test_a_state_that_cannot_be_restored_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    result = train(tmp_path, rltrain.Callback())
    with pytest.raises(rltrain.RunFailed, match=r"(?s)load_state at step.*KeyError.*checkpoints of the run are unch"):
        rltrain.train(
            resume=result.run, steps=900, callbacks=[type("Callback", (Boom,), {})("load_state", KeyError)],
            quiet=True,
        )  # fmt: skip
    assert (result.run / "checkpoints" / "latest").read_text().strip() == result.checkpoint.name


def test_the_command_shows_the_traceback_and_status_1(launch: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import rltrain\n\nclass Mine(rltrain.Callback):\n    def on_update(self, run):\n        return 1 / 0\n"
    )

    done = launch(tmp_path, *FLAGS.split(), "--callback", "mine.py:Mine")

    assert done.status == 1
    assert "return 1 / 0" in done.err
    assert "ZeroDivisionError" in done.err
    assert done.err.splitlines()[-2].startswith("checkpoint ")
    assert done.err.splitlines()[-1].startswith("to continue: ")


# --- names on the command line ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plateau", "must have the form module:Class or path/to/file.py:Class"),
        ("gone.py:X", "there is no file "),
        ("gone_module:X", "there is no module 'gone_module'; looked in "),
        ("rltrain:StopOnPlateo", "rltrain has no 'StopOnPlateo'"),
        ("rltrain:RunFailed", "is no callback: it has none of on_start, on_update"),
        ("rltrain:make_env", "is called without arguments, and missing a required argument: 'env'"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as raised:
        make_callbacks(load({**TINY, "callback": [name]}), None)
    assert str(raised.value).startswith(f"--callback {name}")
    assert len(str(raised.value).splitlines()) == 1


def test_a_module_that_raises_shows_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")

    with pytest.raises(rltrain.RunFailed, match=r"(?s)broken.py:Mine failed:.*import nothing_of_this_name.*Error"):
        make_callbacks(load({**TINY, "callback": [f"{tmp_path}/broken.py:Mine"]}), None)


def test_a_class_and_a_function_are_taken_in_place_of_an_object() -> None:
    made = make_callbacks(load(TINY), [rltrain.StopOnPlateau, lambda: Diary(), plateau := rltrain.StopOnPlateau(3)])

    assert [type(each) for each in made[:2]] == [rltrain.StopOnPlateau, Diary]
    assert made[2] is plateau
    with pytest.raises(ConfigError, match="callbacks: int is no callback"):
        make_callbacks(load(TINY), [5])
    with pytest.raises(ConfigError, match="must be a list"):
        rltrain.train(**TINY, callbacks=rltrain.StopOnPlateau)


def test_somebody_elses_run_imports_no_callback(
    plain: rltrain.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(plain.run, folder)
    (tmp_path / "payload.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    forge_config(folder, callback=["payload.py:X"])

    assert cli.main(["--resume", str(folder), "--steps", "900"]) == 2

    assert "it would import 'payload.py' (callback 'payload.py:X')" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "callbacks",
    [
        {"requests": {"changes": {"lr": -1.0}}},
        *(
            pytest.param(state, marks=pytest.mark.sweep)
            for state in ({"entries": 5}, {"requests": {"logged": {"x": "y"}}})
        ),
    ],
    ids=str,
)
def test_damaged_states_of_callbacks_are_refused(callbacks: dict[str, Any], tmp_path: Path) -> None:
    result = train(tmp_path, rltrain.StopOnPlateau(), steps=300)
    structure = checkpoint._to_structure(callbacks, "", {})
    forge(result.checkpoint / "meta.json", lambda meta: meta["structure"]["dict"].update(callbacks=structure))

    with pytest.raises(CheckpointError):
        rltrain.train(resume=result.run, steps=600, callbacks=[rltrain.StopOnPlateau()], quiet=True)


# --- those that are ready for use ---


def test_a_plateau_ends_the_run(tmp_path: Path) -> None:
    result = train(tmp_path, rltrain.StopOnPlateau(patience=2, min_delta=1e9), eval_every=100)

    assert result.stopped.startswith("no eval/return_mean above ")
    assert result.stopped.endswith(" in 2 evaluations")
    assert len([line for line in read(result.run) if "eval/return_mean" in line]) == 3
    with pytest.raises(rltrain.RunFailed, match="needs evaluations, but eval_every is 0"):
        train(tmp_path, rltrain.StopOnPlateau(), eval_every=0)


def test_histograms_of_weights_and_gradients(tmp_path: Path, plain: rltrain.Result) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(tmp_path, rltrain.Histograms(every=300))

    events = EventAccumulator(str(result.run / "tensorboard"), {"histograms": 0})
    events.Reload()
    names = events.Tags()["histograms"]
    weights = [name for name in names if name.startswith("weights/policy.")]
    assert len(weights) > 3
    assert {name.replace("weights", "gradients") for name in weights} <= set(names)
    assert len(events.Histograms(weights[0])) == 2
    assert plain.fingerprint == result.fingerprint


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="CartPole is drawn by pygame")
def test_films_are_in_the_folder_and_in_tensorboard(tmp_path: Path, plain: rltrain.Result) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(tmp_path, rltrain.Video(every=300, suffix=".gif"))

    films = sorted((result.run / "videos").iterdir())
    assert [film.name[:5] for film in films] == ["step-", "step-"]
    assert films[0].read_bytes()[:3] == b"GIF"
    assert result.fingerprint == plain.fingerprint
    events = EventAccumulator(str(result.run / "tensorboard"), {"images": 0})
    events.Reload()
    shown = events.Images("videos/episode")
    assert [image.step for image in shown] == [int(film.name[5:17]) for film in films]
    assert shown[0].encoded_image_string[:3] == b"GIF"
    assert (shown[0].width, shown[0].height) == (200, 134)


def test_an_environment_that_cannot_be_filmed_is_a_line(
    tmp_path: Path, plain: rltrain.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, rltrain.Video(every=100), env="probe:dict", quiet=False, steps=320)

    assert capsys.readouterr().out.count("no more videos: ") == 1
    assert result.stopped == "steps"


def test_tensorboard_has_the_configuration_and_the_final_returns(plain: rltrain.Result) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(plain.run / "tensorboard"))
    events.Reload()

    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| widths | 8,8 |" in text
    assert "| env | CartPole-v1 |" in text
    assert events.Scalars("final/eval_return")[0].value == pytest.approx(plain.eval_return)
    assert events.Scalars("final/train_return")[0].value == pytest.approx(plain.train_return)
    content = events.PluginTagToContent("hparams")
    assert b"final/eval_return" in content["_hparams_/experiment"]
    assert b"normalize_advantage" in content["_hparams_/session_start_info"]
