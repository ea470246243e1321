import gzip
import shutil

import numpy as np
import pytest

from cipherdm.datasets import FOLDER, REVIEWS, load_mnist, load_reviews
from cipherdm.errors import CipherDMError

TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
MD5 = "2646ac647ad5339dbf082846283269ea"


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "mnist")


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_shapes_and_ranges(split, count):
    digits = load_mnist(split)
    assert len(digits) == count
    assert digits.images.shape == (count, 1, 28, 28) and digits.images.dtype == np.float32
    assert digits.images.min() == -1 and digits.images.max() == 1
    assert digits.labels.shape == (count,) and digits.labels.dtype == np.int64
    assert set(digits.labels) == set(range(10))


def test_subset_keeps_order_and_nothing_else():
    everything, some = load_mnist("test"), load_mnist("test", digits=(1, 0))
    chosen = everything.labels <= 1
    np.testing.assert_array_equal(some.labels, everything.labels[chosen])
    np.testing.assert_array_equal(some.images, everything.images[chosen])


def test_flipped_byte_in_the_contents_is_found(copied):
    path = copied / TEST_IMAGES
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(raw), 1))
    with pytest.raises(
        CipherDMError, match=f"(?s){TEST_IMAGES}.*have MD5 [0-9a-f]{{32}}.*Expected .* MD5 {MD5}.*Restore"
    ):
        load_mnist("test", folder=copied)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_package_is_found(copied, damage):
    path = copied / TEST_IMAGES
    packed = bytearray(path.read_bytes())
    if damage == "flip":
        packed[len(packed) // 2] ^= 0xFF
    path.write_bytes({"flip": packed, "truncate": packed[: len(packed) // 2], "empty": b""}[damage])
    with pytest.raises(CipherDMError, match=f"(?s){TEST_IMAGES}.*damaged.*{MD5}.*Restore"):
        load_mnist("test", folder=copied)


def test_missing_file_is_named(copied):
    (copied / TEST_IMAGES).unlink()
    with pytest.raises(CipherDMError, match=f"(?s){TEST_IMAGES}.*{MD5}.*Restore"):
        load_mnist("test", folder=copied)


def test_other_split_is_not_touched_by_damage(copied):
    (copied / "train-images-idx3-ubyte.gz").unlink()
    assert len(load_mnist("test", folder=copied)) == 10_000


def test_bad_arguments():
    with pytest.raises(CipherDMError, match="split 'validation'"):
        load_mnist("validation")
    for digits in ((), (10,), (-1, 2)):
        with pytest.raises(CipherDMError, match="0 to 9"):
            load_mnist("test", digits=digits)


def test_reviews_are_split_by_their_text():
    splits = {split: load_reviews(split) for split in ("train", "development", "test")}
    assert [len(reviews) for reviews in splits.values()] == [8066, 1001, 1005]
    texts = [text for reviews in splits.values() for text in reviews.texts]
    assert len(set(texts)) > 0.99 * len(texts)
    assert not set(splits["test"].texts) & set(splits["train"].texts)
    for reviews in splits.values():
        assert set(reviews.labels) == {0, 1} and 0.48 < reviews.labels.mean() < 0.51
        assert all(text == text.strip() != "" for text in reviews.texts)


def test_another_file_of_reviews_is_refused(tmp_path):
    path = tmp_path / "reviews.txt"
    with pytest.raises(CipherDMError, match="cannot be read"):
        load_reviews("test", path=path)
    path.write_bytes(REVIEWS.read_bytes() + b"\n")
    with pytest.raises(CipherDMError, match="SHA-256"):
        load_reviews("test", path=path)
    with pytest.raises(CipherDMError, match="no split 'dev'"):
        load_reviews("dev")
