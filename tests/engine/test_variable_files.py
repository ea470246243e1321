"""Variables in the parties' files: written whole, computed with as if they were in memory, and there for the next processes."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from words import product

from cipherdm import CipherDMError, LocalCluster
from cipherdm.engine import EngineConfig, Node, Spec, Walking, compile_plan
from cipherdm.engine.config import PartyConfig
from cipherdm.engine.variable_files import StoredShare, VariableFiles
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, decode, encode

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=18)


def added(x, y):
    return x + y


def squared(x):
    return x * x


def two_values(session, *, in_files):
    values = {"unet/a.weight": np.float32([1.5, -2]), "unet/b.weight": np.float32([4, 0.25])}
    session.share(values, in_files=in_files)
    return values


def sum_plan(**rest):
    spec = Spec((2,))
    nodes = [
        Node("add", added, ("unet/a.weight", "unet/b.weight"), ("sum",)),
        Node("square", squared, ("sum",), ("square",)),
    ]
    return compile_plan(nodes, {"unet/a.weight": spec, "unet/b.weight": spec}, keep=["sum", "square"], **rest)


def folders(path):
    """What the parties have in their files, by party."""
    return {folder.name: {file.name for file in folder.rglob("*.share")} for folder in sorted(path.iterdir())}


@given(shares=st.dictionaries(NAMES, st.tuples(st.binary(), st.lists(st.binary(), max_size=3)), max_size=3))
def test_what_is_written_is_read_by_whoever_comes_next(tmp_path_factory, shares):
    folder = tmp_path_factory.mktemp("files")
    files = VariableFiles(folder / "session")
    for name, (meta, chunks) in shares.items():
        files.write(name, StoredShare(meta, tuple(chunks)))
    after = VariableFiles(folder / "session")
    for name, (meta, chunks) in shares.items():
        assert name in after and after.read(name) == StoredShare(meta, tuple(chunks))
    assert {path.parent for path in folder.rglob("*.share")} <= {folder / "session"}  # whatever the names are
    after.clear()
    assert not list(folder.iterdir())


def test_what_a_killed_process_has_half_written_is_no_variable(tmp_path):
    (tmp_path / ".v-x-1234.share").write_bytes(b"half")
    assert ".v-x-1234" not in VariableFiles(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 7, 20, 30])
def test_a_file_that_was_cut_off_is_named(tmp_path, cut):
    files = VariableFiles(tmp_path)
    files.write("half", StoredShare(b"meta", (b"first", b"second")))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CipherDMError, match="'half'.*share the variable again"):
        files.read("half")


@pytest.mark.parametrize("place", [0, 8, 20, 40, -1])
def test_one_bit_of_a_file_that_has_changed_is_noticed(tmp_path, place):
    files = VariableFiles(tmp_path)
    files.write("x", StoredShare(b"meta", (b"first", b"second")))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    for bit in range(8):
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(CipherDMError, match="the file of 'x'.*share the variable again"):
            files.read("x")
        data[place] ^= 1 << bit
    path.write_bytes(data)
    assert files.read("x").meta == b"meta"


def test_a_file_of_another_name_is_not_taken(tmp_path):
    files = VariableFiles(tmp_path)
    for name in "xy":
        files.write(name, StoredShare(b"meta", (name.encode(),)))
    (tmp_path / "v-y.share").replace(tmp_path / "v-x.share")
    with pytest.raises(CipherDMError, match="the file of 'x' is not as it was written"):
        files.read("x")


def test_only_the_user_can_open_the_files(tmp_path):
    VariableFiles(tmp_path / "session").write("x", StoredShare(b"", ()))
    assert (tmp_path / "session").stat().st_mode & 0o077 == 0
    assert (tmp_path / "session" / "v-x.share").stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path):
    with pytest.raises(CipherDMError, match="too long"):
        VariableFiles(tmp_path).write("x" * 300, StoredShare(b"", ()))


@pytest.mark.parametrize("value", [np.zeros((0, 3), np.float32), np.arange(6, dtype=np.int32), np.array([True, False])])
def test_what_is_shared_into_files_comes_back(session, value):
    session.share({"value": value}, in_files=True)
    np.testing.assert_array_equal(session.reveal("value"), value)
    session.delete(["value"])
    with pytest.raises(CipherDMError, match="no variable 'value'"):
        session.reveal("value")


@pytest.mark.parametrize("to_files", [(), ("sum",), ("sum", "square")])
def test_programs_compute_on_files_as_on_memory(session, to_files):
    values = two_values(session, in_files=True)
    session.run(sum_plan(files=to_files))
    expected = sum(values.values())
    np.testing.assert_allclose(session.reveal("sum"), expected, atol=1e-4)
    np.testing.assert_allclose(session.reveal("square"), expected**2, atol=1e-3)
    session.delete([*values, "sum", "square"])


def test_a_newer_value_replaces_an_older_one_wherever_that_is(session):
    for in_files in (True, False, True):
        value = np.float32([in_files, 2])
        session.share({"x": value}, in_files=in_files)
        np.testing.assert_allclose(session.reveal("x"), value, atol=1e-4)
    double = compile_plan([Node("double", lambda x: x + x, ("x",), ("x",))], {"x": Spec((2,))}, keep=["x"])
    session.run(double)  # reads the file and writes memory
    np.testing.assert_allclose(session.reveal("x"), 2 * value, atol=1e-4)
    session.delete(["x"])


def test_walks_read_weights_from_files(cluster):
    session = cluster.session(EngineConfig(fraction_bits=ENGINE_FRACTION_BITS))
    generator = np.random.default_rng(0)
    node, walking = Node("layer", product, ("w", "x"), ("y",)), Walking(ENGINE_FRACTION_BITS)
    plan = compile_plan([node], {"w": Spec((3, 5)), "x": Spec((5, 4))}, ["y"], walking=walking)
    for _ in range(2):  # the second time with new values under the same names
        w, x = (generator.integers(-9, 10, shape).astype(np.float32) for shape in ((3, 5), (5, 4)))
        session.share({"w": encode(w, 0, ring=True), "x": encode(x, 0, ring=True)}, in_files=True)
        session.run(plan)
        np.testing.assert_array_equal(decode(session.reveal("y"), 0, ring=True), w @ x)


def test_files_are_there_for_the_next_processes(tmp_path):
    with LocalCluster(files=tmp_path / "kept") as cluster:
        session = cluster.session(files="run")
        values = two_values(session, in_files=True)
        session.share({"in-memory": np.float32(1)})
        session.run(sum_plan(files=("sum",)))
    kept = folders(tmp_path / "kept")
    assert set(kept) == {"party0", "party1", "party2"}
    assert all(len(files) == 3 for files in kept.values())
    with LocalCluster(files=tmp_path / "kept") as cluster:
        session = cluster.session(files="run")
        expected = sum(values.values())
        np.testing.assert_allclose(session.reveal("sum"), expected, atol=1e-4)
        plan = compile_plan([Node("square", squared, ("sum",), ("square",))], {"sum": Spec((2,))}, keep=["square"])
        session.run(plan)
        np.testing.assert_allclose(session.reveal("square"), expected**2, atol=1e-3)
        with pytest.raises(CipherDMError, match="in-memory"):
            session.reveal("in-memory")
        other = cluster.session(files="other")
        with pytest.raises(CipherDMError, match="sum"):
            other.reveal("sum")
        session.delete(["sum"])
        session.close()
    assert all(len(files) == 2 for files in folders(tmp_path / "kept").values())


def test_temporary_files_go_with_their_session(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path, as sockets need
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with LocalCluster() as cluster:
            session = cluster.session()
            two_values(session, in_files=True)
            assert len(list(Path(folder).rglob("*.share"))) == 6
            session.close()
            assert not list(Path(folder).rglob("*.share"))


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "x" * 65, "."])
def test_a_session_takes_no_other_folder(tmp_path, name):
    with LocalCluster(files=tmp_path) as cluster:
        with pytest.raises(CipherDMError, match="no name for a session's files"):
            cluster.session(files=name)
    assert os.listdir(tmp_path) == []


def test_without_a_folder_files_do_not_outlive_the_cluster(cluster):
    with pytest.raises(CipherDMError, match="give LocalCluster `files`"):
        cluster.session(files="run")


def test_the_peak_of_memory_counts_from_when_it_was_reset(session):
    """Eight variables of 32 MiB in files take less than four of them in memory at any time."""
    names = [f"large{index}" for index in range(8)]
    for name in names:
        session.share({name: np.zeros(1 << 21, np.float32)}, in_files=True)
    nodes = [Node("sum", total, (name,), (f"{name}.sum",)) for name in names]
    plan = compile_plan(nodes, dict.fromkeys(names, Spec((1 << 21,))), keep=[])
    session.peak_memory(reset=True)
    before = session.peak_memory()
    session.run(plan)
    after = session.peak_memory()
    session.delete(names)
    assert all(new - old < 4 << 25 for new, old in zip(after, before, strict=True))


def total(x):
    return x.sum()


def test_the_folder_is_in_a_partys_configuration(tmp_path):
    config = PartyConfig(0, tmp_path, (tmp_path / "a", tmp_path / "b", tmp_path / "c"), "name", files=tmp_path / "kept")
    assert PartyConfig.from_json(config.to_json()) == config
