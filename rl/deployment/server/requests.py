"""From the JSON of a request to the rows of a policy's inputs, checked; what is wrong is one line with the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from rltrain.deployment.export.interface import Interface, obs_ports
from rltrain.deployment.server.errors import Refused, wrong
from rltrain.envs.spec import EnvSpec, Leaf, ObsSpec

LARGEST = float(np.finfo(np.float32).max)
MAX_ROWS = 1024  # observations of a request
MAX_NAME = 128  # characters of a session's id


class Row(NamedTuple):
    """One row of inputs: the leaves of the observation in the order of the interface, and what belongs to it."""

    obs: list[np.ndarray]
    mask: np.ndarray | None
    present: np.ndarray | None
    agents: tuple[int, ...]  # numbers of the agents that an answer names; () for a single agent
    seen: np.ndarray | None = None  # [N] bool, several agents: those of which the request has an observation
    acting: np.ndarray | None = None  # [N] bool, games in turns: the agent that acts; None: the request does not say
    state: np.ndarray | None = None  # [*S] float32, the global state; None: the request has none


class Options(NamedTuple):
    """What a request says beside its observations."""

    sample: bool
    seed: int | None
    session: str | None
    episode: str | None  # its own id, or the session's
    outcome: Outcome | None
    first: bool
    core: list[list[float]] | None
    deadline: float | None
    details: bool


class Outcome(NamedTuple):
    """What a client says about the last action of its episode."""

    reward: np.ndarray | None  # [*N] float32; None: not said
    terminated: np.ndarray  # [*N] bool
    truncated: np.ndarray  # [*N] bool
    over: bool  # the observation is the last one of the episode


class Codec:
    """Reads the requests for policies with one interface, and shapes their answers."""

    def __init__(self, interface: Interface) -> None:
        self.interface, self.spec = interface, interface.spec
        spec = self.spec
        self._ports = list(obs_ports(spec))
        self._decoder = msgspec.json.Decoder(_request_type(spec))
        self._agents = spec.agents
        if spec.groups:
            self._readers = [_reader(part.group.obs) for part in spec.layout.agents]
            self._waits = [  # the masks of agents that wait: as in training, one action is legal, 0
                np.array([i == 0 for size in part.group.action.nvec for i in range(size)], bool)
                for part in spec.layout.agents
            ]
            self._read_state = _leaf_reader(Leaf("box", spec.state_shape or (), "float32"))
            self._index = {agent: number for number, agent in enumerate(spec.agents)}
        else:
            self._read = _reader(spec.obs)
        self._heads = spec.action.nvec
        self.action_ports = [port for port in interface.outputs if port.name.startswith("action")]

    def parse(self, body: bytes | str) -> Any:
        """The request, in which names and types are right.

        Raises:
            Refused: 400, with the field, what was expected and what was received.
        """
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise explained(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(400, f"the body is not JSON: {error}", "", "JSON in UTF-8", str(error)) from None
        except RecursionError:
            raise Refused(400, "the body is nested too deeply", "", "JSON of few levels", "too many levels") from None
        unset = msgspec.UNSET
        if (request.obs is unset) == (request.batch is unset):
            count = "neither" if request.obs is unset else "both"
            raise wrong("obs", "one of obs and batch", count)
        one, other = ("action_masks", "obs") if request.batch is unset else ("action_mask", "batch")
        if getattr(request, one) is not None:
            raise wrong(one, f"no {one} with {other}", one)
        for field in ("session", "episode"):
            name = getattr(request, field)
            if name is None:
                continue
            if request.obs is unset:
                raise wrong(field, f"obs in place of batch: {field} has one observation at a time", "batch")
            if not (0 < len(name) <= MAX_NAME and name.isprintable()):
                raise wrong(field, f"1 to {MAX_NAME} printable characters", repr(name))
        return request

    def read(self, request: Any) -> tuple[list[Row], Options]:
        """The rows and the options of a request that a codec with equal spaces has parsed.

        Raises:
            Refused: 400, as `parse`.
        """
        outcome, spec = None, self.spec
        if request.reward is not None or request.terminated or request.truncated:
            outcome = self._outcome(request)
        turn, state = self._of_game(request)
        if request.batch is msgspec.UNSET:
            rows = [self._row(request.obs, request.action_mask, "obs", "action_mask", outcome, turn, state)]
        else:
            if not 1 <= len(request.batch) <= MAX_ROWS:
                raise wrong("batch", f"1 to {MAX_ROWS} observations", str(len(request.batch)))
            masks = request.action_masks
            if masks is not None and len(masks) != len(request.batch):
                raise wrong("action_masks", f"{len(request.batch)} masks, one for each observation", str(len(masks)))
            rows = [
                self._row(obs, None if masks is None else masks[i], f"batch[{i}]", f"action_masks[{i}]")
                for i, obs in enumerate(request.batch)
            ]
        options = self._options(request, len(rows), outcome)
        if spec.turns and self.interface.core_size and options.first:
            seen = [0 if row.present is None else int(row.present.sum()) for row in rows]
            if len(spec.agents) > 1 and 1 in seen:
                alone = seen.index(1)
                needed = "observations of all agents at each step: they have a memory of every step"
                raise wrong("obs" if request.batch is msgspec.UNSET else f"batch[{alone}]", needed, "of one")
        return rows, options

    def _of_game(self, request: Any) -> tuple[str | None, np.ndarray | None]:
        """The agent whose turn it is and the global state, if the game has them and the request says them."""
        spec = self.spec
        turn, state = request.turn if spec.turns else None, None
        if turn is not None and request.obs is msgspec.UNSET:
            raise wrong("turn", "obs in place of batch: turn is about one observation", "batch")
        if spec.state_shape is not None and request.state is not None:
            if request.obs is msgspec.UNSET:
                raise wrong("state", "obs in place of batch: state is about one observation", "batch")
            state = self._read_state(request.state, "state")
        return turn, state

    def _outcome(self, request: Any) -> Outcome:
        """What the client says about the last action."""
        if request.session is None and request.episode is None:
            raise wrong("episode", "episode or session: the name of the episode to which the action belongs", "neither")
        given = "reward" if request.reward is not None else "terminated" if request.terminated else "truncated"
        if request.first:
            raise wrong(given, "no result of an action with first: true", given)
        spec, unset = self.spec, msgspec.UNSET
        if not spec.groups:
            if request.reward is not None and not abs(request.reward) <= LARGEST:
                raise wrong("reward", "a finite number of float32", str(request.reward))
            reward = None if request.reward is None else np.array(request.reward, np.float32)
            ends = np.array(request.terminated), np.array(request.truncated)
            return Outcome(reward, *ends, over=request.terminated or request.truncated)
        count = len(spec.agents)
        flags = []
        for given in (request.terminated, request.truncated):
            if isinstance(given, bool):
                flags.append(np.full(count, given))
            else:
                flags.append(np.array([getattr(given, f"f{i}") is True for i in range(count)]))
        rewards = None
        if request.reward is not None:
            values = [getattr(request.reward, f"f{i}") for i in range(count)]
            bad = next((i for i, value in enumerate(values) if value is not unset and not abs(value) <= LARGEST), None)
            if bad is not None:
                raise wrong(f"reward.{spec.agents[bad]}", "a finite number of float32", str(values[bad]))
            rewards = np.array([0.0 if value is unset else value for value in values], np.float32)
        seen = np.array([getattr(request.obs, f"f{i}", unset) is not unset for i in range(count)])
        return Outcome(rewards, flags[0], flags[1], not (seen & ~flags[0] & ~flags[1]).any())

    def _options(self, request: Any, rows: int, outcome: Outcome | None) -> Options:
        session, core, interface = request.session, request.core, self.interface
        if core is not None:
            if session is not None:
                raise wrong("core", "no core: the session keeps it", "core and session")
            if not interface.core_size:
                raise wrong("core", "no core: this policy has no memory", "core")
            if len(core) != rows or any(len(one) != interface.core_size for one in core):
                shape = [len(core), *sorted({len(one) for one in core})[:1]]
                raise wrong("core", f"the shape [{rows}, {interface.core_size}]", str(shape))
            if not all(abs(value) <= LARGEST for one in core for value in one):
                raise wrong("core", "finite numbers of float32", "a larger one")
        over = outcome is not None and outcome.over
        if interface.core_size and session is None and core is None and not request.first and not over:
            needed = "first: true, or a session or the core: this policy has a memory"
            raise wrong("first", needed, "none of them")
        deadline = None if request.deadline_ms is None else request.deadline_ms / 1000
        return Options(
            request.sample or request.seed is not None,
            request.seed,
            session,
            session if request.episode is None else request.episode,
            outcome,
            request.first,
            core,
            deadline,
            request.details,
        )

    def _row(
        self,
        obs: Any,
        mask: Any,
        name: str,
        mask_name: str,
        outcome: Outcome | None = None,
        turn: str | None = None,
        state: np.ndarray | None = None,
    ) -> Row:
        spec, over = self.spec, outcome is not None and outcome.over
        if mask is not None and not spec.action_mask:
            raise wrong(mask_name, "no action mask: this policy was trained without", "a mask")
        if not spec.groups:
            return Row(
                self._read(obs, name),
                None if mask is None else self._mask(mask, self._heads, mask_name, over),
                None,
                (),
            )
        return self._joint(obs, mask, name, mask_name, outcome, turn)._replace(state=state)

    def _joint(self, obs: Any, mask: Any, name: str, mask_name: str, outcome: Outcome | None, turn: str | None) -> Row:
        """The row of several agents; the observations of absent ones are zeros. Those that have ended get no action."""
        spec = self.spec
        arrays = [np.zeros(port.shape, port.dtype) for port in self._ports]
        for port_array, leaf in zip(arrays, spec.leaves(), strict=True):
            if leaf.start:
                port_array += np.array(leaf.start, port_array.dtype).reshape(leaf.shape)
        begins, at = {}, 0
        for group in sorted(spec.groups, key=lambda group: group.name):
            begins[group.name], at = at, at + len(spec.single_agent(group).leaves())
        present = np.zeros(len(spec.agents), bool)
        joint = np.ones(spec.action.mask_size, bool) if spec.action_mask else None
        unset = msgspec.UNSET
        for number, (part, read) in enumerate(zip(spec.layout.agents, self._readers, strict=True)):
            own = getattr(obs, f"f{number}")
            if own is unset:
                continue
            present[number], (agent,), group = True, part.names, part.group
            for i, array in enumerate(read(own, f"{name}.{agent}")):
                arrays[begins[group.name] + i][part.members.start] = array
            own_mask = unset if mask is None else getattr(mask, f"f{number}")
            if joint is not None and own_mask is not unset and own_mask is not None:
                ended = outcome is not None and bool(outcome.terminated[number] or outcome.truncated[number])
                joint[part.mask] = self._mask(own_mask, group.action.nvec, f"{mask_name}.{agent}", ended)
        if not present.any():
            raise wrong(name, f"observations of {', '.join(spec.agents)}", "none of them")
        seen = present.copy()
        if outcome is not None:
            present &= ~(outcome.terminated | outcome.truncated)
        acting = self._acting(present, turn) if spec.turns else None
        if joint is not None and acting is not None:
            for part, waits, mask_of_waiting in zip(spec.layout.agents, present & ~acting, self._waits, strict=True):
                if waits:
                    joint[part.mask] = mask_of_waiting
        named = present if acting is None else acting
        return Row(arrays, joint, present, tuple(np.flatnonzero(named).tolist()), seen, acting)

    def _acting(self, present: np.ndarray, turn: str | None) -> np.ndarray | None:
        """[N] bool, whose turn it is: the agent that the request says, or the only one whose observation it has.

        None: the request has observations of several agents and does not say. All False: the episode is over.
        """
        if turn is None:
            return present.copy() if np.count_nonzero(present) < 2 else None
        acting: np.ndarray = np.array([agent == turn for agent in self._agents]) & present
        if not acting.any():
            names = " or ".join(agent for agent, here in zip(self._agents, present, strict=True) if here)
            raise wrong("turn", f"an agent that goes on: {names}" if names else "no turn after the end", turn)
        return acting

    def _mask(self, mask: list[Any], heads: tuple[int, ...], name: str, over: bool = False) -> np.ndarray:
        """The legal actions. `over`: of a last observation, where a head without one gets all of them."""
        if len(mask) != sum(heads):
            raise wrong(name, f"{sum(heads)} values, one for each action", str(len(mask)))
        bad = next((i for i, value in enumerate(mask) if value not in (0, 1)), None)
        if bad is not None:
            raise wrong(f"{name}[{bad}]", "true or false", str(mask[bad]))
        legal, begin = np.array(mask, bool), 0
        for size in heads:
            if not legal[begin : begin + size].any() and over:
                legal[begin : begin + size] = True
            elif not legal[begin : begin + size].any():
                raise wrong(name, f"a legal action among the values {begin} to {begin + size - 1}", "none")
            begin += size
        return legal

    def answers(self, outputs: dict[str, np.ndarray]) -> list[Any]:
        """For each row its action as JSON has it; for several agents one list for each of them."""
        ports = self.action_ports
        if not self.spec.groups:
            actions: list[Any] = outputs["action"].tolist()
            return actions
        columns = [outputs[port.name].tolist() for port in ports]  # [group][B][n]
        return [[one for column in columns for one in column[row]] for row in range(len(columns[0]))]

    def named(self, action: Any, row: Row) -> Any:
        """The action of a row under the names of the agents that the request named."""
        return action if not row.agents else {self._agents[number]: action[number] for number in row.agents}


def explained(error: msgspec.ValidationError) -> Refused:
    """The 400 of an error of msgspec: "Expected `float`, got `str` - at `$.obs[2]`"."""
    text, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    found = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if found is not None:
        return wrong(field or "the body", found[1], found[2])
    found = re.fullmatch(r"Object missing required field `(.*)`", text)
    if found is not None:
        return wrong(f"{field}.{found[1]}".lstrip("."), "a value", "nothing")
    found = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if found is not None:
        return wrong(f"{field}.{found[1]}".lstrip("."), "no such field", "it")
    return Refused(400, f"{field}: {text}".lstrip(": "), field, text, "another value")


def _request_type(spec: EnvSpec) -> Any:
    """The struct of a request for this spec."""
    flags = list[bool | int]
    obs: Any
    mask: Any
    rewards: Any
    ends: Any
    if spec.groups:
        agents, count = spec.agents, range(len(spec.agents))
        kinds = [_type_of(part.group.obs) for part in spec.layout.agents]
        rename = {f"f{i}": agent for i, agent in enumerate(agents)}
        obs = msgspec.defstruct(
            "Observations",
            [(f"f{i}", kinds[i] | msgspec.UnsetType, msgspec.UNSET) for i in count],
            rename=rename,
            forbid_unknown_fields=True,
        )
        mask = msgspec.defstruct(
            "Masks",
            [(f"f{i}", flags | None | msgspec.UnsetType, msgspec.UNSET) for i in count],
            rename=rename,
            forbid_unknown_fields=True,
        )
        rewards, ends = (
            msgspec.defstruct(
                name,
                [(f"f{i}", kind | msgspec.UnsetType, msgspec.UNSET) for i in count],
                rename=rename,
                forbid_unknown_fields=True,
            )
            for name, kind in (("Rewards", float), ("Ends", bool))
        )
        ends = bool | ends
    else:
        obs, mask, rewards, ends = _type_of(spec.obs), flags, float, bool
    extra: list[Any] = []
    if spec.turns:
        extra.append(("turn", str | None, None))
    if spec.state_shape is not None:
        extra.append(("state", _nested(float, len(spec.state_shape)) | None, None))
    positive = msgspec.Meta(gt=0, le=3_600_000)
    seed = msgspec.Meta(ge=0, le=2**63 - 1)
    unset = msgspec.UnsetType
    return msgspec.defstruct(
        "Request",
        [
            ("obs", obs | unset, msgspec.UNSET),
            ("batch", list[obs] | unset, msgspec.UNSET),
            ("action_mask", mask | None, None),
            ("action_masks", list[mask] | None, None),
            ("policy", str | None, None),
            ("sample", bool, False),
            ("seed", _annotated(int, seed) | None, None),
            ("session", str | None, None),
            ("episode", str | None, None),
            ("reward", rewards | None, None),
            ("terminated", ends, False),
            ("truncated", ends, False),
            ("first", bool, False),
            ("core", list[list[float]] | None, None),
            ("deadline_ms", _annotated(float, positive) | None, None),
            ("details", bool, False),
            ("id", int | str | None, None),
            *extra,
        ],
        forbid_unknown_fields=True,
    )


def _annotated(kind: Any, meta: msgspec.Meta) -> Any:
    from typing import Annotated

    return Annotated[kind, meta]


def _type_of(obs: ObsSpec) -> Any:
    """The type of an observation in JSON."""
    if isinstance(obs, dict):
        keys = sorted(obs)
        return msgspec.defstruct(
            "Observation",
            [(f"f{i}", _type_of(obs[key])) for i, key in enumerate(keys)],
            rename={f"f{i}": key for i, key in enumerate(keys)},
            forbid_unknown_fields=True,
        )
    if isinstance(obs, tuple):
        return tuple[tuple(_type_of(child) for child in obs)]  # type: ignore[misc]
    return _nested({"box": float, "multi_binary": float}.get(obs.kind, int), len(obs.shape))


def _nested(kind: Any, depth: int) -> Any:
    """The type of an array of `depth` axes in JSON."""
    for _ in range(depth):
        kind = list[kind]
    return kind


def _reader(obs: ObsSpec) -> Callable[[Any, str], list[np.ndarray]]:
    """A function from a decoded observation and its name to the arrays of its leaves."""
    if isinstance(obs, dict):
        parts = [(f"f{i}", key, _reader(obs[key])) for i, key in enumerate(sorted(obs))]
        return lambda value, name: [
            leaf for field, key, read in parts for leaf in read(getattr(value, field), f"{name}.{key}")
        ]
    if isinstance(obs, tuple):
        readers = [_reader(child) for child in obs]
        return lambda value, name: [leaf for i, read in enumerate(readers) for leaf in read(value[i], f"{name}[{i}]")]
    read_leaf = _leaf_reader(obs)
    return lambda value, name: [read_leaf(value, name)]


def _leaf_reader(leaf: Leaf) -> Callable[[Any, str], np.ndarray]:
    shape, dtype = leaf.shape, np.dtype(leaf.dtype)
    wide = np.dtype(np.float64 if dtype.kind == "f" else np.int64)
    low: Any
    high: Any
    if leaf.kind == "box":
        low, high, expected = -LARGEST, LARGEST, "finite numbers of float32"
    elif leaf.kind == "image":
        low, high, expected = 0, leaf.high, f"whole numbers from 0 to {leaf.high}"
    elif leaf.kind == "multi_binary":
        low, high, expected = 0.0, 1.0, "numbers from 0 to 1"
    else:
        start = np.array(leaf.start or (0,) * len(leaf.nvec), np.int64)
        low, high = start.reshape(shape), (start + np.array(leaf.nvec) - 1).reshape(shape)
        expected = f"whole numbers from {low.tolist()} to {high.tolist()}"
    flat = len(shape) == 1

    def read(value: Any, name: str) -> np.ndarray:
        if flat and len(value) != shape[0]:
            raise wrong(name, f"{shape[0]} numbers", str(len(value)))
        try:
            array = np.array(value, wide)
        except (ValueError, OverflowError) as error:
            raise wrong(name, f"the shape {list(shape)}", f"another one ({error})"[:200]) from None
        if array.shape != shape:
            raise wrong(name, f"the shape {list(shape)}", str(list(array.shape)))
        within = (array >= low) & (array <= high)
        if not within.all():
            at = np.argwhere(np.atleast_1d(~within))[0]
            where = "".join(f"[{i}]" for i in at) if shape else ""
            raise wrong(f"{name}{where}", expected, str(array.reshape(-1)[np.flatnonzero(~within)[0]]))
        return array.astype(dtype)

    return read


def numbers_of(spec: EnvSpec) -> int:
    """Numbers of one observation, its mask and the global state."""
    state = 0 if spec.state_shape is None else math.prod(spec.state_shape)
    return sum(math.prod(leaf.shape) for leaf in spec.leaves()) + spec.action.mask_size + state
