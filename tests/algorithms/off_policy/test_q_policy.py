"""QPolicy: values on every kind of observation, epsilon, masks, the same bits at every width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.acting import Bench
from oracles.q_learning import outputs, squash
from torch.testing import assert_close

from rltrain.algorithms.off_policy.q_policy import QPolicy, greedy
from rltrain.algorithms.off_policy.settings import DQNConfig
from rltrain.algorithms.registry import build, policy_factory
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, ObsSpec, iter_leaves
from rltrain.rollout.actor.batch_invariance import is_width_invariant
from rltrain.rollout.tree import tree_map

BOX = Leaf("box", (3,), "float32")
OBS: dict[str, ObsSpec] = {
    "box": BOX,
    "image": Leaf("image", (36, 36, 3), "uint8", channels_last=True),
    "small-image": Leaf("image", (8, 8), "uint8"),
    "discrete": Leaf("discrete", (), "int64", (5,)),
    "dict": {"a": BOX, "b": (Leaf("discrete", (), "int64", (3,)), Leaf("image", (8, 8), "uint8"))},
}
C51 = {"atoms": 11, "v_min": -2.0, "v_max": 2.0}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dueling": {"dueling": True},
    "c51": C51,
    "noisy": {"noisy": True},
    "normalised": {"normalize_obs": True},
    "rainbow": {**C51, "dueling": True, "noisy": True},
}
N = 16
ACTIONS = 4


def make(obs: ObsSpec = BOX, mask: bool = False, streams: int = 8, **settings) -> QPolicy:
    spec = EnvSpec("test", obs, ActionSpec("discrete", (), (ACTIONS,)), action_mask=mask)
    config = DQNConfig(**{"widths": (8, 6), **settings})
    policy = build(policy_factory("q"), spec, config, streams, 0)
    assert isinstance(policy, QPolicy)
    policy.net.draw(torch.Generator().manual_seed(1))
    return policy


def observe(obs: ObsSpec, rows: int = N, seed: int = 0):
    generator = np.random.default_rng(seed)

    def leaf(of: Leaf) -> torch.Tensor:
        shape = (rows, *of.shape)
        if of.kind == "discrete":
            return torch.from_numpy(generator.integers(0, of.nvec[0], shape))
        if of.kind == "image":
            return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    return tree_map(leaf, obs)


def uniform(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, width), dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("obs", OBS)
def test_it_takes_the_action_of_highest_value(obs, kind):
    policy, seen = make(OBS[obs], **KINDS[kind]), observe(OBS[obs])
    with torch.inference_mode():
        q = policy.q(seen)
        act = policy.act(seen, None, None, torch.zeros(N, policy.noise.width), False)

    assert q.shape == (N, ACTIONS)
    assert q.std() > 0
    assert act.action.dtype == torch.int64
    assert torch.equal(act.action, q.argmax(-1))
    assert torch.equal(policy.value(seen), q.max(-1).values)


@pytest.mark.parametrize("streams", [1, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("obs", OBS)
def test_rows_have_the_same_bits_at_every_width(obs, kind, streams):
    spec = EnvSpec("test", OBS[obs], ActionSpec("discrete", (), (ACTIONS,)))
    policy = make(OBS[obs], epsilon_per_stream=kind == "plain", epsilon=0.3, streams=streams, **KINDS[kind])

    assert is_width_invariant(policy, spec, streams)
    assert len(list(iter_leaves(spec.obs))) > 0


def shares(policy: QPolicy, mask=None, rows: int = 20_000, stream: int | None = None) -> list[float]:
    """How often each action is taken at one observation."""
    noise = uniform(rows, policy.noise.width)
    if stream is not None:
        noise = torch.cat([noise, torch.full((rows, 1), float(stream))], -1)
    seen = torch.ones(rows, 3)
    legal = None if mask is None else torch.tensor([mask]).expand(rows, -1)
    found: list[float] = (
        torch.bincount(policy.act(seen, None, legal, noise, True).action, minlength=ACTIONS) / rows
    ).tolist()
    return found


def favourite(policy: QPolicy) -> int:
    return int(policy.q(torch.ones(1, 3)).argmax())


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_is_the_probability_of_any_action(epsilon):
    policy = make(epsilon=epsilon)
    expected = np.full(ACTIONS, epsilon / ACTIONS)
    expected[favourite(policy)] += 1 - epsilon

    assert shares(policy) == pytest.approx(expected.tolist(), abs=0.0 if epsilon == 0 else 0.02)


@pytest.mark.parametrize("mask", [[True, False, True, True], [False, False, True, False]])
def test_a_random_action_is_one_of_the_legal_ones(mask):
    policy = make(mask=True, epsilon=1.0)
    expected = np.array(mask) / sum(mask)

    assert shares(policy, mask) == pytest.approx(expected.tolist(), abs=0.02)


def test_a_greedy_action_is_the_best_of_the_legal_ones():
    policy = make(mask=True, epsilon=0.0)
    mask = [True] * ACTIONS
    mask[favourite(policy)] = False
    q = policy.q(torch.ones(1, 3))[0].masked_fill(~torch.tensor(mask), -torch.inf)

    assert shares(policy, mask)[int(q.argmax())] == 1.0
    for explore in (False, True):
        act = policy.act(torch.ones(1, 3), None, torch.tensor([mask]), torch.zeros(1, policy.noise.width), explore)
        assert act.action.item() == q.argmax()


def test_evaluation_does_not_explore():
    policy, noisy = make(epsilon=1.0), make(noisy=True)
    seen = observe(BOX)

    act = policy.act(seen, None, None, uniform(N, policy.noise.width), False)
    assert torch.equal(act.action, policy.q(seen).argmax(-1))
    act = noisy.act(seen, None, None, torch.zeros(N, 0), False)
    assert torch.equal(act.action, noisy.net.forward(seen, noisy=False).argmax(-1))


def test_noisy_weights_take_the_place_of_epsilon():
    policy = make(noisy=True, epsilon=1.0)
    seen = observe(BOX, 64)
    act = policy.act(seen, None, None, torch.zeros(64, policy.noise.width), True)

    assert torch.equal(act.action, policy.q(seen).argmax(-1))  # noise of 0: the values themselves, no epsilon
    assert not torch.equal(policy.net.forward(seen), policy.q(seen))


def test_each_stream_may_have_an_epsilon_of_its_own():
    """Ape-X: 0.4^(1 + 7 i / (N - 1))."""
    policy = make(epsilon=0.4, epsilon_end=0.4, epsilon_per_stream=True, streams=3)

    assert policy.noise.stream
    assert_close(policy.epsilon, torch.tensor([0.4, 0.4**4.5, 0.4**8]))
    for stream, epsilon in enumerate(policy.epsilon.tolist()):
        expected = np.full(ACTIONS, epsilon / ACTIONS)
        expected[favourite(policy)] += 1 - epsilon
        assert shares(policy, stream=stream) == pytest.approx(expected.tolist(), abs=0.02)


def test_epsilon_of_one_stream_is_the_shared_one():
    policy = make(epsilon=0.4, epsilon_end=0.4, epsilon_per_stream=True, streams=1)

    assert_close(policy.epsilon, torch.tensor([0.4]))


def test_epsilon_travels_with_the_weights():
    here, there = make(epsilon=1.0, epsilon_end=0.1), make(epsilon=1.0, epsilon_end=0.1)
    here.explore(1.0)
    there.load_state_dict(here.state_dict())

    assert there.epsilon.item() == pytest.approx(0.1)


def test_dueling_advantages_have_mean_0():
    """Without this, value and advantages could drift apart for ever."""
    policy = make(dueling=True)
    seen = observe(BOX)
    x = policy.net.encoder(seen)
    assert policy.net.trunk is not None
    assert policy.net.value is not None
    value = policy.net.value(policy.net.trunk(x))

    assert_close(policy.q(seen).mean(-1, keepdim=True), value)


def test_c51_values_are_means_of_distributions():
    policy = make(**C51)
    seen = observe(BOX)
    logits = policy.net.forward(seen)

    assert logits.shape == (N, ACTIONS, 11)
    assert_close(policy.q(seen), (logits.softmax(-1) * torch.linspace(-2, 2, 11)).sum(-1))


def test_greedy_with_nothing_legal_is_action_0():
    assert greedy(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, False]])).tolist() == [0]


@pytest.mark.parametrize("dueling", [False, True])
def test_first_weights_are_those_of_torch_or_orthogonal(dueling):
    """Biases too: with 0 in all of them nothing bends but at 0, and small observations are seen as one line."""
    spec = EnvSpec("first", Leaf("box", (4,), "float32"), ActionSpec("discrete", (), (2,)))
    for init in ("uniform", "orthogonal"):
        config = DQNConfig(init=init, dueling=dueling, widths=(256, 256))
        net = QPolicy(spec, config, 1, torch.Generator().manual_seed(0)).net
        for layers in (net.trunk, net.value, net.advantage):
            for weight, bias in layers.pairs if layers is not None else ():
                bound = weight.shape[1] ** -0.5
                if init == "uniform":
                    assert max(weight.abs().max(), bias.abs().max()) <= bound
                    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
                    assert bias.any()
                else:
                    assert not bias.any()
                    small = weight @ weight.t() if weight.shape[0] <= weight.shape[1] else weight.t() @ weight
                    assert torch.allclose(small, small[0, 0] * torch.eye(len(small)), atol=1e-5)


def test_each_step_of_each_stream_has_its_own_noise():
    """One noise for a whole unroll of all streams, drawn at the last update, would repeat one action everywhere."""
    bench = Bench("dqn", "probe:choice", noisy=True, streams=4, unroll=32)

    action = bench.collect().action

    assert len(action[:, 0].unique()) == 2
    assert (action != action[:, :1]).any()


@pytest.mark.parametrize("kind", [{}, {"dueling": True}, {**C51, "dueling": True}, {"widths": (8,), "dueling": True}])
def test_actors_use_the_noise_of_each_row(kind):
    policy = make(noisy=True, **kind)
    seen, net = observe(BOX), policy.net
    e = torch.randn(N, policy.noise.width, generator=torch.Generator().manual_seed(2))
    p = dict(net.named_parameters())

    chosen = policy.act(seen, None, None, e, True).action
    plain = policy.act(seen, None, None, e, False).action

    trunk, advantage, value = net.noise_sizes
    for row in range(N):
        parts = [squash(part) for part in e[row].split([trunk, advantage, value])]
        noise = dict(zip(("trunk", "advantage", "value"), parts, strict=True))
        out = outputs(p, noise, seen[row : row + 1], ACTIONS, policy.net.atoms)
        assert chosen[row] == net.expected(out if policy.net.atoms > 1 else out[..., 0]).argmax()
    assert torch.equal(plain, policy.q(seen).argmax(-1))
    assert not torch.equal(plain, chosen)


def test_runs_from_before_noise_per_stream_keep_one_noise():
    run = load({"algo": "dqn", "env": "X-v0", "noisy": True}).to_json()
    assert run["settings"]["noise_per_stream"] is True
    assert RunConfig.from_json(run).settings.noise_per_stream is True  # type: ignore[attr-defined]
    del run["settings"]["noise_per_stream"]
    assert RunConfig.from_json(run).settings.noise_per_stream is False  # type: ignore[attr-defined]

    policy = make(noisy=True, noise_per_stream=False)
    seen = observe(BOX)
    assert policy.noise.width == 0
    expected = policy.q(seen, noisy=True).argmax(-1)  # of the buffers
    assert torch.equal(policy.act(seen, None, None, torch.zeros(N, 0), True).action, expected)
