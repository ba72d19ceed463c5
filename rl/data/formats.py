"""Episodes in the files of other programs: npz, the HDF5 layout of D4RL, data sets of Minari, and parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rltrain.data import columnar
from rltrain.data.episodes import Recorded
from rltrain.data.foreign import Budget, Group, hdf5, npz_arrays, plain, reading
from rltrain.envs.spaces import action_reader
from rltrain.envs.spec import ActionSpec, EnvSpec, to_json
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.tree import unflatten
from rltrain.storage import files
from rltrain.storage.schema import read_spec

OWN = "policy_action"  # the actions as the policy chose them, beside those that the environment received
EXTRA = 'pip install "rltrain[offline]"'


class Read(NamedTuple):
    """What a file holds."""

    episodes: list[Recorded]
    spec: EnvSpec
    notes: list[str]  # what the file could not say


def format_of(path: Path, given: str | None = None) -> str:
    """One of FORMATS: as given, or by the name of the file; ConfigError if neither says it."""
    if given is not None:
        return given
    if path.suffix == ".npz":
        return "npz"
    if path.suffix in (".hdf5", ".h5"):
        return "d4rl"
    if path.suffix == ".parquet":
        return "parquet"
    if any(
        (folder / name).exists() for folder in (path, path / "data") for name in ("main_data.hdf5", "metadata.json")
    ):
        return "minari"
    raise ConfigError(f"{path}: the name does not say the format; add --format {', '.join(FORMATS)}")


# --- npz: everything that a recording holds ---


def write_npz(path: Path, episodes: Sequence[Recorded], spec: EnvSpec) -> None:
    """All arrays of the episodes, joined; `lengths` says which rows belong to which."""
    arrays: dict[str, np.ndarray] = {
        "spec": np.array(json.dumps(to_json(spec))),
        "lengths": np.array([one.steps for one in episodes], np.int64),
        "whole": np.array([one.whole for one in episodes]),
        "terminated": np.array([one.terminated for one in episodes]),
        "truncated": np.array([one.truncated for one in episodes]),
        "actions": np.concatenate([one.action for one in episodes]),
        "rewards": np.concatenate([one.reward for one in episodes]),
    }
    for i in range(len(episodes[0].obs)):
        arrays[f"observations.{i}"] = np.concatenate([one.obs[i] for one in episodes])
    if episodes[0].mask is not None:
        arrays["action_masks"] = np.concatenate([one.mask for one in episodes if one.mask is not None])
    for name in episodes[0].extras:
        arrays[f"extras.{name}"] = np.concatenate([one.extras[name] for one in episodes])
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # names, not allow_pickle


def read_npz(path: Path) -> Read:
    """The inverse of `write_npz`; nothing in the file can run."""
    with reading(path, "npz file of rldata"):
        arrays = npz_arrays(path)
        text = arrays.pop("spec")
        if text.dtype.kind != "U" or text.shape:
            raise ValueError("spec is no text")
        spec = _spec_in(path, str(text))
        arrays = {name: plain(path, name, array) for name, array in arrays.items()}
        lengths = arrays["lengths"].astype(np.int64)
        if lengths.ndim != 1 or (lengths < 1).any() or (lengths > arrays["rewards"].size).any():
            raise ValueError("lengths are not those of episodes with at least one step")
        steps = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.concatenate([[0], np.cumsum(lengths + 1)])
        names = ["lengths", "whole", "terminated", "truncated", "actions", "rewards"]
        names += [f"observations.{i}" for i in range(len(spec.leaves()))]
        extras = {name.removeprefix("extras."): array for name, array in arrays.items() if name.startswith("extras.")}
        masks = arrays.get("action_masks") if spec.action_mask else None
        for name in (*names, *(f"extras.{key}" for key in extras), *(["action_masks"] if masks is not None else [])):
            total = rows[-1] if name.startswith(("obs", "action_m")) else steps[-1]
            total = len(lengths) if name in names[:4] else total
            if len(arrays[name]) != total:
                raise ValueError(f"{name} has {len(arrays[name])} rows, and lengths ask for {total}")
        _require_flat(path, "rewards", arrays["rewards"])
        episodes = []
        for n in range(len(lengths)):
            at, obs = slice(steps[n], steps[n + 1]), slice(rows[n], rows[n + 1])
            episodes.append(
                Recorded(
                    obs=[arrays[f"observations.{i}"][obs] for i in range(len(spec.leaves()))],
                    action=arrays["actions"][at],
                    reward=arrays["rewards"][at],
                    terminated=bool(arrays["terminated"][n]),
                    truncated=bool(arrays["truncated"][n]),
                    mask=None if masks is None else masks[obs],
                    extras={name: array[at] for name, array in extras.items()},
                    whole=bool(arrays["whole"][n]),
                )
            )
    return Read(episodes, spec, [])


# --- D4RL ---


def write_d4rl(path: Path, episodes: Sequence[Recorded], spec: EnvSpec) -> None:
    """observations, actions, rewards, terminals, timeouts, next_observations [N, ...]; the policy's own in infos."""
    _require_plain(spec, "d4rl")
    acts = action_reader(spec.action)
    own = np.concatenate([one.action for one in episodes])
    terminals, timeouts = (np.zeros(len(own), bool) for _ in range(2))
    ends = np.cumsum([one.steps for one in episodes]) - 1
    terminals[ends] = [one.terminated for one in episodes]
    timeouts[ends] = [one.truncated for one in episodes]
    with _h5py().File(path, "w") as file:
        file["observations"] = np.concatenate([one.obs[0][:-1] for one in episodes])
        file["next_observations"] = np.concatenate([one.obs[0][1:] for one in episodes])
        file["actions"] = np.asarray(acts(own))
        file["rewards"] = np.concatenate([one.reward for one in episodes])
        file["terminals"], file["timeouts"] = terminals, timeouts
        file[f"infos/{OWN}"] = own
        for name in episodes[0].extras:
            file[f"infos/{name}"] = np.concatenate([one.extras[name] for one in episodes])


def read_d4rl(path: Path, spec: EnvSpec) -> Read:
    """The episodes of a file of D4RL's layout.

    Without next_observations the file lacks the last observation of each episode. That of a termination is not needed
    and repeats the one before. At a time limit the last step is left out, since its value would need it.
    """
    _require_plain(spec, "d4rl")
    h5py, path = _h5py(), path.resolve()  # the user may name a link
    with reading(path, "file of D4RL's layout"):
        with hdf5(h5py, path) as file:
            count = len(file.array("rewards"))
            if not count:
                raise CheckpointError(f"{path} holds no step")
            names = ["observations", "actions", "rewards", "terminals"]
            names += [name for name in ("timeouts", "next_observations") if name in file]
            arrays = {name: file.array(name, count) for name in names}
            infos = file.group("infos").arrays() if "infos" in file else {}
        return _d4rl_episodes(path, spec, arrays, infos)


def _d4rl_episodes(
    path: Path,
    spec: EnvSpec,
    arrays: dict[str, np.ndarray],
    infos: dict[str, np.ndarray],
    number: np.ndarray | None = None,
) -> Read:
    """Episodes end at terminals and timeouts, where `number` changes, and where next_observations is not the next."""
    count = len(arrays["rewards"])
    leaf = spec.leaves()[0]
    obs = _cast(path, "observations", arrays["observations"], leaf.shape, leaf.dtype)
    after = arrays.get("next_observations")
    after = None if after is None else _cast(path, "next_observations", after, leaf.shape, leaf.dtype)
    action = _own_actions(path, arrays["actions"], infos.pop(OWN, None), spec.action)
    reward = arrays["rewards"].astype(np.float32).reshape(count)
    terminals = arrays["terminals"].astype(bool).reshape(count)
    timeouts = arrays.get("timeouts", np.zeros(count)).astype(bool).reshape(count)
    extras = {name: array for name, array in infos.items() if len(array) == count}
    ended = terminals | timeouts
    if after is not None and count > 1:
        jumps = (after[:-1] != obs[1:]).reshape(count - 1, -1).any(1)
        ended[:-1] |= jumps
    notes = []
    if number is not None:
        ended[:-1] |= np.diff(number) != 0
        if np.count_nonzero(np.diff(number)) >= len(np.unique(number)):
            notes.append("numbers of episodes come back in later rows, and each time a new episode begins there")
    elif after is None and "timeouts" not in arrays:
        text = f"there are no timeouts, no next_observations and no column {' or '.join(columnar.EPISODE)}"
        notes.append(f"{text}: an episode that ends without a termination is joined with the next one")
    ends = np.flatnonzero(ended).tolist()
    if not ends or ends[-1] != count - 1:
        ends.append(count - 1)
    episodes, begin, left_out = [], 0, 0
    for end in ends:
        rows, terminated, truncated = slice(begin, end + 1), bool(terminals[end]), bool(timeouts[end])
        begin = end + 1
        if after is not None:
            leaf_rows = np.concatenate([obs[rows], after[end : end + 1]])
        elif terminated:
            leaf_rows = np.concatenate([obs[rows], obs[end : end + 1]])
        else:
            left_out, truncated = left_out + 1, True
            leaf_rows, rows = obs[rows], slice(rows.start, end)
        if rows.stop > rows.start:
            one = {name: array[rows] for name, array in extras.items()}
            episodes.append(Recorded([leaf_rows], action[rows], reward[rows], terminated, truncated, None, one))
    if left_out:
        text = f"there are no next_observations: the last steps of {left_out:,} episodes without a termination"
        notes.append(f"{text} are left out")
    return Read(episodes, spec, notes)


# --- Minari ---


def write_minari(
    folder: Path, episodes: Sequence[Recorded], spec: EnvSpec, env: Any, name: str, data_format: str = "hdf5"
) -> None:
    """A data set that `minari.MinariDataset(folder / "data")` loads, as "hdf5" or as "arrow".

    Args:
        env:  the environment, whose spaces the data set names.
        name: of the data set, as cartpole/ppo-v0.
    """
    minari = _minari()
    data = folder / "data"
    data.mkdir(parents=True)
    acts = action_reader(spec.action, env.action_space.dtype)

    def parts(one: Recorded) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Observations, columns of steps, infos."""
        ends = np.zeros((2, one.steps), bool)
        ends[:, -1] = one.terminated, one.truncated
        steps = {"actions": np.asarray(acts(one.action)), "rewards": one.reward}
        infos = {OWN: _padded(one.action), "whole": np.full(one.steps + 1, one.whole)}
        infos |= {} if one.mask is None else {"action_mask": one.mask}
        infos |= {f"extras.{key}": _padded(array) for key, array in one.extras.items()}
        obs = unflatten(spec.obs, of_space(one.obs, spec))
        return obs, {**steps, "terminations": ends[0], "truncations": ends[1]}, infos

    if data_format == "arrow":
        for number, one in enumerate(episodes):
            columnar.write_arrow_episode(data, number, *parts(one))
    else:
        with _h5py().File(data / "main_data.hdf5", "w", track_order=True) as file:
            for number, one in enumerate(episodes):
                group = file.create_group(f"episode_{number}")
                group.attrs["id"], group.attrs["total_steps"] = number, one.steps
                obs, steps, infos = parts(one)
                _put(group, "observations", obs)
                for key, array in (*steps.items(), *((f"infos/{key}", info) for key, info in infos.items())):
                    group[key] = array
    about = {
        "total_episodes": len(episodes),
        "total_steps": sum(one.steps for one in episodes),
        "data_format": data_format,
        "jpeg_encoding": False,
        "dataset_id": name,
        "minari_version": minari.__version__,
        "observation_space": minari.serialization.serialize_space(env.observation_space),
        "action_space": minari.serialization.serialize_space(env.action_space),
        "rltrain_spec": json.dumps(to_json(spec)),
    }
    if env.spec is not None:
        about["env_spec"] = env.spec.to_json()
    (data / "metadata.json").write_text(json.dumps(about))


def read_minari(folder: Path, spec: EnvSpec | None) -> Read:
    """The episodes of a Minari data set. `spec` is needed for data that rldata did not write."""
    folder = folder.resolve()  # the user may name a link
    data = folder / "data" if os.path.lexists(folder / "data") else folder
    files.refuse_link(data)
    about, _ = files.read_json(data / "metadata.json")
    kind = about.get("data_format")
    if kind not in ("hdf5", "arrow", "parquet"):
        raise ConfigError(f"{folder} has the format {str(kind)[:50]!r}; rldata reads Minari's hdf5, arrow and parquet")
    if "rltrain_spec" in about:
        spec = _spec_in(data / "metadata.json", about["rltrain_spec"])
    if spec is None:
        raise ConfigError(f"{folder}: add --env ENV, the environment that was recorded")
    if kind != "hdf5":
        with reading(folder, "data set of Minari"):
            numbers = sorted(int(path.name) for path in data.iterdir() if path.name.isdecimal())
            if about.get("total_episodes", len(numbers)) != len(numbers):
                raise CheckpointError(f"{folder} counts {about['total_episodes']} episodes, and has {len(numbers)}")
            budget = Budget(folder)
            opened = ((number, columnar.ArrowEpisode.open(data / str(number), budget)) for number in numbers)
            return Read([_minari_episode(folder, number, one, spec) for number, one in opened], spec, [])
    with reading(folder, "data set of Minari"), hdf5(_h5py(), data / "main_data.hdf5") as file:
        episodes = [
            _minari_episode(folder, number, file.group(f"episode_{number}"), spec) for number in range(len(file))
        ]
    return Read(episodes, spec, [])


def _minari_episode(folder: Path, number: int, group: Group | columnar.ArrowEpisode, spec: EnvSpec) -> Recorded:
    reward = group.array("rewards").astype(np.float32)
    steps = len(reward)
    if not steps:
        raise CheckpointError(f"{folder}: episode {number} has no step")
    _require_flat(folder, f"rewards of episode {number}", reward)
    infos = group.group("infos").arrays() if "infos" in group else {}
    shaped = columnar.shaped if isinstance(group, columnar.ArrowEpisode) else _as_it_is
    obs = [
        _cast(
            folder, f"observations of episode {number}", shaped(array, leaf.shape), leaf.shape, leaf.dtype, leaf.start
        )
        for array, leaf in zip(_leaves_of(group, "observations", spec.obs), spec.leaves(), strict=True)
    ]
    own = infos.get(OWN)
    action = group.array("actions", steps)
    return Recorded(
        obs=obs,
        action=_own_actions(folder, action, None if own is None else own[:steps], spec.action),
        reward=reward,
        terminated=bool(group.array("terminations", steps)[-1]),
        truncated=bool(group.array("truncations", steps)[-1]),
        mask=infos["action_mask"] if spec.action_mask and "action_mask" in infos else None,
        extras={
            key.removeprefix("extras."): array[:steps]
            for key, array in infos.items()
            if key.startswith("extras.") and len(array) >= steps
        },
        whole=bool(infos["whole"][0]) if "whole" in infos else True,
    )


# --- parquet ---


def read_parquet(path: Path, spec: EnvSpec | None) -> Read:
    """The episodes of a parquet file. `spec` is needed for data that rldata did not write.

    Other programs' files have a row for each step, in order, with columns such as those of D4RL: see
    `columnar.OTHER_NAMES`.
    """
    about = columnar.parquet_spec(path)
    if about is None:
        if spec is None:
            raise ConfigError(f"{path}: add --env ENV, the environment that was recorded")
        _require_plain(spec, "a parquet file of another program")
        with reading(path, "parquet file"):
            (arrays, number, notes), shape = columnar.foreign_columns(path), spec.leaves()[0].shape
            shaped = {name: columnar.shaped(array, shape) for name, array in arrays.items() if "observations" in name}
            read = _d4rl_episodes(path, spec, {**arrays, **shaped}, {}, number)
            return read._replace(notes=[*notes, *read.notes])
    own = read_spec(path, about.get("spec"))
    if own.groups:
        raise ConfigError(f"{path}: several agents were recorded; rldata reads the data of one agent")
    with reading(path, "parquet file of rldata"):
        return Read(
            [_of_columns(path, *part, own) for part in columnar.read_parquet(path, own, about["forms"])], own, []
        )


def _of_columns(path: Path, columns: dict[str, np.ndarray], at: slice, spec: EnvSpec) -> Recorded:
    def after(name: str) -> np.ndarray:
        """Rows [L+1] of what is there before and after each step."""
        return np.concatenate([columns[name][at], columns[f"next_{name}"][at][-1:]])

    reward = columns["rewards"][at]
    _require_flat(path, "rewards", reward)
    return Recorded(
        obs=[after(f"observations.{i}") for i in range(len(spec.leaves()))],
        action=_own_actions(path, columns["actions"][at], columns["policy_actions"][at], spec.action),
        reward=reward,
        terminated=bool(columns["terminations"][at][-1]),
        truncated=bool(columns["truncations"][at][-1]),
        mask=after("action_masks") if spec.action_mask and "action_masks" in columns else None,
        extras={key.removeprefix("extras."): array[at] for key, array in columns.items() if key.startswith("extras.")},
        whole=bool(columns["whole"][at][0]),
    )


# --- pieces ---


def policy_actions(action: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The policy's actions [N, *A] for actions of the environment: the inverse of `action_reader`."""
    if spec.kind != "box":
        start = np.array(spec.start, np.int64).reshape(spec.shape) if spec.start else 0
        return action.astype(np.int64) - start
    low, high = (np.array(bound, np.float64).reshape(spec.shape) for bound in (spec.low, spec.high))
    below, above = np.isfinite(low), np.isfinite(high)
    with np.errstate(invalid="ignore"):
        half = np.where(below & above, high / 2 - low / 2, 1.0)
        middle = np.where(below & above, high / 2 + low / 2, np.where(below, low + 1, np.where(above, high - 1, 0.0)))
    half = np.where(half == 0, 1.0, half)
    return ((action.astype(np.float64) - middle) / half).astype(np.float32)


def _own_actions(path: Path, action: np.ndarray, own: np.ndarray | None, spec: ActionSpec) -> np.ndarray:
    """The stored actions of the policy if they give those of the environment, to the bit; else the inverse's."""
    if action.shape[1:] != spec.shape and action.size == len(action) * spec.size:
        action = action.reshape(len(action), *spec.shape)
    if action.shape[1:] != spec.shape:
        raise CheckpointError(f"{path}: actions have the shape {action.shape[1:]}, and the space's is {spec.shape}")
    if own is not None and own.shape == action.shape and own.dtype == spec.dtype:
        forward = np.asarray(action_reader(spec, action.dtype)(own))
        if np.array_equal(forward, action):
            return own
    return policy_actions(action, spec)


def _cast(
    path: Path, name: str, array: np.ndarray, shape: tuple[int, ...], dtype: str, start: tuple[int, ...] = ()
) -> np.ndarray:
    if array.shape[1:] != shape:
        raise CheckpointError(f"{path}: {name} have the shape {array.shape[1:]}, and the space's is {shape}")
    rows: np.ndarray = array.astype(dtype)
    return rows - np.array(start, dtype).reshape(shape) if start else rows


def of_space(obs: list[np.ndarray], spec: EnvSpec) -> list[np.ndarray]:
    """Leaves with the smallest values of their spaces added."""
    leaves = zip(obs, spec.leaves(), strict=True)
    return [x + np.array(leaf.start, x.dtype).reshape(leaf.shape) if leaf.start else x for x, leaf in leaves]


def _put(group: Any, name: str, tree: Any) -> None:
    if isinstance(tree, dict):
        for key, child in tree.items():
            _put(group.require_group(name), key, child)
    elif isinstance(tree, tuple):
        for i, child in enumerate(tree):
            _put(group.require_group(name), f"_index_{i}", child)
    else:
        group[name] = tree


def _as_it_is(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array


def _leaves_of(group: Group | columnar.ArrowEpisode, name: str, like: Any) -> list[np.ndarray]:
    if isinstance(like, dict):
        return [leaf for key in sorted(like) for leaf in _leaves_of(group.group(name), key, like[key])]
    if isinstance(like, tuple):
        inner = group.group(name)
        return [leaf for i, child in enumerate(like) for leaf in _leaves_of(inner, f"_index_{i}", child)]
    return [group.array(name)]


def _spec_in(path: Path, text: Any) -> EnvSpec:
    """The spec that a file holds as text, of one agent."""
    if not isinstance(text, str):
        raise CheckpointError(f"{path} is damaged: its spec is no text")
    spec = read_spec(path, files.parse_json(path, text.encode()))
    if spec.groups:
        raise ConfigError(f"{path}: several agents were recorded; rldata reads the data of one agent")
    return spec


def _require_flat(path: Path, name: str, array: np.ndarray) -> None:
    if array.ndim != 1:
        raise CheckpointError(f"{path}: {name} have the shape {array.shape}, and there is one reward for each step")


def _padded(array: np.ndarray) -> np.ndarray:
    """[L, ...] with a last row of zeros: Minari's infos have a row for each observation."""
    return np.concatenate([array, np.zeros_like(array[:1])])


def _require_plain(spec: EnvSpec, name: str) -> None:
    """ConfigError if the layout cannot hold these spaces."""
    if len(spec.leaves()) > 1 or spec.action_mask:
        what = "action masks" if spec.action_mask else "observations of several arrays"
        raise ConfigError(f"{name} cannot hold {what}; use npz or minari")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigError(f"HDF5 files need h5py: {EXTRA}") from None
    return h5py


def _minari() -> Any:
    try:
        import minari
        import minari.serialization
    except ImportError:
        raise ConfigError(f"data sets of Minari need minari: {EXTRA}") from None
    return minari


FORMATS = ("npz", "d4rl", "minari", "minari-arrow", "parquet")
