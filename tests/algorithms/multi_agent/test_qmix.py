"""QMIX, VDN and IQL: the loss against one written anew, and the traps that a single number does not show."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles.acting import Bench
from oracles.teams import THREE, TWO, episodes, poisoned, team_loss, team_spec, weights_of
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.multi_agent.q_policy import network_inputs
from rltrain.algorithms.multi_agent.qmix import MixedQ
from rltrain.algorithms.off_policy.q_policy import greedy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import clear_absent
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory

SMALL: dict[str, Any] = {"widths": (6,), "memory_size": 5, "lr": 1e-2, "gamma": 0.9, "target_every": 2}
GRU: dict[str, Any] = {"memory": "gru"}
LAST: dict[str, Any] = {"last_action": True}


def make(algo: str, spec: EnvSpec, seed: int = 3, **settings: Any) -> MixedQ:
    if algo == "qmix":
        settings = {"mixer_width": 4, "hyper_width": 5, **settings}
    config = settings_class(algo)(**{**SMALL, **settings})
    found: MixedQ = algorithm_class(algo)(spec, config, torch.device("cpu"), seed, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from online == target, where mistakes hide
        for x in found.learned.parameters():
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    return found


def gradient(algorithm: MixedQ, batch: Trajectory) -> torch.Tensor:
    algorithm.optimizer.grad.zero_()
    algorithm.loss(batch)[0].backward()
    return algorithm.optimizer.grad.clone()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "settings",
    [{"double": double} | memory | last for double in (True, False) for memory in ({}, GRU) for last in ({}, LAST)],
    ids=str,
)
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.sweep), True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("told", "turns"), [(True, False), (False, False), (True, True)], ids=["state", "joined", "in turns"]
)
@pytest.mark.parametrize("algo", ["qmix", "vdn", "iql"])
def test_the_loss_equals_one_written_anew(algo, turns, told, masked, settings):
    """Agents that come and leave, groups of unequal actions, padding; online and target weights apart."""
    spec = team_spec(THREE, TWO, masked=masked, told=told, turns=turns)
    algorithm = make(algo, spec, **settings)
    online, target = weights_of(algorithm.learned), weights_of(algorithm.target.module)
    double, hidden = settings.get("double", True), 5 if "memory" in settings else 0
    last = "last_action" in settings
    for seed in range(2):
        batch = episodes(spec, seed)
        expected = team_loss(algo, spec, online, target, batch, 0.9, double, hidden, last)

        assert float(algorithm.loss(batch)[0].detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("algo", ["qmix", "vdn", "iql"])
def test_a_network_of_a_users_own_is_called_as_the_protocol_says(algo):
    """`net(obs, fresh)`, also where nobody remembers."""
    algorithm, batch = make(algo, team_spec(THREE, TWO)), episodes(team_spec(THREE, TWO), 0)
    expected = algorithm.loss(batch)[0].detach()
    for net in (algorithm.policy.net, algorithm.target.module["net"]):

        def forward(obs, fresh, net=net):
            assert fresh.dtype == torch.bool
            assert fresh.shape[1:] == batch.alive.shape[1:]
            return type(net).forward(net, obs, fresh)

        net.forward = forward

    assert_close(algorithm.loss(batch)[0].detach(), expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU, LAST], ids=["plain", "gru", "last action"])
@pytest.mark.parametrize("turns", [False, True], ids=["at once", "in turns"])
@pytest.mark.parametrize("algo", ["qmix", "vdn", "iql"])
def test_nothing_is_learnt_from_padding(algo, turns, settings):
    """What lies behind an episode's last observation may be anything: the gradient is the same to the bit."""
    spec = team_spec(THREE, TWO, masked=True, turns=turns)
    algorithm = make(algo, spec, **settings)
    batch = episodes(spec, 1)
    changed = poisoned(batch)

    assert torch.equal(gradient(algorithm, changed), gradient(algorithm, batch))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, LAST], ids=["plain", "last action"])
@pytest.mark.parametrize("algo", ["qmix", "vdn", "iql"])
def test_nothing_is_learnt_from_who_is_not_there(algo, settings):
    spec = team_spec(THREE, TWO)
    algorithm = make(algo, spec, **settings)
    batch = episodes(spec, 2)
    seen = batch.alive.clone()
    seen[1:] |= batch.truncated  # their last observation is bootstrapped from
    places = dict(zip(("three", "two"), seen.split([2, 1], -1), strict=True))
    away = ~batch.alive[:-1]
    assert away.any()
    changed = replace(
        batch,
        obs={name: torch.where(places[name][..., None], x, 1e6) for name, x in batch.obs.items()},
        action=torch.where(away, 1, batch.action),
    )

    assert torch.equal(gradient(algorithm, changed), gradient(algorithm, batch))


def constant(algorithm: MixedQ, online: list[float], judged: list[float]) -> None:
    """Both networks put out the same values whatever they see; mixers add up."""
    with torch.no_grad():
        for module, values in ((algorithm.learned, online), (algorithm.target.module, judged)):
            for x in module.parameters():
                x.zero_()
            module["net"].nets[0].head.bias0.copy_(torch.tensor(values))


def one_row(**fields: Any) -> Trajectory:
    """A single step of two agents, both there before and after, reward 1 each."""
    spec = team_spec(THREE, masked=True)
    batch = episodes(spec, 0, rows=1, batch=1)
    yes, no = torch.ones(2, 1, 2, dtype=torch.bool), torch.zeros(1, 1, 2, dtype=torch.bool)
    base: dict[str, Any] = {
        "reward": torch.ones(1, 1, 2),
        "alive": yes,
        "terminated": no,
        "truncated": no,
        "first": torch.tensor([[True], [False]]),
        "action_mask": torch.ones(2, 1, 6, dtype=torch.bool),
    }
    as_float = {name: x.float() for name, x in batch.obs.items()}
    return replace(batch, obs=as_float, **{**base, "state": torch.zeros(2, 1, 4), **fields})


def flags(*values: bool) -> torch.Tensor:
    return torch.tensor([[list(values)]])


BOTH_LEAVE = torch.tensor([[[True, True]], [[False, False]]])
ONE_LEAVES = torch.tensor([[[True, True]], [[False, True]]])


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, 2 + 0.9 * (2 + 2)),  # the online network chooses action 1, the target network says 2
        ({"action_mask": torch.tensor([[[True] * 6], [[True, False, True] * 2]])}, 2 + 0.9 * (5 + 5)),  # 2: legal next
        ({"alive": BOTH_LEAVE, "terminated": flags(True, True)}, 2.0),
        ({"alive": BOTH_LEAVE, "truncated": flags(True, True)}, 2 + 0.9 * 4),  # the clock is no death
        ({"alive": BOTH_LEAVE, "truncated": flags(True, True), "terminated": flags(True, False)}, 2 + 0.9 * 2),
        ({"alive": ONE_LEAVES, "terminated": flags(True, False)}, 2 + 0.9 * 2),  # one of two goes on
        ({"alive": ONE_LEAVES, "truncated": flags(True, False)}, 2 + 0.9 * 4),
    ],
)
def test_golden_targets(fields, target):
    algorithm = make("vdn", team_spec(THREE, masked=True), agent_ids=False)
    constant(algorithm, [0.0, 9.0, 3.0], [7.0, 2.0, 5.0])
    batch = one_row(**fields)
    q = algorithm.policy.net(*network_inputs(batch, False)).detach()

    assert float(algorithm.targets(batch, network_inputs(batch, False), q[1:])[0]) == pytest.approx(target)


def test_an_agent_earns_up_to_its_next_turn_and_the_team_in_each():
    """Two agents in turns over four rows, paid 1 and 10 in each; the last turn of either is not known."""
    spec = team_spec(THREE, turns=True)
    batch = episodes(spec, 0, rows=4, batch=1)
    always, never = torch.ones(5, 1, 2, dtype=torch.bool), torch.zeros(4, 1, 2, dtype=torch.bool)
    batch = replace(
        batch,
        obs={name: x.float() for name, x in batch.obs.items()},
        reward=torch.tensor([1.0, 10.0]).expand(4, 1, 2),
        alive=always,
        acting=torch.tensor([[[True, False]], [[False, True]]] * 2 + [[[True, False]]]),
        terminated=never,
        truncated=never,
        first=torch.tensor([[True], [False], [False], [False], [False]]),
    )
    values = {}
    for algo in ("iql", "vdn"):
        algorithm = make(algo, spec, agent_ids=False)
        constant(algorithm, [0.0, 9.0, 3.0], [7.0, 2.0, 5.0])
        q = algorithm.policy.net(*network_inputs(batch, False)).detach()
        values[algo] = algorithm.targets(batch, network_inputs(batch, False), q[1:])
    target, known = values["iql"]

    assert known[:, 0].tolist() == [[True, True], [True, True], [True, True], [True, False]]
    assert target[:3, 0, 0].tolist() == pytest.approx([2 + 0.9 * 2, 1 + 0.9 * 2, 2 + 0.9 * 2])
    assert target[:3, 0, 1].tolist() == pytest.approx([10 + 0.9 * 2, 20 + 0.9 * 2, 10 + 0.9 * 2])
    assert values["vdn"][0][:, 0].tolist() == pytest.approx([11 + 0.9 * 2] * 4)
    assert make("iql", spec).plan.length == 4
    assert make("vdn", spec).plan.length == SMALL.get("length", 1)


def test_the_target_mixer_sees_the_next_state_and_the_mixer_this_one():
    algorithm = make("qmix", team_spec(THREE, masked=True), hyper_width=0)
    constant(algorithm, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    with torch.no_grad():
        for module in (algorithm.learned, algorithm.target.module):
            module["mixer"].bias2.weight0[0, 0] = module["mixer"].bias2.weight1[0, 0] = 1.0
    state = torch.zeros(2, 1, 4)
    state[0, 0, 0], state[1, 0, 0] = 3.0, 10.0
    loss, value, _ = algorithm.loss(one_row(state=state))

    assert float(value) == 3.0
    assert float(loss.detach()) == pytest.approx((3 - (2 + 0.9 * 10)) ** 2)


@pytest.mark.parametrize("settings", [{}, {"tau": 0.25, "target_every": None}, GRU], ids=["copies", "follows", "gru"])
def test_the_target_follows(settings):
    spec = team_spec(THREE, TWO)
    algorithm = make("qmix", spec, **settings)
    batch = replace(episodes(spec, 0), reward=episodes(spec, 0).reward.float())
    batch = tree_float(batch)
    start = weights_of(algorithm.target.module)
    start = {name: x.copy() for name, x in start.items()}
    update = algorithm.update(batch, 0.0)
    once = weights_of(algorithm.target.module)
    if "tau" in settings:
        online = weights_of(algorithm.learned)
        for name, x in once.items():
            if online[name].dtype.kind == "f":
                assert_close(x, start[name] + 0.25 * (online[name] - start[name]), atol=1e-6, rtol=0)
    else:
        assert all((once[name] == start[name]).all() for name in start)
        algorithm.update(batch, 0.0)
        twice, online = weights_of(algorithm.target.module), weights_of(algorithm.learned)
        assert all((twice[name] == online[name]).all() for name in start)
    assert float(update.metrics["grad_norm"]) > 0


def tree_float(batch: Trajectory) -> Trajectory:
    return replace(
        batch, obs=tree_map(torch.Tensor.float, batch.obs), reward=batch.reward.float(), state=batch.state.float()
    )


def test_every_parameter_learns_and_is_in_the_checkpoint():
    spec = team_spec(THREE, TWO)
    algorithm = make("qmix", spec, **GRU)
    start = {name: x.clone() for name, x in algorithm.learned.named_parameters()}
    algorithm.update(tree_float(episodes(spec, 0)), 0.0)

    assert all(not torch.equal(x, start[name]) for name, x in algorithm.learned.named_parameters())
    parts = algorithm.parts()
    kept = sum(x.numel() for name in ("policy", "mixer") for x in parts[name].state_dict().values())
    buffers = sum(x.numel() for x in algorithm.policy.buffers())
    assert kept >= sum(x.numel() for x in algorithm.learned.parameters())
    assert kept <= sum(x.numel() for x in algorithm.learned.parameters()) + buffers
    other = make("qmix", spec, seed=8, **GRU)
    for name, part in other.parts().items():
        part.load_state_dict(parts[name].state_dict())
    batch = tree_float(episodes(spec, 1))
    for one in (algorithm, other):
        one.update(batch, 0.5)
    assert torch.equal(algorithm.optimizer.param, other.optimizer.param)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, GRU], ids=["plain", "gru"])
def test_actors_take_the_best_legal_action_or_any_legal_one(settings, masked):
    spec = team_spec(THREE, TWO, masked=masked)
    policy: Any = make("vdn", spec, **settings).policy
    generator = torch.Generator().manual_seed(0)
    obs = {"three": torch.randn(16, 2, 3, generator=generator), "two": torch.randn(16, 1, 2, generator=generator)}
    mask = torch.rand(16, 8, generator=generator) < 0.5
    mask[:, [0, 3, 6]] = True
    core = torch.randn(16, policy.core_size, generator=generator) if policy.core_size else None
    noise = torch.rand(16, policy.noise.width, generator=generator)
    policy.epsilon.fill_(1.0)
    legal = mask if masked else torch.ones_like(mask)

    for explore in (False, True):
        act = policy.act(obs, core, mask if masked else None, noise, explore)
        q, after = policy.net.step(obs, core)
        drawn = noise.view(16, 3, 4)[..., 1:]
        score = drawn if explore else q
        for b in range(16):
            for i, (begin, count) in enumerate(((0, 3), (3, 3), (6, 2))):
                of = [float(score[b, i, a].detach()) if legal[b, begin + a] else float("-inf") for a in range(count)]
                assert int(act.action[b, i]) == max(range(count), key=of.__getitem__)
        assert core is None or torch.equal(act.core, after)


def test_memory_acts_as_it_learns():
    """Rows acted on one by one give the values of the whole sequence."""
    spec = team_spec(THREE, TWO)
    net = make("vdn", spec, **GRU).policy.net
    batch = tree_float(episodes(spec, 4))
    whole = net(*network_inputs(batch, False))
    core = torch.zeros(5, 3 * 5)
    for t in range(7):
        core = core * ~batch.first[t][:, None]
        q, core = net.step(tree_map(lambda x, t=t: x[t], batch.obs), core)
        core = clear_absent(core, batch.alive[t].numpy())
        assert_close(q, whole[t])


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_what_actors_carry_is_what_they_did(memory):
    """Random starts, exploring and choosing; agents that die, come in, and episodes that begin; a core for each row."""
    bench = Bench("vdn", "generations", streams=3, unroll=1, warmup=30, memory=memory, memory_size=4, **LAST)
    policy: Any = bench.policy
    policy.epsilon.fill_(0.5)
    bench.rollout.publish(bench.learner.weights(0))
    unrolls = [copied(bench.collect()) for _ in range(24)]  # 30 steps of warmup are 10 of them
    chosen = 0
    for before, after in pairwise(unrolls):
        size = 0 if memory == "none" else 4
        last = after.core[0].view(3, -1, size + 1)[..., -1]  # [B, N]
        lives = before.alive[0] & ~after.first[0].unsqueeze(-1)
        assert torch.equal(last, torch.where(lives, before.action[0] + 1, 0).float())
        chosen += int(lives.sum())
    assert chosen > 30
    assert not unrolls[0].core.any()


def copied(unroll: Trajectory) -> Trajectory:
    """Actors reuse their arrays."""
    names = ("action", "first", "alive", "core")
    return replace(unroll, **{name: torch.as_tensor(getattr(unroll, name)).clone() for name in names})


def test_an_actor_sees_its_last_action_as_the_learner_does():
    """Values of one row after the other are those of the whole sequence, with and without memory."""
    spec = team_spec(THREE, TWO)
    for settings in (LAST, GRU | LAST):
        algorithm = make("vdn", spec, **settings)
        policy: Any = algorithm.policy
        batch = tree_float(episodes(spec, 4))
        whole = policy.net(*network_inputs(batch, True))
        core = torch.zeros(5, policy.core_size)
        for t in range(6):
            core = core * ~batch.first[t][:, None]
            act = policy.act(tree_map(lambda x, t=t: x[t], batch.obs), core, None, torch.zeros(5, 12), False)
            there = batch.valid[t].unsqueeze(-1) & batch.alive[t]
            assert torch.equal(act.action[there], greedy(whole[t], policy.net.legal(None))[there])
            core = clear_absent(policy.core_with_action(act.core, batch.action[t]), batch.alive[t].numpy())


def test_epsilon_falls_over_a_share_of_the_runs_steps():
    policy = make("vdn", team_spec(THREE), epsilon=1.0, epsilon_end=0.2, epsilon_share=0.5).policy

    assert [round(policy.explore(share), 6) for share in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.6, 0.2, 0.2]
    assert float(policy.epsilon) == pytest.approx(0.2)


def test_what_it_is_not_for():
    from rltrain.envs.spec import ActionSpec, AgentGroup, Leaf

    box = AgentGroup(
        "flyer", ("x",), Leaf("box", (3,), "float32"), ActionSpec("box", (2,), (), (-1.0, -1.0), (1.0, 1.0))
    )
    spec = replace(team_spec(THREE), groups=(box,))

    with pytest.raises(
        ValueError, match="needs several agents with Discrete actions, and of team the actions of flyer"
    ):
        make("qmix", spec)
