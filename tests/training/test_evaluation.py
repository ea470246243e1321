from dataclasses import asdict, replace

import numpy as np
import pytest
from diffusers import UNet2DModel

from cipherdm.datasets import load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.likeness import BEST_PSNR, Likeness
from cipherdm.records import read_record
from cipherdm_experiments.training.classifier import FOLDER, classify, load_classifier, train_classifier
from cipherdm_experiments.training.evaluation import (
    diffusers_sampler,
    evaluate,
    frechet_distance,
    model_digits,
    score_images,
)


@pytest.fixture(scope="module")
def real():
    return load_mnist("test")


def test_classifier_reads_mnist(real):
    predicted, features = classify(load_classifier(), real.images)
    assert (predicted == real.labels).mean() > 0.99
    assert features.shape == (10_000, 84) and features.dtype == np.float64


@pytest.mark.slow
def test_classifier_can_be_trained_again(tmp_path):
    assert train_classifier(tmp_path, epochs=1, progress=False) > 0.97
    assert load_classifier(tmp_path)


def test_classifier_missing_or_damaged(tmp_path):
    with pytest.raises(CipherDMError, match="(?s)lenet.safetensors.*git checkout"):
        load_classifier(tmp_path)
    (tmp_path / "lenet.safetensors").write_bytes((FOLDER / "lenet.safetensors").read_bytes()[:5000])
    with pytest.raises(CipherDMError, match="(?s)lenet.safetensors.*git checkout"):
        load_classifier(tmp_path)


def test_distance_of_a_set_to_itself_is_zero():
    features = np.random.default_rng(0).standard_normal((500, 20))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_distance_of_a_constant_feature_is_finite():
    features = np.random.default_rng(0).standard_normal((500, 20))
    features[:, 3] = 0  # a singular covariance
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_distance_of_a_moved_and_stretched_set_is_the_closed_form():
    # For y = a x + b with the same covariance directions: |(a - 1) m + b|^2 + (a - 1)^2 tr C.
    generator = np.random.default_rng(1)
    x = generator.standard_normal((400, 6)) @ generator.standard_normal((6, 6))
    b = generator.standard_normal(6)
    expected = ((2 * x.mean(0) + b) ** 2).sum() + 4 * np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(x, 3 * x + b) == pytest.approx(expected, rel=1e-9)


def test_distance_of_gaussians_in_other_directions():
    # Two dimensions by hand: tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    generator = np.random.default_rng(2)
    x = generator.standard_normal((300, 2)) @ generator.standard_normal((2, 2))
    y = generator.standard_normal((200, 2)) @ generator.standard_normal((2, 2)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_real_images_score_well_and_noise_badly(real):
    training = load_mnist("train", digits=(0, 1))
    good = score_images(training.images[:500], training.labels[:500], (0, 1))
    assert good.accuracy > 0.99 and good.f1 > 0.99 and good.count == 500
    swapped = score_images(training.images[:500], 1 - training.labels[:500], (0, 1))
    assert swapped.accuracy < 0.01 and swapped.f1 < 0.01
    noise = np.random.default_rng(0).standard_normal((500, 1, 28, 28))
    bad = score_images(noise, np.arange(500) % 2, (0, 1))
    assert bad.lenet_fid > 10 * good.lenet_fid
    same = score_images(real.images, real.labels, range(10))
    assert same.lenet_fid == pytest.approx(0, abs=1e-6)
    assert asdict(same) == {
        "accuracy": same.accuracy,
        "f1": same.f1,
        "lenet_fid": same.lenet_fid,
        "count": 10_000,
        "overflowed": 0,
    }


def test_labels_are_positions_in_digits(real):
    chosen = np.isin(real.labels, (7, 4))
    labels = np.where(real.labels[chosen] == 7, 0, 1)
    assert score_images(real.images[chosen], labels, (7, 4)).accuracy > 0.98


def test_evaluate_draws_balanced_batches(real):
    calls, progress = [], []

    def sampler(labels, seed):
        calls.append((len(labels), seed))
        return np.stack([real.images[np.flatnonzero(real.labels == label)[seed]] for label in labels])

    scores = evaluate(
        sampler, range(10), count=25, batch=10, seed=5, on_batch=lambda done, count: progress.append((done, count))
    )
    assert calls == [(10, 5), (10, 6), (5, 7)] and progress == [(10, 25), (20, 25), (25, 25)]
    assert scores.count == 25 and scores.accuracy > 0.9


def test_likeness_by_hand():
    """A constant error of a tenth is 20 log10(2 / 0.1) dB; what lies beyond the range is shown as its end."""
    reference = np.random.default_rng(0).uniform(-0.8, 0.8, (3, 1, 28, 28)).astype(np.float32)
    found = Likeness.of(reference + np.float32([0.1, 0.1, 0.01]).reshape(3, 1, 1, 1), reference)
    assert found.count == 3
    assert found.psnr_lowest == pytest.approx(20 * np.log10(20), abs=1e-3)
    assert found.psnr == pytest.approx(20 * np.log10(20) + 20 / 3, abs=1e-3)
    near, far = (Likeness.of(reference + np.float32(shift), reference).ssim for shift in (0.001, 0.1))
    assert 0 < far < 0.9 < near < 1
    same = Likeness.of(reference, reference)
    assert same.psnr == BEST_PSNR and same.ssim == pytest.approx(1)
    beyond = np.full((1, 1, 28, 28), 3.0)
    assert Likeness.of(beyond, np.ones_like(beyond)).psnr == BEST_PSNR
    overflowed = np.full((1, 1, 28, 28), np.nan)  # taken for grey, a pixel of 0
    assert Likeness.of(overflowed, np.full_like(overflowed, 0.2)).psnr == pytest.approx(20, abs=1e-3)


def test_bad_images_are_refused(real):
    images, labels = real.images[:10], real.labels[:10]
    with pytest.raises(CipherDMError, match="cannot be scored"):
        score_images(images[:, 0], labels, range(10))
    with pytest.raises(CipherDMError, match="cannot be scored"):
        score_images(images[:9], labels, range(10))
    with pytest.raises(CipherDMError, match="class ids"):
        score_images(images, labels + 5, range(10))


def test_images_that_overflowed_are_counted_and_judged_as_grey(real):
    images, labels = real.images[:200].copy(), real.labels[:200]
    images[:20, 0, 3, 4] = np.nan
    images[20] = np.inf
    grey = np.where(np.arange(200)[:, None, None, None] < 21, 0, real.images[:200])
    scores = score_images(images, labels, range(10))
    assert scores.overflowed == 21
    assert scores == replace(score_images(grey, labels, range(10)), overflowed=21)


def test_digits_of_a_folder_without_record(tmp_path):
    with pytest.raises(CipherDMError, match="digits="):
        model_digits(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist01-tiny", "mnist10"])
def test_models_are_as_good_as_their_records_say(name):
    folder = FOLDER.parent / name
    recorded = read_record(folder.parents[1] / "measurements" / f"quality_{name}_direct.json")
    unet = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    scores = evaluate(diffusers_sampler(unet, steps=recorded["steps"]), model_digits(folder), count=200, batch=100)
    # Three standard deviations of an accuracy over 200 images.
    margin = 3 * max(0.02, recorded["accuracy"] * (1 - recorded["accuracy"])) ** 0.5 / 200**0.5
    assert scores.accuracy == pytest.approx(recorded["accuracy"], abs=margin)
