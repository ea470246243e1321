"""A party's models on its disk: whole or not there, their owner's alone, and still there after a restart."""

import uuid
from dataclasses import replace

import numpy as np
import pytest
from hosting import LIMITS, WEIGHTS, product_model
from spu import api, libspu

from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig
from cipherdm.engine.wire import pieces
from cipherdm.hosts.refusals import Forbidden, TooMuch
from cipherdm.hosts.store import ModelStore


def upload(name: str = "product"):
    """A manifest, and party 0's shares of its values."""
    share = api.Io(3, EngineConfig().runtime_config()).make_shares(WEIGHTS, libspu.Visibility.VIS_SECRET)[0]
    return product_model(name).manifest(uuid.uuid4().hex), list(pieces("", "w", share))


def publish(store: ModelStore, owner: str, name: str = "product"):
    manifest, shares = upload(name)
    store.stage(owner, manifest, iter(shares))
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
        (shares * 2, CipherDMError, "was not declared, or came twice"),
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


def test_a_damaged_store_is_named(tmp_path):
    manifest, _ = publish(ModelStore(tmp_path, LIMITS), "owner")
    (tmp_path / "models" / manifest.registration / "manifest").write_bytes(b"\xff" * 9)
    with pytest.raises(CipherDMError, match="product.json names cannot be read"):
        ModelStore(tmp_path, LIMITS)
