"""The experiment on transformers: what is compared, and the costs that follow from it."""

from dataclasses import replace

import numpy as np
import pytest

import cipherdm as cdm
from cipherdm.models import run_blocks
from cipherdm.models.transformer import token_blocks, transformer_blocks
from cipherdm_experiments import transformer
from cipherdm_experiments.tables import TABLES
from cipherdm_experiments.transformer import CASES, Case, layer, prepare, random_model, run, table

SMALL = Case("small layer", width=16, heads=2, tokens=6)
BLOCK = Case("small block", "gpt2", width=16, heads=2, tokens=1, before=4)


@pytest.fixture(scope="module")
def record():
    return run(("puma", "ditto", "fast-64", "fast-rings"), (CASES[0], SMALL, BLOCK), (), repetitions=1)


def test_every_set_is_measured_that_computes_the_case(record):
    found = {(row["case"], row["protocols"]) for row in record["rows"]}
    sets = {"puma", "ditto", "fast-64", "fast-rings"}
    assert found == {(case.name, name) for case in (CASES[0], SMALL, BLOCK) for name in sets}
    assert all(row["bytes"] > 0 and row["ms_low"] <= row["ms"] <= row["ms_high"] for row in record["rows"])


def test_our_sets_send_fewer_bytes_and_messages_than_the_others(record):
    frame = table(record).set_index(["case", "protocols"])
    for case in (CASES[0].name, SMALL.name, BLOCK.name):
        rows = frame.loc[case]
        assert rows["MB"]["fast-rings"] < rows["MB"]["fast-64"] < rows["MB"]["ditto"] < rows["MB"]["puma"]
        assert rows["sends"]["fast-rings"] < rows["sends"]["ditto"] < rows["sends"]["puma"]
        assert rows["fewer bytes"]["puma"] == 1


def test_a_layer_is_the_first_of_its_model_and_computes_all_tokens(cluster):
    """Three parties' result of the layer alone is what the plaintext model has there."""
    for protocols in (cdm.PUMA, cdm.FAST_64, cdm.DITTO):
        found = on_parties(SMALL, protocols, cluster)
        model = random_model(SMALL.config(protocols))
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, SMALL.tokens)
        tokens = model.params["embeddings.words"][ids] + model.params["embeddings.positions"][: SMALL.tokens]
        values = {"embeddings": tokens.T[None], "mask": np.zeros((1, SMALL.tokens), np.float32)}
        blocks = [block for block in transformer_blocks(model.config) if block.name.startswith("layers.0.")]
        expected = run_blocks(blocks, model.params, values, protocols=cdm.DIRECT)["layers.0.ff"]
        np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("case", (replace(BLOCK, tokens=5, before=0), BLOCK), ids=("prompt", "token"))
def test_dittos_block_of_gpt2_is_that_of_the_plaintext(cluster, case):
    """Keys and values that are held in words of 32 bits, and the public places, are those of exact functions."""
    real, _ = layer(case, cdm.MPCFORMER)  # whose numbers are real, and whose config has the quadratic
    config = case.config(cdm.DITTO)
    blocks = token_blocks(config) if case.before else transformer_blocks(config, places=config.tokens)
    blocks = [block for block in blocks if block.name.startswith("layers.0.")]
    values = run_blocks(blocks, random_model(config).params, real.client | real.public, protocols=cdm.DIRECT)
    found = on_parties(case, cdm.DITTO, cluster)
    np.testing.assert_allclose(found, values["layers.0.ff"], atol=0.1)


def on_parties(case, protocols, cluster):
    """What three parties have after a case, put together."""
    task, prepared = layer(case, protocols)[0], prepare(case, protocols.name)
    session = cluster.session(transformer.engine_for(protocols))
    prepared.share(session)
    session.run(prepared.plan)
    found = task.decoded(session.reveal(prepared.output))
    session.delete([*prepared.values, *prepared.public, prepared.output])
    return found


def test_claims_are_judged_by_the_papers_lower_ends(tmp_path, record):
    rows = []
    for case in CASES:
        for name, size in (("puma", 30.0), ("mpcformer", 12.0), ("ditto", 10.0)):
            rows.append({"case": case.name, "protocols": name, "network": None, "bytes": size, "ms": size})
    transformer.finish(tmp_path / "transformer.json", {"rows": rows})
    lines = transformer.claims_table(tmp_path).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "holds",
        "holds",
        "does not carry over",
        "does not carry over",
    ]
    assert "3.0x" in lines[0] and "1.37 to 2.25x" in lines[1]


def test_the_figure_says_what_it_shows(tmp_path):
    rows = [
        {"case": case.name, "protocols": name, "network": None, "bytes": 1e6 * (1 + place), "sends": 100}
        for case in CASES
        for place, name in enumerate(("fast-rings", "puma"))
    ]
    transformer.finish(tmp_path / "transformer.json", {"rows": rows})
    drawn = transformer.figure(tmp_path)
    assert len(drawn.axes) == 3


def test_other_models_have_records_of_their_own(tmp_path):
    assert transformer.record_of("transformer", None) == "transformer"
    pair = f"{tmp_path}/reviews-large/model, {tmp_path}/reviews-large-quad/model"
    assert transformer.record_of("distillation", pair) == "distillation_reviews-large"
    with pytest.raises(cdm.CipherDMError, match="names no two models"):
        transformer.record_of("transformer", "reviews-tiny")


def test_a_table_of_other_models_reads_their_record(tmp_path, record):
    with pytest.raises(cdm.CipherDMError, match="bench transformer --models runs/reviews-minilm/model,runs"):
        TABLES["transformer_minilm"](tmp_path)
    name = "a review, reviews-minilm"
    rows = [row | {"case": name} for row in record["rows"] if row["case"] == CASES[0].name]
    transformer.finish(tmp_path / "transformer_reviews-minilm.json", {"rows": rows})
    shown = TABLES["transformer_minilm"](tmp_path).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in shown] == [[f"| {name}", row["protocols"]] for row in rows]
    row = {"model": "reviews-minilm", "protocols": "direct", "reviews": 1000, "accuracy": 0.875}
    transformer.finish(tmp_path / "distillation_reviews-minilm.json", {"rows": [row]})
    assert "| reviews-minilm | direct | 1,000 | 87.5% |" in TABLES["distillation_minilm"](tmp_path)
