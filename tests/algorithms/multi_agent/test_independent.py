"""One agent's algorithms on several: what each learns from is its own, and nothing of when it was not there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.acting import Bench
from oracles.teams import THREE, TWO, episodes, recurrent_values, team_spec

import rltrain
from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.multi_agent.independent import ID, OWN, STATE, Independent, group_views, joint_policy
from rltrain.algorithms.registry import build, policy_factory
from rltrain.envs.spec import Leaf
from rltrain.rollout.types import Trajectory

SPEC = team_spec(THREE, TWO, masked=True)
SMALL: dict[str, Any] = {"widths": (6,), "epochs": 1, "minibatches": 1, "lr": 1e-2}


def make(algo: str = "ppo", **settings: Any) -> Independent:
    config = settings_class(algo)(**{**SMALL, **settings})
    return Independent(algorithm_class(algo), SPEC, config, torch.device("cpu"), 3, 5)


def unrolls(seed: int) -> Trajectory:
    """Six rows of five streams, with what the policies said of each."""
    batch = episodes(SPEC, seed)
    generator = torch.Generator().manual_seed(seed)
    extras = {f"{n}/log_prob": -torch.rand(6, 5, k, generator=generator) for n, k in enumerate((2, 1))}
    mask = torch.ones_like(batch.action_mask)  # the actions of these episodes do not ask
    obs = {name: x.float() for name, x in batch.obs.items()}
    ints = {name: getattr(batch, name).long() for name in ("version", "stream", "row")}
    return replace(batch, obs=obs, reward=batch.reward.float(), extras=extras, action_mask=mask, **ints)


@pytest.mark.parametrize("seed", range(3))
def test_an_agent_of_a_stream_is_a_stream_of_its_own(seed: int) -> None:
    batch = unrolls(seed)
    begins = {"three": (0, 0), "two": (2, 6)}  # of the axis of agents, and of the mask
    for number, view in enumerate(group_views(SPEC)):
        own = view.unrolls(batch, slice(0, 0), f"{number}/")
        first, mask = begins[view.group.name]
        for b in range(5):
            for i in range(view.count):
                column, n, width = b * view.count + i, first + i, view.group.action.mask_size
                seen = own.obs if view.count == 1 else own.obs[OWN]
                assert torch.equal(seen[:, column], batch.obs[view.group.name][:, b, i])
                if view.count > 1:
                    assert (own.obs[ID][:, column] == i).all()
                for name in ("action", "reward", "terminated", "truncated"):
                    assert torch.equal(getattr(own, name)[:, column], getattr(batch, name)[:, b, n])
                columns = slice(mask + i * width, mask + (i + 1) * width)
                assert torch.equal(own.action_mask[:, column], batch.action_mask[:, b, columns])
                assert torch.equal(own.extras["log_prob"][:, column], batch.extras[f"{number}/log_prob"][:, b, i])
                there = [bool(batch.valid[t, b] and batch.alive[t, b, n]) for t in range(6)]
                assert own.valid[:, column].tolist() == there
                assert own.first[0, column] == (not batch.alive[0, b, n] or bool(batch.first[0, b]))
                assert int(own.stream[column]) == b * view.count + i


def piece(batch: Trajectory, begin: int, end: int) -> Trajectory:
    """Rows begin to end, as an unroll of their own."""
    decisions = {name: getattr(batch, name)[begin:end] for name in ("action", "reward", "terminated", "truncated")}
    seen = {name: x[begin : end + 1] for name, x in {"first": batch.first, **batch.optional_fields()}.items()}
    obs = {name: x[begin : end + 1] for name, x in batch.obs.items()}
    extras = {name: x[begin:end] for name, x in batch.extras.items()}
    return replace(batch, obs=obs, extras=extras, row=batch.row + begin, **decisions, **seen)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cut", range(1, 6))
def test_running_returns_do_not_see_where_unrolls_are_cut(seed: int, cut: int) -> None:
    """Nor that an agent was not there: rows of a stream are missing only where its unroll is."""
    whole, parts = (make(normalize_return=True) for _ in range(2))
    batch = unrolls(seed)
    whole.observe(batch)
    parts.observe(piece(batch, 0, cut))
    parts.observe(piece(batch, cut, 6))

    for one, other in zip(whole.inner, parts.inner, strict=True):
        expected, found = (algorithm.policy.return_scale.state_dict() for algorithm in (one, other))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_nothing_is_learnt_from_when_an_agent_is_not_there(algo: str) -> None:
    settings: dict[str, Any] = {} if algo == "ppo" else {"epochs": None, "minibatches": None}
    kept = {name: value for name, value in SMALL.items() if settings.get(name, value) is not None}
    config = settings_class(algo)(**kept)
    one, other = (Independent(algorithm_class(algo), SPEC, config, torch.device("cpu"), 3, 5) for _ in range(2))
    batch = unrolls(1)
    away = ~(batch.valid.unsqueeze(-1) & batch.alive[:-1])  # [T, B, N]
    seen = batch.alive.clone()
    seen[1:] |= ~away  # what it saw last, too
    parts = dict(zip(("three", "two"), seen.split([2, 1], -1), strict=True))
    changed = replace(
        batch,
        obs={name: torch.where(parts[name][..., None], x, 77.0) for name, x in batch.obs.items()},
        reward=torch.where(away, 1e6, batch.reward),
        action=torch.where(away, 1, batch.action),
    )
    one.update(batch, 0.0)
    other.update(changed, 0.0)

    for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_acts_as_it_would_alone() -> None:
    config = settings_class("ppo")(**SMALL)
    policy = build(partial(joint_policy, policy_factory("actor_critic")), SPEC, config, 16, 0)
    generator = torch.Generator().manual_seed(0)
    obs = {"three": torch.randn(16, 2, 3, generator=generator), "two": torch.randn(16, 1, 2, generator=generator)}
    mask = torch.rand(16, 8, generator=generator) < 0.6
    mask[:, [0, 3, 6]] = True
    noise = torch.rand(16, policy.noise.columns, generator=generator)

    act = policy.act(obs, None, mask, noise, True)
    told = policy.summarize_unroll({name: x[None] for name, x in act.extras.items()}, act.action[None], mask[None])

    assert (act.action.shape, policy.noise.columns) == ((16, 3), 8)
    for n, (group, i, begin, count) in enumerate((("three", 0, 0, 3), ("three", 1, 3, 3), ("two", 0, 6, 2))):
        alone = policy.policies[0 if group == "three" else 1]
        own = {ID: torch.full((16,), i), OWN: obs[group][:, i]} if group == "three" else obs[group][:, i]
        columns = slice(begin, begin + count)
        expected = alone.act(own, None, mask[:, columns], noise[:, columns], True)
        assert torch.equal(act.action[:, n], expected.action)
        log_prob = alone.summarize_unroll(expected.extras, expected.action, mask[:, columns])["log_prob"]
        torch.testing.assert_close(told["0/log_prob" if group == "three" else "1/log_prob"][0, :, i], log_prob)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_the_learner_sees_what_acted(memory: str) -> None:
    """The ratio of the first minibatch is 1, also for those that were born with an empty memory meanwhile."""
    bench = Bench("ppo", "generations", streams=3, unroll=8, memory=memory, memory_size=4, sequence=4, **SMALL)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from flat beginnings, where a wrong memory makes no difference
        for x in bench.policy.parameters():
            x.add_(torch.randn(x.shape, generator=generator))
    bench.learner.version += 1
    bench.rollout.publish(bench.learner.weights(0))
    for _ in range(3):
        told = bench.learn(bench.collect())
        assert told["approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert told["clip_fraction"] == 0.0


@pytest.mark.parametrize("told", [True, False], ids=["state", "joined"])
def test_a_central_value_sees_the_state_and_the_actor_does_not(told: bool) -> None:
    spec = team_spec(THREE, TWO, told=told)
    config = settings_class("mappo")(widths=(6,))
    algorithm = algorithm_class("mappo")(spec, config, torch.device("cpu"), 3, 5)
    batch = episodes(spec, 1)
    batch = replace(batch, obs={name: x.float() for name, x in batch.obs.items()})
    view = algorithm.views[0]
    state = (
        batch.state.flatten(2) if told else torch.cat([batch.obs["three"].flatten(2), batch.obs["two"].flatten(2)], -1)
    )
    own = view.obs(batch.obs, 1, state.float())
    assert own[STATE].shape == (7, 10, 4 if told else 8)
    for i in range(2):
        assert torch.equal(own[STATE][:, i::2], state.float())
    assert torch.equal(GlobalState(spec)(batch).float(), state.float())

    policy = algorithm.inner[0].policy
    blind = {**own, STATE: torch.zeros_like(own[STATE])}
    (dist, value), (same, other) = policy.forward(own), policy.forward(blind)
    assert torch.equal(dist.logits, same.logits)
    assert (value - other).abs().min() > 1e-6
    assert torch.equal(view.obs({name: x[0] for name, x in batch.obs.items()}, 0)[STATE], blind[STATE][0])


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_mappo_learns_all_it_has(memory: str) -> None:
    bench = Bench(
        "mappo", "generations", streams=3, unroll=8, widths=(6,), memory=memory, memory_size=4, sequence=4, lr=1e-2
    )
    start = {name: x.detach().clone() for name, x in bench.policy.named_parameters()}
    for _ in range(2):
        bench.learn(bench.collect())

    assert all(not torch.equal(x, start[name]) for name, x in bench.policy.named_parameters())


def test_the_memory_of_a_central_value_equals_the_oracle_over_several_unrolls() -> None:
    """Each stream's memory continues from unroll to unroll and is empty where an agent's episode begins."""
    bench = Bench(
        "mappo", "generations", streams=3, unroll=8, widths=(6,), memory="gru", memory_size=4, sequence=4, lr=1e-30
    )
    (algorithm,), view = bench.algorithm.inner, bench.algorithm.views[0]
    with torch.no_grad():
        for parameter in algorithm.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found, rows, starts = [], [], []
    values, loss = algorithm.values, algorithm.loss

    def watched(own: Trajectory) -> torch.Tensor:
        value = values(own)
        found.append(value[:-1])
        numbers = torch.nn.functional.one_hot(own.obs[ID], view.count)
        rows.append(torch.cat([numbers, own.obs[OWN], own.obs[STATE]], -1)[:-1])
        starts.append(own.first[:-1])
        return value

    def same_values(minibatch: Any, *others: Any) -> Any:
        """The sequences of a minibatch begin with the cores of the same pass."""
        _, value = algorithm.policy.forward(minibatch.obs, minibatch.action_mask, minibatch.core, minibatch.first)
        torch.testing.assert_close(value[minibatch.valid], minibatch.value[minibatch.valid], atol=1e-5, rtol=1e-5)
        return loss(minibatch, *others)

    algorithm.values, algorithm.loss = watched, same_values
    for _ in range(4):
        bench.learn(bench.collect())

    p = {name: x.detach() for name, x in algorithm.policy.named_parameters()}
    value, obs, first = torch.cat(found), torch.cat(rows), torch.cat(starts)
    for column in range(value.shape[1]):
        expected = recurrent_values(p, obs[:, column], first[:, column])
        torch.testing.assert_close(value[:, column], expected, atol=1e-5, rtol=1e-5)
    assert first[8:].any()
    assert not first[8].all()


def test_all_of_it_is_in_a_checkpoint() -> None:
    one, other = make(normalize_obs=True, normalize_return=True), make(normalize_obs=True, normalize_return=True)
    for seed in range(2):
        one.update(unrolls(seed), 0.0)
        one.observe(unrolls(seed))
    for name, part in other.parts().items():
        part.load_state_dict(one.parts()[name].state_dict())
    for algorithm in (one, other):
        algorithm.update(unrolls(2), 0.5)

    state = one.policy.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in other.policy.state_dict().items())
    assert [name for name, x in state.items() if name.endswith("running")]  # returns of each agent of each stream


def test_a_frozen_policy_stays_and_the_others_learn_as_without_it() -> None:
    free, frozen = make(normalize_obs=True, normalize_return=True), make(normalize_obs=True, normalize_return=True)
    before = {name: x.clone() for name, x in frozen.policy.state_dict().items()}
    frozen.freeze(["two"])
    for seed in range(2):
        for algorithm in (free, frozen):
            metrics = algorithm.update(unrolls(seed), 0.0).metrics
            algorithm.observe(unrolls(seed))

    after, expected = frozen.policy.state_dict(), free.policy.state_dict()
    assert {name.split(".")[1] for name in after} == {"0", "1"}
    for name, x in after.items():
        assert torch.equal(x, before[name] if name.startswith("policies.1.") else expected[name]), name
    assert any(not torch.equal(expected[name], x) for name, x in before.items() if name.startswith("policies.1."))
    first = make(normalize_obs=True, normalize_return=True)
    for seed in range(2):
        part = first.inner[0].update(first.views[0].unrolls(unrolls(seed), slice(0, 0), "0/"), 0.0).metrics
        first.inner[0].observe(first.views[0].unrolls(unrolls(seed), slice(0, 0), "0/"))
    assert {name: float(value) for name, value in metrics.items()} == {k: float(v) for k, v in part.items()}


def test_a_run_with_a_frozen_policy_and_its_resume(tmp_path: Path) -> None:
    """The networks of the frozen policy are those of the run that it begins with; the others learn."""
    quick: dict[str, Any] = {
        "algo": "ppo", "env": "generations", "workers": 0, "streams": 2, "unroll": 8, "minibatches": 1, "widths": (4,),
        "steps": 32, "eval_every": 0, "preset": "none", "quiet": True, "out": str(tmp_path), "share": "none",
    }  # fmt: skip
    first = rltrain.train(**quick)
    names = [group.name for group in rltrain.load(first.run).spec.groups]
    frozen = rltrain.train(**quick, freeze=names[:1], init_from=first.run, seed=1)
    resumed = rltrain.train(resume=frozen.run, steps=64, quiet=True)

    def weights(result: rltrain.Result) -> dict[str, torch.Tensor]:
        policy: Any = rltrain.load(result.run).policy
        return {name: x.clone() for name, x in policy.state_dict().items()}

    before, after = weights(first), weights(resumed)
    changed = {name.split(".")[1] for name, x in before.items() if not torch.equal(after[name], x)}
    assert changed == {str(number) for number in range(1, len(names))}
    with pytest.raises(rltrain.ConfigError, match="qmix on two-step has no policies that learn apart from each other"):
        rltrain.train(algo="qmix", env="two-step", freeze=["agent"], out=str(tmp_path), quiet=True)


def test_what_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="--freeze four: there is no such policy; the policies are three, two"):
        make().freeze(["two", "four"])
    with pytest.raises(ValueError, match="--freeze two,three: no policy is left that learns"):
        make().freeze(["two", "three"])


def test_a_state_of_images_and_counts_is_made_of_numbers_alike() -> None:
    """Images in [0, 1], what is counted one-hot: a class of 500 is no larger than a class of 3."""
    picture = Leaf("image", (2, 1, 2, 2), "uint8", high=200)
    counted = Leaf("discrete", (1,), "int64", (5,))
    several = Leaf("multi_discrete", (1, 2), "int64", (2, 3))
    spec = team_spec(THREE, told=False)
    batch = episodes(spec, 0, rows=1, batch=1)
    obs = {
        "a": torch.full((2, 1, 2, 1, 2, 2), 100, dtype=torch.uint8),
        "b": torch.full((2, 1, 1), 3),
        "c": torch.tensor([1, 2]).expand(2, 1, 1, 2),
    }
    state = GlobalState(replace(spec, obs={"a": picture, "b": counted, "c": several}))(replace(batch, obs=obs))

    assert state[0, 0].tolist() == [0.5] * 8 + [0.0, 0.0, 0.0, 1.0, 0.0] + [0.0, 1.0, 0.0, 0.0, 1.0]


def test_what_it_is_not_for() -> None:
    with pytest.raises(ValueError, match="environments of one agent, and team is one of several"):
        Independent(algorithm_class("dqn"), SPEC, settings_class("dqn")(), torch.device("cpu"), 0, 2)


def test_it_waits_for_no_more_streams_than_there_are() -> None:
    impala = Independent(algorithm_class("impala"), SPEC, settings_class("impala")(), torch.device("cpu"), 0, 3)

    assert impala.plan.wait == 3


def test_agents_that_share_are_told_apart() -> None:
    first, second = group_views(SPEC)

    assert first.spec.obs == {
        ID: replace(THREE.obs, kind="discrete", shape=(), dtype="int64", nvec=(2,)),
        OWN: THREE.obs,
    }
    assert second.spec.obs == TWO.obs
