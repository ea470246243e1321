"""What quadratics cost in accuracy, and what distillation mends: reviews-tiny and its student, in plaintext and on shares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import cipherdm as cdm
from cipherdm.datasets import Reviews, load_reviews
from cipherdm.errors import CipherDMError
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import named
from cipherdm.sampling.texts import tokenizer_of

from .commands import RecordOption, finish, record_path, silent, split_names
from .markdown import markdown
from .target import Check, Command, Target, Value
from .transformer import MINILM, STUDENT, TEACHER, ModelsOption, record_of, record_of_models, short

TOKENS = 64
_BATCH, _TOGETHER = 201, 20  # reviews at a time, in plaintext and on shares
QUADRATIC = replace(cdm.DIRECT, name="quadratic put in", gelu=cdm.DIRECT.gelu_quad)
TWO = replace(cdm.MPCFORMER, name="quadratic and 2Quad put in")
OF_TEACHER, OF_STUDENT = (
    (cdm.DIRECT, cdm.PUMA, cdm.NIMBUS, QUADRATIC, TWO, cdm.DITTO),
    (cdm.DIRECT, cdm.FAST, cdm.DITTO),
)
SECURE = ("fast-rings", "ditto")
"""Sets with which three parties classify reviews with the student."""


def run(
    count: int = 1000,
    secure: int = 200,
    progress: Progress = silent,
    models: Sequence[str] = (TEACHER, STUDENT),
) -> dict[str, Any]:
    """Classify so many reviews of the test split in each way in plaintext, and some on three parties; return the record.

    On shares, "agree" counts the classes that are those of exact functions in plaintext, and "error" is the largest
    difference of a logit.
    """
    reviews, rows = short_reviews(), []
    count = min(count, len(reviews))
    pairs = zip(models, (OF_TEACHER, OF_STUDENT), strict=True)
    ways = [(name, protocols) for name, sets in pairs for protocols in sets]
    total = len(ways) + len(SECURE) * -(-secure // _TOGETHER)
    exact = {}
    for place, (name, protocols) in enumerate(ways):
        progress(place, total, f"{name}, {protocols.name}")
        model = cdm.load_transformer(name)
        parts = [reviews.texts[first : min(first + _BATCH, count)] for first in range(0, count, _BATCH)]
        settings = {"tokens": TOKENS, "protocols": protocols, "embedded": True}
        logits = np.concatenate([cdm.classify(model, None, texts, **settings).logits for texts in parts])
        exact.setdefault(name, logits)
        right = _right(logits, reviews)
        rows.append({"model": short(name), "protocols": protocols.name, "reviews": len(logits), "accuracy": right})
    model = cdm.load_transformer(models[1])
    for place, name in enumerate(SECURE):
        found = []
        with cdm.LocalCluster() as cluster:
            for part in np.array_split(np.arange(secure), -(-secure // _TOGETHER)):
                progress(
                    len(ways) + place * -(-secure // _TOGETHER) + len(found),
                    total,
                    f"{short(models[1])}, {name}, on shares",
                )
                texts = [reviews.texts[number] for number in part]
                settings = {"tokens": TOKENS, "protocols": named(name), "granularity": "step", "embedded": True}
                found.append(cdm.classify(model, cluster, texts, **settings).logits)
        logits, wanted = np.concatenate(found), exact[models[1]][:secure]
        agree = int((logits.argmax(1) == wanted.argmax(1)).sum())
        about = {
            "model": short(models[1]),
            "protocols": f"{name} on shares",
            "reviews": secure,
            "accuracy": _right(logits, reviews),
        }
        rows.append(about | {"agree": agree, "error": float(np.abs(logits - wanted).max())})
    return {"benchmark": "distillation", "tokens": TOKENS, "rows": rows}


def short_reviews() -> Reviews:
    """Return the reviews of the test split that the models have room for: all but a few."""
    reviews, tokenizer = load_reviews("test"), tokenizer_of(cdm.load_transformer(TEACHER))
    kept = np.array([len(tokenizer(text)["input_ids"]) <= TOKENS for text in reviews.texts])
    return Reviews(tuple(text for text, short in zip(reviews.texts, kept, strict=True) if short), reviews.labels[kept])


def _right(logits: np.ndarray, reviews: Reviews) -> float:
    return float((logits.argmax(1) == reviews.labels[: len(logits)]).mean())


def distillation_table(measurements: Path, models: str | None = None) -> str:
    """Return the accuracies, as Markdown; of other models than those that ship if there are any."""
    record = record_of_models(measurements, "distillation", models)
    rows = [
        [row["model"], row["protocols"], f"{row['reviews']:,}", f"{row['accuracy']:.1%}"]
        + ([f"{row['agree']} of {row['reviews']}", f"{row['error']:.2f}"] if "agree" in row else ["-", "-"])
        for row in record["rows"]
    ]
    header = ["model", "computed by", "reviews", "accuracy", "classes as in plaintext", "largest error of a logit"]
    return markdown(header, rows)


TABLES = {"distillation": distillation_table, "distillation_minilm": partial(distillation_table, models=MINILM)}


def measure(
    count: Annotated[int, typer.Option(help="Number of reviews in plaintext, of 1,005.", min=1)] = 1000,
    secure: Annotated[int, typer.Option(help="Number of reviews on three parties.", min=1)] = 200,
    models: ModelsOption = None,
    record: RecordOption = None,
) -> None:
    """Measure the accuracy of reviews-tiny and of its student, with quadratics put in, distilled, and on three parties."""
    if secure > count:
        raise CipherDMError(
            f"{secure} reviews on shares are compared with as many in plaintext; ask for more than {count}."
        )
    with ProgressBar("run") as bar:
        found = run(count, secure, bar, (TEACHER, STUDENT) if models is None else split_names(models))
    finish(record_path(record, record_of("distillation", models)), found, pd.DataFrame(found["rows"]))


def _accuracy(model: str, protocols: str) -> Value:
    def value(records: Mapping[str, Any]) -> float:
        (row,) = (r for r in records["distillation"]["rows"] if (r["model"], r["protocols"]) == (model, protocols))
        return 100 * row["accuracy"]

    return value


TARGET = Target(
    "distillation",
    "Accuracy of reviews-tiny, with quadratics put in, distilled, and on three parties",
    "distillation repairs what a quadratic instead of GELU breaks; the drop is negligible",
    "published",
    (Command("distillation", ("bench", "distillation"), (), ("--count", "200", "--secure", "20")),),
    (
        Check("accuracy of the teacher", 80.7, 0.3, _accuracy(TEACHER, "direct"), 6, unit="%"),
        Check("accuracy of the student", 80.7, 0.3, _accuracy(STUDENT, "direct"), 6, unit="%"),
    ),
    order=99,
)
