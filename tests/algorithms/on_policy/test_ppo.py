"""PPO: a whole update against one written anew, and the traps that a single loss does not show."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import targets
from oracles.acting import Bench
from oracles.cases import BOX, DISCRETE, SPECS, parameters, poisoned, shaken, unroll
from oracles.streams import RUN, TERMINATED, TRUNCATED, make
from oracles.updates import Reference
from torch.testing import assert_close

from rltrain.algorithms.on_policy import ppo
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.on_policy.settings import PPOConfig
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

SMALL = {"widths": (8, 8), "streams": 4, "unroll": 16, "epochs": 3, "minibatches": 4, "lr": 1e-2}
GRU = {"memory": "gru", "memory_size": 5, "sequence": 8}
PROGRESS = 0.25


def make_ppo(spec=DISCRETE, seed: int = 3, **settings) -> PPO:
    config = PPOConfig(**{**SMALL, **settings})
    algorithm = PPO(spec, config, torch.device("cpu"), seed, config.streams)
    shaken(algorithm.policy, seed)
    return algorithm


SETTINGS = [
    {},
    {"value_clip": 0.1, "clip": 0.1, "value": 1.0, "minibatches": 3},
    {"shared_torso": True, "max_grad_norm": 0.0, "entropy": 0.1, "entropy_end": 0.0},
    {"normalize_advantage": False, "lr_end": None, "clip_end": 0.05, "gamma": 0.8, "lam": 0.5},
    {"normalize_return": True, "minibatches": 1},
    {"normalize_obs": True},
    GRU,
    {**GRU, "sequence": 4, "value_clip": 0.2, "minibatches": 3},
]
QUICK = {"box": GRU, "masked": {}}  # one of the settings; discrete actions have all


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        pytest.param(
            spec,
            settings,
            id=f"{'-'.join(settings) or 'default'}-{name}",
            marks=() if QUICK.get(name, settings) == settings else pytest.mark.sweep,
        )
        for settings in SETTINGS
        for name, spec in SPECS.items()
    ],
)
def test_two_updates_equal_those_written_anew(spec, settings):
    """The second one is made with what the first has left in the optimiser, the shuffler and the statistics."""
    ppo = make_ppo(spec, **settings)
    reference = Reference(ppo.policy, ppo.config, seed=3)
    start, mean, std = parameters(ppo.policy), torch.zeros(3), torch.ones(3)
    for seed in (1, 2):
        u = seen = unroll(spec, ppo.policy, seed)
        if ppo.config.normalize_obs:
            seen = replace(u, obs=((u.obs - mean) / std).clip(-10, 10))  # as the first update left them
        reference.ppo(seen, PROGRESS)
        ppo.update(u, PROGRESS)
        ppo.observe(u)
        acted_on = u.obs[:-1][u.valid]
        mean, std = acted_on.mean(0), (acted_on.var(0, correction=0) + 1e-8).sqrt()
        if ppo.config.normalize_return:
            ended, gamma = (u.terminated | u.truncated).numpy(), ppo.config.gamma
            returns = targets.discounted_return_of_each_step(u.reward.numpy(), ended, u.valid.numpy(), gamma)
            reference.scale = float(np.float32((np.var(returns) + 1e-8) ** -0.5))

    after = parameters(ppo.policy)
    assert any((after[name] - start[name]).abs().max() > 1e-2 for name in start)
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-7, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU, {"normalize_obs": True, "normalize_return": True}])
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(case, id=name, marks=() if name in ("discrete", "masked") else pytest.mark.sweep)
        for name, case in SPECS.items()
    ],
)
def test_reset_rows_teach_nothing_whatever_they_hold(spec, settings):
    """Their reward, action and log_prob, and the final observation of an episode that terminated."""
    clean, other = make_ppo(spec, **settings), make_ppo(spec, **settings)
    for seed in (1, 2):
        u = unroll(spec, clean.policy, seed)
        clean.update(u, 0.0)
        clean.observe(u)
        other.update(poisoned(u), 0.0)
        if settings.get("normalize_obs"):  # rows before the reset row were acted on: u's, with the reset rows poisoned
            other.observe(replace(poisoned(u), obs=u.obs))
        else:
            other.observe(poisoned(u))

    assert (~u.valid).any()
    assert_close(parameters(other.policy), parameters(clean.policy), atol=0, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("change", ["none", "core", "version", "wait", "overlap", "rows"])
def test_values_that_actors_report_are_used_only_if_the_current_weights_gave_them(change):
    algorithm = make_ppo(**(GRU if change == "core" else {}))
    u = unroll(DISCRETE, algorithm.policy, 1)
    u = replace(u, extras={**u.extras, "value": torch.full_like(u.reward, 77.0)}, version=torch.zeros_like(u.version))
    if change == "version":
        u.version[1] = 1
    elif change == "rows":
        u = replace(u, num_rows=torch.full_like(u.version, len(u.reward)))
    elif change != "core":
        algorithm.plan = replace(algorithm.plan, **{"wait": {"wait": 1}, "overlap": {"overlap": True}}.get(change, {}))

    value = algorithm.values(u)

    assert value.shape == u.first.shape
    assert bool((value[:-1] == 77.0).all()) == (change == "none")


GOLDEN = torch.tensor([2.82632, 2.606, 2.3, 4.5])


def golden_unroll():
    """An episode cut by the clock, its reset row, and one of a single step; an observation is its own value."""
    u, _ = make([[RUN], [RUN], [TRUNCATED], [RUN], [TERMINATED]], [1], 0)
    return replace(
        u,
        obs=torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 9.0])[:, None, None],
        reward=torch.tensor([1.0, 1.0, 1.0, -77.0, 5.0])[:, None],
        action=torch.zeros(5, 1, dtype=torch.int64),
        extras={"log_prob": torch.full((5, 1), -math.log(2))},
    )


def test_golden_truncation_through_a_whole_update():
    """Advantages (2.82632, 2.606, 2.3, 4.5), each read off by doubling one row's ratio.

    Typical wrong answers: 1.8932 first if taken for a termination, 2.12648 with the value of another observation, and
    4.50594 if the second episode leaks into the first.
    """
    spec = EnvSpec("golden", Leaf("box", (1,), "float32"), ActionSpec("discrete", (), (2,)))
    config = PPOConfig(widths=(), epochs=1, minibatches=1, lr=1e-30, gamma=0.9, lam=0.8, clip=50.0,
                       normalize_advantage=False)  # fmt: skip

    def loss_of(u) -> dict[str, float]:
        ppo = PPO(spec, config, torch.device("cpu"), 0, 1)
        with torch.no_grad():
            ppo.policy.actor.weight0.zero_()
            ppo.policy.critic.weight0.fill_(1.0)
        return {name: float(x) for name, x in ppo.update(u, 0.0).metrics.items()}

    base = loss_of(golden_unroll())
    found = []
    for t in (0, 1, 2, 4):
        u = golden_unroll()
        u.extras["log_prob"][t] -= math.log(2)
        found.append(4 * (base["loss_policy"] - loss_of(u)["loss_policy"]))

    assert_close(torch.tensor(found), GOLDEN, atol=1e-4, rtol=0)
    assert base["loss_policy"] == pytest.approx(-GOLDEN.mean().item(), rel=1e-5)
    assert base["loss_value"] == pytest.approx(0.5 * GOLDEN.square().mean().item(), rel=1e-5)


ACTED = {
    "plain": ("probe:counter", {}),
    "normalised": ("probe:counter", {"normalize_obs": True, "normalize_return": True}),
    "gru": ("probe:memory", GRU),
    "gru-normalised": ("probe:counter", {**GRU, "sequence": 4, "normalize_obs": True}),
    "masked": ("probe:masked", {}),
    "masked-gru": ("probe:masked-obs", GRU),
    "shared": ("probe:choice-given-obs", {"shared_torso": True}),
    "box": ("probe:box3", {"log_std_init": 1.0}),
    "multi-discrete": ("probe:multi-discrete", {}),
    "multi-binary": ("probe:multi-binary", {}),
    "start": ("probe:discrete-start", {}),
    "dict": ("probe:dict", {}),
    "image": ("probe:image", {}),
}


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        pytest.param(
            *case,
            id=name,
            marks=()
            if name in ("normalised", "gru", "masked-gru", "box", "multi-binary", "image")
            else pytest.mark.sweep,
        )
        for name, case in ACTED.items()
    ],
)
def test_the_ratio_is_1_before_the_first_step(env, settings, monkeypatch):
    """What the learner computes of an action is what the actor said of it, unroll after unroll.

    Any difference between the two paths shows here: statistics, masks, cores, resets, clipped or scaled actions.
    """
    bench = Bench("ppo", env, **{**SMALL, "minibatches": 2, **settings})
    seen = []
    real = ppo.clipped_surrogate

    def spy(log_prob, behaviour, advantage, clip, valid=None):
        found = real(log_prob, behaviour, advantage, clip, valid)
        seen.append((log_prob.detach(), behaviour, valid, found))
        return found

    monkeypatch.setattr(ppo, "clipped_surrogate", spy)
    for _ in range(3):
        bench.learn(bench.collect())

    per_update = len(seen) // 3
    for log_prob, behaviour, valid, found in seen[::per_update]:
        keep = torch.ones_like(log_prob, dtype=torch.bool) if valid is None else valid
        assert keep.sum() > 10
        assert_close(log_prob[keep].exp() / behaviour[keep].exp(), torch.ones(int(keep.sum())), atol=1e-5, rtol=0)
        assert found.approx_kl == pytest.approx(0.0, abs=1e-6)
        assert found.clip_fraction == 0
    assert any(found.approx_kl > 1e-7 for *_, found in seen)  # later on the weights have moved


def test_the_stored_action_is_the_one_that_was_drawn_not_the_one_that_was_clipped():
    bench = Bench("ppo", "probe:box3", log_std_init=1.0, **SMALL)
    u = bench.collect()

    assert (u.action.abs() > 1).float().mean() > 0.3
    with torch.no_grad():
        mean = bench.policy.actor(bench.policy.encoder(u.obs[:-1]))
    expected = torch.distributions.Normal(mean, math.e).log_prob(u.action).sum(-1)
    assert_close(u.extras["log_prob"][u.valid], expected[u.valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "steps", "stops"),
    [({}, 12, 0.0), ({"max_kl": 1e-9}, 4, 1.0), ({"max_kl": 1e9}, 12, 0.0)],
)
@pytest.mark.usefixtures("double")
def test_the_kl_stop_ends_all_epochs(settings, steps, stops):
    ppo = make_ppo(**settings)

    metrics = ppo.update(unroll(DISCRETE, ppo.policy, 1), 0.0).metrics

    assert ppo.optimizer.steps == steps
    assert metrics["kl_stops"] == stops


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("factor", "steps"), [(0.99, 4), (1.01, 8)])
def test_the_kl_stop_is_at_its_bound(factor, steps):
    """The bound is put just below, or just above, the KL of the last minibatch of the first epoch."""
    ppo = make_ppo(epochs=1)
    seen: list[float] = []
    loss = ppo.loss

    def spy(*args):
        found = loss(*args)
        seen.append(float(found[1]["approx_kl"]))
        return found

    ppo.loss = spy
    ppo.update(unroll(DISCRETE, ppo.policy, 1), 0.0)
    bounded = make_ppo(epochs=2, max_kl=factor * seen[-1])

    bounded.update(unroll(DISCRETE, bounded.policy, 1), 0.0)

    assert seen[-1] > 0
    assert bounded.optimizer.steps == steps


@pytest.mark.usefixtures("double")
def test_the_first_update_is_made_at_full_step_size_and_the_last_at_almost_none():
    """Adam's first step is as long as its step size wherever the gradient is not tiny."""
    lengths = {}
    for progress in (0.0, 0.5, 0.999):
        ppo = make_ppo(epochs=1, minibatches=1, max_grad_norm=0.0)
        before = parameters(ppo.policy)
        metrics = ppo.update(unroll(DISCRETE, ppo.policy, 1), progress).metrics
        lengths[progress] = (ppo.policy.critic.bias2 - before["critic.bias2"]).abs().item()
        assert metrics["lr"] == pytest.approx(1e-2 * (1 - progress))

    assert lengths[0.0] == pytest.approx(1e-2, rel=1e-3)
    assert lengths[0.5] == pytest.approx(5e-3, rel=1e-3)
    assert 0 < lengths[0.999] < 2e-5


@pytest.mark.usefixtures("double")
def test_the_entropy_bonus_makes_the_policy_more_random():
    """Without advantages nothing else moves it."""
    found = {}
    for weight in (0.0, 1.0):
        ppo = make_ppo(entropy=weight, gamma=0.0, lam=0.0, value=0.0, max_grad_norm=0.0)
        u = unroll(DISCRETE, ppo.policy, 1, lag=0.0)
        with torch.no_grad():
            u = replace(u, reward=ppo.policy.value(u.obs[:-1]))  # every advantage is 0
            before = ppo.policy.forward(u.obs)[0].entropy().mean().item()
        ppo.update(u, 0.0)
        with torch.no_grad():
            found[weight] = ppo.policy.forward(u.obs)[0].entropy().mean().item() - before

    assert found[1.0] > 1e-3
    assert abs(found[0.0]) < 1e-6


@pytest.mark.usefixtures("double")
def test_batches_too_small_to_normalise_do_no_harm():
    """One row in a minibatch, or none valid in a sequence: no NaN."""
    ppo = make_ppo(minibatches=64)
    ppo.update(unroll(DISCRETE, ppo.policy, 1), 0.0)
    gru = make_ppo(**{**GRU, "sequence": 1, "minibatches": 64})
    gru.update(unroll(DISCRETE, gru.policy, 1), 0.0)

    for policy in (ppo.policy, gru.policy):
        assert all(x.isfinite().all() for x in parameters(policy).values())


@pytest.mark.usefixtures("double")
def test_what_was_collected_is_left_as_it_was():
    ppo = make_ppo(BOX, normalize_obs=True, normalize_return=True)
    u = unroll(BOX, ppo.policy, 1)
    before = [x.clone() for x in (u.obs, u.action, u.reward, u.extras["log_prob"])]
    ppo.update(u, 0.0)
    ppo.observe(u)

    assert all(
        torch.equal(a, b) for a, b in zip(before, (u.obs, u.action, u.reward, u.extras["log_prob"]), strict=True)
    )


@pytest.mark.usefixtures("double")
def test_statistics_stand_still_during_an_update():
    """Else old and new log_prob would not be of the same observation."""
    ppo = make_ppo(normalize_obs=True, normalize_return=True)
    u = unroll(DISCRETE, ppo.policy, 1)
    before = {name: x.clone() for name, x in ppo.policy.named_buffers()}
    ppo.update(u, 0.0)
    assert_close(dict(ppo.policy.named_buffers()), before, atol=0, rtol=0)
    ppo.observe(u)
    assert ppo.policy.get_buffer("normalizer.count0") == u.valid.sum()
    assert ppo.policy.get_buffer("return_scale.count") == u.valid.sum()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU])
def test_a_restored_ppo_goes_on_to_the_bit(settings):
    """Weights, moments, the shuffler and the statistics: all parts, and nothing else."""
    whole = make_ppo(normalize_obs=True, normalize_return=True, **settings)
    first, second = (unroll(DISCRETE, whole.policy, seed) for seed in (1, 2))
    whole.update(first, 0.0)
    whole.observe(first)
    saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts().items()})
    other = make_ppo(seed=99, normalize_obs=True, normalize_return=True, **settings)
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    whole.update(second, 0.1)
    other.update(second, 0.1)

    assert_close(parameters(other.policy), parameters(whole.policy), atol=0, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU], ids=["plain", "gru"])
def test_an_update_without_a_valid_row_changes_nothing(settings):
    """All streams may be at a reset row where the unroll is short."""
    ppo = make_ppo(max_kl=0.1, normalize_obs=True, normalize_return=True, **settings)
    u = unroll(DISCRETE, ppo.policy, 1)
    ppo.update(u, 0.0)  # now Adam has momentum
    saved = copy.deepcopy({name: part.state_dict() for name, part in ppo.parts().items()})
    update = ppo.update(replace(u, first=torch.ones_like(u.first)), 0.0)
    ppo.observe(replace(u, first=torch.ones_like(u.first)))

    assert torch.equal(ppo.policy.return_scale.follows[u.stream], u.row + u.rows), "its rows came, all the same"
    now = {name: part.state_dict() for name, part in ppo.parts().items()}
    for state in (now, saved):
        del state["policy"]["return_scale.follows"]
    assert_close(now, saved, atol=0, rtol=0)
    assert update.metrics == {"lr": SMALL["lr"]}


@pytest.mark.usefixtures("double")
def test_an_update_on_a_single_row_reports_finite_numbers():
    ppo = make_ppo(max_kl=0.1)
    u = unroll(DISCRETE, ppo.policy, 1)
    first = torch.ones_like(u.first)
    first[3, 1] = False
    metrics = ppo.update(replace(u, first=first), 0.0).metrics

    assert "loss_policy" in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_overlap_is_a_switch():
    assert not make_ppo().plan.overlap
    assert make_ppo(overlap=True).plan.overlap
    assert make_ppo(overlap=True).plan.wait == "all"


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_one_stream_of_one_row_learns_through_resets(algo):
    bench = Bench(algo, "probe:two-steps", unroll=1, streams=1, **({"max_kl": 0.1} if algo == "ppo" else {}))
    seen = [bench.learn(bench.collect()) for _ in range(7)]
    bench.rollout.close()

    assert [set(metrics) == {"lr"} for metrics in seen] == [False, False, True] * 2 + [False]
    assert all(math.isfinite(value) for metrics in seen for value in metrics.values())
