"""A party's models on its disk: whole or not there, their owner's alone, and still there after a restart."""

import re
import uuid
from dataclasses import replace

import numpy as np
import pytest
from hosting import LIMITS, WEIGHTS, product_model
from spu import api, libspu

import cipherdm.files
import cipherdm.hosts.store
from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig, Spec
from cipherdm.engine.party_pb2 import SharePiece
from cipherdm.engine.wire import pieces
from cipherdm.hosts.manifest import checked_shares, variable
from cipherdm.hosts.refusals import Forbidden, TooMuch
from cipherdm.hosts.store import ModelStore

pytestmark = pytest.mark.attack


def upload(name: str = "product"):
    """A manifest, and party 0's shares of its values."""
    share = api.Io(3, EngineConfig().runtime_config()).make_shares(WEIGHTS, libspu.Visibility.VIS_SECRET)[0]
    return product_model(name).manifest(uuid.uuid4().hex), list(pieces("", "w", share))


def publish(store: ModelStore, owner: str, name: str = "product"):
    manifest, shares = upload(name)
    store.stage(owner, manifest, iter(shares))
    for _ in range(2):  # the second time when all three parties have done so
        store.publish(owner, name, manifest.registration)
    return manifest, shares


def files(folder) -> set[str]:
    return {path.name for path in (folder / "models").iterdir()}


def test_a_model_is_there_once_published_and_after_a_restart(tmp_path):
    store = ModelStore(tmp_path / "state", LIMITS)
    manifest, shares = upload()
    store.stage("owner", manifest, iter(shares))
    assert store.get("product") is None and store.all() == []
    store.publish("owner", "product", manifest.registration)
    again = ModelStore(tmp_path / "state", LIMITS).get("product")
    for model in (store.get("product"), again):
        assert (model.owner, model.manifest) == ("owner", manifest)
        assert list(model.pieces()) == shares
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_replacing_and_removing_leave_nothing_behind(tmp_path):
    store = ModelStore(tmp_path, LIMITS)
    publish(store, "owner")
    second, _ = publish(store, "owner")
    assert files(tmp_path) == {second.registration}
    manifest, shares = upload()
    store.stage("owner", manifest, iter(shares))  # never published
    store.stage("owner", *(lambda m, s: (m, iter(s)))(*upload()))  # which replaces it
    assert len(files(tmp_path)) == 2
    store = ModelStore(tmp_path, LIMITS)
    assert files(tmp_path) == {second.registration}
    store.remove("owner", "product")
    assert files(tmp_path) == set() and ModelStore(tmp_path, LIMITS).all() == []


def test_another_owner_cannot_touch_a_model(tmp_path):
    store = ModelStore(tmp_path, LIMITS)
    publish(store, "owner")
    manifest, shares = upload()
    for attempt in (
        lambda: store.stage("rival", manifest, iter(shares)),
        lambda: store.publish("rival", "product", manifest.registration),
        lambda: store.remove("rival", "product"),
    ):
        with pytest.raises(Forbidden, match="belongs to another owner"):
            attempt()
    other, _ = upload("other")
    store.stage("owner", other, iter(shares))
    with pytest.raises(CipherDMError, match="no upload of 'other' to publish"):
        store.publish("rival", "other", other.registration)


def test_uploads_that_are_not_whole_or_too_much_leave_nothing(tmp_path):
    store = ModelStore(tmp_path, replace(LIMITS, models=1))
    manifest, shares = upload()
    other = replace(product_model(), values={"w": np.ones((6, 8), np.int32)})
    for given, kind, message in (
        ([], CipherDMError, "share of 'w' is missing"),
        (shares * 2, CipherDMError, "share of 'w' does not come in the pieces"),
    ):
        with pytest.raises(kind, match=message):
            store.stage("owner", manifest, iter(given))
        assert files(tmp_path) == set()
    with pytest.raises(CipherDMError, match=r"share of 'w' is not int32\[6, 8\]"):
        store.stage("owner", other.manifest(uuid.uuid4().hex), iter(shares))
    small = ModelStore(tmp_path, replace(LIMITS, model_bytes=manifest.ByteSize() + 100))
    with pytest.raises(TooMuch, match="larger than"):
        small.stage("owner", manifest, iter(shares))
    assert files(tmp_path) == set()
    publish(store, "owner")
    with pytest.raises(TooMuch, match="owner has 1 models already"):
        publish(store, "owner", "another")


def reshaped(piece, **about):
    """A piece with other bytes in its chunk, or another head."""
    chunk, piece = libspu.ValueChunk(), SharePiece.FromString(piece.SerializeToString())
    chunk.ParseFromString(piece.chunk)
    for field, value in about.items():
        setattr(chunk if hasattr(chunk, field) else piece, field, value)
    if "chunk" not in about:
        piece.chunk = chunk.SerializeToString()
    return piece


@pytest.mark.parametrize(
    "changes",
    [
        [{"content": b"x" * 64}],
        [{"content": b"x" * 64, "total_bytes": 64}],
        [{"content": b"", "total_bytes": 0}],
        [{"content": b""}],
        [{"chunk": b""}],
        [{"chunk": b"\xff" * 100}],
        [{"chunk": b"", "chunk_count": 0}],
        [{"content": b"x" * 2 * 768, "total_bytes": 2 * 768}],
        [{"content": b"x" * 2 * 768}],
        [{"chunk_offset": 1 << 20}],
        [{"total_bytes": 1 << 40}],
        [{"chunk_index": 1}],
        [{"chunk_count": 2}, {"chunk_count": 2, "chunk_index": 1}],
        [{"content": b"x" * 384, "chunk_count": 2}, {"content": b"x" * 384, "chunk_count": 7, "chunk_index": 1}],
        [
            {"content": b"x" * 384, "chunk_count": 2},
            {"content": b"x" * 384, "chunk_count": 2, "chunk_index": 1, "chunk_offset": 384},
        ],
    ],
)
def test_shares_come_in_the_pieces_that_their_shape_needs(tmp_path, changes):
    store = ModelStore(tmp_path, LIMITS)
    manifest, (piece,) = upload()
    with pytest.raises(CipherDMError, match="share of 'w' (does not come in the pieces|is missing)"):
        store.stage("owner", manifest, iter([reshaped(piece, **about) for about in changes]))
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "value", [np.zeros((0, 2), np.float32), np.arange(6, dtype=np.int64), np.array([True, False]), 1.5]
)
@pytest.mark.parametrize("public", [False, True])
def test_shares_as_spu_makes_them_are_accepted(value, public):
    visibility = libspu.Visibility.VIS_PUBLIC if public else libspu.Visibility.VIS_SECRET
    value = np.asarray(value)
    declared = [variable(name, Spec.of(value, public=public)) for name in "ab"]
    shares = api.Io(3, EngineConfig().runtime_config()).make_shares(value, visibility)
    sent = [piece for name in "ba" for piece in pieces("", name, shares[0])]
    assert list(checked_shares(sent, declared)) == sent


def test_a_name_stands_for_what_it_stood_for_until_all_have_published(tmp_path):
    store = ModelStore(tmp_path, LIMITS)
    first, _ = publish(store, "owner")
    second, shares = upload()
    store.stage("owner", second, iter(shares))
    store.publish("owner", "product", second.registration)
    for now in (store, ModelStore(tmp_path, LIMITS)):
        assert [model.manifest for model in now.all()] == [second, first]
        assert now.get("product").manifest == second
        for model in now.all():
            assert now.get("product", model.digest) == model
            model.check()
    store.publish("owner", "product", second.registration)
    assert [model.manifest for model in store.all()] == [second] and files(tmp_path) == {second.registration}


def test_publications_that_never_end_do_not_fill_the_disk(tmp_path):
    store = ModelStore(tmp_path, LIMITS)
    for _ in range(5):
        manifest, shares = upload()
        store.stage("owner", manifest, iter(shares))
        store.publish("owner", "product", manifest.registration)
    assert len(files(tmp_path)) == 3 and store.get("product").manifest == manifest
    store.remove("owner", "product")
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"!" + data[41:]]
)
@pytest.mark.parametrize("file", ["manifest", "json"])
def test_a_damaged_model_is_set_aside_and_the_others_are_there(tmp_path, file, damage):
    store = ModelStore(tmp_path, LIMITS)
    manifest, _ = publish(store, "owner")
    publish(store, "owner", "other")
    registered = tmp_path / "models" / manifest.registration / "manifest"
    path = registered if file == "manifest" else tmp_path / "published" / "product.json"
    path.write_bytes(damage(path.read_bytes()))
    store = ModelStore(tmp_path, LIMITS)
    assert [model.manifest.name for model in store.all()] == ["other"] and store.get("product") is None
    assert list(store.aside) == ["product"] and "product.json names cannot be read" in store.aside["product"]
    assert manifest.registration in files(tmp_path)
    publish(store, "owner")
    assert not store.aside
    assert len(files(tmp_path)) == 3 and len(ModelStore(tmp_path, LIMITS).all()) == len(files(tmp_path)) == 2


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_killed_process_has_half_published_is_no_model(tmp_path, whole):
    publish(ModelStore(tmp_path, LIMITS), "owner")
    published = tmp_path / "published"
    left = published / ".product-1a2b3c4d.json"
    left.write_bytes((published / "product.json").read_bytes() if whole else b"")
    store = ModelStore(tmp_path, LIMITS)
    assert [model.manifest.name for model in store.all()] == ["product"]
    assert not store.aside and not left.exists()


def test_one_bit_of_the_shares_that_has_changed_is_noticed(tmp_path):
    store = ModelStore(tmp_path, LIMITS)
    manifest, _ = publish(store, "owner")
    other, _ = publish(store, "owner", "other")
    path = tmp_path / "models" / manifest.registration / "shares"
    data = path.read_bytes()
    store.get("product").check()
    for changed in (
        data[:300] + bytes([data[300] ^ 1]) + data[301:],
        data[:-1],
        data + b"x",
        b"",
        (tmp_path / "models" / other.registration / "shares").read_bytes(),  # of another upload, or another party
    ):
        path.write_bytes(changed)
        for now in (store, ModelStore(tmp_path, LIMITS)):
            with pytest.raises(
                CipherDMError, match="the shares of 'product' on the disk have changed; register it again"
            ):
                now.get("product").check()


def test_files_of_shares_are_for_this_user_only(tmp_path):
    tmp_path.chmod(0o755)  # somebody has made it before
    publish(ModelStore(tmp_path, LIMITS), "owner")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == 3 and all(path.stat().st_mode & 0o777 == 0o600 for path in found)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_models_reach_the_disk_before_they_are_published(tmp_path, monkeypatch):
    store = ModelStore(tmp_path, LIMITS)
    synchronised = []
    for module in (cipherdm.files, cipherdm.hosts.store):
        monkeypatch.setattr(module, "synchronise", lambda path: synchronised.append(re.sub(r"-\w{8}", "", path.name)))
    manifest, shares = upload()
    store.stage("owner", manifest, iter(shares))
    assert synchronised == ["shares", ".manifest", manifest.registration, "models"]
    store.publish("owner", "product", manifest.registration)
    assert synchronised[4:] == [".product.json", "published"]


def test_uploads_in_hand_count(tmp_path):
    """An owner cannot go beyond its limit with uploads that begin before the others end."""
    store = ModelStore(tmp_path, replace(LIMITS, models=2))
    publish(store, "owner")

    manifest, shares = upload("second")

    def pieces():
        for name in ("second", "third"):
            with pytest.raises(TooMuch, match="owner has 2 models already"):
                store.stage("owner", upload(name)[0], iter(()))
        yield from shares

    store.stage("owner", manifest, pieces())
    store.publish("owner", "second", manifest.registration)


def test_uploads_that_nobody_publishes_do_not_stay(tmp_path, monkeypatch):
    store = ModelStore(tmp_path, replace(LIMITS, models=1))
    manifest, shares = upload()
    store.stage("owner", manifest, iter(shares))
    with pytest.raises(TooMuch, match="owner has 1 models already"):
        store.stage("owner", upload("another")[0], iter(shares))
    monkeypatch.setattr(cipherdm.hosts.store, "_UNPUBLISHED_FOR", 0.0)
    another, shares = upload("another")
    store.stage("owner", another, iter(shares))
    assert files(tmp_path) == {another.registration}
