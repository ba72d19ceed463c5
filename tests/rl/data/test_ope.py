"""rlope and rltrain.estimate: the table, agreement with played episodes, and each refusal."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain import cli
from rltrain.data.episodes import Recorded, episodes_of, write
from rltrain.data.off_policy import estimate as module
from rltrain.data.off_policy.estimators import IMPORTANCE, METHODS
from rltrain.data.off_policy.fitted_q import FittedQConfig
from rltrain.data.off_policy.target import Steps, Target
from rltrain.storage.recording import Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
SAC: dict[str, Any] = {**QUIET, "algo": "sac", "widths": (8,), "streams": 4, "warmup": 100, "batch": 16, "lr": 0.01}
WEIGHTS = [*IMPORTANCE, "dr"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with Box actions and episodes of one step, and its recording."""
    folder = tmp_path_factory.mktemp("box")
    result = rltrain.train(**SAC, env="probe:box", steps=600, out=str(folder / "runs"), record=str(folder / "rec"))
    return result.run, folder / "rec"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with masked Discrete actions and several steps an episode, and its recording."""
    folder = tmp_path_factory.mktemp("masked")
    more = {"algo": "dqn", "epsilon": 0.6, "epsilon_end": 0.6}
    result = rltrain.train(
        **SAC | more, env="probe:masked", steps=600, out=str(folder / "runs"), record=str(folder / "rec")
    )
    return result.run, folder / "rec"


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FittedQConfig", functools.partial(FittedQConfig, widths=(32,), lr=0.005))


@pytest.fixture
def rlope(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; its output, or the one line of its error."""

    def run(*argv: Any, status: int = 0) -> str:
        assert cli.main_ope([str(word) for word in argv]) == status
        out, err = capsys.readouterr()
        if status:
            (line,) = err.splitlines()
            return str(line)
        return out

    return run


def changed(source: Path, folder: Path, change: Callable[[Recorded, int], Recorded]) -> Path:
    """The recording with other episodes."""
    recording = Recording.open(source)
    write(folder, recording.spec, [change(one, number) for number, one in enumerate(episodes_of(recording))], {})
    return folder


def test_estimates_agree_with_played_episodes(box: tuple[Path, Path]) -> None:
    """The policy as it acts in training, whose return the data does not have."""
    run, data = box
    result = rltrain.estimate(run, data, stochastic=True, updates=400)
    played = rltrain.evaluate(run, episodes=1000, stochastic=True).return_mean

    assert set(result.estimates) == set(METHODS)
    assert not result.refused
    for name, found in result.estimates.items():
        assert found.ci95 is not None
        low, high = found.ci95
        assert low <= found.value <= high
        assert found.value == pytest.approx(played, abs=0.1), name
    assert result.recorded is not None
    assert abs(result.recorded.value - played) > 0.2
    assert result.estimates["is"].effective_size == pytest.approx(result.estimates["pdis"].effective_size)


def test_the_greedy_policy_of_masked_actions(masked: tuple[Path, Path]) -> None:
    """Its weights are 0 where the recorded action is another; masks hold for its own action too."""
    run, data = masked
    result = rltrain.estimate(run, data, gamma=1.0, updates=400)
    played = rltrain.evaluate(run, episodes=300).return_mean

    for name in METHODS:
        low, high = result.estimates[name].ci95 or (np.inf, -np.inf)
        assert low - 0.1 <= played <= high + 0.1, name
    assert result.gamma == 1.0


def test_the_table_and_json_have_the_same_numbers(masked: tuple[Path, Path], rlope: Callable[..., str]) -> None:
    run, data = masked
    words = [run, "--data", data, "--method", "wis,is,fqe", "--updates", 30, "--seed", 3]
    table = rlope(*words).splitlines()
    values = json.loads(rlope(*words, "--json"))

    assert [line.split()[0] for line in table[2:]] == ["estimator", "recorded", "fqe", "is", "wis"]
    assert set(values["estimates"]) == {"fqe", "is", "wis"}
    for line in table[4:]:
        assert float(line.split()[1]) == pytest.approx(values["estimates"][line.split()[0]]["value"], rel=1e-3)
    assert json.loads(rlope(*words, "--json")) == values
    other = json.loads(rlope(*words[:-1], 4, "--json"))
    assert other["estimates"]["is"]["value"] == values["estimates"]["is"]["value"]
    assert other["estimates"]["is"]["ci95"] != values["estimates"]["is"]["ci95"]
    assert other["estimates"]["fqe"] != values["estimates"]["fqe"]


def test_a_deterministic_policy_has_no_weights_for_box_actions(
    box: tuple[Path, Path], rlope: Callable[..., str]
) -> None:
    run, data = box
    line = rlope(run, "--data", data, "--method", ",".join(WEIGHTS), status=2)
    assert "deterministic" in line
    assert "--stochastic" in line

    table = rlope(run, "--data", data, "--updates", 5)  # fqe applies
    assert table.count("refused") == len(WEIGHTS) + 1


def without(one: Recorded, number: int) -> Recorded:
    return replace(one, extras={})


def unknown(one: Recorded, number: int) -> Recorded:
    return replace(one, extras={"log_prob": np.full(one.steps, np.nan, np.float32)})


def certain(one: Recorded, number: int) -> Recorded:
    return replace(one, extras={"log_prob": np.zeros(one.steps, np.float32)})


def impossible(one: Recorded, number: int) -> Recorded:
    return replace(one, extras={"log_prob": np.full(one.steps, -np.inf, np.float32)})


def far(one: Recorded, number: int) -> Recorded:
    """A policy whose actions the evaluated one almost never takes, apart from a few."""
    return replace(one, extras={"log_prob": one.extras["log_prob"] + 30 * (number > 4)})


def cut(one: Recorded, number: int) -> Recorded:
    return replace(one, terminated=False, truncated=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without, "propensities"),
        pytest.param(unknown, "propensities", marks=pytest.mark.sweep),
        pytest.param(certain, "without exploration", marks=pytest.mark.sweep),
        (far, "effective size"),
        pytest.param(cut, "no episode", marks=pytest.mark.sweep),
        pytest.param(impossible, "probability 0", marks=pytest.mark.sweep),
    ],
)
def test_estimators_with_weights_refuse(
    change: Callable[[Recorded, int], Recorded], reason: str, box: tuple[Path, Path], tmp_path: Path,
    rlope: Callable[..., str],
) -> None:  # fmt: skip
    data = changed(box[1], tmp_path / "changed", change)
    for name in WEIGHTS:
        assert reason in rlope(box[0], "--data", data, "--stochastic", "--method", name, status=2)
    table = rlope(box[0], "--data", data, "--stochastic", "--updates", 5)
    assert "fqe" in table
    assert reason in table.splitlines()[-1] or reason in table.splitlines()[-2]


def test_probabilities_above_1_are_refused(
    masked: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    def above(one: Recorded, number: int) -> Recorded:
        return replace(one, extras={"log_prob": one.extras["log_prob"] + 1})

    data = changed(masked[1], tmp_path / "changed", above)
    assert "above 0" in rlope(masked[0], "--data", data, "--method", "wis", status=2)


def test_weights_whose_mean_is_not_1_have_a_note(
    masked: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    """Wrong log-probabilities, or a recorded policy that never takes some of the actions."""

    def below(one: Recorded, number: int) -> Recorded:
        return replace(one, extras={"log_prob": one.extras["log_prob"] - 1})

    data = changed(masked[1], tmp_path / "changed", below)
    words = [masked[0], "--method", "wis"]
    assert "and it should be 1" in rlope(*words, "--data", data)
    assert "and it should be 1" not in rlope(*words, "--data", masked[1])


def test_fitted_values_of_endless_episodes_need_a_discount(
    masked: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    def limited(one: Recorded, number: int) -> Recorded:
        return replace(one, terminated=False, truncated=True)

    data = changed(masked[1], tmp_path / "changed", limited)
    words = [masked[0], "--data", data, "--method", "fqe", "--updates", 5]
    assert "gamma 1" in rlope(*words, "--gamma", 1, status=2)
    assert "time limit: fqe counts" in rlope(*words)


def test_a_policy_without_a_density_is_refused(tmp_path: Path, rlope: Callable[..., str]) -> None:
    words = {**SAC, "env": "probe:box", "steps": 120, "out": str(tmp_path)}
    rltrain.train(**words, name="sac", record=str(tmp_path / "rec"))
    run = rltrain.train(**words | {"algo": "td3"}).run

    assert "no probabilities" in rlope(run, "--data", tmp_path / "rec", "--method", "is", "--stochastic", status=2)
    assert "fqe" in rlope(run, "--data", tmp_path / "rec", "--stochastic", "--updates", 5)


def test_noise_that_is_held_is_refused(tmp_path: Path, rlope: Callable[..., str]) -> None:
    words = {**QUIET, "algo": "ppo", "env": "probe:box", "steps": 64, "streams": 4, "unroll": 16, "out": str(tmp_path)}
    words |= {"epochs": 1, "minibatches": 1, "widths": (8,)}
    rltrain.train(**words, sde=True, sde_every=4, record=str(tmp_path / "rec"))
    run = rltrain.train(**words).run

    assert "sde_every" in rlope(run, "--data", tmp_path / "rec", "--method", "is", "--stochastic", status=2)


def test_actions_that_a_server_clipped_are_refused(
    box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    recording = Recording.open(box[1])
    clipped = [replace(one, action=np.ones_like(one.action)) for one in episodes_of(recording)]
    write(tmp_path / "served", recording.spec, clipped, {"served": True})

    assert "bounds" in rlope(box[0], "--data", tmp_path / "served", "--method", "is", "--stochastic", status=2)


def test_other_environments_are_refused(
    box: tuple[Path, Path], masked: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    assert "probe:masked" in rlope(box[0], "--data", masked[1], status=2)

    recording = Recording.open(box[1])
    episodes = list(episodes_of(recording))
    write(tmp_path / "wide", replace(recording.spec, max_steps=7), episodes, {})
    assert "max_steps" in rlope(box[0], "--data", tmp_path / "wide", status=2)
    write(tmp_path / "args", recording.spec, episodes, {"env_args": {"wind": 3}})
    assert "wind" in rlope(box[0], "--data", tmp_path / "args", status=2)


def test_memory_has_weights_and_no_fitted_values(tmp_path: Path, rlope: Callable[..., str]) -> None:
    words = {**QUIET, "algo": "ppo", "env": "probe:masked", "steps": 640, "streams": 4, "unroll": 16, "widths": (8,)}
    words |= {"epochs": 1, "minibatches": 1, "memory": "gru", "memory_size": 8, "lr": 1e-4, "out": str(tmp_path)}
    run = rltrain.train(**words, record=str(tmp_path / "rec")).run

    table = rlope(run, "--data", tmp_path / "rec", "--stochastic")
    assert "fqe, dr: refused: the policy has a memory" in table or "dr, fqe" in table
    assert "pdwis" in table
    recording = Recording.open(tmp_path / "rec")
    write(tmp_path / "bare", recording.spec, [replace(one, extras={}) for one in episodes_of(recording)], {})
    refused = rlope(run, "--data", tmp_path / "bare", status=2)
    assert "no log-probabilities" in refused
    assert "only fqe" not in refused  # which is refused too


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--method", "mc"], "there are fqe, dr, is"),
        (["--gamma", "1.5"], "gamma"),
        (["--gamma", "nan"], "gamma"),
        (["--updates", "0"], "updates"),
        (["--seed", "-1"], "seed"),
        (["--episodes", "3"], "--episodes"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], text: str, masked: tuple[Path, Path], rlope: Callable[..., str]
) -> None:
    assert text in rlope(masked[0], "--data", masked[1], *words, status=2)


def test_wrong_arguments_of_a_program(masked: tuple[Path, Path]) -> None:
    wrong: list[dict[str, Any]] = [{"method": 3}, {"method": []}, {"gamma": True}, {"seed": 0.5}, {"updates": "7"}]
    for words in wrong:
        with pytest.raises(rltrain.ConfigError, match=next(iter(words))):
            rltrain.estimate(*masked, **words)
    with pytest.raises(rltrain.ConfigError, match="recording"):
        rltrain.estimate(masked[0], 3)  # type: ignore[arg-type]


def test_missing_folders_are_one_line(masked: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]) -> None:
    assert "does not exist" in rlope(tmp_path / "none", "--data", masked[1], status=2)
    assert "not a recording" in rlope(masked[0], "--data", tmp_path, status=2)
    assert "--data" in rlope(masked[0], status=2)


def test_values_of_an_episode_are_learnt_from_others(
    masked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each complete episode of `dr` has values of the networks that did not learn from it, of no others."""
    recording = Recording.open(masked[1])
    episodes = list(episodes_of(recording))[:41]
    work = module._Work(episodes, recording, Target(rltrain.load(masked[0]), False, 0), 0.9, 0, 1)
    left_out = []

    def learn(weight: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        left_out.append(weight[0] == 0)
        steps = work.steps
        v = np.concatenate(
            [np.full(one.steps + 1, float(out)) for one, out in zip(episodes, left_out[-1], strict=True)]
        )
        return v[None, steps.row], v[None]

    monkeypatch.setattr(module._Work, "learn", lambda self, weight, seed: learn(weight, seed))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(module, "doubly_robust", lambda data, gamma, q, v: seen.extend([q, v]))
    work.robust()

    assert (left_out[0] ^ left_out[1]).sum() == len(work.complete)
    lengths = np.array([one.steps for one in work.complete])
    for array in seen:
        np.testing.assert_array_equal(array, np.ones(lengths.sum()))


def test_samples_have_the_probabilities_of_the_policy(masked: tuple[Path, Path]) -> None:
    recording = Recording.open(masked[1])
    steps = Steps.of(list(episodes_of(recording))[:100], recording.spec)
    target = Target(rltrain.load(masked[0]), True, 0)
    probabilities = target.probabilities(steps)
    actions = np.eye(probabilities.shape[1])[target.actions(steps)].mean(1)

    assert steps.mask is not None
    assert not probabilities[~steps.mask & steps.mask.any(1, keepdims=True)].any()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(actions.mean(0), probabilities.mean(0), atol=0.05)
    taken = np.log(probabilities[steps.row, steps.action])
    np.testing.assert_allclose(taken, target.log_prob(steps), atol=1e-4)


def test_what_refuses_estimates_stays_with_parts_and_mixtures(
    box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str], rldata: Callable[..., str]
) -> None:
    recording = Recording.open(box[1])
    episodes = [replace(one, action=np.ones_like(one.action)) for one in islice(episodes_of(recording), 60)]
    abouts: dict[str, dict[str, Any]] = {
        "plain": {},
        "sde_every": {"settings": {"sde": True, "sde_every": 4}},
        "bounds": {"served": True},
        "arguments": {"env_args": {"wind": 3}},
    }
    for word, about in abouts.items():
        write(tmp_path / word, recording.spec, episodes, about)
    for word in list(abouts)[1:]:
        out = tmp_path / f"of-{word}"
        rldata("filter", tmp_path / word, out / "filter", "--min-length", 0)
        rldata("split", tmp_path / word, out / "split", out / "rest")
        rldata("merge", tmp_path / "plain", tmp_path / word, out / "merge")
        rldata("merge", out / "merge", tmp_path / "bounds", out / "again")
        for name in ("filter", "split", "rest", "merge", "again"):
            line = rlope(box[0], "--data", out / name, "--method", "is", "--stochastic", status=2)
            assert word in line, name


def test_merged_data_of_two_arguments_has_both(
    tmp_path: Path, box: tuple[Path, Path], rldata: Callable[..., str]
) -> None:
    recording = Recording.open(box[1])
    for wind in (1, 2):
        write(tmp_path / str(wind), recording.spec, list(episodes_of(recording)), {"env_args": {"wind": wind}})
    rldata("merge", tmp_path / "1", tmp_path / "2", tmp_path / "out")
    rldata("merge", tmp_path / "out", tmp_path / "1", tmp_path / "more")

    assert Recording.open(tmp_path / "more").run["env_args"] == [{"wind": 1}, {"wind": 2}]


@pytest.mark.parametrize(
    "condition",
    [
        "--top=30%",
        pytest.param("--min-return=-0.3", marks=pytest.mark.sweep),
        pytest.param("--max-return=-0.05", marks=pytest.mark.sweep),
    ],
)
def test_weights_refuse_episodes_that_were_selected(
    condition: str, box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str],
    rldata: Callable[..., str],
) -> None:  # fmt: skip
    rldata("filter", box[1], tmp_path / "best", condition)
    rldata("split", tmp_path / "best", tmp_path / "part", tmp_path / "rest", "--fraction", "50%")
    rldata("merge", tmp_path / "part", box[1], tmp_path / "mixed")
    rldata("filter", tmp_path / "mixed", tmp_path / "again", "--min-length", 1)
    for name in ("best", "part", "rest", "mixed", "again"):
        table = rlope(box[0], "--data", tmp_path / name, "--stochastic", "--updates", 5)
        assert "dr, is, pdis, wis, pdwis: refused: the episodes were selected by return or length" in table
        assert "note: the episodes were selected by return or length" in table


def test_a_filter_that_removes_no_complete_episode_selects_nothing(
    box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str], rldata: Callable[..., str]
) -> None:
    rldata("filter", box[1], tmp_path / "all", "--min-length", 1)
    assert "selected" not in rlope(box[0], "--data", tmp_path / "all", "--stochastic", "--method", "wis")


def test_filtered_data_of_version_0_1_was_selected(
    box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]
) -> None:
    recording = Recording.open(box[1])
    write(tmp_path / "old", recording.spec, list(episodes_of(recording)), {"filtered": "rec", "top": 0.1})
    assert "selected" in rlope(box[0], "--data", tmp_path / "old", "--stochastic", "--method", "wis", status=2)


def test_few_episodes_have_no_interval(box: tuple[Path, Path], tmp_path: Path, rlope: Callable[..., str]) -> None:
    recording = Recording.open(box[1])
    for count in (1, 9, 10):
        write(tmp_path / str(count), recording.spec, list(episodes_of(recording))[:count], {})
        words = [box[0], "--data", tmp_path / str(count), "--method", "fqe", "--updates", 3]
        values, table = json.loads(rlope(*words, "--json")), rlope(*words)
        assert (values["recorded"]["ci95"] is None) == (values["estimates"]["fqe"]["ci95"] is None) == (count < 10)
        assert ("note: recorded and fqe from fewer than 10 whole episodes" in table) == (count < 10)
        assert [line.split()[2] == "none" for line in table.splitlines()[3:5]] == [count < 10] * 2


def test_data_that_exceeds_the_free_memory_is_refused(
    box: tuple[Path, Path], rlope: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    assert "of memory, and 1000 B is free; `rldata split`" in rlope(box[0], "--data", box[1], status=2)
