"""Running statistics against those of all rows at once."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import targets
from oracles.streams import streams
from torch.testing import assert_close

from rltrain.algorithms.networks.normalize import Normalizer, ReturnScale
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

BOX = Leaf("box", (3,), "float32")


def spec(obs) -> EnvSpec:
    return EnvSpec("test", obs, ActionSpec("discrete", (), (2,)))


def data(n: int = 200) -> torch.Tensor:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([0.0, 5.0, -2.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=4))
def test_pieces_give_the_statistics_of_the_whole(cuts):
    x, norm = data(), Normalizer(spec(BOX))
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 200], strict=True):
        norm.update(x[begin:end], torch.ones(end - begin, dtype=torch.bool))

    assert norm.count0 == 200
    assert_close(norm.mean0, x.double().mean(0))
    assert_close(norm.m2_0 / 200, x.double().var(0, correction=0))
    actual = norm(x)
    assert_close(actual.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert_close(actual.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_a_large_mean_does_not_drown_a_small_spread():
    """The naive E[x^2] - E[x]^2 in float32 would give nonsense."""
    x = 1e4 + torch.tensor([[0.0, 1.0, 2.0]]).T.repeat(50, 1)
    norm = Normalizer(spec(Leaf("box", (1,), "float32")))
    for piece in x.split(7):
        norm.update(piece, torch.ones(len(piece), dtype=torch.bool))

    assert norm.scale0.item() == pytest.approx((2 / 3) ** -0.5, rel=1e-5)


def test_invalid_rows_do_not_count():
    x = data()
    valid = torch.arange(200) % 3 != 0
    a, b = Normalizer(spec(BOX)), Normalizer(spec(BOX))
    a.update(torch.where(valid[:, None], x, torch.nan).reshape(20, 10, 3), valid.reshape(20, 10))
    b.update(x[valid], torch.ones(int(valid.sum()), dtype=torch.bool))

    assert torch.equal(a.scale0, b.scale0)
    assert torch.equal(a.shift0, b.shift0)


def test_values_are_clipped_and_a_new_one_passes():
    norm = Normalizer(spec(BOX))
    assert norm(torch.tensor([1.0, -99.0, 99.0])).tolist() == [1.0, -10.0, 10.0]
    norm.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool))
    assert norm(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]


def test_only_box_leaves_change():
    obs = {"image": Leaf("image", (4, 4), "uint8"), "pair": (Leaf("discrete", (), "int64", (3,)), BOX)}
    norm = Normalizer(spec(obs))
    x = {"image": torch.ones(200, 4, 4, dtype=torch.uint8), "pair": (torch.ones(200, dtype=torch.int64), data())}
    norm.update(x, torch.ones(200, dtype=torch.bool))

    actual = norm(x)

    assert actual["image"] is x["image"]
    assert actual["pair"][0] is x["pair"][0]
    assert actual["pair"][1].std(0).max() < 1.1
    assert {name[-1] for name in norm.state_dict()} == {"2"}
    image = torch.ones(2, 4, 4, dtype=torch.uint8)
    assert Normalizer(spec(obs["image"]))(image) is image


def test_statistics_travel_with_the_state():
    a, b = Normalizer(spec(BOX)), Normalizer(spec(BOX))
    a.update(data(), torch.ones(200, dtype=torch.bool))
    b.load_state_dict(a.state_dict())

    assert torch.equal(a(data()), b(data()))


@settings(max_examples=100, deadline=None)
@given(streams(), st.floats(0, 1))
def test_return_scale_sees_the_discounted_return_of_each_step(case, gamma):
    stream, _ = case
    ended = stream.terminated | stream.truncated
    seen = targets.discounted_return_of_each_step(stream.reward.numpy(), ended.numpy(), stream.valid.numpy(), gamma)
    scale = ReturnScale(3)
    poisoned = torch.where(stream.valid, stream.reward, 1e6)

    scale.update(poisoned, ended, stream.valid, stream.stream, gamma)

    assert scale.count == len(seen)
    if len(seen) > 1:
        assert scale.mean.item() == pytest.approx(np.mean(seen), abs=1e-9)
        assert scale.scale().item() == pytest.approx((np.var(seen) + 1e-8) ** -0.5, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(streams(), st.integers(1, 11))
def test_return_scale_goes_on_over_unrolls_and_by_stream(case, cut):
    """Two unrolls, the second with its columns in another order, give what one gives."""
    stream, _ = case
    cut = min(cut, len(stream.reward))
    ended = stream.terminated | stream.truncated
    whole, parts = ReturnScale(5), ReturnScale(5)
    names = torch.tensor([4, 0, 2])
    whole.update(stream.reward, ended, stream.valid, names, 0.9)
    parts.update(stream.reward[:cut], ended[:cut], stream.valid[:cut], names, 0.9)
    if cut < len(stream.reward):
        turn = torch.tensor([2, 0, 1])
        rest = [x[cut:][:, turn] for x in (stream.reward, ended, stream.valid)]
        parts.update(*rest, names[turn], 0.9)

    assert_close(parts.running, whole.running)
    assert_close(parts.scale(), whole.scale(), rtol=1e-4, atol=1e-4)
    assert (whole.running[[1, 3]] == 0).all()


@settings(max_examples=100, deadline=None)
@given(streams(), st.integers(1, 11), st.integers(1, 5))
def test_rows_that_an_unroll_was_stretched_by_change_nothing(case, cut, more):
    """They are no reset rows: the episode goes on after them."""
    stream, _ = case
    cut = min(cut, len(stream.reward))
    ended = stream.terminated | stream.truncated
    whole, parts = ReturnScale(3), ReturnScale(3)
    whole.update(stream.reward, ended, stream.valid, stream.stream, 0.9)
    rows = (stream.reward, ended, stream.valid)
    added = (torch.full((more, 3), 7.0), *(torch.zeros(more, 3, dtype=torch.bool) for _ in range(2)))
    parts.update(*(torch.cat([x[:cut], y]) for x, y in zip(rows, added, strict=True)), stream.stream, 0.9)
    if cut < len(stream.reward):
        parts.update(*(x[cut:] for x in rows), stream.stream, 0.9)

    assert_close(parts.running, whole.running)
    assert parts.count == whole.count
    assert_close(parts.scale(), whole.scale(), rtol=1e-4, atol=1e-4)


def test_a_broken_stream_begins_at_zero():
    scale, off, on = ReturnScale(2), torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    stream = torch.arange(2)
    scale.update(torch.ones(1, 2), off, on, stream, 0.5)
    scale.update(torch.ones(1, 2), off, on, stream, 0.5, begins=torch.tensor([True, False]))

    assert scale.running.tolist() == [1.0, 1.5]


def pieces(draw: st.DrawFn, rows: int) -> list[tuple[int, int, list[bool], int]]:
    """A stream cut into unrolls: (begin, end, which of three columns came, rows that the unroll is stretched by)."""
    cuts = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=5))})
    came = st.lists(st.booleans(), min_size=3, max_size=3)
    return [(begin, end, draw(came), draw(st.integers(0, 2))) for begin, end in pairwise(cuts)]


@settings(max_examples=200, deadline=None)
@given(streams(max_t=24), st.data(), st.floats(0, 1))
def test_an_accumulator_begins_anew_where_rows_are_missing(case, data, gamma):
    """What came without a gap is a stream of its own, to the definition; unrolls may be stretched, too."""
    stream, _ = case
    ended = stream.terminated | stream.truncated
    whole = (stream.reward, ended, stream.valid)
    scale, seen, names = ReturnScale(5), [], torch.tensor([4, 0, 2])
    runs: list[list[slice]] = [[], [], []]  # of each column: what came without a gap, where it came

    for begin, end, came, more in pieces(data.draw, len(stream.reward)):
        for b in range(3):
            if came[b] and runs[b] and runs[b][-1].stop == begin:
                runs[b][-1] = slice(runs[b][-1].start, end)
            elif came[b]:
                runs[b].append(slice(begin, end))
        no = torch.zeros(more, sum(came), dtype=torch.bool)
        rows = [torch.cat([x[begin:end, came], add]) for x, add in zip(whole, (no.float(), no, no), strict=True)]
        row = torch.full((sum(came),), begin)
        if any(came):
            scale.update(*rows, names[came], gamma, stream.first[begin, came], (row, end - begin))
    for b in range(3):
        for run in runs[b]:
            seen += targets.discounted_return_of_each_step(*(x[run, b : b + 1].numpy() for x in whole), gamma)

    assert scale.count == len(seen)
    if seen:
        assert scale.mean.item() == pytest.approx(np.mean(seen), abs=1e-9)
        assert scale.m2.item() == pytest.approx(np.var(seen) * len(seen), abs=1e-6)


def one(scale: ReturnScale, row: int) -> float:
    """The accumulator after one row of reward 1 at `row`, at gamma 1."""
    no = torch.zeros(1, 1, dtype=torch.bool)
    scale.update(torch.ones(1, 1), no, ~no, torch.tensor([0]), 1.0, no[0], (torch.tensor([row]), 1))
    return float(scale.running[0])


def test_which_row_follows_travels_with_the_state():
    before, after = ReturnScale(1), ReturnScale(1)
    assert [one(before, 0), one(before, 1)] == [1.0, 2.0]
    after.load_state_dict(before.state_dict())
    assert [one(after, 2), one(after, 4)] == [3.0, 1.0]


def test_a_state_of_before_rows_were_counted_goes_on():
    before, after = ReturnScale(1), ReturnScale(1)
    one(before, 0)
    old = {name: value for name, value in before.state_dict().items() if name != "follows"}
    one(after, 5)  # what stood there does not stay
    after.load_state_dict(old)
    assert [one(after, 7), one(after, 8), one(after, 10)] == [2.0, 3.0, 1.0]
    torch.nn.ModuleDict({"in": ReturnScale(1)}).load_state_dict({f"in.{name}": value for name, value in old.items()})


def test_return_scale_is_one_without_a_spread_and_leaves_rewards_alone():
    scale = ReturnScale(1)
    assert scale.scale() == 1
    reward = torch.ones(4, 1)
    before = copy.deepcopy(reward)
    no = torch.zeros(4, 1, dtype=torch.bool)
    scale.update(reward, no, ~no, torch.tensor([0]), 0.0)
    assert scale.scale() == 1
    assert torch.equal(reward, before)
    assert scale.scale().dtype == torch.float32
