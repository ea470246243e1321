"""A statement is what the training wrote, its epsilon is computed anew, and a doctored one is refused."""

import json

import pytest

import cipherdm as cdm
from cipherdm.private import PARTS, PrivacyStatement

BUDGET = cdm.PrivacyBudget.of(epsilon=2, delta=1e-5, sample_rate=0.1, steps=20)
ABOUT = {
    "unit": "image",
    "data": "MNIST's training set",
    "public": "a model of rendered letters",
    "clip": 0.01,
    "draws": 2,
}


def statement(**changed):
    return PrivacyStatement(**{"budget": BUDGET, "trained": PARTS["attention"], "share": 0.36} | ABOUT | changed)


@pytest.fixture
def folder(tmp_path):
    statement().write(tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder, run, capsys):
    found = cdm.privacy_of(folder)
    assert found == statement()
    assert found.text.startswith(
        "(2, 1e-05)-differentially private with respect to adding or removing one image of MNIST's"
    )
    assert "the transformers of the U-Net (36.0%" in found.text and "weak" not in found.text
    assert run("privacy", folder) == 0
    assert capsys.readouterr().out.strip() == found.text


def test_it_has_nothing_of_the_data_or_the_noise(folder):
    told = json.loads((folder / "privacy.json").read_text())
    allowed = "epsilon delta sample_rate steps noise_multiplier accountant neighbours epsilon_by_grid versions"
    assert set(told) == {*allowed.split(), *ABOUT, "private", "trained", "trusted", "share"}
    assert told["epsilon_by_grid"]["0.0001"] <= told["epsilon_by_grid"]["0.001"] <= told["epsilon"] == 2


def test_a_weak_promise_is_called_weak():
    budget = cdm.PrivacyBudget.of(epsilon=10, delta=1e-5, sample_rate=0.1, steps=20)
    assert "22,026" in statement(budget=budget).text and "weak as a guarantee" in statement(budget=budget).text


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"epsilon": 1.0}, r"gives an epsilon of (2.0|1.99)\d+, not 1.0"),
        ({"noise_multiplier": BUDGET.noise_multiplier * 0.9}, "gives an epsilon of"),
        ({"noise_multiplier": BUDGET.noise_multiplier * 1.1}, "gives an epsilon of"),
        ({"sample_rate": 0.2}, "gives an epsilon of"),
        ({"steps": 40}, "gives an epsilon of"),
        ({"steps": 10}, "gives an epsilon of"),
        ({"delta": 1e-7}, "gives an epsilon of"),
        ({"delta": 1e-3}, "gives an epsilon of"),
        ({"epsilon_by_grid": {"0.001": 1.0, "0.0001": 1.0}}, "gives an epsilon of"),
        ({"epsilon_by_grid": {"0.001": BUDGET.spent(), "0.0001": 0.5}}, "the finer grid cannot give 0.5"),
        ({"steps": "20"}, "steps must be between"),
        ({"steps": 10**12}, "steps must be between"),
        ({"epsilon": None}, "epsilon must be above 0"),
        ({"epsilon_by_grid": 3}, "not to be believed"),
        ({"neighbours": "replace one"}, "not counted as"),
        ({"losses": [1.0]}, "has the fields .*losses"),
        ({"private": 1}, "private must be true or false"),
        ({"share": 1.5}, r"share must be in \[0, 1\]"),
    ],
)
def test_a_doctored_file_is_refused(folder, run, capsys, changed, message):
    path = folder / "privacy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(cdm.CipherDMError, match=message):
        cdm.privacy_of(folder)
    assert run("privacy", folder) == 1
    assert "not to be believed" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"epsilon": 2}', "\udcff"])
def test_what_is_no_statement_is_refused(folder, text):
    (folder / "privacy.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(cdm.CipherDMError, match="not to be believed"):
        cdm.privacy_of(folder)


def test_a_folder_without_a_statement_promises_nothing(tmp_path):
    with pytest.raises(cdm.CipherDMError, match="nothing is stated"):
        cdm.privacy_of(tmp_path)


def test_a_training_with_a_seed_says_that_it_is_not_private(tmp_path, run, capsys):
    statement(private=False).write(tmp_path)
    assert cdm.privacy_of(tmp_path).text.startswith("NOT PRIVATE")
    assert run("privacy", tmp_path) == 1
    assert "differentially" not in capsys.readouterr().out
