"""Every row once, no reset row ever, and sequences that keep their order and their core."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.streams import RUN, TERMINATED, make, streams
from torch.testing import assert_close

from rltrain.algorithms.functions.rng import Rng, Shard
from rltrain.algorithms.on_policy.minibatch import Batch, Mean


def numbered(stream):
    """Rows named by a number of their own, in every field."""
    rows, batch = stream.reward.shape
    name = torch.arange(rows * batch).reshape(rows, batch)
    obs = torch.full((rows + 1, batch), -1)
    obs[:-1] = name
    return replace(
        stream,
        obs={"a": obs, "b": (obs.float()[..., None],)},
        action=name,
        extras={"log_prob": name.float()},
        action_mask=(obs % 2 == 0)[..., None],
    ), name.float()


def names_agree(batch) -> bool:
    name = batch.action
    return all(
        torch.equal(x.float(), name.float())
        for x in (batch.obs["a"], batch.obs["b"][0][..., 0], batch.log_prob, batch.value, batch.advantage, batch.target)
    ) and torch.equal(batch.action_mask[..., 0], name % 2 == 0)


@settings(max_examples=100, deadline=None)
@given(streams(), st.integers(1, 7), st.integers(0, 99))
def test_every_valid_row_is_used_once_in_pieces_of_nearly_equal_size(case, minibatches, seed):
    stream, name = numbered(case[0])
    rows = Batch.of(stream, value=name, advantage=name, target=name)

    batches = list(rows.shuffled(minibatches, Rng(seed)))

    assert len(rows) == stream.valid.sum()
    assert all(names_agree(batch) for batch in batches)
    used = torch.cat([batch.action for batch in batches]) if batches else torch.zeros(0)
    assert sorted(used.tolist()) == name[stream.valid].tolist()
    sizes = [len(batch) for batch in batches]
    assert len(sizes) == min(minibatches, len(rows))
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_reset_rows_alone_leave_no_row_and_a_learner_without_one_gets_one_that_does_not_count():
    stream, name = numbered(make([[RUN] * 2], [2, 2], 0)[0])
    rows = Batch.of(stream, value=name, advantage=name, target=name)
    assert len(rows) == 0
    assert list(rows.shuffled(2, Rng(0))) == []

    stream, name = numbered(make([[RUN] * 2], [2, 0], 0)[0])
    rows, rng = Batch.of(stream, value=name, advantage=name, target=name), Rng(0)
    rng.shard = Shard(3, 1, 1, torch.ones(1, 3, dtype=torch.bool))  # other learners have all three rows of the batch
    batches = list(rows.shuffled(2, rng))
    assert [(len(batch), batch.counted.tolist(), batch.action.tolist()) for batch in batches] == [(1, [False], [1])] * 2


def big():
    stream, _ = make([[RUN] * 8] * 128, [0] * 8, 0)
    return numbered(stream)


def test_each_epoch_has_an_order_of_its_own_that_its_generator_repeats():
    stream, name = big()
    rows = Batch.of(stream, value=name, advantage=name, target=name)

    def order(generator):
        return torch.cat([batch.action for batch in rows.shuffled(4, generator)])

    g = Rng(0)
    one, two, again = order(g), order(g), order(Rng(0))

    assert not torch.equal(one, two)
    assert torch.equal(one, again)
    assert not torch.equal(one, one.sort().values)


def test_minibatches_are_contiguous():
    stream, name = big()
    rows = Batch.of(stream, value=name, advantage=name, target=name)

    for batch in rows.shuffled(4, Rng(0)):
        assert len(batch) == 256
        assert batch.obs["b"][0].is_contiguous()


@settings(max_examples=50, deadline=None)
@given(streams(batch=3), st.sampled_from([1, 2, 3, 6]), st.integers(1, 5))
def test_sequences_keep_their_order_and_begin_with_their_core(case, length, minibatches):
    stream, name = numbered(case[0])
    rows = len(name) // length * length
    if rows == 0:
        return
    cut = {field: getattr(stream, field)[:rows] for field in ("action", "reward", "terminated", "truncated")}
    stream = replace(
        stream,
        obs={"a": stream.obs["a"][: rows + 1], "b": (stream.obs["b"][0][: rows + 1],)},
        first=stream.first[: rows + 1],
        action_mask=stream.action_mask[: rows + 1],
        extras={"log_prob": name[:rows]},
        core=name[:rows:length, :, None].repeat(1, 1, 2),  # the core before a row carries that row's name
        **cut,
    )
    name = name[:rows]
    sequences = Batch.sequences(stream, value=name, advantage=name, target=name)

    batches = list(sequences.shuffled(minibatches, Rng(0)))

    for batch in batches:
        assert names_agree(batch)
        assert batch.action.shape[0] == length
        assert_close(batch.core[:, 0], batch.action[0].float())
        assert (batch.action.diff(dim=0) == 3).all()  # the next row of the same stream
        t, b = batch.action // 3, batch.action % 3
        assert torch.equal(batch.first, stream.first[t, b])
        assert torch.equal(batch.valid, stream.valid[t, b])
    assert sorted(torch.cat([batch.action.flatten() for batch in batches]).tolist()) == name.flatten().tolist()


def test_sequences_need_a_core_that_fits():
    stream, name = numbered(make([[RUN], [TERMINATED], [RUN]], [1], 0)[0])
    with pytest.raises(ValueError, match="no core"):
        Batch.sequences(stream, name, name, name)
    with pytest.raises(ValueError, match="3 rows cannot be cut into 2"):
        Batch.sequences(replace(stream, core=torch.zeros(2, 1, 4)), name, name, name)


def test_mean_of_metrics_lets_the_graphs_go():
    mean = Mean()
    x = torch.tensor(1.0, requires_grad=True)
    mean.add({"loss": 2 * x, "only_once": torch.tensor(5.0)})
    mean.add({"loss": 4 * x})

    actual = mean.result()

    assert {name: value.item() for name, value in actual.items()} == {"loss": 3.0, "only_once": 5.0}
    assert not any(value.requires_grad for value in actual.values())
    assert Mean().result() == {}
