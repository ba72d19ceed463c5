"""Shapes, initialisation, memory, encoding of every space, and rows that do not know their neighbours."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from rltrain.algorithms.networks.cnn import ImpalaCNN, NatureCNN, SmallCNN
from rltrain.algorithms.networks.encoder import Encoder, load_torso
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.networks.recurrent import RecurrentCore
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

ACTION = ActionSpec("discrete", (), (2,))
BOX = Leaf("box", (3,), "float32")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec(obs) -> EnvSpec:
    return EnvSpec("test", obs, ACTION)


@pytest.fixture
def one_thread():
    """As in an actor. With two, torch may cut the sums of a wide layer in a way that depends on the rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parts_equal(function, x: torch.Tensor) -> bool:
    """Whether `function` gives rows of x [64, ...] the same bits in every block of 16, 32 and 48."""
    with torch.inference_mode():
        whole = function(x)
        return all(
            torch.equal(function(x[begin : begin + width].clone()), whole[begin : begin + width])
            for width in (16, 32, 48)
            for begin in range(0, 64 - width + 1, 16)
        )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_is_the_layers_written_out(activation):
    net = MLP(3, [5, 4], 2, activation, generator=rng())
    x = torch.randn(2, 7, 3, generator=rng(1))
    a = getattr(torch, activation)

    expected = a(a(x @ net.weight0.T + net.bias0) @ net.weight1.T + net.bias1) @ net.weight2.T + net.bias2

    assert_close(net(x), expected)
    assert MLP(3, [5, 4], None, activation).features == 4
    assert MLP(3, [5, 4], None, activation)(x).shape == (2, 7, 4)
    assert MLP(3, []).features == 3


def test_weights_are_orthogonal_with_their_gain_and_biases_zero():
    net = MLP(8, [8], 2, gain=0.01, generator=rng())

    assert_close(net.weight0 @ net.weight0.T, 2 * torch.eye(8), atol=1e-5, rtol=0)
    assert_close(net.weight1 @ net.weight1.T, 1e-4 * torch.eye(2), atol=1e-8, rtol=0)
    assert all((bias == 0).all() for bias in (net.bias0, net.bias1))


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    a = MLP(3, [4], 1, generator=rng())
    torch.manual_seed(2)
    b, c = MLP(3, [4], 1, generator=rng()), MLP(3, [4], 1, generator=rng(9))

    assert torch.equal(a.weight0, b.weight0)
    assert not torch.equal(a.weight0, c.weight0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_uses_its_own_parameters(again):
    net = MLP(3, [4], 1, generator=rng())
    x = torch.ones(1, 3)
    before = net(x).item()
    twin = again(net)
    with torch.no_grad():
        for param in twin.parameters():
            param.zero_()

    assert twin(x).item() == 0
    assert net(x).item() == before


@pytest.mark.parametrize("leaf", [
    Leaf("image", (4, 84, 84), "uint8"),
    Leaf("image", (84, 96, 3), "uint8", channels_last=True),
    Leaf("image", (36, 36), "uint8"),
])  # fmt: skip
def test_nature_cnn(leaf):
    net = NatureCNN(leaf, 32, rng())

    assert net(torch.zeros((2, *leaf.shape), dtype=torch.uint8)).shape == (2, 32)


@pytest.mark.parametrize("shape", [(7, 7, 3), (1, 1, 1), (10, 10, 6)])
def test_small_cnn(shape):
    net = SmallCNN(Leaf("image", shape, "uint8", channels_last=True), generator=rng())

    assert net(torch.zeros((2, *shape), dtype=torch.uint8)).shape == (2, 128)


def test_channels_last_is_the_same_image():
    first, last = Leaf("image", (3, 40, 44), "uint8"), Leaf("image", (40, 44, 3), "uint8", channels_last=True)
    image = torch.randint(256, (2, 3, 40, 44), generator=rng(), dtype=torch.uint8)

    assert_close(NatureCNN(first, 8, rng())(image), NatureCNN(last, 8, rng())(image.permute(0, 2, 3, 1)))


@pytest.mark.parametrize("high", [255, 7, 1])
def test_images_are_scaled_to_one(high):
    leaf = Leaf("image", (1, 40, 40), "uint8", high=high)
    net = NatureCNN(leaf, 8, rng())
    white = torch.full((1, 1, 40, 40), high, dtype=torch.uint8)
    x = torch.relu(F.conv2d(torch.ones(1, 1, 40, 40), net.weight0, net.bias0, 4))
    x = torch.relu(F.conv2d(x, net.weight1, net.bias1, 2))
    x = torch.relu(F.conv2d(x, net.weight2, net.bias2, 1))

    assert_close(net(white), torch.relu(F.linear(x.flatten(1), net.weight3, net.bias3)))
    assert (white == high).all()


class Residual(nn.Module):
    """One of the six blocks of Espeholt et al. 2018, figure 3."""

    def __init__(self, channels):
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(torch.relu(x))))


@pytest.mark.parametrize("leaf", [Leaf("image", (4, 84, 84), "uint8"), Leaf("image", (9, 7, 3), "uint8", (), True)])
def test_the_residual_network_is_the_papers(leaf):
    """Layer by layer from torch's modules; and its gradients, since activations are computed in place."""
    net = ImpalaCNN(leaf, generator=rng())
    channels = leaf.shape[2] if leaf.channels_last else leaf.shape[0]
    sections = []
    for inputs, outputs in [(channels, 16), (16, 32), (32, 32)]:
        pool = nn.MaxPool2d(3, 2, padding=1)
        sections += [nn.Conv2d(inputs, outputs, 3, padding=1), pool, Residual(outputs), Residual(outputs)]
    theirs = nn.Sequential(*sections, nn.ReLU(), nn.Flatten(), nn.LazyLinear(256), nn.ReLU())
    image = torch.randint(256, (3, *leaf.shape), generator=rng(1), dtype=torch.uint8)
    x = (image.permute(0, 3, 1, 2) if leaf.channels_last else image) / 255
    with torch.no_grad():
        theirs(x)
        for mine, other in zip(net.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)

    out, expected = net(image), theirs(x)
    out.square().sum().backward()
    expected.square().sum().backward()

    assert_close(out, expected)
    assert out.shape == (3, 256)
    for mine, other in zip(net.parameters(), theirs.parameters(), strict=True):
        assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_features_of_the_residual_network_keep_their_size():
    """Six sums must neither blow them up nor let them die."""
    leaf = Leaf("image", (4, 84, 84), "uint8")
    image = torch.randint(256, (8, 4, 84, 84), generator=rng(1), dtype=torch.uint8)

    deviation = ImpalaCNN(leaf, generator=rng())(image).std()

    assert 0.05 < deviation < 5


def test_torsos_by_name():
    atari, small = spec(Leaf("image", (4, 84, 84), "uint8")), spec(Leaf("image", (9, 9, 3), "uint8", (), True))
    found = {name: load_torso(name, atari, rng()).nets["0"] for name in ("auto", "nature", "impala")}

    assert [type(net) for net in found.values()] == [NatureCNN, NatureCNN, ImpalaCNN]
    assert isinstance(load_torso("impala", small, rng()).nets["0"], ImpalaCNN)
    with pytest.raises(ValueError, match="36 pixels"):
        load_torso("nature", small, rng())


def test_one_box_is_passed_as_it_is():
    x = torch.randn(5, 3)

    assert Encoder(spec(BOX)).forward(x) is x


@pytest.mark.parametrize("lead", [(), (5,), (4, 5)])
def test_encoder_puts_the_leaves_side_by_side_in_order(lead):
    obs = {
        "b": (Leaf("discrete", (), "int64", (3,)), Leaf("multi_discrete", (2,), "int64", (2, 3))),
        "a": Leaf("box", (2, 2), "float32"),
        "c": Leaf("multi_binary", (2,), "float32"),
        "d": Leaf("image", (8, 8), "uint8"),
        "e": Leaf("box", (), "float32"),
    }
    encoder = Encoder(spec(obs), features=6, generator=rng())
    x = {
        "b": (torch.full(lead, 2), torch.tensor([1, 2]).expand(*lead, 2)),
        "a": torch.arange(4.0).reshape(2, 2).expand(*lead, 2, 2),
        "c": torch.tensor([1.0, 0.0]).expand(*lead, 2),
        "d": torch.zeros((*lead, 8, 8), dtype=torch.uint8),
        "e": torch.full(lead, 7.0),
    }

    actual = encoder(x)

    front = [0, 1, 2, 3, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0]
    assert encoder.features == len(front) + 6 + 1
    assert actual.shape == (*lead, encoder.features)
    assert actual[..., :14].reshape(-1, 14).unique(dim=0).tolist() == [front]
    assert (actual[..., -1] == 7).all()


def test_encoder_takes_a_small_net_for_small_images():
    small, large = (Encoder(spec(Leaf("image", (side, side), "uint8"))) for side in (35, 36))

    assert (small.features, large.features) == (128, 512)


def test_only_weights_are_in_the_state():
    assert list(Encoder(spec(Leaf("discrete", (), "int64", (3,)))).state_dict()) == []


def test_memory_is_a_gru():
    memory = RecurrentCore(3, 4, rng())
    theirs = nn.GRUCell(3, 4)
    theirs.load_state_dict(
        {"weight_ih": memory.weight_x, "weight_hh": memory.weight_h, "bias_ih": memory.bias_x, "bias_hh": memory.bias_h}
    )
    x, core = torch.randn(5, 3, generator=rng(1)), torch.randn(5, 4, generator=rng(2))

    assert_close(memory.step(x, core), theirs(x, core))


def test_lstm_is_torchs_cell():
    """Its core is output and cell, side by side."""
    memory = RecurrentCore(3, 4, rng(), "lstm")
    theirs = nn.LSTMCell(3, 4)
    theirs.load_state_dict(
        {"weight_ih": memory.weight_x, "weight_hh": memory.weight_h, "bias_ih": memory.bias_x, "bias_hh": memory.bias_h}
    )
    x, core = torch.randn(5, 3, generator=rng(1)), torch.randn(5, 8, generator=rng(2))

    h, c = theirs(x, (core[:, :4], core[:, 4:]))

    assert memory.core_size == 8
    assert_close(memory.step(x, core), torch.cat([h, c], -1))
    assert_close(memory.output(memory.step(x, core)), h)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_unroll_steps_and_forgets_before_the_row_that_begins_an_episode(kind):
    memory = RecurrentCore(3, 4, rng(), kind)
    size = memory.core_size
    x, core = torch.randn(6, 2, 3, generator=rng(1)), torch.randn(2, size, generator=rng(2))
    first = torch.zeros(6, 2, dtype=torch.bool)
    first[3, 0] = first[0, 1] = True

    actual = memory.unroll(x, core, first)

    for b in range(2):
        h = core[b : b + 1]
        for t in range(6):
            h = memory.step(x[t, b : b + 1], torch.zeros(1, size) if first[t, b] else h)
            assert_close(actual[t, b : b + 1], h[:, :4])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_no_gradient_crosses_the_beginning_of_an_episode(kind):
    memory = RecurrentCore(3, 4, rng(), kind)
    x = torch.randn(4, 1, 3, generator=rng(1)).requires_grad_()
    first = torch.tensor([False, False, True, False])[:, None]

    memory.unroll(x, torch.zeros(1, memory.core_size), first)[3].sum().backward()

    assert (x.grad[:2] == 0).all()
    assert (x.grad[2:] != 0).all()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("hidden", [8, 50, 64, 128, 512])
def test_rows_have_the_same_bits_at_every_width_that_is_a_multiple_of_16(hidden):
    """What lets a run not depend on the number of its workers."""
    x = torch.randn(64, 5, generator=rng())
    for activation in ("tanh", "relu"):
        assert parts_equal(MLP(5, [hidden, hidden], 3, activation, generator=rng()), x)
    for kind in ("gru", "lstm"):
        memory = RecurrentCore(5, hidden, rng(), kind)
        core = torch.randn(64, memory.core_size, generator=rng(1))
        both = torch.cat([x, core], -1)
        assert parts_equal(lambda both, memory=memory: memory.step(both[:, :5], both[:, 5:]), both), kind


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("leaf", [Leaf("image", (4, 84, 84), "uint8"), Leaf("image", (10, 10, 4), "uint8", (), True)])
def test_image_rows_have_the_same_bits_too(leaf):
    x = torch.randint(256, (64, *leaf.shape), generator=rng(), dtype=torch.uint8)

    for torso in ("auto", "impala"):
        assert parts_equal(load_torso(torso, spec(leaf), rng()), x), torso


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("torso", ["nature", "impala"])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_rows_that_only_fill_up_a_batch_are_not_convolved(torso, rows):
    """What an actor of few streams saves; its own rows keep their bits, and the batch its shape."""
    leaf = Leaf("image", (4, 40, 40), "uint8")
    net = load_torso(torso, spec(leaf), rng())
    x = torch.randint(256, (16, *leaf.shape), generator=rng(), dtype=torch.uint8)
    seen = []
    with torch.inference_mode():
        whole = net(x)
        net.set_active_rows(rows)
        convolved = net.nets["0"].convolved
        net.nets["0"].convolved = lambda image: (seen.append(len(image)), convolved(image))[1]
        few = net(x)

    assert few.shape == whole.shape
    assert torch.equal(few[:rows], whole[:rows])
    assert seen == [max(4, -(-rows // 4) * 4)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("agree", [True, False])
def test_the_linear_layer_behind_images_looks_at_few_rows_where_their_bits_are_the_same(agree):
    """Tried out once; here a layer that says so, or one whose rows tell how many they were."""
    leaf = Leaf("image", (4, 40, 40), "uint8")
    net = load_torso("nature", spec(leaf), rng())
    x = torch.randint(256, (16, *leaf.shape), generator=rng(), dtype=torch.uint8)
    cnn, seen = net.nets["0"], []
    cnn.dense = lambda x: (seen.append(len(x)), x.double() * (1 if agree else len(x)))[1]
    net.set_active_rows(4)
    with torch.inference_mode():
        few = [net(x) for _ in range(2)]
        whole = cnn.convolved(x).double() * (1 if agree else 16)

    assert seen == [16, 4, *(2 * [4] if agree else 2 * [16])]
    assert len(few[0]) == 16
    assert torch.equal(few[0], few[1])
    assert torch.equal(few[0][:4], whole[:4])


class Torso(nn.Module):
    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.features = 4
        self.linear = nn.Linear(math.prod(spec.leaves()[0].shape), 4)

    def forward(self, obs):
        assert obs.ndim == 3  # [N, *O]
        return self.linear(obs.flatten(1))


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("my_torso")
    made.Torso, made.Number, made.Bare = Torso, lambda spec: 3, lambda spec: nn.Linear(2, 2)
    monkeypatch.setitem(sys.modules, "my_torso", made)


@pytest.mark.usefixtures("module")
def test_a_users_torso_sees_flat_rows_and_repeats():
    where = spec(Leaf("box", (2, 3), "float32"))
    state = torch.get_rng_state()
    a, b, c = (load_torso("my_torso:Torso", where, rng(seed)) for seed in (0, 0, 1))
    x = torch.randn(5, 4, 2, 3, generator=rng())

    assert a.features == 4
    assert a(x).shape == (5, 4, 4)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(load_torso("auto", where), Encoder)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nurture", "neither 'auto'"),
        ("no_such_module:Torso", "cannot be imported"),
        ("my_torso:Missing", "has no 'Missing'"),
        ("my_torso:Number", "must be an nn.Module, got int"),
        ("my_torso:Bare", "needs an int attribute `features`"),
    ],
)
def test_a_wrong_torso_is_refused_with_a_reason(name, text):
    with pytest.raises(ValueError, match=text):
        load_torso(name, spec(BOX))
