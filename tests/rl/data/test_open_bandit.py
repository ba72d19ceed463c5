"""Off-policy estimates on real logs with known answers: the Open Bandit Dataset (Saito et al. 2020, arXiv:2008.07146).

A shop showed its items by two policies at the same time, uniformly at random and by Thompson sampling (TS), and logged
each choice with its probability. From the log of one policy the click rate of the other is estimated, and compared with
that policy's own log. The small version of the data, 10,000 rows for each policy and campaign, is in the wheel of obp
0.4.1, which pip downloads here. The wheel's licence is Apache-2.0 and it has no other one for the data; its authors ask
for the citation above. Nothing of it is part of this repository.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rltrain.data.off_policy.estimate import LEAST_SIZE
from rltrain.data.off_policy.estimators import Logged, Terms, effective_size, weighted

Log = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Log]:
    """By policy and campaign."""
    folder = tmp_path_factory.mktemp("obp")
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), "obp==0.4.1"]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    return {
        (policy, campaign): read(wheel, f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv")
        for policy in ("bts", "random")
        for campaign in ("all", "men", "women")
    }


def read(wheel: Path, name: str) -> Log:
    with zipfile.ZipFile(wheel) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(name))))
    columns = {"item": "item_id", "position": "position", "click": "click", "probability": "propensity_score"}
    return {key: np.array([float(row[column]) for row in rows]) for key, column in columns.items()}


def logged(log: Log, probability: np.ndarray) -> Logged:
    """Episodes of one step, for a policy that has chosen the logged items with these probabilities."""
    with np.errstate(divide="ignore"):
        log_ratio = np.log(probability) - np.log(log["probability"])
    return Logged.of(list(log_ratio[:, None]), list(log["click"][:, None]))


def report(capsys: pytest.CaptureFixture[str], what: str, data: Logged, own: float) -> tuple[float, float]:
    low, high = weighted(data, 1.0).interval(0)
    size, value = effective_size(data, "wis"), float(weighted(data, 1.0).value())
    with capsys.disabled():
        print(f"\n{what}: effective size {size:.0f}, wis {value:.5f} ({low:.5f} to {high:.5f}), own log {own:.5f}")
    return low, high


@pytest.mark.sweep
@pytest.mark.parametrize("campaign", ["all", "men"])
def test_of_the_uniform_policy_from_the_log_of_ts(
    campaign: str, logs: dict[tuple[str, str], Log], capsys: pytest.CaptureFixture[str]
) -> None:
    ts, uniform = logs["bts", campaign], logs["random", campaign]
    data = logged(ts, np.full(len(ts["item"]), uniform["probability"][0]))
    low, high = report(capsys, f"{campaign}: uniform from TS", data, uniform["click"].mean())

    assert effective_size(data, "wis") >= LEAST_SIZE
    assert low <= uniform["click"].mean() <= high


@pytest.mark.sweep
@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_of_ts_from_the_log_of_the_uniform_policy(
    campaign: str, logs: dict[tuple[str, str], Log], capsys: pytest.CaptureFixture[str]
) -> None:
    """TS chooses without a look at the user; the frequencies of its items at each position are its probabilities."""
    ts, uniform = logs["bts", campaign], logs["random", campaign]
    places = [log["position"] * 1000 + log["item"] for log in (ts, uniform)]
    counts = np.array([(places[0] == place).sum() for place in places[1]])
    shown = np.array([(ts["position"] == position).sum() for position in uniform["position"]])
    data = logged(uniform, counts / shown)
    low, high = report(capsys, f"{campaign}: TS from uniform", data, ts["click"].mean())

    assert low <= ts["click"].mean() <= high


@pytest.mark.sweep
def test_the_effective_size_of_one_campaign_is_too_small(
    logs: dict[tuple[str, str], Log], capsys: pytest.CaptureFixture[str]
) -> None:
    """TS chose one item with probability 0.000001, and one row has most of the weight: rlope refuses such data."""
    ts, uniform = logs["bts", "women"], logs["random", "women"]
    data = logged(ts, np.full(len(ts["item"]), uniform["probability"][0]))
    report(capsys, "women: uniform from TS (refused)", data, uniform["click"].mean())

    assert effective_size(data, "wis") < LEAST_SIZE


@pytest.mark.sweep
def test_a_policy_from_its_own_log_has_equal_weights(logs: dict[tuple[str, str], Log]) -> None:
    log = logs["random", "all"]
    data = logged(log, log["probability"])

    assert effective_size(data, "wis") == pytest.approx(len(log["item"]))
    assert float(weighted(data, 1.0).value()) == pytest.approx(float(Terms(log["click"][:, None]).value()))
