import json
import os
import signal
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from cipherdm.errors import CipherDMError
from cipherdm_experiments.training.candidates import candidates, costs
from cipherdm_experiments.training.digits import batch_at, noise_levels, start, train
from cipherdm_experiments.training.guidance import load_guide, train_guide
from cipherdm_experiments.training.modules import ScoreRecorder
from cipherdm_experiments.training.recipes import RECIPES, UNetTraining

SMALL = UNetTraining(
    name="small",
    digits=(3, 0),
    block_out_channels=(2, 4),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=2,
    attention_head_dim=4,
    batch=4,
    steps=6,
    warmup=2,
    checkpoint_every=6,
    images=20,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    losses = []
    out = train(
        SMALL, folder / "out", runs=folder / "runs", progress=False, on_step=lambda _, __, loss: losses.append(loss)
    )
    return out, folder / "runs", losses


def weights(folder):
    return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).state_dict()


def interrupt_at(step, number):
    return lambda _, done, __: os.kill(os.getpid(), number) if done == step else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_and_resuming_changes_nothing(trained, tmp_path, number):
    straight, _, losses = trained
    handler = signal.getsignal(number)
    arguments = {"runs": tmp_path / "runs", "progress": False}
    with pytest.raises(KeyboardInterrupt, match="step 3 of 6"):
        train(SMALL, tmp_path / "out", on_step=interrupt_at(3, number), **arguments)
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "out").exists()
    later = []
    resumed = train(SMALL, tmp_path / "out", on_step=lambda _, step, loss: later.append((step, loss)), **arguments)
    assert later == list(zip([4, 5, 6], losses[3:], strict=True))
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)


def test_exported_folder_is_what_diffusers_loads(trained):
    out, runs, losses = trained
    unet = UNet2DModel.from_pretrained(out, low_cpu_mem_usage=False)
    assert unet.config.num_class_embeds == 2 and unet.config.block_out_channels == [2, 4]
    run = start(SMALL)
    run.restore(runs / "small")
    for name, value in run.averaged.module.state_dict().items():
        torch.testing.assert_close(unet.state_dict()[name], value, rtol=0, atol=0)

    scheduler = DDPMScheduler.from_pretrained(out)
    assert (scheduler.config.num_train_timesteps, scheduler.config.beta_schedule) == (1000, "linear")
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (1e-4, 0.02)
    assert scheduler.config.prediction_type == "epsilon" and scheduler.config.clip_sample is False

    record = json.loads((out / "training.json").read_text())
    assert record["config"]["digits"] == [3, 0] and record["steps_done"] == 6 and record["training_images"] == 20
    assert record["loss"] == pytest.approx(np.mean(losses)) and record["environment"]["versions"]["torch"]
    assert "small" in (out / "README.md").read_text()
    assert (runs / "small" / "samples-000006.png").stat().st_size > 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "runs"]


def test_export_leaves_other_files_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    train(replace(SMALL, steps=1), tmp_path / "out", runs=tmp_path / "runs", progress=False)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_steps_replace_the_recipe_and_thread_count_is_restored(tmp_path):
    threads = torch.get_num_threads()
    steps = []
    train(
        SMALL, tmp_path / "out", steps=2, runs=tmp_path, progress=False, on_step=lambda _, step, __: steps.append(step)
    )
    assert steps == [1, 2] and torch.get_num_threads() == threads


def test_damaged_checkpoint(tmp_path):
    train(SMALL, tmp_path / "out", steps=1, runs=tmp_path / "runs", progress=False)
    path = tmp_path / "runs" / "small" / "small.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CipherDMError, match="(?s)small.pt cannot be read.*resume=False"):
        train(SMALL, tmp_path / "out", steps=1, runs=tmp_path / "runs", progress=False)
    train(SMALL, tmp_path / "out", steps=1, runs=tmp_path / "runs", progress=False, resume=False)


def test_checkpoint_of_another_configuration(tmp_path):
    train(SMALL, tmp_path / "out", steps=1, runs=tmp_path / "runs", progress=False)
    with pytest.raises(CipherDMError, match="(?s)another training: batch is 4 there and 5 now.*resume=False"):
        train(replace(SMALL, batch=5), tmp_path / "out", steps=1, runs=tmp_path / "runs", progress=False)


def test_loss_that_is_not_finite(tmp_path):
    with pytest.raises(CipherDMError, match="(?s)loss of small is .*Lower learning_rate"):
        broken = replace(SMALL, learning_rate=1e30, clip_norm=1e30, warmup=0, steps=50)
        train(broken, tmp_path / "out", runs=tmp_path, progress=False)
    assert not (tmp_path / "out").exists()


def test_unknown_recipe_and_bad_counts():
    with pytest.raises(CipherDMError, match="There are: mnist01-tiny, .*mnist10-quad"):
        train("mnist11")
    with pytest.raises(CipherDMError, match="at least 1"):
        replace(SMALL, steps=0)


def test_batches_depend_on_seed_and_step_alone():
    first, again, other = batch_at(SMALL, 20, 5), batch_at(SMALL, 20, 5), batch_at(SMALL, 20, 6)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[2], other[2])
    timesteps = batch_at(replace(SMALL, batch=50), 20, 0)[1]
    assert sorted(timesteps // 20) == list(range(50))  # one in each slice


def test_schedules():
    config = replace(SMALL, steps=1000, warmup=10)
    assert config.rate(0) == pytest.approx(config.learning_rate / 10)
    assert config.rate(500) == pytest.approx(config.learning_rate / 2)
    assert 0 < config.rate(999) < 1e-5
    image, noise = (level.flatten() for level in noise_levels())
    torch.testing.assert_close(image**2 + noise**2, torch.ones(1000))
    torch.testing.assert_close(image**2, torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))


def test_tiny_recipe_has_the_size_of_cipherdm():
    count = costs(RECIPES["mnist01-tiny"])
    # The audit of the released code counts 72,232 activation elements in the U-Net; here 104 more in time embeddings
    # of 16 rather than 8 channels. Parameters differ by these embeddings and by the class table.
    assert count["activation_elements"] == 72_336 and count["softmax_elements"] == 230_496
    assert count["attentions"] == 6 and 15_000 < count["parameters"] < 17_000


def test_identity_start_predicts_its_input():
    config = replace(RECIPES["mnist10"], seed=1)
    unet = start(config).model.eval()
    noise = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    with torch.no_grad():
        plain, moved = (unet(x, torch.tensor(980), class_labels=labels).sample for x in (noise, noise + 0.1))
    assert (plain - noise).square().mean() < 0.02  # 1 for a network that predicts nothing
    assert (moved - plain).mean().item() == pytest.approx(0.1, rel=0.1)


def test_identity_start_leaves_groups_of_two_alone():
    plain = start(SMALL).model.state_dict()
    for name, value in start(replace(SMALL, identity=True)).model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=0)


def test_initial_weights(trained, tmp_path):
    out, _, _ = trained
    run = start(replace(SMALL, initial=str(out), act_fn="mish"))
    torch.testing.assert_close(run.model.state_dict()["conv_in.weight"], weights(out)["conv_in.weight"])
    with pytest.raises(CipherDMError, match="(?s)small.*cannot be used.*Train that model first"):
        start(replace(SMALL, initial=str(tmp_path)))


def test_candidates_differ_in_cost():
    assert len({costs(config)["multiply_adds"] for config in candidates()}) == len(candidates())


class TestScoreRecorder:
    """The mean square of scores against all scores, from the queries and keys that PyTorch's attention is called with."""

    @pytest.fixture
    def recorded(self):
        """A model with two heads a block, what its recorder tells after a call, and the queries and keys of that call."""
        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(4, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=4,
        )
        recorder, seen = ScoreRecorder(model), []
        attend = torch.nn.functional.scaled_dot_product_attention

        def watched(query, key, value, **settings):
            seen.append((query, key))
            return attend(query, key, value, **settings)

        with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", watched):
            model(torch.randn(3, 1, 8, 8), 500)
        assert len(seen) == 4
        return model, recorder.mean_square(), seen

    def test_it_is_the_mean_over_all_scores(self, recorded):
        _, told, seen = recorded
        expected = 0
        for query, key in seen:
            query, key = query.detach().double().numpy(), key.detach().double().numpy()
            assert query.shape == (3, 2, 16, 4)
            scores = np.einsum("bhid,bhjd->bhij", query, key) / np.sqrt(4)
            expected += np.square(scores - scores.mean(-1, keepdims=True)).mean()
        assert told.item() == pytest.approx(expected, rel=1e-4)

    def test_its_gradient_is_that_of_the_scores(self, recorded):
        model, told, seen = recorded
        scores = [query @ key.mT / 2 for query, key in seen]
        expected = sum((rows - rows.mean(-1, keepdim=True)).square().mean() for rows in scores)
        weights = [weight for name, weight in model.named_parameters() if name.endswith(("to_q.weight", "to_k.weight"))]
        assert len(weights) == 8
        gradients, exact = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (told, expected))
        for gradient, reference in zip(gradients, exact, strict=True):
            assert reference.abs().max() > 0
            torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


def test_a_guide_knows_classes_and_its_gradient_is_that_of_their_likelihood(tmp_path):
    """Classes of bright and of dark images, which are told apart even in much noise."""
    torch.manual_seed(0)
    labels = torch.arange(256) % 2
    images = torch.randn(256, 1, 28, 28) * 0.1 + (2.0 * labels - 1)[:, None, None, None]
    guide = train_guide(tmp_path / "guide.safetensors", images, labels, noise_levels(), steps=60, progress=False)
    factor = torch.full((256, 1, 1, 1), 0.9)
    noisy = images * 0.4 + 0.9 * torch.randn_like(images)
    assert (guide(noisy, factor).argmax(1) == labels).float().mean() > 0.95

    ends, factor = noisy[:8].double(), factor[:8].double()
    guide = guide.double()
    slopes = guide.gradient(ends, factor, labels[:8])
    direction, step = torch.randn_like(ends), 1e-6
    first, last = (
        torch.log_softmax(guide(ends + sign * step * direction, factor), 1).gather(1, labels[:8, None])[:, 0]
        for sign in (-1, 1)
    )
    torch.testing.assert_close((slopes * direction).sum((1, 2, 3)), (last - first) / (2 * step), rtol=1e-4, atol=1e-8)

    loaded = load_guide(tmp_path / "guide.safetensors", 2)
    torch.testing.assert_close(loaded.double()(ends, factor), guide(ends, factor))
    with pytest.raises(CipherDMError, match="guide.safetensors"):
        load_guide(tmp_path / "guide.safetensors", 3)


def test_guidance_moves_the_target(trained, tmp_path):
    """Resumed or not, a guided run is the same, and differs from one that is not guided."""
    guided = replace(SMALL, guidance=0.5, steps=3)
    arguments = {"runs": tmp_path / "runs", "progress": False}
    with mock.patch("cipherdm_experiments.training.digits.train_guide", partial(train_guide, steps=2)):
        with pytest.raises(KeyboardInterrupt):
            train(guided, tmp_path / "resumed", on_step=interrupt_at(2, signal.SIGTERM), **arguments)
        resumed = weights(train(guided, tmp_path / "resumed", **arguments))
        straight = weights(train(guided, tmp_path / "straight", runs=tmp_path / "other", progress=False))
    plain = weights(train(replace(SMALL, steps=3), tmp_path / "plain", runs=tmp_path / "plain_runs", progress=False))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert not all(torch.equal(plain[name], straight[name]) for name in straight)
