"""Figures of the engine at work: what a party holds, what operations cost, and what goes wrong when nobody looks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from cryptography import x509
from matplotlib.figure import Figure
from scipy import stats

from ..engine import Program
from ..hosts import Certificates
from .style import GREY, PALETTE, describe, new_figure

_COSTS = {
    "ms": "time in ms",
    "bytes_per_element": "bytes per element, all parties",
    "messages": "messages, all parties",
}


def byte_histograms(contents: Mapping[str, bytes | np.ndarray]) -> Figure:
    """Draw the frequency of each byte value in several arrays or byte strings, by title, beside that of uniform bytes."""
    figure = new_figure(2.4 * len(contents), 2.6)
    axes = figure.subplots(1, len(contents), squeeze=False)[0]
    largest = []
    for axis, (title, content) in zip(axes, contents.items(), strict=True):
        data = np.frombuffer(content if isinstance(content, bytes) else content.tobytes(), np.uint8)
        shares = 100 * np.bincount(data, minlength=256) / len(data)
        # An outline in its own colour keeps a single tall bar visible.
        axis.bar(np.arange(256), shares, width=1.0, color=PALETTE[0], edgecolor=PALETTE[0], linewidth=0.6)
        axis.axhline(100 / 256, color=PALETTE[1], linewidth=1)
        axis.set(title=title, xlabel="value of a byte", xlim=(-4, 259), xticks=[0, 64, 128, 192, 255])
        axis.set_ylim(0, max(1.0, 1.1 * shares.max()))
        axis.title.set_fontsize(10)
        largest.append(f"{title}: the most frequent byte makes up {shares.max():.3g}%")
    axes[0].set_ylabel("% of all bytes")
    told = "Histograms of byte values, with a line at 1/256, where all would be if they were uniform. "
    return describe(figure, told + ". ".join(largest) + ".")


def byte_uniformity(content: np.ndarray) -> float:
    """Return the p-value of a chi-squared test that an array's bytes are uniform: how often chance is at least as uneven."""
    counts = np.bincount(np.frombuffer(content.tobytes(), np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def operation_costs(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw ms, bytes_per_element and messages of operations, those of the first table as bars, of the others as marks."""
    first = next(iter(tables.values()))
    names = list(first.index)
    figure = new_figure(9.5, 0.7 + 0.3 * len(names))
    axes = figure.subplots(1, len(_COSTS), sharey=True)
    rows = np.arange(len(names))
    for axis, (column, label) in zip(axes, _COSTS.items(), strict=True):
        for index, (title, table) in enumerate(tables.items()):
            values = table.loc[names, column].to_numpy(float)
            if index == 0:
                axis.barh(rows, values, color=PALETTE[0], label=title)
            else:
                shown = values > 0
                style = {"marker": "D", "s": 28, "color": PALETTE[index], "edgecolors": "white", "zorder": 3}
                axis.scatter(values[shown], rows[shown], label=title, **style)
        axis.set(xscale="log", xlabel=label)
        axis.set_xlim(left=1)
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
    axes[0].set_yticks(rows, names)
    axes[0].invert_yaxis()
    if len(tables) > 1:
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        ordered = [handles[title] for title in tables]
        figure.legend(ordered, tables, frameon=False, loc="outside upper right", ncols=len(tables))
    texts = [
        f"{row.Index} {row.ms:.0f} ms, {row.bytes_per_element:.0f} bytes per element, {row.messages:.0f} messages"
        for row in first.itertuples()
    ]
    return describe(figure, "Bars on logarithmic axes, the cost of each operation: " + "; ".join(texts) + ".")


def random_numbers(inside: np.ndarray, outside: np.ndarray) -> Figure:
    """Draw histograms of "normal" numbers drawn inside a program on shares, and of those drawn outside and passed in."""
    figure = new_figure(8, 2.9)
    left, right = figure.subplots(1, 2)
    left.hist(inside.ravel() / 1e6, bins=60, color=PALETTE[1])
    left.set(title="Incorrect: drawn inside the program", xlabel="value in millions", ylabel="numbers")
    bins = np.linspace(-4.5, 4.5, 61)
    right.hist(outside.ravel(), bins=bins, color=PALETTE[0], label="after sharing")
    density = np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi) * outside.size * (bins[1] - bins[0])
    right.plot(bins, density, color="black", linewidth=1, label="normal distribution")
    right.set(title="Drawn outside and passed in", xlabel="value", ylabel="numbers")
    right.legend(frameon=False, fontsize=8)
    return describe(
        figure,
        f"Two histograms. Left, titled Incorrect: values reach {np.abs(inside).max():.2g} in magnitude. "
        f"Right: values follow the normal distribution, with standard deviation {outside.std():.2f}.",
    )


def squares(x: np.ndarray, computed: np.ndarray, remedied: np.ndarray, limit: float) -> Figure:
    """Draw squares on shares over the true squares, as they come out, and with the scale taken out first."""
    true = x.astype(np.float64) ** 2
    figure = new_figure(8, 3.1)
    for axis, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        (f"Incorrect beyond $2^{{{np.log2(limit):.0f}}}$", "Scaled down before the product"),
        (computed, remedied),
        strict=True,
    ):
        right = np.abs(values / true - 1) < 0.01
        axis.axhline(1, color=GREY, linewidth=0.8)
        axis.axvline(limit, color="black", linestyle="--", linewidth=1)
        axis.scatter(true[right], (values / true)[right], s=16, color=PALETTE[0], label="right")
        axis.scatter(true[~right], (values / true)[~right], s=22, color=PALETTE[1], marker="x", label="wrong")
        axis.set(xscale="log", title=title, xlabel="true square", ylim=(-3.3, 1.5))
        axis.legend(loc="lower left", frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("computed / true")
    wrong = true[np.abs(computed / true - 1) >= 0.01]
    first = f"{wrong.min():.3g}" if len(wrong) else "nowhere"
    return describe(
        figure,
        f"Computed square divided by true square. Left, titled Incorrect: 1 for small squares, wrong from {first} on, "
        f"beyond the dashed line at {limit:.3g}. Right: 1 everywhere.",
    )


def instructions(program: Program) -> str:
    """List a program's operations of SPU, a line each, without shapes' names and attributes."""
    lines = (line.strip() for line in program.code.decode().splitlines())
    return "\n".join(line.partition(" : ")[0].replace("pphlo.", "") for line in lines if " = pphlo." in line)


def certificate_table(certificates: Mapping[str, Certificates]) -> pd.DataFrame:
    """Table of roles' certificates, a row per role: subject, signer, hosts that it is valid for, days, and key."""
    rows = {}
    for role, paths in certificates.items():
        certificate = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        rows[role] = {
            "subject": certificate.subject.rfc4514_string(),
            "signed by": certificate.issuer.rfc4514_string(),
            "valid for": ", ".join(str(name.value) for name in names),
            "days": (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days,
            "key": certificate.public_key().curve.name,
        }
    return pd.DataFrame.from_dict(rows, orient="index")
