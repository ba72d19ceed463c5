"""The examination of an environment, as tasks of a child process. Each returns what it found."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psutil

from rltrain.doctor import survey
from rltrain.doctor.findings import FAULT, NOTE, WARNING, Finding
from rltrain.doctor.play import (
    Difference,
    Play,
    Recording,
    different,
    first_difference,
    global_generators,
    record,
    set_global_generators,
)
from rltrain.envs.check import check_env
from rltrain.envs.closing import close
from rltrain.envs.errors import EnvError, EnvFault, InvalidValue, Watch
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import read_spec
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.restore_check import verify

SEVERAL = "use no fixed port, file or lock: a run makes one instance per stream, and one for evaluations"
OWN = "call super().reset(seed=seed) and draw all random numbers from self.np_random"


class Effort(NamedTuple):
    """How much an examination does."""

    steps: int  # of play that is repeated
    seconds: float  # of one such play
    survey_steps: int
    survey_seconds: float
    episodes: int  # of the search for leaks
    instances: int
    restore_seconds: float
    render: bool


EFFORTS = {
    "quick": Effort(300, 0.15, 10_000, 0.5, 6, 2, 0.1, False),
    "normal": Effort(2_000, 1.0, 20_000, 3.0, 20, 4, 2.0, True),
    "deep": Effort(20_000, 8.0, 200_000, 20.0, 60, 10, 10.0, True),
}
TASKS = ("interface", "repeat", "survey", "effects", "globals", "leaks", "restore", "render")


@dataclass(frozen=True)
class Subject:
    """An environment, and how thoroughly it is examined."""

    source: EnvSource
    seed: int
    effort: Effort

    @property
    def name(self) -> str:
        return self.source.name


class Examination:
    """The tasks of the child, in the order of TASKS.

    Args:
        watch: gets the name of each call of the environment before it is made.
    """

    def __init__(self, subject: Subject, watch: Watch) -> None:
        self._source, self._seed, self._effort, self._watch = subject.source, subject.seed, subject.effort, watch
        self._seconds: list[float] = []  # of constructors
        self._survey: survey.Survey | None = None

    def spec(self) -> tuple[EnvSpec | None, list[Finding]]:
        """The spec of the environment, or why there is none.

        Raises:
            EnvError: there is no such environment.
        """
        self._watch("import")
        self._source.lookup()
        try:
            self._spec: EnvSpec = read_spec(self._source, self._seed, self._watch)
        except EnvError as error:
            if _is_missing(error):
                raise
            text = str(error).removeprefix(f"{self._source.name}: ")
            return None, [Finding(FAULT, "interface", text, "the line says what is expected", "making it, one reset")]
        except EnvFault as fault:
            return None, [raised(fault.detail, "making it, one reset")]
        return self._spec, []

    def interface(self) -> list[Finding]:
        """Values, spaces and masks of random play, by the check that every run begins with, for longer."""
        spec, effort = self._spec, self._effort
        seen = f"random play from seed {self._seed}"
        try:
            problems = check_env(
                self._source, spec, self._seed, effort.steps, max(0.3, effort.seconds), watch=self._watch
            )
        except EnvFault as fault:
            return [raised(fault.detail, f"{seen}, step {fault.row}")]
        found: dict[str, Finding] = {}
        for problem in problems:
            text, hint = _split(problem.text.removeprefix(f"{spec.id}: "))
            level = FAULT if problem.fatal else NOTE if "is text, which" in text else WARNING
            kind = "seed" if "same seed differ" in text else "interface"
            same_kind = re.sub(r"^(reset|step) |-?[\d.]+(e[+-]\d+)?|\binf\b", "", text)
            found.setdefault(same_kind, Finding(FAULT if kind == "seed" else level, kind, text, hint, seen))
        return list(found.values())

    def repeat(self) -> list[Finding]:
        """The same seed and actions give the same values: in a new instance, after play, next to another instance."""
        spec, effort, seed = self._spec, self._effort, self._seed
        set_global_generators(1)
        with self._made() as env:
            play = Play(env, spec, self._watch)
            recording = record(play, seed, effort.steps, effort.seconds)
            self._recording = recording
            found = [*self._of_play(play), *self._of_space(env)]
            by_declaration = bool(getattr(getattr(env, "spec", None), "nondeterministic", False))
            set_global_generators(2)
            try:
                with self._made() as second:
                    if not _same_spaces(env, second):
                        text = "two instances have different spaces, and a policy fits one of them"
                        hint = "make spaces depend on the arguments of the constructor only"
                        found.append(Finding(FAULT, "spaces", text, hint, "two instances of equal arguments"))
                    again = Play(second, spec, self._watch)
                    found += self._differs(first_difference(again, recording), recording, by_declaration)
            except (EnvFault, EnvError) as error:
                line = _last_line(error)
                text = f"a second instance cannot be made while the first is open: {line}"
                return [*found, Finding(FAULT, "second", text, SEVERAL, "two instances in one process")]
            if any(finding.level == FAULT for finding in found):
                return found
            difference = first_difference(play, recording)
            if difference is not None:
                text = f"state survives a reset: after play, {_place(recording, difference)}"
                hint = "set every attribute that changes during an episode in reset()"
                seen = "one instance, played and reset with the same seed, and the same actions again"
                level = FAULT
                if difference.size < ROUNDING:
                    text, level = f"{text}, by {difference.size:.1g}", NOTE
                    hint = "physics engines keep caches of contacts; make a new world in reset() if bits matter"
                return [*found, Finding(level, "reset", text, hint, seen)]
        return [*found, *self._side_by_side(recording)]

    def _of_play(self, play: Play) -> Iterator[Finding]:
        if play.overwritten >= 0:
            text = f"an observation is overwritten by a later step, first in step {play.overwritten}"
            hint = "return a copy: obs.copy(). Code that keeps observations, such as a replay, sees others otherwise"
            yield Finding(WARNING, "buffer", text, hint, "the observation before was compared with its copy")
        if play.array_reward:
            hint = "return float(reward)"
            yield Finding(WARNING, "reward", f"the reward is {play.array_reward}", hint, "random play")
        if play.changed_action:
            hint = "work on a copy: action = action.copy()"
            yield Finding(
                WARNING, "action", "step changes the action that it gets, in place", hint, "compared with a copy"
            )

    def _of_space(self, env: Any) -> Iterator[Finding]:
        space = self._spec.action
        if space.kind != "box":
            return
        if space.unbounded:
            text = "the action space has no bounds, so that nothing limits what a policy tries"
            hint = "give the Box bounds, or use --action-bound"
            yield Finding(WARNING, "actions", text, hint, f"its action space: {env.action_space}")
        elif max(map(abs, (*space.low, *space.high))) >= 100:
            text = f"actions lie between {min(space.low):g} and {max(space.high):g}"
            hint = "a policy explores the whole range; use [-1, 1] and scale in step(), or Discrete for choices"
            yield Finding(WARNING, "actions", text, hint, f"its action space: {env.action_space}")

    def _differs(self, difference: Difference | None, recording: Recording, by_declaration: bool) -> Iterator[Finding]:
        if difference is None:
            return
        number = difference.row
        what, seen = _place(recording, difference), "two instances with the same seed and the same actions"
        drawn = self._draws_from(recording, number)
        hint = f"{OWN}; it draws from {drawn}" if drawn else OWN
        if number == 0:
            yield Finding(FAULT, "seed", f"the seed does not decide the first observation: {what}", hint, seen)
        elif recording.actions[number] is None:
            text = f"a reset without a seed is not decided by the seed of the first reset: {what}"
            yield Finding(FAULT, "determinism", text, hint, seen)
        else:
            level = NOTE if by_declaration else FAULT
            yield Finding(level, "determinism", f"it is not deterministic: {what}", hint, seen)

    def _draws_from(self, recording: Recording, last: int) -> str:
        """The generators of the process that change in the row that differs; "" if none does."""
        with self._made() as env:
            play = Play(env, self._spec, self._watch)
            before = global_generators()
            for number, action in enumerate(recording.actions[: last + 1]):
                before = global_generators()
                if number == 0:
                    play.reset(recording.seed)
                elif action is None:
                    play.reset()
                else:
                    play.step(action)
            after = global_generators()
        return " and ".join(name for name in before if before[name] != after[name])

    def _side_by_side(self, recording: Recording) -> Iterator[Finding]:
        """Another instance that acts in turns must not change what the first returns."""
        with self._made() as env, self._made() as other_env:
            play, other = Play(env, self._spec, self._watch), Play(other_env, self._spec, self._watch)
            rng = np.random.default_rng(self._seed + 1)
            for number, (row, action) in enumerate(zip(recording.rows, recording.actions, strict=True)):
                if number == 0:
                    again, _ = play.reset(recording.seed), other.reset(recording.seed + 1)
                else:
                    again = play.reset() if action is None else play.step(action)
                    assert other.row is not None
                    other.reset() if other.row.over else other.step(other.choose(rng))
                what = different(row, again)
                if what:
                    text = f"two instances share state: {_place(recording, Difference(number, what, 0.0))}"
                    hint = "keep state in attributes of the instance, not of the class or module"
                    seen = "two instances with different seeds that act in turns, compared with one alone"
                    yield Finding(FAULT, "shared", text, hint, seen)
                    return

    def survey(self) -> tuple[list[Finding], dict[str, Any], list[str]]:
        """Episodes, rewards and observations of longer play: findings, measurements, advice."""
        with self._made() as env:
            play = Play(env, self._spec, self._watch, careful=False)
            self._survey = survey.of(play, self._seed, self._effort.survey_steps, self._effort.survey_seconds)
        measured = survey.measured(self._survey, self._spec, self._seconds)
        return survey.findings(self._survey, self._spec), measured, survey.advice(self._survey, self._spec, measured)

    def effects(self) -> list[Finding]:
        """Whether actions change anything."""
        recording, steps = self._recording, min(60, len(self._recording.rows))
        with self._made() as env:
            play = Play(env, self._spec, self._watch)
            for attempt in range(4):
                rng = np.random.default_rng(self._seed + 100 + attempt)
                row = play.reset(recording.seed)
                if different(row, recording.rows[0]):
                    return []  # not deterministic: this says nothing
                for before in recording.rows[1:steps]:
                    if row.over or before.over:
                        break
                    row = play.step(play.choose(rng))
                    if different(row, before):
                        return []
        text = "actions have no effect: other actions gave the same observations, rewards and ends"
        hint = "check that step() uses its argument"
        return [Finding(NOTE, "effect", text, hint, f"4 plays of up to {steps} steps with other actions")]

    def globals(self) -> list[Finding]:
        """What belongs to the whole process and is changed."""
        found: list[Finding] = []
        with self._made() as env:
            play = Play(env, self._spec, self._watch)
            record(play, self._seed, 3, 0.2)  # imports and caches of the first use
            states = []
            for seed in (11, 12):
                set_global_generators(seed)
                play.reset(self._seed)
                states.append(global_generators())
            set_global_generators(13)
            fresh = global_generators()
            for name, state in states[0].items():
                if state == states[1][name] and state != fresh[name]:
                    text = f"reset sets the seed of {name}, which all code of the process draws from"
                    seen = "its state after two resets, from different states before"
                    found.append(Finding(FAULT, "global", text, OWN, seen))
        before = _process_state()
        with self._made() as env:
            record(Play(env, self._spec, self._watch), self._seed, 20, 0.2)
        after = _process_state()
        for name, value in before.items():
            if after[name] != value:
                text = f"it changes {name} of the whole process: from {value} to {after[name]}"
                hint = "restore it after use; other environments and the run depend on it"
                found.append(Finding(WARNING, "global", text, hint, "before and after one instance that was closed"))
        return found

    def leaks(self) -> list[Finding]:
        """Memory, files, threads and children that grow with episodes, or stay after `close`."""
        effort = self._effort
        found: list[Finding] = []
        with self._made() as env:
            play = Play(env, self._spec, self._watch)
            self._episodes(play, 3)
            done, counts = 0, [_resources()]
            for _ in range(2):
                done += self._episodes(play, effort.episodes // 2)
                counts.append(_resources())
            found += _growth(counts, f"{done} episodes", "close or reuse it in reset()")
        with self._made():
            pass
        counts = [_resources()]
        for _ in range(2):
            for _ in range(max(1, effort.instances // 2)):
                with self._made() as env:
                    self._episodes(Play(env, self._spec, self._watch), 1)
            counts.append(_resources())
        kinds = {finding.text.split(" ")[0] for finding in found}
        for finding in _growth(counts, f"{effort.instances} instances", "release it in close()"):
            if finding.text.split(" ")[0] not in kinds:
                found.append(finding)
        return found

    def _episodes(self, play: Play, count: int) -> int:
        """Plays the beginnings of at most `count` episodes; the number of them."""
        rng, end = np.random.default_rng(self._seed), time.monotonic() + 3 * self._effort.seconds
        for number in range(count):
            play.reset(self._seed)
            for _ in range(20):
                assert play.row is not None
                if play.row.over or time.monotonic() > end:
                    break
                play.step(play.choose(rng))
            if time.monotonic() > end:
                return number + 1
        return count

    def restore(self) -> tuple[list[Finding], str]:
        """How a resumed run restores episodes, as every run finds out at its start."""
        method = verify(self._source.make, self._spec, self._seed, self._effort.restore_seconds, self._watch)
        if method != "none":
            return [], method
        text = "episodes cannot be restored exactly: a resumed run starts new ones"
        hint = "make it deterministic given its seed and actions, or define get_state() and set_state(state)"
        return [Finding(NOTE, "restore", text, hint, "an episode restored in a new instance, as a resume does")], method

    def render(self) -> list[Finding]:
        """A picture in the mode `rgb_array`, if the metadata promises it."""
        if not self._effort.render or not isinstance(self._source.target, str):
            return []
        with self._made() as env:
            modes = (getattr(env, "metadata", None) or {}).get("render_modes") or []
        if "rgb_array" not in modes:
            return []
        seen = "render_mode 'rgb_array', one reset"
        hint = "return an array [height, width, 3] of uint8"
        try:
            source = self._source.__class__(**{**vars(self._source), "kwargs": self._source.kwargs | RGB})
            self._watch("constructor")
            env = source.make()
            try:
                self._watch("reset")
                env.reset(seed=self._seed)
                picture: Any = env.render()
            finally:
                self._watch("close")
                close(env)
        except (EnvError, EnvFault, Exception) as error:
            text = f"the metadata promises render mode rgb_array, and rendering raised {_last_line(error)}"
            return [Finding(WARNING, "render", text, "videos need it; else remove it from metadata", seen)]
        good = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3
        if good and picture.shape[2] == 3:
            return []
        what = f"{picture.shape} of {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        return [Finding(WARNING, "render", f"render returned {what} in the mode rgb_array", hint, seen)]

    @contextmanager
    def _made(self) -> Iterator[Any]:
        self._watch("constructor")
        begin = time.perf_counter()
        env = self._source.make()
        self._seconds.append(time.perf_counter() - begin)
        try:
            yield env
        finally:
            self._watch("close")
            close(env)

    def run(self, task: str) -> Any:
        """One of TASKS. What the environment raises is a finding."""
        empty: Callable[[list[Finding]], Any] = {
            "survey": lambda found: (found, {}, []),
            "restore": lambda found: (found, "none"),
        }.get(task, lambda found: found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return getattr(self, task)()
            except EnvFault as fault:
                return empty([raised(fault.detail, f"random play ({task})")])
            except InvalidValue as error:
                text, hint = _split(str(error))
                return empty([Finding(FAULT, "interface", text, hint, f"random play ({task})")])
            except EnvError:
                raise
            except Exception:
                return empty([raised(traceback.format_exc(), f"random play ({task})")])


ROUNDING = 1e-2  # relative difference below which physics that was reset has begun to differ in its last bits
RGB = {"render_mode": "rgb_array"}


def raised(detail: str, seen: str) -> Finding:
    """The finding about an exception of the environment."""
    line = detail.strip().splitlines()[-1]
    place = [text.strip() for text in detail.splitlines() if text.strip().startswith('File "')]
    if place and place[-1].endswith(", in __init__"):
        text, hint = f"another instance cannot be made: {line}", SEVERAL
        return Finding(FAULT, "second", text, hint, f"{seen}, after one instance was made and closed")
    where = f" at {place[-1]}" if place else ""
    hint = "an action of its space must never raise; Discrete(n, start=k) means actions k to k + n - 1"
    return Finding(FAULT, "exception", f"it raised {line}{where}", hint, seen)


def _is_missing(error: EnvError) -> bool:
    return any(text in str(error) for text in ("needs an extra", "not installed", "its constructor", "unknown env"))


def _split(text: str) -> tuple[str, str]:
    """A problem and what to do, which a line of `check_env` separates."""
    for mark in ("; ", ": "):
        head, found, tail = text.rpartition(mark)
        if found and len(tail) > 12:
            return head, tail
    return text, "change what the environment returns, or its space"


def _last_line(error: BaseException) -> str:
    text = error.detail if isinstance(error, EnvFault) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1][:200]


def _same_spaces(one: Any, other: Any) -> bool:
    return bool(one.observation_space == other.observation_space and one.action_space == other.action_space)


def _place(recording: Recording, difference: Difference) -> str:
    """Where two plays differ, in words."""
    number, what, _ = difference
    episode = sum(action is None for action in recording.actions[: number + 1])
    if recording.actions[number] is None:
        return f"{what} of reset {episode} differs"
    begin = max(place for place in range(number) if recording.actions[place] is None)
    return f"{what} of step {number - begin} in episode {episode} differs"


def _process_state() -> dict[str, Any]:
    names = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
    state: dict[str, Any] = {"the working folder": os.getcwd(), "numpy's error handling": np.geterr()}
    state |= {f"the handler of {name}": signal.getsignal(number) for name, number in names.items()}
    return state


class Resources(NamedTuple):
    files: int
    threads: int
    children: int
    memory: float  # MB


def _resources() -> Resources:
    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else 0
    children = sum(child.status() != psutil.STATUS_ZOMBIE for child in process.children())
    return Resources(files, threading.active_count(), children, process.memory_info().rss / 2**20)


LEAST_GROWTH = 8.0  # MB in one half of the search, below which memory counts as constant


def _growth(counts: list[Resources], period: str, hint: str) -> Iterator[Finding]:
    """Findings about resources that grow in both halves of a search."""
    start, middle, end = counts
    for name, unit in (("files", "open files"), ("threads", "threads"), ("children", "child processes")):
        a, b, c = (getattr(count, name) for count in (start, middle, end))
        if a < b < c:
            yield Finding(FAULT, "leak", f"{unit} grow from {a} to {c} in {period}", hint, "counted in /proc")
    first, second = middle.memory - start.memory, end.memory - middle.memory
    if second > LEAST_GROWTH and second > 0.5 * first:
        text = f"memory grows by {first + second:.0f} MB in {period}"
        yield Finding(FAULT, "leak", text, hint, "memory of the process in two halves")
