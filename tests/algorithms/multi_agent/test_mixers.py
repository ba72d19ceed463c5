"""Mixers: a vector worked out by hand, what may not fall, and what VDN can and cannot say."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles.teams import THREE, TWO, episodes, team_spec
from torch.testing import assert_close

from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.multi_agent.mixers import Monotonic, Sum
from rltrain.algorithms.networks.mlp import MLP
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import AgentGroup
from rltrain.learner.algorithm import make_algorithm

PAIR = team_spec(THREE)


def monotonic(spec=PAIR, width: int = 2, hyper_width: int = 0, seed: int = 0) -> Monotonic:
    return Monotonic(spec, width, hyper_width, seed)


def test_a_vector_worked_out_by_hand() -> None:
    """Weights lose their sign, biases keep theirs: hidden 0.1 and elu(-3); with signed weights it is another number."""
    mixer = monotonic()
    with torch.no_grad():
        for x in mixer.parameters():
            x.zero_()
        mixer.weight1.bias0.copy_(torch.tensor([1.0, -2.0, 0.5, 1.0]))  # [N, width]
        mixer.bias1.bias0.copy_(torch.tensor([0.1, -3.0]))
        mixer.weight2.bias0.copy_(torch.tensor([-1.0, 2.0]))
        mixer.bias2.bias1.fill_(0.3)

    assert_close(mixer(torch.tensor([1.0, -2.0]), torch.zeros(4)), torch.tensor(-1.500425863264272))


@pytest.mark.parametrize("hyper_width", [0, 8])
@pytest.mark.usefixtures("double")
def test_no_agents_value_can_lower_the_teams(hyper_width: int) -> None:
    mixer = monotonic(width=5, hyper_width=hyper_width, seed=3)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(400, 2, generator=generator).mul(3).requires_grad_()
    state = torch.randn(400, 4, generator=generator) * 3

    (slope,) = torch.autograd.grad(mixer(q, state).sum(), q)

    assert (slope >= 0).all()
    assert (slope > 0).float().mean() > 0.9  # it does listen to them
    assert slope[:, 0].std() > 0.1  # and how much depends on the state


@pytest.mark.usefixtures("double")
def test_what_is_best_for_each_is_best_for_all() -> None:
    mixer = monotonic(width=4, seed=5)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        q, state = torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)
        joint = {
            actions: float(mixer(torch.stack([q[0, actions[0]], q[1, actions[1]]]), state).detach())
            for actions in itertools.product(range(3), repeat=2)
        }
        assert joint[tuple(q.argmax(1).tolist())] == max(joint.values())


def test_the_sum() -> None:
    q = torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.0, 0.0]])

    assert Sum()(q, None).tolist() == [3.0, 0.5]


@pytest.mark.parametrize(
    ("payoff", "fit", "chosen"),
    [
        ([[0, 1], [1, 8]], [[-1.5, 2.5], [2.5, 6.5]], (1, 1)),
        ([[11, -30, 0], [-30, 7, 0], [0, 6, 5]], None, (2, 2)),  # 5 at the greedy actions, where 11 is the best
    ],
)
def test_a_sum_of_values_fits_payoffs_as_its_algebra_says(payoff, fit, chosen) -> None:
    """Least squares over all joint actions: row mean + column mean - mean. So VDN takes 2A for 7 with its 6.5."""
    table = torch.tensor(payoff, dtype=torch.float64)
    n = len(table)
    values = torch.zeros(2, n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], lr=1.0, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        q = torch.stack([values[0, pairs[:, 0]], values[1, pairs[:, 1]]], -1)
        error = (Sum()(q, None) - table[pairs[:, 0], pairs[:, 1]]).square().sum()
        error.backward()
        return error

    optimizer.step(loss)
    found = values.detach()[0][:, None] + values.detach()[1]

    expected = table.mean(1, keepdim=True) + table.mean(0) - table.mean() if fit is None else torch.tensor(fit)
    assert_close(found, expected.double(), atol=1e-4, rtol=0)
    assert tuple(values.argmax(1).tolist()) == chosen


def test_a_state_that_is_not_told_is_what_all_see_side_by_side() -> None:
    spec = team_spec(THREE, TWO, told=False)
    batch = episodes(spec, 0)
    state = GlobalState(spec, torch.Generator())

    assert state.features == 2 * 3 + 2
    assert_close(
        state(batch),
        torch.cat([batch.obs["three"].flatten(2), batch.obs["two"].flatten(2)], -1).float(),
        check_dtype=False,
    )
    told = team_spec(THREE, TWO)
    assert GlobalState(told, torch.Generator())(episodes(told, 0)).shape == (7, 5, 4)


def test_groups_count_their_agents() -> None:
    alone = AgentGroup("one", ("x",), THREE.obs, THREE.action)

    assert monotonic(team_spec(THREE, alone), width=2).agents == 3


@pytest.mark.parametrize("algo", ["vdn", "qmix", "iql"])
@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
def test_agents_and_mixer_begin_as_asked(algo: str, init: str) -> None:
    """Biases tell: torch's own are not 0."""
    config = load({"algo": algo, "env": "two-step", "preset": "none", "init": init})
    algorithm = make_algorithm(config, read_spec(resolve("two-step"), 0))
    biases = [bias for layers in algorithm.learned.modules() if isinstance(layers, MLP) for _, bias in layers.pairs]

    assert len(biases) >= (7 if algo == "qmix" else 3)
    assert all(bool(bias.any()) == (init == "uniform") for bias in biases)


def test_a_run_of_before_there_was_a_choice_goes_on_as_it_began() -> None:
    config = load({"algo": "vdn", "env": "two-step", "preset": "none"})
    saved = config.to_json()
    assert RunConfig.from_json(saved).settings.init == "uniform"
    del saved["settings"]["init"]

    assert RunConfig.from_json(saved).settings.init == "orthogonal"
