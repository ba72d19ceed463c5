"""Files from somebody else: nothing in them runs, hangs, reads other files or takes all memory; one line says why."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rltrain.data import columnar, foreign, formats
from rltrain.data.check import findings
from rltrain.data.command import run_data
from rltrain.data.episodes import Recorded, write
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import EnvSpec
from rltrain.errors import CheckpointError

Rldata = Callable[..., str]


@pytest.fixture(scope="module")
def spec() -> EnvSpec:
    return read_spec(resolve("CartPole-v1", {}, folder="."), 0)


def cartpole(count: int = 5, steps: int = 3) -> list[Recorded]:
    rng = np.random.default_rng(0)
    return [
        Recorded(
            obs=[rng.normal(size=(steps + 1, 4)).astype(np.float32)],
            action=rng.integers(2, size=steps),
            reward=np.ones(steps, np.float32),
            terminated=True,
            truncated=False,
        )
        for _ in range(count)
    ]


# --- code that the data names ---


def test_an_export_runs_no_code_that_the_data_names(
    rldata: Rldata, refused: Rldata, spec: EnvSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path\nimport gymnasium\nPath('executed').touch()\n"
    (tmp_path / "evil.py").write_text(f"{code}def make():\n    return gymnasium.make('CartPole-v1')\n")
    write(tmp_path / "rec", replace(spec, id="evil.py:make"), cartpole(), {})

    line = refused("export", "rec", "out", "--format", "minari")
    assert "rec names the code 'evil.py:make', which was not imported: add --env ENV" in line
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()
    rldata("export", "rec", "out", "--format", "minari", "--env", "CartPole-v1")
    assert not (tmp_path / "executed").exists()
    rldata("export", "rec", "own", "--format", "minari", "--env", "evil.py:make")
    assert (tmp_path / "executed").exists()


# --- npz ---


def npz_file(path: Path, spec: EnvSpec, /, **changes: Any) -> Path:
    """A file as rldata writes it, with some arrays replaced."""
    formats.write_npz(path, cartpole(), spec)
    with np.load(path) as file:
        arrays: dict[str, Any] = {**file, **changes}
    np.savez(path, **arrays)
    return path


WRONG_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "deep spec": ({"spec": np.array("[" * 100_000)}, "not the JSON that was written"),
    "spec is a list": ({"spec": np.array("[]")}, "not the JSON that was written"),
    "spec is a number": ({"spec": np.array(3)}, "spec is no text"),
    "no step": (
        {"lengths": np.zeros(5, int), "actions": np.zeros(0, int), "rewards": np.zeros(0, np.float32),
         "observations.0": np.zeros((5, 4), np.float32)},
        "lengths are not those of episodes with at least one step"),
    "negative lengths": ({"lengths": np.full(5, -1)}, "lengths are not those of episodes"),
    "one reward": ({"rewards": np.float32(1)}, "lengths"),
    "rewards are text": ({"rewards": np.array(["x"] * 15)}, "rewards holds <U1, and not numbers"),
    "rewards of two axes": ({"rewards": np.ones((15, 1), np.float32)}, "there is one reward for each step"),
    "short flags": ({"whole": np.ones(2, bool)}, "whole has 2 rows, and lengths ask for 5"),
    "short extras": ({"extras.log_prob": np.ones(2)}, "extras.log_prob has 2 rows, and lengths ask for 15"),
    "pickle": ({"actions": np.array([{}] * 15, object)}, "holds a pickle"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_NPZ)
def test_a_wrong_npz_file_has_one_line(kind: str, refused: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    changes, words = WRONG_NPZ[kind]
    file = npz_file(tmp_path / "x.npz", spec, **changes)
    for argv in (["show", file], ["check", file], ["import", file, tmp_path / "in"]):
        assert words in refused(*argv)
    assert not (tmp_path / "in").exists()


def test_one_array_named_npz(refused: Rldata, tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "is no npz file of rldata" in refused("check", tmp_path / "x.npz")


def test_an_npz_header_does_not_choose_the_memory(refused: Rldata, tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("spec.npy", header.getvalue())
    assert "an array of shape (10000000000000,) and type float32 does not have 0 bytes" in refused(
        "show", tmp_path / "x.npz"
    )


def test_an_npz_file_larger_than_the_free_memory(
    refused: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed zeros: the file itself is small."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("spec.npy", bytes(10**6))
    monkeypatch.setattr(foreign, "free_memory", lambda: 10**5)
    assert "does not fit into memory: its arrays take 976.6 KiB, and 97.7 KiB is free" in refused(
        "show", tmp_path / "x.npz"
    )


def test_only_regular_files_are_opened(refused: Rldata, tmp_path: Path) -> None:
    """A pipe would be waited for until someone writes into it."""
    for name in ("x.npz", "x.hdf5", "set/data/metadata.json", "other/data/main_data.hdf5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "set/data/main_data.hdf5").touch()
    assert "x.npz is not a file" in refused("show", tmp_path / "x.npz")
    pytest.importorskip("h5py")
    assert "metadata.json is not a file" in refused("show", tmp_path / "set")
    assert "x.hdf5 is not a file" in refused("show", tmp_path / "x.hdf5", "--env", "CartPole-v1")
    (tmp_path / "other/data/metadata.json").write_text('{"data_format": "hdf5"}')
    assert "main_data.hdf5 is not a file" in refused("show", tmp_path / "other", "--env", "CartPole-v1")


# --- HDF5 ---


def d4rl_file(path: Path, leave_out: str = "", **changes: Any) -> Any:
    """A file of D4RL's layout with 6 steps, open for changes."""
    h5py = pytest.importorskip("h5py")
    arrays = {
        "observations": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
        "actions": np.zeros(6, np.int64),
        "rewards": np.ones(6, np.float32),
        "terminals": np.arange(6) % 3 == 2,
    }
    file = h5py.File(path, "w")
    for name, array in (arrays | changes).items():
        if name != leave_out:
            file[name] = array
    return file


def test_an_hdf5_file_reads_no_other_file(refused: Rldata, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(np.arange(24, dtype=np.float32).tobytes())
    layout = h5py.VirtualLayout((6, 4), "float32")
    layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "observations", (6, 4))
    d4rl_file(tmp_path / "other.hdf5").close()

    def external(file: Any) -> None:
        file.create_dataset("observations", (6, 4), "float32", external=[(str(tmp_path / "secret"), 0, 96)])

    def link_to(link: Any) -> Callable[[Any], None]:
        def put(file: Any) -> None:
            file["observations"] = link

        return put

    other = str(tmp_path / "other.hdf5")
    cases: list[tuple[Callable[[Any], Any], str]] = [
        (external, "observations lies in another file, which is not opened"),
        (lambda file: file.create_virtual_dataset("observations", layout), "observations lies in another file"),
        (link_to(h5py.ExternalLink(other, "observations")), "'observations' is a link, which is not followed"),
        (link_to(h5py.SoftLink("/actions")), "'observations' is a link"),
        (link_to(h5py.SoftLink("/nowhere")), "'observations' is a link"),
    ]
    for put, words in cases:
        with d4rl_file(tmp_path / "x.hdf5", "observations") as file:
            put(file)
        assert words in refused("import", tmp_path / "x.hdf5", tmp_path / "in", "--env", "CartPole-v1")
    with d4rl_file(tmp_path / "x.hdf5") as file:
        file["infos"] = h5py.ExternalLink(other, "/")
    assert "'infos' is a link" in refused("import", tmp_path / "x.hdf5", tmp_path / "in", "--env", "CartPole-v1")
    with d4rl_file(tmp_path / "x.hdf5") as file:
        file["infos/x"] = h5py.ExternalLink(other, "rewards")
    assert "'x' is a link" in refused("import", tmp_path / "x.hdf5", tmp_path / "in", "--env", "CartPole-v1")
    assert not (tmp_path / "in").exists()


def test_a_wrong_hdf5_file_has_one_line(refused: Rldata, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rewards": 5.0}, "rewards is one number, and not an array"),
        ({"rewards": np.ones((6, 2))}, "is no file of D4RL's layout"),
        ({"rewards": np.array([b"x"] * 6)}, "rewards holds |S1, and not numbers"),
        ({"actions": np.zeros(4, int)}, "actions has 4 rows, and rewards have 6"),
        ({"terminals": h5py.Empty("f")}, "terminals is one number"),
        ({name: np.zeros((0, 4)[: 1 + (name[0] == "o")]) for name in ("observations", "actions", "rewards")}
         | {"terminals": np.zeros(0, bool)}, "holds no step"),
    ]  # fmt: skip
    for changes, words in cases:
        d4rl_file(tmp_path / "x.hdf5", **changes).close()
        assert words in refused("check", tmp_path / "x.hdf5", "--env", "CartPole-v1")
    with d4rl_file(tmp_path / "x.hdf5", "observations") as file:
        file.create_group("observations")
    assert "observations is no array" in refused("check", tmp_path / "x.hdf5", "--env", "CartPole-v1")
    with d4rl_file(tmp_path / "x.hdf5", "observations") as file:
        file.create_dataset("observations", (6, 10**11), "float32", chunks=(6, 1024))  # no chunk is stored
    line = refused("check", tmp_path / "x.hdf5", "--env", "CartPole-v1")
    assert "x.hdf5 does not fit into memory: its arrays take 2.2 TiB" in line


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("[]", "not the JSON that was written"),
        ("3", "not the JSON that was written"),
        ("[" * 100_000, "not the JSON that was written"),
        ('{"data_format": "hdf5", "rltrain_spec": 3}', "its spec is no text"),
        ('{"data_format": "hdf5", "rltrain_spec": "{"}', "not the JSON that was written"),
        ('{"data_format": ["x"]}', "rldata reads Minari's hdf5"),
        ('{"data_format": "hdf5"}', "add --env ENV"),
    ],
)
def test_wrong_metadata_of_minari_has_one_line(about: str, words: str, refused: Rldata, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/main_data.hdf5").touch()
    (tmp_path / "data/metadata.json").write_text(about)
    assert words in refused("check", tmp_path)


def test_an_episode_of_minari_without_a_step_has_one_line(refused: Rldata, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "metadata.json").write_text('{"data_format": "hdf5"}')
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0/rewards"] = np.zeros(0, np.float32)
    assert "episode 0 has no step" in refused("check", tmp_path, "--env", "CartPole-v1")


# --- any damage ---


@pytest.mark.parametrize("kind", ["npz", "npz, compressed", "d4rl"])
def test_any_damage_is_read_or_refused(kind: str, spec: EnvSpec, tmp_path: Path) -> None:
    """Flipped bits, cut ends and zeros: the file is read, or there is one CheckpointError, and nothing else."""
    rng, path = np.random.default_rng(0), tmp_path / ("x.hdf5" if kind == "d4rl" else "x.npz")
    if kind == "d4rl":
        d4rl_file(path).close()
    elif kind == "npz":
        npz_file(path, spec)
    else:
        formats.write_npz(path, cartpole(), spec)
    sound, given, refused = path.read_bytes(), ["--env", "CartPole-v1"] if kind == "d4rl" else [], list[str]()
    for number in range(100):
        data = bytearray(sound)
        for at in rng.integers(len(data), size=1 + number % 4):
            data[at] ^= 1 << int(rng.integers(8))
        if number % 5 == 1:
            data = data[: rng.integers(len(data))]
        elif number % 5 == 2:
            begin = int(rng.integers(len(data)))
            data[begin : begin + 40] = bytes(len(data[begin : begin + 40]))
        path.write_bytes(data)
        try:
            run_data(["check", str(path), *given], "1")
            run_data(["show", str(path), *given], "1")
        except CheckpointError as error:
            refused.append(str(error))
    assert 20 <= len(refused) <= 100
    assert not any("\n" in line for line in refused)


# --- numbers ---


def test_show_counts_actions_outside_of_their_space(rldata: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    actions = np.array([0] * 6 + [1] * 3 + [-5] * 3 + [10**12] * 3)
    text = rldata("show", npz_file(tmp_path / "x.npz", spec, actions=actions))
    assert "  shares: [0.4, 0.2]\n  share out of range: 0.4\n" in text


def test_show_prints_null_for_what_is_not_known(rldata: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    """JSON has no NaN."""
    text = rldata("show", npz_file(tmp_path / "x.npz", spec, terminated=np.zeros(5, bool)), "--json")
    values = json.loads(text, parse_constant=pytest.fail)
    assert values["return_mean"] is None
    assert values["length_quartiles"] == [None] * 5


def test_extras_and_masks_that_differ_are_not_imported(refused: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    masked = replace(spec, action_mask=True)
    assert "action mask is missing in 5 of 5 episodes" in refused(
        "import", npz_file(tmp_path / "x.npz", masked), tmp_path / "in"
    )
    episodes = cartpole()
    episodes[2] = replace(episodes[2], extras={"log_prob": np.zeros(3, np.float32)})
    (found,) = findings(episodes, spec)
    assert found.text.startswith("what is also recorded of 1 of 5 episodes (numbers 2) is not that of the first one")


# --- parquet and Arrow ---


@pytest.mark.parametrize("wrong", ["O", "U5000", "U200000000", "datetime64[s]", "V8", 3, ["float32"], None])
@pytest.mark.parametrize("column", ["rewards", "observations.0"])
def test_a_parquet_file_does_not_choose_any_type(
    wrong: Any, column: str, refused: Rldata, spec: EnvSpec, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columnar.write_parquet(tmp_path / "x.parquet", cartpole(), spec)
    table = parquet.read_table(tmp_path / "x.parquet")
    about = json.loads(table.schema.metadata[columnar.ABOUT])
    about["forms"][column][0] = wrong
    changed = table.replace_schema_metadata({columnar.ABOUT: json.dumps(about).encode()})
    parquet.write_table(changed, tmp_path / "y.parquet")
    line = refused("import", tmp_path / "y.parquet", tmp_path / "in")
    assert f"the type of {column} is {str(wrong)[:50]!r}, no number's" in line


def test_values_that_a_parquet_file_stores_once_do_not_exceed_the_memory(
    refused: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000,000 equal numbers take some kilobytes in the file, compressed or not, and 16 MB in memory."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zeros = np.zeros(2_000_000)
    rows = pa.ListArray.from_arrays(np.arange(0, 2_000_001, 20_000, dtype=np.int32), pa.array(zeros))
    columns = {"obs": rows, "action": zeros[:100], "reward": zeros[:100], "terminated": zeros[:100] > 0}
    monkeypatch.setattr(foreign, "free_memory", lambda: 10 * 2**20)
    for compression in ("zstd", "none"):
        path = tmp_path / f"{compression}.parquet"
        parquet.write_table(pa.table(columns), path, compression=compression)
        assert path.stat().st_size < 100_000
        before = pa.total_allocated_bytes()
        assert "does not fit into memory" in refused("show", path, "--env", "CartPole-v1")
        assert pa.total_allocated_bytes() - before < 2**20


def arrow_set(folder: Path, spec: EnvSpec) -> Path:
    """A data set of Minari's Arrow form, of two episodes."""
    pytest.importorskip("pyarrow")
    minari = pytest.importorskip("minari")
    assert minari
    env = gymnasium.make("CartPole-v1")
    formats.write_minari(folder, cartpole(2), spec, env, "set", "arrow")
    env.close()
    return folder


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_the_uncompressed_sizes_of_arrow_files_count_together(
    kind: str, rldata: Rldata, refused: Rldata, spec: EnvSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each episode alone fits into the memory that is free, and both do not."""
    folder = arrow_set(tmp_path / "set", spec)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in "01":
        first = folder / "data" / number / "part-0.arrow"
        table = pa.ipc.open_file(first.read_bytes()).read_all()
        table = table.append_column("more", pa.array(np.zeros(4)))
        rows = pa.ListArray.from_arrays(np.array([0, 0, 0, 0, 10**6], np.int32), pa.array(np.zeros(10**6)))
        table = table.append_column("zeros", rows)
        if kind == "parquet":
            first.unlink()
            parquet.write_table(table, first.with_name("part-0.parquet"), compression="zstd")
        else:
            with pa.OSFile(str(first), "wb") as sink:
                options = pa.ipc.IpcWriteOptions(compression="zstd")
                with pa.ipc.new_file(sink, table.schema, options=options) as out:
                    out.write_table(table)
            assert first.stat().st_size < 20_000
    assert "6 steps in 2 episodes" in rldata("import", folder, tmp_path / "in")
    monkeypatch.setattr(foreign, "free_memory", lambda: 12 * 2**20)
    assert "set does not fit into memory" in refused("show", folder)


@pytest.mark.parametrize("place", ["data", "data/1", "data/1/part-0.arrow", "data/metadata.json"])
def test_links_inside_a_data_set_are_not_followed(place: str, refused: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    folder, secret = arrow_set(tmp_path / "set", spec), tmp_path / "secret"
    (folder / place).rename(secret)
    (folder / place).symlink_to(secret)
    assert "is a link, which is not followed" in refused("show", folder, "--format", "minari-arrow")


def test_an_arrow_file_begins_with_its_schema(refused: Rldata, spec: EnvSpec, tmp_path: Path) -> None:
    folder = arrow_set(tmp_path / "set", spec)
    pa = pytest.importorskip("pyarrow")
    batch = pa.record_batch({"rewards": np.zeros(4)}).serialize().to_pybytes()
    (folder / "data" / "0" / "part-0.arrow").write_bytes(b"ARROW1\0\0" + batch + b"ARROW1")
    assert "it begins with a record batch" in refused("show", folder)
