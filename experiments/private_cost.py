"""What privacy costs in time: sums of clipped gradients by ghost norms, by opacus and by vmap(grad), beside a plain pass."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch.func import functional_call, grad, vmap

from cipherdm.private import ClippedSums, train_only
from cipherdm.progress import Progress, ProgressBar

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent, take_turns
from .markdown import markdown, records_named, times
from .target import Check, Command, Records, Target, Value
from .training.run import one_thread

WAYS = ("plain", "private", "opacus, ghost", "opacus, hooks", "vmap(grad)")
EXAMPLES = (512, 4096)  # of a step whose memory is told
_CLIP = 0.01


@dataclass(frozen=True)
class Case:
    """A denoiser whose attention is trained: its channels, the side of its latents, and how many examples at a time."""

    name: str
    channels: tuple[int, ...]
    attention: tuple[bool, ...]  # at each level
    side: int
    batch: int
    tokens: int
    width: int

    def network(self) -> UNet2DConditionModel:
        """Return the network with random weights, of which attention can be trained."""
        kinds = {
            way: tuple(f"CrossAttn{way}Block2D" if each else f"{way}Block2D" for each in self.attention)
            for way in ("Down", "Up")
        }
        torch.manual_seed(0)
        made = UNet2DConditionModel(
            sample_size=self.side,
            in_channels=4,
            out_channels=4,
            down_block_types=kinds["Down"],
            up_block_types=kinds["Up"][::-1],
            block_out_channels=self.channels,
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=self.width,
            attention_head_dim=2,
        )
        train_only(made, "attention")
        return made


CASES = (
    Case("digits by class", (32, 64), (True, True), 4, 128, 1, 32),
    Case("sd-mini", (48, 96), (False, True), 8, 64, 16, 64),
)


def ways(case: Case) -> dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor] | None]]:
    """Return for each of the `WAYS` what computes the norms [B] of examples' gradients, and the sum of clipped ones, flat.

    The plain way computes neither. Without opacus, which tests need and the package does not, its ways are left out.
    """
    network = case.network()
    generator = torch.Generator().manual_seed(1)
    noisy, noise = torch.randn((2, case.batch, 4, case.side, case.side), generator=generator)
    timesteps = torch.randint(0, 1000, (case.batch,), generator=generator)
    told = torch.randn((case.batch, case.tokens, case.width), generator=generator)

    def losses(model: torch.nn.Module) -> torch.Tensor:
        return (model(noisy, timesteps, told).sample - noise).square().mean((1, 2, 3))

    def plain() -> None:
        losses(network).mean().backward()
        network.zero_grad()

    def private() -> tuple[torch.Tensor, torch.Tensor]:
        norms = []

        class Told(ClippedSums):
            def squared_norms(self, gradients):
                norms.append(super().squared_norms(gradients))
                return norms[-1]

        sums = Told(network, _CLIP)
        sums.add(case.batch, lambda: losses(network))
        return norms[0].sqrt(), _flat(sums.sums.values())

    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    frozen = {name: each for name, each in network.named_parameters() if not each.requires_grad}

    def loss_of_one(params, x, t, prompt, target):
        found = functional_call(network, (params, frozen), (x[None], t[None], prompt[None])).sample[0]
        return (found - target).square().mean()

    def by_vmap() -> tuple[torch.Tensor, torch.Tensor]:
        each = vmap(grad(loss_of_one), (None, 0, 0, 0, 0))(trained, noisy, timesteps, told, noise)
        return _clipped(list(each.values()))

    return {"plain": plain, "private": private, **_opacus(network, losses), "vmap(grad)": by_vmap}


def _opacus(network: UNet2DConditionModel, losses: Callable) -> dict[str, Callable]:
    with suppress(ImportError):
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

        hooked = GradSampleModule(copy.deepcopy(network), loss_reduction="sum")
        ghost = GradSampleModuleFastGradientClipping(copy.deepcopy(network), max_grad_norm=_CLIP, loss_reduction="sum")

        def by_hooks() -> tuple[torch.Tensor, torch.Tensor]:
            losses(hooked).sum().backward()
            each = [parameter.grad_sample for parameter in hooked.parameters() if parameter.requires_grad]
            found = _clipped(each)
            hooked.zero_grad()
            return found

        def by_ghost() -> tuple[torch.Tensor, torch.Tensor]:
            # opacus' own sequence: one pass for the norms, and one for the sum.
            ghost.enable_hooks()
            found = losses(ghost)
            found.sum().backward(retain_graph=True)
            norms = ghost.get_norm_sample().detach()
            ghost.zero_grad()
            ghost.disable_hooks()
            (found * (_CLIP / norms).clamp(max=1)).sum().backward()
            total = _flat(each.grad for each in ghost.parameters() if each.requires_grad)
            ghost.zero_grad()
            return norms, total

        return {"opacus, ghost": by_ghost, "opacus, hooks": by_hooks}
    return {}


def _flat(parts) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in parts])


def _clipped(each: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in each]).norm(dim=0)
    factors = (_CLIP / norms).clamp(max=1)
    return norms, _flat(torch.einsum("n,n...->...", factors, part) for part in each)


def run(cases: Sequence[Case] = CASES, repetitions: int = 5, progress: Progress = silent) -> dict[str, Any]:
    """Compute each case in all ways in turns, on one thread; return the record.

    "norms" and "sum" are the largest differences from the private way, relative to the norm, and to the sum's largest entry.
    """
    rows = []
    with one_thread():
        for place, case in enumerate(cases):
            made = ways(case)
            norms, total = made["private"]()

            def timed(compute: Callable) -> float:
                begin = time.perf_counter()
                compute()
                return 1000 * (time.perf_counter() - begin)

            size = len(made) * (repetitions + 1)
            settings = {"before": place * size, "total": len(cases) * size}
            runs = [(f"{case.name}, {name}", partial(timed, compute)) for name, compute in made.items()]
            for (name, compute), spent in zip(
                made.items(), take_turns(runs, repetitions, progress, **settings), strict=True
            ):
                each = np.array(spent) / case.batch
                row = {"case": case.name, "batch": case.batch, "way": name, "ms": float(np.median(each))}
                row |= {"ms_low": float(each.min()), "ms_high": float(each.max())}
                if name not in ("plain", "private"):
                    other, sums = compute()
                    row["norms"] = float(((other - norms) / norms).abs().max())
                    row["sum"] = float((sums - total).abs().max() / total.abs().max())
                rows.append(row)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process for each, since its peak is told once
        memory = {str(count): pool.apply(peak_of_step, (cases[0], count)) for count in EXAMPLES}
    return {"benchmark": "private-cost", "repetitions": repetitions, "memory": memory, "rows": rows}


def peak_of_step(case: Case, count: int) -> int:
    """Return the most bytes that this process held after a private step on `count` examples, in microbatches."""
    with one_thread():
        network = case.network()
        sums = ClippedSums(network, _CLIP)
        for _ in range(count // case.batch):
            noisy, told = (
                torch.randn((case.batch, 4, case.side, case.side)),
                torch.randn((case.batch, case.tokens, case.width)),
            )
            sums.add(case.batch, lambda: network(noisy, 10, told).sample.square().mean((1, 2, 3)))  # noqa: B023
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(peak.split()[1])


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each case and way: ms for an example, and how many times that of a plain pass it is."""
    frame = pd.DataFrame(record["rows"])
    plain = frame[frame["way"] == "plain"].set_index("case")["ms"]
    frame["of plain"] = frame["ms"] / frame["case"].map(plain)
    return frame[["case", "batch", "way", "ms", "of plain", "norms", "sum"]]


def cost_table(measurements: Path) -> str:
    """Return the time of an example in each way, as Markdown."""
    rows = []
    for row in table(_record(measurements)).to_dict("records"):
        exact = ["-", "-"] if np.isnan(row["norms"]) else [f"{row[name]:.0e}" for name in ("norms", "sum")]
        rows.append([row["case"], row["way"], f"{row['ms']:.2f}", times(row["of plain"]), *exact])
    return markdown(["denoiser", "way", "ms an example", "times a plain pass", "norms differ by", "sums by"], rows)


def _record(measurements: Path) -> dict[str, Any]:
    (record,) = records_named(measurements, "private_cost.json", "cipherdm bench private-cost")
    return record


TABLES = {"private_cost": cost_table}


def measure(repetitions: RepetitionsOption = 5, record: RecordOption = None) -> None:
    """Measure a pass with clipped sums against a plain one, and against opacus and vmap(grad), on one thread."""
    with ProgressBar("run") as bar:
        found = run(repetitions=repetitions, progress=bar)
    finish(record_path(record, "private_cost"), found, table(found))


def _ratio(way: str, base: str, take: Callable = max) -> Value:
    def value(records: Records) -> float:
        frame = table(records["private_cost"]).pivot(index="case", columns="way", values="ms")
        return float(take(frame[way] / frame[base]))

    return value


def _memory(records: Records) -> float:
    few, many = (records["private_cost"]["memory"][str(count)] for count in EXAMPLES)
    return many / few


TARGET = Target(
    "private-cost",
    "Time and memory of a private step, beside a plain one, opacus and vmap(grad)",
    "clipping each example's gradient costs a third of a plain pass at most, and less than opacus takes",
    "ours",
    (Command("private_cost", ("bench", "private-cost"), (), ("--repetitions", "1")),),
    (
        Check("time, private / plain", 1.35, 0.1, _ratio("private", "plain"), 0.3, 2, bound="most"),
        Check(
            "time, opacus, ghost / private", 1.5, 0.1, _ratio("opacus, ghost", "private", min), 0.3, 2, bound="least"
        ),
        Check("time, vmap(grad) / private", 1.9, 0.2, _ratio("vmap(grad)", "private", min), 0.6, 1, bound="least"),
        Check("memory, 4,096 examples / 512", 1.1, 0, _memory, 0, 2, bound="most"),
    ),
    order=102,
)
