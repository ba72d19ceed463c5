"""Arrays in files that may be damaged or from somebody else: npz and HDF5.

Nothing here runs code, follows a link, opens a second file or anything but a regular file, and sizes are compared with
the free memory before memory is taken.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage import files
from rltrain.storage.schema import DTYPES
from rltrain.system.free_space import amount, free_memory


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a damaged file makes a reader raise into one CheckpointError: "PATH is no WHAT: ..."."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # of any kind: the file may be anything
        why = files.one_line(error) or "it is damaged"
        raise CheckpointError(f"{path} is no {what}: {type(error).__name__} {why}") from None


def is_plain(dtype: np.dtype[Any]) -> bool:
    """True for the numbers that observations, actions and the like consist of."""
    return dtype.name in DTYPES


def plain(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order; CheckpointError if it holds something else than numbers."""
    if not is_plain(array.dtype):
        raise CheckpointError(f"{path}: {name} holds {str(array.dtype)[:50]}, and not numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, which may not hold pickles."""
    data = files.read_file(path.resolve())  # the user may name a link
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        budget = Budget(path)
        budget.take(sum(entry.file_size for entry in entries))
        return {entry.filename.removesuffix(".npy"): _npy(archive.read(entry)) for entry in entries}


def _npy(data: bytes) -> np.ndarray:
    """The array of an npy file. `numpy.load` takes the memory that the header asks for before it looks at the data."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read(file)
    count, rest = math.prod(shape), len(data) - file.tell()
    if dtype.hasobject:
        raise ValueError("it holds a pickle")
    if min(shape, default=0) < 0 or count * dtype.itemsize != rest:
        raise ValueError(f"an array of shape {shape} and type {dtype} does not have {rest:,} bytes")
    flat = np.frombuffer(data, dtype, count, file.tell()) if rest else np.empty(0, dtype)
    return flat.copy().reshape(shape, order="F" if by_columns else "C")


class Budget:
    """The memory that arrays of one file may take: what is free now."""

    def __init__(self, path: Path) -> None:
        self._path, self._free, self._taken = path, free_memory(), 0

    def take(self, size: int) -> None:
        """CheckpointError if the arrays so far and `size` bytes more do not fit."""
        self._taken += size
        if self._free is not None and self._taken > self._free:
            text = f"its arrays take {amount(self._taken)}, and {amount(self._free)} is free"
            raise CheckpointError(f"{self._path} does not fit into memory: {text}")


class Group:
    """A group of an HDF5 file. Only what lies in this file itself is read."""

    def __init__(self, group: Any, path: Path, budget: Budget) -> None:
        self._group, self._path, self._budget = group, path, budget

    def __contains__(self, name: str) -> bool:
        return self._group.get(name, getlink=True) is not None

    def __len__(self) -> int:
        return len(self._group)

    def group(self, name: str) -> Group:
        """The group of this name."""
        return Group(self._child(name, "keys"), self._path, self._budget)

    def array(self, name: str, rows: int | None = None) -> np.ndarray:
        """The array of this name, which has a row for each step; CheckpointError if it has not `rows` of them."""
        item = self._child(name, "chunks")
        if item.external or item.is_virtual:
            raise CheckpointError(f"{self._path}: {name} lies in another file, which is not opened")
        if not is_plain(item.dtype):
            raise CheckpointError(f"{self._path}: {name} holds {str(item.dtype)[:50]}, and not numbers")
        if not item.shape:
            raise CheckpointError(f"{self._path}: {name} is one number, and not an array")
        if rows is not None and item.shape[0] != rows:
            raise CheckpointError(f"{self._path}: {name} has {item.shape[0]:,} rows, and rewards have {rows:,}")
        self._budget.take(item.dtype.itemsize * max(math.prod(item.shape), math.prod(item.chunks or ())))
        return plain(self._path, name, item[()])

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of numbers in this group."""
        names = [name for name in self._group if _is_array(self._child(name, ""))]
        return {name: self.array(name) for name in names}

    def _child(self, name: str, kind: str) -> Any:
        """A member of this group, which must have the attribute `kind`."""
        link = self._group.get(name, getlink=True)
        if link is None:
            raise CheckpointError(f"{self._path}: it has no {name}")
        if type(link).__name__ != "HardLink":
            raise CheckpointError(f"{self._path}: {name[:100]!r} is a link, which is not followed")
        child = self._group[name]
        if kind and not hasattr(child, kind):
            raise CheckpointError(f"{self._path}: {name} is {'no array' if kind == 'chunks' else 'no group'}")
        return child


def _is_array(item: Any) -> bool:
    return hasattr(item, "chunks") and item.shape not in (None, ()) and is_plain(item.dtype)


@contextmanager
def hdf5(h5py: Any, path: Path) -> Iterator[Group]:
    """The root of an HDF5 file."""
    files.require_file(path)
    with h5py.File(path, "r") as file:
        yield Group(file, path, Budget(path))
