"""The server: answers equal to `Trained.act`, sessions, batches, limits, tokens, reloads and a real socket."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rl_policies import AGENTS, CASES, save, saved, spec_of
from rl_server import Client, app_of, ask, counted, plain, served, summing_policy, with_client

import rltrain
from rltrain import cli
from rltrain.algorithms.protocol import Noise
from rltrain.deployment.export.interface import Interface
from rltrain.deployment.export.observations import random_observations
from rltrain.deployment.server.app import PATHS, App, Limits
from rltrain.deployment.server.batches import Version
from rltrain.deployment.server.metrics import summed
from rltrain.deployment.server.models import Model, Source, _batch, load_model
from rltrain.deployment.server.serve import bound_socket, settings_for
from rltrain.deployment.server.workers import Peers
from rltrain.errors import ConfigError
from rltrain.evaluation.policy import Trained
from rltrain.rollout.tree import tree_map
from rltrain.storage.recording import Recording

TOKEN = "a-token-of-sixteen-characters"


def questions(trained: Trained, rows: int) -> list[tuple[dict[str, Any], Any]]:
    """Requests of one session, and the actions of `Trained.act`."""
    spec = trained.spec
    seen, found = random_observations(spec, rows, 1), []
    for t in range(rows):
        if seen.first[t]:
            trained.reset()
        obs = tree_map(lambda array, t=t: array[t], seen.obs)
        request: dict[str, Any] = {"session": "one", "first": bool(seen.first[t])}
        if spec.groups:
            assert seen.alive is not None
            own, masks = {}, {}
            for number, part in enumerate(spec.layout.agents):
                if seen.alive[t, number]:
                    group = part.group.name
                    member = tree_map(lambda array, part=part: array[part.members.start], obs[group])
                    own[part.names[0]] = counted(spec.single_agent(part.group), member)
                    if seen.mask is not None:
                        masks[part.names[0]] = seen.mask[t, part.mask]
            expected = trained.act(own, action_mask=masks)
            request |= {"obs": plain(own)} | ({"action_mask": plain(masks)} if masks else {})
        else:
            mask = None if seen.mask is None else seen.mask[t]
            expected = trained.act(counted(spec, obs), action_mask=mask)
            request |= {"obs": plain(counted(spec, obs))} | ({} if mask is None else {"action_mask": plain(mask)})
        found.append((request, plain(expected)))
    return found


@pytest.mark.parametrize("name", [*CASES, *AGENTS])
def test_answers_are_the_actions_of_act(name: str, tmp_path: Path) -> None:
    """Every algorithm, kind of space, memory in a session, masks, and several agents: to the bit."""
    path = saved(tmp_path, name)
    app, asked = app_of(path), questions(rltrain.load(path, best=True), 25)

    async def work(client: Client) -> None:
        for request, expected in asked:
            assert (await client.act(**request))["action"] == expected

    with_client(app, work)


def test_a_batch_changes_no_answer(tmp_path: Path) -> None:
    """Requests that arrive together are computed together, and get the answers that they get alone."""
    app = app_of(saved(tmp_path, "sac"), limits=Limits(batch=24))
    rng = np.random.default_rng(0)
    requests = [{"obs": rng.normal(size=3).tolist(), "seed": i} if i % 2 else {"obs": rng.normal(size=3).tolist()}
                for i in range(70)]  # fmt: skip

    async def work(client: Client) -> None:
        alone = [await client.act(**request) for request in requests]
        before = app.metrics.batches
        assert before == 70
        together = await asyncio.gather(*(client.act(**request) for request in requests))
        assert app.metrics.batches - before == 3  # of 24, 24 and 22 rows
        assert together == alone
        batch = await client.act(batch=[request["obs"] for request in requests])
        greedy = [answer["action"] for answer, request in zip(alone, requests, strict=True) if "seed" not in request]
        assert batch["actions"][::2] == greedy

    with_client(app, work)


def test_the_same_seed_gives_the_same_action(tmp_path: Path) -> None:
    """The seed of a request that named none is returned, so that its answer can be repeated."""
    app = app_of(saved(tmp_path, "ppo-box-sde"), sample=True)

    async def work(client: Client) -> None:
        obs = [0.1, 0.2, 0.3]
        one, other = await client.act(obs=obs), await client.act(obs=obs)
        assert one["action"] != other["action"]
        again = await client.act(obs=obs, seed=one["seed"])
        assert (again["action"], again["log_prob"]) == (one["action"], one["log_prob"])
        assert np.isfinite(one["log_prob"])

    with_client(app, work)


def test_sessions_keep_order_and_do_not_share_a_memory(tmp_path: Path) -> None:
    """Requests of a session that arrive at once are answered in order; the stateless form gives the same."""
    path = saved(tmp_path, "ppo-box-lstm")
    app = app_of(path)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(2, 6, 3)).astype(np.float32)
    expected = []
    for session in range(2):
        trained = rltrain.load(path, best=True)
        expected.append([plain(trained.act(row)) for row in obs[session]])

    async def work(client: Client) -> None:
        calls = [client.act(obs=plain(obs[s, t]), session=str(s), first=t == 0) for t in range(6) for s in range(2)]
        answers = [answer["action"] for answer in await asyncio.gather(*calls)]
        assert [answers[0::2], answers[1::2]] == expected
        core = None
        for t in range(6):
            core = {"first": True} if core is None else {"core": core}
            answer = await client.act(obs=plain(obs[0, t]), **core)
            assert answer["action"] == expected[0][t]
            core = answer["core"]

    with_client(app, work)


def test_sessions_are_bounded_and_end(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-box-lstm"), limits=Limits(sessions=2, ttl=0.2))

    async def work(client: Client) -> None:
        ask = {"obs": [0.0, 0.0, 0.0]}
        unknown = await client.act(409, **ask, session="a")
        assert "first: true" in unknown["error"]["message"]
        for name in "ab":
            await client.act(**ask, session=name, first=True)
        status, headers, _ = await client("POST", "/v1/act", {**ask, "session": "c", "first": True})
        assert (status, headers[b"retry-after"]) == (503, b"60")
        assert (await client("DELETE", "/v1/sessions/a"))[0] == 200
        await client.act(**ask, session="c", first=True)
        await asyncio.sleep(0.25)
        await client.act(409, **ask, session="b")
        await client.act(**ask, session="d", first=True)
        assert len(app.sessions) == 1
        needs = await client.act(400, **ask)
        assert needs["error"]["field"] == "first"

    with_client(app, work)


WRONG: list[tuple[str, dict[str, Any], str, str]] = [  # case, request, field, a part of what was expected
    ("ppo-discrete", {}, "obs", "one of obs and batch"),
    ("ppo-discrete", {"obs": [1, 2]}, "obs", "3 numbers"),
    ("ppo-discrete", {"obs": [1, 2, "3"]}, "obs[2]", "float"),
    ("ppo-discrete", {"obs": [1, 2, None]}, "obs[2]", "float"),
    ("ppo-discrete", {"obs": [1, 2, 1e39]}, "obs[2]", "finite"),
    ("ppo-discrete", {"obs": [[1, 2, 3]]}, "obs[0]", "float"),
    ("ppo-discrete", {"obs": [1, 2, 3], "x": 1}, "x", "no such field"),
    ("ppo-discrete", {"obs": [1, 2, 3], "policy": "other"}, "policy", "policy"),
    ("ppo-discrete", {"obs": [1, 2, 3], "seed": -1}, "seed", ">= 0"),
    ("ppo-discrete", {"obs": [1, 2, 3], "deadline_ms": 0}, "deadline_ms", "> 0"),
    ("ppo-discrete", {"obs": [1, 2, 3], "action_mask": [1, 1]}, "action_mask", "3 values"),
    ("ppo-discrete", {"obs": [1, 2, 3], "action_mask": [0, 0, 0]}, "action_mask", "a legal action"),
    ("ppo-discrete", {"obs": [1, 2, 3], "action_mask": [0, 2, 0]}, "action_mask[1]", "true or false"),
    ("ppo-discrete", {"obs": [1, 2, 3], "action_masks": [[1, 0, 0]]}, "action_masks", "no action_masks with obs"),
    ("ppo-discrete", {"batch": [[1, 2, 3]], "action_mask": [1, 0, 0]}, "action_mask", "no action_mask with batch"),
    ("ppo-discrete", {"batch": []}, "batch", "1 to"),
    ("ppo-discrete", {"batch": [[1, 2, 3], [1, 2]]}, "batch[1]", "3 numbers"),
    ("ppo-discrete", {"batch": [[1, 2, 3]], "session": "a"}, "session", "one observation"),
    ("ppo-discrete", {"obs": [1, 2, 3], "core": [[1]]}, "core", "no memory"),
    ("ppo-box-lstm", {"obs": [1, 2, 3], "core": [[1.0]]}, "core", "[1, 16]"),
    ("ppo-box-lstm", {"obs": [1, 2, 3], "first": True, "action_mask": [1]}, "action_mask", "no action mask"),
    ("ppo-images", {"obs": [[[[0, 0, 0]] * 12] * 12]}, "obs", "2"),
    ("ppo-images", {"obs": [[[[0, 0, 256]] * 12] * 12, [0, 0, 0]]}, "obs[0][0][0][2]", "0 to 255"),
    ("ppo-images", {"obs": [[[[0, 0]] * 12] * 12, [0, 0, 0]]}, "obs[0]", "[12, 12, 3]"),
    ("ppo-dict-gru", {"obs": {"a": [1, 2, 3], "b": 1, "c": [0, 0, 0], "d": [0, 0]}, "first": True}, "obs.b", "2 to 5"),
    ("ppo-dict-gru", {"obs": {"a": [1, 2, 3], "b": 2, "c": [0, 0, 2], "d": [0, 0]}, "first": True}, "obs.c[2]", "0 to"),
    ("ppo-dict-gru", {"obs": {"a": [1, 2, 3], "b": 2, "c": [0, 0, 0]}, "first": True}, "obs.d", "a value"),
    ("ippo", {"obs": {}}, "obs", "observations of a, b, c"),
    ("ippo", {"obs": {"z": [1, 2, 3]}}, "obs.z", "no such field"),
    ("ippo", {"obs": {"a": [1, 2]}}, "obs.a", "3 numbers"),
]


def test_bad_requests_name_the_field_what_was_expected_and_received(tmp_path: Path) -> None:
    apps = {name: app_of(saved(tmp_path / name, name)) for name in {case for case, *_ in WRONG}}

    async def work(_: Client) -> None:
        for name, request, field, expected in WRONG:
            error = (await Client(apps[name]).act(400, **request))["error"]
            assert error["field"] == field, (request, error)
            assert expected in error["expected"], (request, error)
            assert error["received"]
            assert "\n" not in error["message"]

    with_client(apps["ippo"], work)


def test_bodies_that_are_no_requests(tmp_path: Path) -> None:
    """Neither NaN nor nesting nor a cut or large body reaches the network; the next request is answered."""
    app = app_of(saved(tmp_path, "ppo-discrete"), limits=Limits(body=1000, seconds=0.1))
    bodies = {
        b'{"obs": [NaN, 0, 0]}': 400,
        b'{"obs": [Infinity, 0, 0]}': 400,
        b'{"obs": [1e999, 0, 0]}': 400,
        b"": 400,
        b"\xff\xfe": 400,
        b"[" * 900: 400,
        b'{"obs": ' + b"[" * 450 + b"]" * 450 + b"}": 400,
        b'{"obs": [0, 0': 400,
        b"[1, 2, 3]": 400,
        b" " * 1001: 413,
    }

    async def work(client: Client) -> None:
        for body, expected in bodies.items():
            for chunks in (1, 7):
                status, _, answer = await client("POST", "/v1/act", body, chunks=chunks)
                assert status == expected, (body[:40], answer)
                assert answer["error"]["message"]
        status, _, _ = await client("POST", "/v1/act", b"", [("content-length", "100000000")])
        assert status == 413
        assert (await client.act(obs=[0, 0, 0]))["action"] in (5, 6, 7)

    with_client(app, work)


def test_a_slow_body_ends_and_others_are_served(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-discrete"), limits=Limits(seconds=0.1))

    async def work(client: Client) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0 if not sent else 1)
            sent.append(None)
            return {"type": "http.request", "body": b"{", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/act", "headers": [(b"host", b"localhost")]}
        slow = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0)
        await client.act(obs=[0, 0, 0])
        await slow
        assert next(message["status"] for message in sent if message and "status" in message) == 408

    with_client(app, work)


def test_the_queue_is_bounded_and_deadlines_hold(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-discrete"), limits=Limits(queue=4, wait=0.05))

    async def work(client: Client) -> None:
        asked = [client("POST", "/v1/act", {"obs": [0, 0, 0]}) for _ in range(6)]
        answers = await asyncio.gather(*asked)
        assert sorted(status for status, *_ in answers) == [200] * 4 + [503] * 2
        assert next(headers for status, headers, _ in answers if status == 503)[b"retry-after"] == b"1"
        await client.act(504, obs=[0, 0, 0], deadline_ms=1)
        await client.act(obs=[0, 0, 0])
        assert len(app.batches) == 0

    with_client(app, work)


def test_closed_by_default(tmp_path: Path) -> None:
    path = saved(tmp_path, "ppo-discrete")
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached from other machines: that needs a token"):
        settings_for(path, host="0.0.0.0")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        settings_for(path, token="short")
    closed, local = app_of(path, token=TOKEN), app_of(path)

    async def work(_: Client) -> None:
        client = Client(closed)
        ask, right = {"obs": [0, 0, 0]}, ("authorization", f"Bearer {TOKEN}")
        for headers in ([], [("authorization", TOKEN)], [("authorization", f"Bearer {TOKEN}x")]):
            assert (await client("POST", "/v1/act", ask, headers))[0] == 401
            assert (await client("POST", "/v1/reload", {}, headers))[0] == 401
            assert (await client("GET", "/v1/spec", headers=headers))[0] == 401
            assert (await client("GET", "/metrics", headers=headers))[0] == 401
            assert (await client("GET", "/healthz", headers=headers))[0] == 200
        assert (await client("POST", "/v1/act", ask, [right]))[0] == 200
        assert (await client("POST", "/v1/act", ask, [right, ("host", "elsewhere")]))[0] == 200
        client = Client(local)
        assert (await client("POST", "/v1/act", ask, [("host", "evil.example:8000")]))[0] == 403
        assert (await client("POST", "/v1/act", ask, [("origin", "http://evil.example")]))[0] == 403
        assert (await client("POST", "/v1/act", ask, [("origin", "http://127.0.0.1:8000")]))[0] == 200

    with_client(local, work)


def test_other_paths(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-one-sided"))

    async def work(client: Client) -> None:
        spec = (await client("GET", "/v1/spec"))[2]["policies"]["policy"]
        assert spec["algo"] == "ppo"
        assert spec["spec"]["action"]["high"] == [None, None]
        document = (await client("GET", "/v1/openapi.json"))[2]
        assert set(PATHS) - {"/", "/v1/openapi.json"} <= set(document["paths"])
        assert document["paths"]["/v1/sessions/{id}"]["delete"]
        body = document["paths"]["/v1/act"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["obs"] == {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
        await client.act(obs=[0, 0, 0])
        metrics = (await client("GET", "/metrics"))[2].decode()
        assert 'rlserve_requests_total{path="/v1/act",status="200"} 1' in metrics
        assert "rlserve_rows_total 1\n" in metrics
        assert 'rlserve_policy_step{policy="policy"} 0' in metrics
        assert b"/v1/act" in (await client("GET", "/"))[2]
        assert (await client("GET", "/readyz"))[2] == {"ready": True}
        wrong = {("GET", "/v1/act"): 405, ("POST", "/"): 405, ("GET", "/nothing"): 404, ("PUT", "/v1/reload"): 405}
        assert {call: (await client(*call))[0] for call in wrong} == wrong
        app.ready = False
        assert (await client("GET", "/readyz"))[0] == 503
        await client.act(503, obs=[0, 0, 0])

    with_client(app, work)


def test_a_policy_that_fails_is_500_and_the_server_goes_on(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-discrete"))
    version = app.served["policy"]
    run = version.model.run

    def broken(inputs: Any) -> Any:
        if inputs["obs"][0, 0] == 1:
            raise RuntimeError("no\nmemory")
        found = run(inputs)
        return {**found, "log_prob": found["log_prob"] * np.nan} if inputs["obs"][0, 0] == 2 else found

    version.model = replace(version.model, run=broken)

    async def work(client: Client) -> None:
        assert (await client.act(500, obs=[1, 0, 0]))["error"]["message"] == "the policy failed: no memory"
        assert "not finite" in (await client.act(500, obs=[2, 0, 0]))["error"]["message"]
        await client.act(obs=[0, 0, 0])

    with_client(app, work)


def test_a_reload_loses_no_request_and_keeps_sessions(tmp_path: Path) -> None:
    """Answers come from the old version or from the new one, each as that version gives it."""
    name = "ppo-box-lstm"
    path = saved(tmp_path, name)
    app = app_of(path)
    old = rltrain.load(path, best=True)

    async def work(client: Client) -> None:
        ask = {"obs": [0.1, 0.2, 0.3]}
        kept = await client.act(**ask, session="a", first=True)
        save(tmp_path, name, spec_of(name), "ppo", CASES[name][3], seed=9)
        new = rltrain.load(path, best=True)
        obs = np.array(ask["obs"], np.float32)
        expected = [plain(trained.act(obs)) for trained in (old, new)]
        assert expected[0] != expected[1]
        assert kept["action"] == expected[0]
        reload = asyncio.ensure_future(client("POST", "/v1/reload", {}))
        seen = []
        while not reload.done():
            seen.append((await client.act(**ask, first=True))["action"])
        assert (await reload)[0] == 200
        seen.append((await client.act(**ask, first=True))["action"])
        assert seen[0] == expected[0]
        assert seen[-1] == expected[1]
        assert all(action in expected for action in seen)
        await client.act(**ask, session="a")
        assert app.metrics.reloads == 1

    with_client(app, work)


def version_of(app: App, path: Path) -> Version:
    """What a reload puts in place of the version of `app`."""
    return Version(load_model("policy", Source(path, best=True), app.settings.limits.batch))


async def begun(app: App, *requests: Awaitable[Any]) -> list[Any]:
    """The requests as tasks, some of whose rows are computed and some of which wait."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    while not app.metrics.batches:
        await asyncio.sleep(0)
    assert len(app.batches)
    return tasks


def test_the_rows_of_a_request_are_of_one_version(tmp_path: Path) -> None:
    """A request of more rows than a batch has, and a reload between two of its batches."""
    app = app_of(summing_policy(tmp_path / "old.onnx"), limits=Limits(batch=8))
    new = version_of(app, summing_policy(tmp_path / "new.onnx", gain=2.0, step=1))

    async def work(client: Client) -> None:
        (task,) = await begun(app, client.act(batch=[[1, 0, 0]] * 24, first=True))
        app.served["policy"] = new
        answer = await task
        assert (answer["step"], answer["actions"]) == (0, [[1.0]] * 24)
        assert (await client.act(obs=[1, 0, 0], first=True))["action"] == [2.0]

    with_client(app, work)


@pytest.mark.parametrize("memory", [{"memory": "gru", "memory_size": 16}, {"memory": "lstm", "memory_size": 4}, {}])
def test_a_version_with_another_memory_ends_sessions_and_loses_no_request(
    memory: dict[str, Any], tmp_path: Path
) -> None:
    """Rows that wait are computed by the version that they began with. An LSTM of 4 and a GRU of 8 have equal sizes."""
    spec = spec_of("dqn")
    old = save(tmp_path / "old", "it", spec, "ppo", {"memory": "gru", "memory_size": 8})
    save(tmp_path / "new", "it", spec, "ppo", memory)
    app = app_of(old, limits=Limits(batch=2))

    async def work(client: Client) -> None:
        await client.act(obs=[0, 0, 0], session="a", first=True)
        app.metrics.batches = 0
        more = [client.act(obs=[0, 0, 0], session=name, first=True) for name in "bcd"]
        tasks = await begun(app, *more, client.act(obs=[0, 0, 0], session="a"))
        shutil.rmtree(old)
        (tmp_path / "new").rename(old)
        assert (await client("POST", "/v1/reload", {}))[0] == 200
        await asyncio.gather(*tasks)
        await client.act(409 if memory else 200, obs=[0, 0, 0], session="a")
        await client.act(obs=[0, 0, 0], session="a", first=True)

    with_client(app, work)


def test_policies_with_and_without_memory_are_served_together(tmp_path: Path) -> None:
    """Each request is checked against the policy that answers it."""
    spec = spec_of("dqn")
    paths = {"mlp": save(tmp_path / "mlp", "it", spec, "ppo", {})}
    paths["gru"] = save(tmp_path / "gru", "it", spec, "ppo", {"memory": "gru", "memory_size": 8})

    async def work(client: Client) -> None:
        obs = [0, 0, 0]
        await client.act(400, obs=obs, policy="gru")
        await client.act(obs=obs, policy="gru", core=[[0.5] * 8])
        await client.act(obs=obs, policy="mlp")
        await client.act(400, obs=obs, policy="mlp", core=[[0.5] * 8])

    for names in (["mlp", "gru"], ["gru", "mlp"]):
        with_client(app_of({name: paths[name] for name in names}), work)


def test_a_session_keeps_to_the_policy_that_its_first_request_names(tmp_path: Path) -> None:
    paths = {name: save(tmp_path / name, "it", spec_of("dqn"), "dqn", {}, seed) for seed, name in enumerate("ab")}
    app = app_of(paths, shares={"a": 0.5, "b": 0.5}, record=tmp_path / "record")

    async def work(client: Client) -> None:
        for session in "uvwxyz":
            for policy in ({"policy": "b"}, {}, {}):
                assert (await client.act(obs=[0, 0, 0], session=session, **policy))["policy"] == "b"
        for episode in "klmn":
            first = await client.act(obs=[0, 0, 0], episode=episode, first=True)
            more = [await client.act(obs=[0, 0, 0], episode=episode, reward=0) for _ in range(5)]
            assert {answer["policy"] for answer in more} == {first["policy"]}

    with_client(app, work)


def test_a_session_whose_first_request_failed_is_not_continued(tmp_path: Path) -> None:
    app = app_of(summing_policy(tmp_path / "policy.onnx"))

    async def work(client: Client) -> None:
        ask = {"obs": [1, 0, 0], "session": "a"}
        await client.act(504, **ask, first=True, deadline_ms=1e-9)
        await client.act(409, **ask)
        assert [(await client.act(**ask, first=True))["action"], (await client.act(**ask))["action"]] == [[1.0], [2.0]]
        await client.act(504, **ask, first=True, deadline_ms=1e-9)
        await client.act(409, **ask)  # and not the third step of the episode before
        more = [client.act(409, **ask) for _ in range(700)]
        await asyncio.gather(client.act(504, **ask, first=True, deadline_ms=1e-9), *more)
        assert len(app.batches) == 0
        await asyncio.gather(client.act(504, **ask, first=True, deadline_ms=1e-9), client.act(409, **ask),
                             client.act(**ask, first=True), client.act(**ask))  # fmt: skip

    with_client(app, work)


def test_a_full_batch_does_not_wait(tmp_path: Path) -> None:
    """`--batch-wait` is the longest time of the oldest row, and rows that have waited do not wait again."""
    app = app_of(saved(tmp_path, "ppo-discrete"), limits=Limits(batch=4, wait=30.0, queue=40))

    async def work(client: Client) -> None:
        await asyncio.gather(*(client.act(obs=[0, 0, 0]) for _ in range(40)))
        refused = await client.act(413, batch=[[0, 0, 0]] * 41)
        assert refused["error"]["expected"] == "at most 40"

    asyncio.run(asyncio.wait_for(work(Client(app)), 20))


def test_sums_of_several_processes_are_exact() -> None:
    one, other = "# TYPE rows counter\nrows 12345678\n", "# TYPE rows counter\nrows 1\n"
    assert summed([one, other]) == "# TYPE rows counter\nrows 12345679\n"


def test_a_message_that_has_arrived_is_answered_before_the_end(tmp_path: Path) -> None:
    """SIGTERM while a WebSocket waits for an answer; and a browser's token is confirmed as its subprotocol."""
    connect = pytest.importorskip("websockets.sync.client").connect
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    path = summing_policy(tmp_path / "policy.onnx")
    with served(path, "--batch-wait", "1500", "--token-file", str(token)) as (server, url):
        address = url.replace("http", "ws") + "/v1/stream"
        with connect(address, compression=None, subprotocols=[TOKEN]) as stream:
            assert stream.subprotocol == TOKEN
            for number in (1, 2):
                stream.send(json.dumps({"obs": [number, 0, 0], "first": True}))
            time.sleep(0.5)
            server.send_signal(signal.SIGTERM)
            for number in (1, 2):
                assert json.loads(stream.recv(timeout=20))["action"] == [number]
        assert server.wait(20) == 0


def test_a_version_with_other_spaces_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    app = app_of(saved(tmp_path, "ppo-discrete"))

    async def work(client: Client) -> None:
        before = await client.act(obs=[0, 0, 0])
        save(tmp_path, "sac", spec_of("sac"), "sac", {}, seed=1)
        status, _, body = await client("POST", "/v1/reload", {})
        assert status == 409
        assert "step 0 stays: it has other spaces" in body["error"]["message"]
        assert await client.act(obs=[0, 0, 0]) == before

    with_client(app, work)


def test_several_policies_and_shares(tmp_path: Path) -> None:
    """A request names its policy, or gets one by the shares; a session keeps to one."""
    one, other, third = (saved(tmp_path / name, name) for name in ("ppo-discrete", "dqn", "ippo"))
    with pytest.raises(ConfigError, match="cannot share requests"):
        app_of({"a": one, "b": third}, shares={"a": 1, "b": 1})
    app = app_of({"a": other, "b": third})
    spec = spec_of("dqn")
    save(tmp_path / "second", "dqn", spec, "dqn", {}, seed=4)
    shared = app_of({"a": other, "b": tmp_path / "second"}, shares={"a": 0.5, "b": 0.5})

    async def work(_: Client) -> None:
        client = Client(app)
        assert (await client.act(obs=[0, 0, 0]))["policy"] == "a"
        assert (await client.act(obs={"a": [0, 0, 0]}, policy="b"))["policy"] == "b"
        client = Client(shared)
        counts = [(await client.act(obs=[0, 0, 0]))["policy"] for _ in range(60)]
        assert 5 < counts.count("a") < 55
        for session in "xyz":
            assert len({(await client.act(obs=[0, 0, 0], session=session))["policy"] for _ in range(10)}) == 1

    with_client(app, work)


def test_a_real_socket_and_a_stream(tmp_path: Path) -> None:
    """HTTP and WebSocket through uvicorn; `close` answers what has arrived."""
    connect = pytest.importorskip("websockets.sync.client").connect
    path = saved(tmp_path, "ppo-discrete")
    with rltrain.serve(path, best=True) as served:
        ask = json.dumps({"obs": [0.1, 0.2, 0.3], "id": 1}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{served.url}/v1/act", ask), timeout=20) as reply:
            answer = json.load(reply)
        with connect(served.url.replace("http", "ws") + "/v1/stream", compression=None) as stream:
            stream.send(ask)
            assert json.loads(stream.recv(timeout=20)) == answer
            stream.send("{")
            assert json.loads(stream.recv(timeout=20))["status"] == 400
    expected = rltrain.load(path, best=True).act(np.array([0.1, 0.2, 0.3], np.float32))
    assert answer == {"action": expected, "policy": "policy", "step": 0, "id": 1}


def test_wrong_flags_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    path = str(saved(tmp_path / "run", "ppo-discrete"))
    cases = {
        "does not exist": [str(tmp_path / "nowhere")],
        "needs a token": [path, "--best", "--host", "0.0.0.0"],
        "others can read it": [path, "--token-file", str(token)],
        "must be a whole number from 0 to 65535": [path, "--port", "70000"],
        "NAME=RUN": [path, path],
        "belong together": [path, "--best", "--tls-cert", str(token)],
        "no certificate and its key": [path, "--best", "--tls-cert", str(token), "--tls-key", str(token)],
        "there is no policy 'x'": [path, "--best", "--share", "x=1"],
        "holds no checkpoint": [path],
    }
    for line, argv in cases.items():
        assert cli.main_serve(argv) == 2, argv
        error = capsys.readouterr().err
        assert line in error, error
        assert error.count("\n") == 1


def test_the_client_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    code = text.partition("```python client\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    path = saved(tmp_path, "ppo-box-lstm")
    trained = rltrain.load(path, best=True)
    with rltrain.serve(path, best=True, token=TOKEN) as served:
        policy = names["Policy"](served.url, token=TOKEN, session="me")
        for obs in np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32):
            assert policy.act(obs) == plain(trained.act(obs))
        with pytest.raises(ValueError, match="3 numbers"):
            policy.act([1, 2])
        last = policy.connection.sock
        policy.used -= 100.0  # a server closes the connection of a client that waits for long
        policy.act(np.zeros(3))
        assert policy.connection.sock is not last
        policy.connection.close()


def test_answers_are_sent_at_once() -> None:
    """Without TCP_NODELAY each answer waits 40 ms for the client; asyncio sets it for sockets that name TCP."""
    options = []

    async def scenario(listening: socket.socket) -> None:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            options.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(accepted, sock=listening)
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        await reader.read()
        writer.close()
        server.close()

    asyncio.run(scenario(bound_socket("127.0.0.1", 0)))

    assert options == [1]


def test_several_processes_route_sessions_and_replace_one_that_dies(tmp_path: Path) -> None:
    """Requests of a session reach its process from any connection; after SIGKILL the others answer.

    All processes record into one folder.
    """
    flags = "--workers", "2", "--record", str(tmp_path / "recording")
    with served(summing_policy(tmp_path / "sums.onnx"), *flags) as (server, url):
        for session in "abc":
            for t in range(4):  # each on a connection of its own
                told = {"reward": t} if t else {"first": True}
                assert ask(url, obs=[t + 1, 0, 0], session=session, **told)["action"] == [sum(range(t + 2))]
            assert ask(url, obs=[9, 0, 0], session=session, reward=9, terminated=True)["action"] is None
        assert ask(url, "/v1/reload")["steps"] == {"policy": 0}
        deadline = time.monotonic() + 30
        while "recorded_steps_total 12" not in metrics_of(url):  # a process hands its episodes over every second
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1.2)
        victim, *_ = psutil.Process(server.pid).children(recursive=True)[-1:]
        victim.kill()
        for number in range(40):  # also those whose process is being replaced, after 503
            while True:
                try:
                    assert ask(url, obs=[2, 0, 0], session=f"s{number}", first=True)["action"] == [2]
                    break
                except urllib.error.HTTPError as error:
                    if error.code != 503:
                        raise
                    assert time.monotonic() < deadline + 30
                    time.sleep(0.05)
        assert len([child for child in psutil.Process(server.pid).children() if child.pid != victim.pid]) >= 2
        server.terminate()
        assert server.wait(30) in (0, -signal.SIGTERM)
        pieces = list(Recording.open(tmp_path / "recording").pieces())
        assert [piece.reward[:, 0].tolist() for piece in pieces] == [[1, 2, 3, 9]] * 3


def test_a_process_ends_only_when_no_other_one_has_clients_that_need_its_sessions(tmp_path: Path) -> None:
    async def scenario() -> None:
        apps = [app_of(summing_policy(tmp_path / "sums.onnx")) for _ in range(2)]
        for index, app in enumerate(apps):
            app.peers = Peers(app, index, 2, tmp_path)
        (first, starts), (second, ends) = [lifespan(app) for app in apps]
        await starts("startup")
        await ends("startup")
        session = next(f"s{n}" for n in range(99) if apps[0].peers.owner(f"s{n}") == 1)
        client = Client(apps[0])
        assert (await client.act(obs=[1, 0, 0], session=session, first=True))["action"] == [1]

        draining = asyncio.create_task(ends("shutdown"))  # of the process that has the session and no client
        await asyncio.sleep(0.1)
        assert (await client.act(obs=[2, 0, 0], session=session))["action"] == [3]
        assert not draining.done()
        await starts("shutdown")
        await draining
        await asyncio.gather(first, second)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def lifespan(app: App) -> tuple[asyncio.Task[None], Callable[[str], Awaitable[None]]]:
    """The task of an application's lifespan, and a function that sends it an event and waits for the answer."""
    events: asyncio.Queue[Any] = asyncio.Queue()
    answers: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan"}, events.get, answers.put))  # type: ignore[arg-type]

    async def tell(event: str) -> None:
        await events.put({"type": f"lifespan.{event}"})
        assert (await answers.get())["type"] == f"lifespan.{event}.complete"

    return task, tell


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as reply:
        text: str = reply.read().decode()
    return text


@pytest.mark.parametrize(
    ("kind", "added"), [("any", "0"), ("padded", "len(x)"), ("single", "place"), ("single", "others")]
)
def test_a_row_has_its_bits_in_every_batch(kind: str, added: str) -> None:
    """For networks whose rows depend on the width of the batch, and for those whose rows depend on their place too.

    Rows that nobody asked for have legal actions and observations within their space.
    """
    spec = spec_of("ppo-dict-gru")
    interface = Interface(spec, Noise("normal", 0), 0, False, None)
    asked: list[int] = []

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["obs.a"]
        asked.append(len(x))
        assert inputs["action_mask"].any(-1).all()
        assert (inputs["obs.b"] >= 2).all()
        place = np.arange(len(x))
        more = {"0": 0 * place, "len(x)": 0 * place + len(x), "place": place, "others": x.max()}[added]
        return {"action": (x.sum(-1) + more)[:, None]}

    batch = _batch(interface, run, 8)
    assert batch == kind
    version = Version(Model("it", "ppo", 0, "", interface, run, 8, batch))
    rows = random_observations(spec, 3, 0).obs
    items = [
        SimpleNamespace(
            row=SimpleNamespace(obs=[np.asarray(rows[key][i]) + (2 if key == "b" else 0) for key in rows]),
            value=lambda name: True if name == "action_mask" else 0,
        )
        for i in range(3)
    ]
    alone = [version.compute([item])["action"][0] for item in items]  # type: ignore[list-item]
    asked.clear()
    together = version.compute(items)["action"]  # type: ignore[arg-type]
    assert np.array_equal(together, alone)
    assert asked == {"any": [3], "padded": [8], "single": [1, 1, 1]}[kind]
