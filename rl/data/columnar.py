"""Episodes in columns of Apache Arrow: parquet files, and the Arrow form of Minari's data sets."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.data.episodes import Recorded
from rltrain.data.foreign import Budget, is_plain, plain, reading
from rltrain.envs.spaces import action_reader
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.tree import Tree
from rltrain.storage import files
from rltrain.storage.schema import DTYPES

GROUP_BYTES = 64 * 2**20  # of episodes in memory, which are one group of rows
ABOUT = b"rltrain"  # of the file's metadata: the spec, and the forms of extras
OTHER_NAMES = {  # of the columns of other programs
    "observations": ("observation", "obs"),
    "next_observations": ("next_observation", "next_obs", "new_obs"),
    "actions": ("action",),
    "rewards": ("reward",),
    "terminals": ("terminations", "terminated", "terminal", "terminateds", "dones", "done"),
    "timeouts": ("truncations", "truncated", "timeout", "truncateds", "TimeLimit.truncated"),
}
BOTH_ENDS = ("dones", "done")  # of OTHER_NAMES: true at a termination and at a time limit
EPISODE = ("episode", "episode_id", "episode_index")  # names of the column that says to which episode a row belongs


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ConfigError('parquet and Arrow files need pyarrow: pip install "rltrain[parquet]"') from None
    return pyarrow


# --- parquet ---


def write_parquet(path: Path, episodes: Iterable[Recorded], spec: EnvSpec) -> None:
    """A row for each step, with the observation after it; groups of rows are written one after the other."""
    pa, acts = _pyarrow(), action_reader(spec.action)
    writer, schema = None, None
    group: list[dict[str, np.ndarray]] = []
    size = 0

    def flush() -> None:
        nonlocal writer, schema, size
        columns = {name: np.concatenate([one[name] for one in group]) for name in group[0]}
        table = pa.table({name: _arrow(pa, array) for name, array in columns.items()})
        if writer is None:
            forms = {name: [array.dtype.name, array.shape[1:]] for name, array in columns.items()}
            about = json.dumps({"spec": to_json(spec), "forms": forms})
            schema = table.schema.with_metadata({ABOUT: about.encode()})
            writer = pa.parquet.ParquetWriter(path, schema)
        writer.write_table(table.cast(schema))
        group.clear()
        size = 0

    try:
        for number, one in enumerate(episodes):
            columns = {
                "episode": np.full(one.steps, number),
                "whole": np.full(one.steps, one.whole),
                "rewards": one.reward,
                "actions": np.asarray(acts(one.action)),
                "policy_actions": one.action,
                **_ends(one),
            }
            for i, leaf in enumerate(one.obs):
                columns[f"observations.{i}"], columns[f"next_observations.{i}"] = leaf[:-1], leaf[1:]
            if one.mask is not None:
                columns["action_masks"], columns["next_action_masks"] = one.mask[:-1], one.mask[1:]
            columns |= {f"extras.{name}": array for name, array in one.extras.items()}
            group.append(columns)
            size += sum(array.nbytes for array in columns.values())
            if size >= GROUP_BYTES:
                flush()
        if group:
            flush()
    finally:
        if writer is not None:
            writer.close()


def _ends(one: Recorded) -> dict[str, np.ndarray]:
    ends = np.zeros((2, one.steps), bool)
    ends[:, -1] = one.terminated, one.truncated
    return {"terminations": ends[0], "truncations": ends[1]}


def parquet_spec(path: Path) -> Any:
    """What a parquet file that `write_parquet` wrote says about itself; None for the file of another program."""
    with reading(path, "parquet file"):
        said = (_open(path).schema_arrow.metadata or {}).get(ABOUT)
        return None if said is None else files.parse_json(path, said)


def read_parquet(path: Path, spec: EnvSpec, forms: Mapping[str, Any]) -> list[tuple[dict[str, np.ndarray], slice]]:
    """The columns of a file that `write_parquet` wrote, and the rows of each episode."""
    with reading(path, "parquet file of rldata"):
        for name, (dtype, _) in forms.items():
            if str(dtype) not in DTYPES:
                raise CheckpointError(f"{path} is damaged: the type of {name[:50]} is {str(dtype)[:50]!r}, no number's")
        columns = _columns(path, _open(path), list(forms))
        for name, (dtype, shape) in forms.items():
            array = columns[name]
            columns[name] = array.reshape(len(array), *(int(n) for n in shape)).astype(dtype, copy=False)
        number = columns["episode"]
        starts = np.flatnonzero(np.diff(number, prepend=number[:1] - 1))
        bounds = [*starts.tolist(), len(number)]
        for i in range(len(spec.leaves())):
            before, after = columns[f"next_observations.{i}"][:-1], columns[f"observations.{i}"][1:]
            same = (before == after) | ((before != before) & (after != after))
            inside = np.diff(number) == 0
            if not same.reshape(len(same), -1).all(1)[inside].all():
                raise CheckpointError(f"{path}: its rows are not in their order")
        return [(columns, slice(begin, end)) for begin, end in pairwise(bounds)]


def foreign_columns(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None, list[str]]:
    """The columns of another program's parquet file, a row for each step, under the names of D4RL.

    Returns:
        the columns; the number of the episode of each row, if the file says it; and what it cannot say.
    """
    with reading(path, "parquet file"):
        file = _open(path)
        there = file.schema_arrow.names
        names = {
            name: next((other for other in (name, *others) if other in there), None)
            for name, others in OTHER_NAMES.items()
        }
        for name in ("observations", "actions", "rewards", "terminals"):
            if names[name] is None:
                known = ", ".join(OTHER_NAMES[name])
                raise CheckpointError(f"{path}: it has no column {name} ({known})")
        episode = next((name for name in EPISODE if name in there), None)
        found = _columns(path, file, [name for name in names.values() if name is not None], episode)
        columns, notes = {name: found[theirs] for name, theirs in names.items() if theirs is not None}, []
        if names["terminals"] in BOTH_ENDS:
            if names["timeouts"] is None:
                text = "is read as terminations: the file does not say which of these ends are time limits"
                notes.append(f"the column {names['terminals']} {text}; add a column terminated or truncated")
            else:
                ends = (columns[name].astype(bool).reshape(-1) for name in ("terminals", "timeouts"))
                columns["terminals"] = np.greater(*ends)  # ended, and not at a time limit
        return columns, None if episode is None else found[episode], notes


def _open(path: Path, **options: Any) -> Any:
    files.require_file(path.resolve())  # the user may name a link
    return _pyarrow().parquet.ParquetFile(path.resolve(), **options)


def _columns(path: Path, file: Any, names: Sequence[str], episode: str | None = None) -> dict[str, np.ndarray]:
    """Columns of numbers; and `episode`, whose values may also be text, as numbers for its different values."""
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise CheckpointError(f"{path}: it has no column {missing[0]}")
    for name in names:
        _require_numbers(path, name, file.schema_arrow.field(name).type)
    budget = Budget(path)
    _take(budget, file, [*names, *([] if episode is None else [episode])])
    table = file.read(columns=list(names), use_threads=False)
    found = {name: plain(path, name, _numpy(table[name].combine_chunks())) for name in names}
    if episode is not None:
        # Texts are read as a dictionary: one text that all rows share takes its memory once.
        coded = _open(path, read_dictionary=[episode]).read(columns=[episode], use_threads=False)
        indices = coded[episode].combine_chunks().dictionary_encode().indices
        if indices.null_count:
            raise CheckpointError(f"{path}: the column {episode} has empty values")
        found[episode] = indices.to_numpy(zero_copy_only=False)
    return found


def _take(budget: Budget, file: Any, names: Sequence[str] | None = None) -> None:
    """Takes the memory of columns of a parquet file (None: of all) from the budget, before they are read.

    Values may be stored once for many rows, so both their number and the size of the uncompressed pages count.
    """
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            path = column.path_in_schema
            if names is None or any(path == name or path.startswith(f"{name}.") for name in names):
                budget.take(max(column.total_uncompressed_size, 8 * column.num_values))


def _require_numbers(path: Path, name: str, kind: Any) -> None:
    """CheckpointError unless an Arrow type is numbers, or lists or groups of numbers."""
    types, inner = _pyarrow().types, kind
    while types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
    if types.is_struct(inner):
        for i in range(inner.num_fields):
            _require_numbers(path, f"{name}.{inner.field(i).name}", inner.field(i).type)
    elif not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
        raise CheckpointError(f"{path}: {name[:100]} holds {str(kind)[:50]}, and not numbers")


def _arrow(pa: Any, array: np.ndarray) -> Any:
    """An array [N, ...] as an Arrow array of N values."""
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, math.prod(array.shape[1:]))


def _numpy(array: Any) -> np.ndarray:
    """An Arrow array of N numbers, or of N lists of equal length, as [N, ...]; ValueError for anything else."""
    rows = len(array)
    if array.null_count:
        raise ValueError("a column has empty values")
    while hasattr(array.type, "value_type") and not hasattr(array.type, "index_type"):
        lengths = {int(array.type.list_size)} if hasattr(array.type, "list_size") else set(np.diff(array.offsets))
        if len(lengths) > 1:
            raise ValueError("the lists of a column have different lengths")
        array = array.flatten()
        if array.null_count:
            raise ValueError("a column has empty values")
    found: np.ndarray = array.to_numpy(zero_copy_only=False)
    if not is_plain(found.dtype):
        raise ValueError(f"a column holds {array.type}, and not numbers")
    return found.reshape(rows, -1) if len(found) != rows else found


def shaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows [N, ...] of an Arrow column, whose lists have no shape, as [N, *shape]; unchanged if the sizes differ."""
    return array.reshape(len(array), *shape) if array.size == len(array) * math.prod(shape) else array


# --- Minari's Arrow ---


class ArrowEpisode:
    """One episode of Minari's Arrow form, with the interface of `rltrain.data.foreign.Group`.

    Its columns have a row for each observation; those of steps have one more at the end, which is left out.
    """

    def __init__(self, path: Path, columns: Mapping[str, Any], shapes: Mapping[str, str], steps: int | None) -> None:
        self._path, self._columns, self._shapes, self._steps = path, columns, shapes, steps

    @classmethod
    def open(cls, folder: Path, budget: Budget) -> ArrowEpisode:
        """The episode in a folder, which holds one file. Its memory is taken from the budget of the data set."""
        files.refuse_link(folder)
        found = sorted(path for path in folder.iterdir() if path.suffix in (".arrow", ".parquet"))
        if len(found) != 1:
            raise CheckpointError(f"{folder}: there are {len(found)} files of this episode, and not one")
        pa, data = _pyarrow(), files.read_file(found[0])
        if found[0].suffix == ".arrow":
            table = _arrow_file(found[0], data, budget)
        else:
            file = pa.parquet.ParquetFile(pa.BufferReader(data))
            for one in file.schema_arrow:
                _require_numbers(found[0], one.name, one.type)
            _take(budget, file)
            table = file.read(use_threads=False)
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        return cls(folder, columns, {}, table.num_rows - 1)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def group(self, name: str) -> ArrowEpisode:
        array = self._column(name)
        if not hasattr(array, "field"):
            raise CheckpointError(f"{self._path}: {name} is no group")
        fields = [array.type.field(i) for i in range(array.type.num_fields)]
        shapes = {
            one.name: one.metadata[b"shape"].decode() for one in fields if one.metadata and b"shape" in one.metadata
        }
        return ArrowEpisode(self._path, {one.name: array.field(one.name) for one in fields}, shapes, None)

    def array(self, name: str, rows: int | None = None) -> np.ndarray:
        own = name.removeprefix("_index_")
        array = _numpy(self._column(name))
        if shape := self._shapes.get(own):
            array = array.reshape(len(array), *(int(n) for n in shape.split(",")))
        if self._steps is not None and name not in ("observations",):
            array = array[: self._steps]
        if rows is not None and len(array) != rows:
            raise CheckpointError(f"{self._path}: {name} has {len(array):,} rows, and rewards have {rows:,}")
        return plain(self._path, name, array)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: self.array(name) for name, array in self._columns.items() if not hasattr(array, "field")}

    def _column(self, name: str) -> Any:
        own = name.removeprefix("_index_")
        if own not in self._columns:
            raise CheckpointError(f"{self._path}: it has no {name}")
        return self._columns[own]


def _arrow_file(path: Path, data: bytes, budget: Budget) -> Any:
    """The table of an Arrow file: the bytes ARROW1, messages one after the other, and an index, which is not read."""
    pa = _pyarrow()
    if len(data) < 14 or data[:6] != b"ARROW1" or data[-6:] != b"ARROW1":
        raise ValueError("it does not begin and end as an Arrow file")
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(data)[8:]))
    first = messages.read_next_message()
    if first.type != "schema":
        raise ValueError(f"it begins with a {first.type}")  # pyarrow ends the process
    schema = pa.ipc.read_schema(first)
    for one in schema:
        _require_numbers(path, one.name, one.type)
    batches = []
    for message in messages:
        if message.type != "record batch":
            raise ValueError(f"it holds a {message.type}")
        budget.take(_uncompressed(message))
        batches.append(pa.ipc.read_record_batch(message, schema))
        batches[-1].validate(full=True)
    return pa.Table.from_batches(batches, schema)


def _uncompressed(message: Any) -> int:
    """Bytes of a record batch once its buffers are uncompressed; each of these begins with its own number of bytes.

    pyarrow does not tell it, so the message is read as the FlatBuffer that Arrow's format specifies (Message.fbs).
    """
    head, body = memoryview(message.metadata).cast("B"), memoryview(message.body).cast("B")

    def number(at: int, form: str, where: memoryview = head) -> int:
        return int(struct.unpack_from(f"<{form}", where, at)[0])

    def field(table: int, place: int) -> int | None:
        """Where a field of a table begins; None: it is not there."""
        known = table - number(table, "i")
        offset = number(known + 4 + 2 * place, "H") if 4 + 2 * place < number(known, "H") else 0
        return table + offset if offset else None

    def target(at: int | None) -> int:
        if at is None:
            raise ValueError("a record batch has no buffers")
        return at + number(at, "I")

    batch = target(field(target(0), 2))
    if field(batch, 3) is None:
        return len(body)  # it is not compressed
    buffers, total = target(field(batch, 2)), 0
    for i in range(number(buffers, "I")):
        start, size = (number(buffers + 4 + 16 * i + part, "q") for part in (0, 8))
        if size:
            length = number(start, "q", body)
            total += size if length == -1 else length  # -1: this buffer is not compressed
            if length < -1:
                raise ValueError("a buffer has a negative size")
    return total


def write_arrow_episode(folder: Path, number: int, obs: Tree, columns: Mapping[str, np.ndarray], infos: Any) -> None:
    """Writes one episode as `minari` does.

    Args:
        obs:     [L+1, ...] leaves.
        columns: [L, ...] actions, rewards, terminations, truncations.
        infos:   [L+1, ...] by name.
    """
    pa = _pyarrow()
    padded = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in columns.items()}
    names = {"observations": _struct(pa, obs), **{name: _arrow(pa, array) for name, array in padded.items()}}
    fields = []
    for name, array in infos.items():
        shape = {"shape": ",".join(map(str, array.shape[1:]))} if array.ndim > 1 else None
        fields.append((pa.field(name, _arrow(pa, array).type, metadata=shape), _arrow(pa, array)))
    names["infos"] = pa.StructArray.from_arrays([array for _, array in fields], fields=[one for one, _ in fields])
    table = pa.table(names)
    (folder / str(number)).mkdir()
    with (
        pa.OSFile(str(folder / str(number) / "part-0.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as out,
    ):
        out.write_table(table)
    about = {"id": number, "total_steps": len(columns["rewards"])}
    (folder / str(number) / "metadata.json").write_text(json.dumps(about))


def _struct(pa: Any, tree: Tree) -> Any:
    if isinstance(tree, dict | tuple):
        pairs = tree.items() if isinstance(tree, dict) else ((str(i), child) for i, child in enumerate(tree))
        names, arrays = zip(*((str(name), _struct(pa, child)) for name, child in pairs), strict=True)
        return pa.StructArray.from_arrays(list(arrays), names=list(names))
    return _arrow(pa, tree)
