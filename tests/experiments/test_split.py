"""The experiments on split training: attacks on messages made here, tables, and checks of what should come out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import pdist

from cipherdm.datasets import load_mnist
from cipherdm.models import find_model
from cipherdm.private.budget import epsilon_of
from cipherdm.records import write_record
from cipherdm.split import Client, Defences, Training, encoded, load_base
from cipherdm_experiments import control_on_shares, split_attacks, split_claims, split_quality, split_wire
from cipherdm_experiments.split_attacks_cases import (
    Captured,
    Private,
    averaged,
    bounds,
    capture,
    computed,
    searched,
    worth,
)
from cipherdm_experiments.target import Records
from cipherdm_experiments.training.control.hints import client_examples
from cipherdm_experiments.training.sd_mini.pictures import Source


@pytest.fixture(scope="module")
def base():
    return load_base(find_model("sd-mini"))


@pytest.fixture(scope="module")
def public():
    return client_examples(Source.of(load_mnist("test")), 30, np.random.default_rng(0))


@pytest.fixture(scope="module")
def captured(base, public):
    """A message with all defences on, made here."""
    return message(base, public, Client(base, Defences(timesteps_from=618)))


def message(base, public, client: Client) -> Captured:
    generator = np.random.default_rng(5)
    pictures, hints, captions = public.batch(6, generator)
    return Captured(
        client.features(pictures, hints, captions, generator), client, Private(base.vae, pictures, hints), Path()
    )


def test_algebra_finds_all_that_the_autoencoder_keeps(captured, public):
    bound, nothing = bounds(captured.private, public)
    found = computed(captured)
    assert nothing["picture"] < bound["picture"] - 0.3
    for name in ("picture", "hint"):
        assert found[name] == pytest.approx(bound[name], abs=0.005)
        assert found[f"{name}_error"] < 0.005
    assert found["from"] == 618


def test_averaging_finds_hints_better_with_more_visits(captured, public):
    rows = averaged(captured.client, public, (1, 16), 3)
    assert [row["visits"] for row in rows] == [1, 16] and rows[1]["hint"] > rows[0]["hint"] + 0.03
    assert rows[0]["picture"] is None


def test_what_a_search_gets_is_scored(base, public, tmp_path):
    """Without training the last layer of the hint's encoder is zero: nothing of the hint is in the message."""
    client = Client(base, structure="conventional")
    with torch.no_grad():
        made = message(base, public, client)
    save_file(client.head.state_dict(), tmp_path / "head.safetensors")
    rows = searched(replace(made, head=tmp_path / "head.safetensors"))
    assert [row["attack"] for row in rows] == ["unsplit", "unsplit, own layers"]
    assert all(-1 <= row["hint"] < 0.3 and row["picture"] is None for row in rows)


def test_epsilons_are_those_of_the_analytic_gaussian(base, public):
    rows = {row["from"]: row for row in worth(base, public)}
    pictures, hints, _ = public.batch(500, np.random.default_rng(0))
    for name, images in (("picture", pictures), ("hint", 2 * hints - 1)):
        apart = pdist(encoded(base.vae, images).flatten(1).double().numpy()).max()
        for first in (618, 999):
            kept = float(base.scheduler.alphas_cumprod[first])
            noise = (1 - kept) ** 0.5 / (apart * (kept**0.5 if name == "picture" else 1))
            accountant = epsilon_of(noise, 1.0, 1, 1e-5, 1e-3)  # privacy loss distribution, on a grid of 1e-3
            assert rows[first][name] == pytest.approx(accountant, abs=2e-3)
    assert rows[999]["picture"] < rows[618]["picture"] < rows[618]["hint"]
    assert rows[999]["published"] == pytest.approx(0.672 * (1 / 0.02 - 1) ** 0.5, rel=1e-4)


def test_tables_and_checks_of_messages(tmp_path):
    def row(structure, network, seconds, up, **fields):
        return {"structure": structure, "network": network, "fields": fields, "up": up, "down": 1.0, "seconds": seconds}

    rows = [
        row("published", "loopback", 1.0, 14000.0, h=512, noisy=12288, noise=1024, timesteps=8),
        row("published", "WAN", 1.5, 14000.0),
        row("lean", "loopback", 1.0, 2800.0, h=512, noisy=1024, noise=1024, timesteps=8),
        row("lean", "WAN", 1.1, 2800.0),
        row("conventional", "loopback", 2.0, 28000.0),
        row("conventional", "WAN", 6.0, 28000.0),
        {"structure": "federated", "network": "", "fields": {}, "up": 4.6e6, "down": 4.6e6},
    ]
    write_record(tmp_path / "split_wire.json", {"rows": rows})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in split_wire.wire_table(tmp_path).splitlines()]
    by_way = {line[0]: line[1:] for line in lines}
    assert by_way["lean"] == ["a picture", "2,800", "1", "5.0x", "0", "1.10 s", "1.00 s"]
    assert by_way["federated"] == ["a round", "4,600,000", "4,600,000", "-", "0", "-", "-"]
    records = Records(tmp_path)
    assert all(check.holds(records) for check in split_wire.TARGET.checks)
    assert [check.value(records) for check in split_wire.TARGET.checks[2:]] == pytest.approx([4, 6 / 1.1])


def test_tables_and_checks_of_pictures(tmp_path):
    scores = {"iou": 0.7, "ssim": 0.8, "digit": 1.0, "colour": 1.0, "background": 1.0, "all": 0.95}
    rows = [
        {"way": "in one place", **scores, "seconds": 100.0},
        {"way": "split, from 0", **scores, "iou": 0.69, "seconds": 100.0},
    ]
    write_record(tmp_path / "split_quality.json", {"rows": rows})
    assert "| split, from 0 | 0.690 | 0.800 | 100% |" in split_quality.quality_table(tmp_path)
    assert all(check.holds(Records(tmp_path)) for check in split_quality.TARGET.checks)
    costs = {"seconds": 1.0, "sends": 10, "psnr": 40.0}
    rows = [
        {"model": model, "protocols": name, "bytes": size * 1e6, **costs}
        for model, size in (("sd-mini", 100), ("sd-mini-control", 121))
        for name in ("fast", "fast-rings")
    ]
    write_record(tmp_path / "control_on_shares.json", {"rows": rows})
    assert "| 121.0 | 10 | +21% | 40.0 dB |" in control_on_shares.shares_table(tmp_path)
    assert all(check.holds(Records(tmp_path)) for check in control_on_shares.TARGET.checks)


def test_tables_and_checks_of_attacks(tmp_path):
    def row(attack, hint, picture=None, **about):
        return {"attack": attack, "hint": hint, "picture": picture, **about}

    rows = [
        row("bound", 0.28, 0.9),
        row("nothing", 0.02, 0.07),
        row("algebraic", 0.281, 0.899, **{"from": 0, "seconds": 0.3, "structure": "published"}),
        row("averaging", 0.27, **{"from": 618, "visits": 16}),
        row("inverse, adaptive", 0.2, 0.14, **{"from": 618}),
        row("inverse, adaptive", 0.2, 0.08, **{"from": 900}),
    ]
    levels = [{"from": 618, "published": 8.0, "picture": 30.0, "hint": 1200.0}]
    write_record(tmp_path / "split_attacks.json", {"rows": rows, "worth": levels})
    assert "| averaging | 618 | 16 | 0.270 | - |" in split_attacks.attacks_table(tmp_path)
    assert split_attacks.worth_table(tmp_path).endswith("| 618 | 8.0 | 30.0 | 1,200.0 |")
    assert all(check.holds(Records(tmp_path)) for check in split_attacks.TARGET.checks)


def test_claims_have_a_verdict_by_the_records(tmp_path):
    def write(iou, computed):
        ways = [{"way": "in one place", "iou": 0.70}, {"way": "split, from 0", "iou": iou}]
        write_record(tmp_path / "split_quality.json", {"rows": [*ways, {"way": "split, from 618", "iou": 0.60}]})
        found = {"bound": (0.3, 0.9), "nothing": (0.0, 0.1), "algebraic": (computed, 0.9)}
        attacks = [{"attack": name, "hint": hint, "picture": picture} for name, (hint, picture) in found.items()]
        attacks.append({"attack": "inverse, adaptive", "from": 618, "hint": 0.2, "picture": 0.12})
        levels = [{"from": 618, "published": 8.0, "picture": 30.0, "hint": 1200.0}]
        write_record(tmp_path / "split_attacks.json", {"rows": attacks, "worth": levels})
        lines = split_claims.claims_table(tmp_path).splitlines()[2:]
        return [line.split("|")[-2].strip() == "holds" for line in lines]

    steps = [
        {"structure": name, "network": "WAN", "fields": {}, "up": 1.0, "down": 1.0, "seconds": seconds}
        for name, seconds in (("published", 1.0), ("lean", 0.9), ("conventional", 2.0))
    ]
    write_record(tmp_path / "split_wire.json", {"rows": steps})
    assert write(0.69, 0.299) == [True, False, True, False, True, False, False, True]
    assert write(0.65, 0.1) == [False, False, True, True, True, False, False, True]


@pytest.mark.slow
def test_processes_train_over_a_shaped_link_and_are_measured():
    found = split_wire.run(steps=3, networks=(split_wire.LAN,))
    rows = {row["structure"]: row for row in found["rows"]}
    assert sum(rows["published"]["fields"].values()) == 13_832 and sum(rows["lean"]["fields"].values()) == 2_568
    assert rows["published"]["up"] > 13_832 and rows["published"]["down"] < 10
    assert rows["conventional"]["down"] > 12_288
    assert all(row["seconds"] > 0 for row in found["rows"] if row["network"])
    # weights of the ControlNet, four bytes each
    assert rows["federated"]["up"] == rows["federated"]["down"] > 4_000_000


@pytest.mark.slow
def test_messages_are_captured_from_processes(base, public, tmp_path):
    public.save(tmp_path / "own.npz")
    training = Training(("client0",), "lean", 4, 2, Defences(timesteps_from=300))
    found = computed(capture(tmp_path / "0", base, public, training))
    assert max(found["picture_error"], found["hint_error"]) < 0.01  # the last of two messages, and the right pictures
