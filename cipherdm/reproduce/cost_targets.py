"""The targets of what computing on shares costs: operations, functions, products, a step, and networks."""

from . import figures
from .checks import (
    FunctionRow,
    Gain,
    LargestError,
    LargestProductError,
    OperationRow,
    PiecewiseBytes,
    ProductGain,
    ShareOfStep,
)
from .claims import STEP_BATCHES, step_record
from .figures import MODELS
from .target import Check, Piece, Target

TINY, TEN = MODELS
# Batch size, then how it is measured in the full run, which takes turns of minutes for many pictures, and in the reduced run.
_STEPS = (
    (1, ("--repetitions", "3", "--at-once", "3"), ("--repetitions", "1", "--at-once", "1")),
    *(
        (
            batch,
            ("--repetitions", "2", "--at-once", "1"),
            ("--protocols", "direct,fast", "--repetitions", "1", "--at-once", "1"),
        )
        for batch in STEP_BATCHES[1:]
    ),
)

STEP = Target(
    "step",
    "One denoising step under each set of protocols",
    "CipherDM's functions take 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than direct SPU; "
    "ours take less still",
    "paper",
    tuple(
        Piece(
            step_record(model, batch),
            ("bench", "step", model, "--batch", str(batch)),
            full,
            reduced,
        )
        for batch, full, reduced in _STEPS
        for model in MODELS
    ),
    tuple(
        check
        for model, with_taylor, with_pade, ours, distilled, times, published in (
            (TINY, 1.22, 2.66, 12.6, 22.6, (8.2, 8.2), (1.16, 0.93, 1.87)),
            (TEN, 2.14, 3.43, 7.4, 12.5, (5.9, 5.3), (1.48, 1.29, 2.12)),
        )
        for check in (
            Check(
                f"{model}: bytes, direct / cipherdm",
                with_taylor,
                0.02,
                Gain(model, "cipherdm", "bytes"),
                0.02,
                2,
            ),
            Check(
                f"{model}: bytes, direct-pade / cipherdm",
                with_pade,
                0.03,
                Gain(model, "cipherdm", "bytes", "direct-pade"),
                0.03,
                2,
            ),
            Check(f"{model}: bytes, direct / fast", ours, 0.2, Gain(model, "fast", "bytes"), 0.2),
            Check(
                f"{model}: bytes, direct / distilled",
                distilled,
                0.3,
                Gain(model, f"fast on {model}-quad", "bytes"),
                0.3,
            ),
            *(
                Check(f"{model}: time, direct / fast{more}", time, 0.4 * time, Gain(model, "fast", "time", batch=batch))
                for more, batch, time in (("", 1, times[0]), (", 16 pictures", 16, times[1]))
            ),
            *(
                Check(f"{model}: time, {name}", time, 0.3, Gain(model, "cipherdm", "time", base, batch=batch), digits=2)
                for name, base, batch, time in (
                    ("direct / cipherdm", "direct", 1, published[0]),
                    ("direct / cipherdm, 16 pictures", "direct", 16, published[1]),
                    ("direct-pade / cipherdm", "direct-pade", 1, published[2]),
                )
            ),
        )
    ),
    figures.gains,
)

FUNCTIONS = Target(
    "activations",
    "Error and cost of every function",
    "exp, SiLU and Mish by polynomials cost less than the exact functions on SPU; as published they are coarse",
    "paper",
    (Piece("activations", ("bench", "activations"), (), ("--sizes", "1000", "--repetitions", "1")),),
    (
        Check("largest error of exp, published", 0.0485, 0.001, FunctionRow("exp", "exp_cipherdm"), 0.001, 4),
        Check("largest error of exp, corrected", 0.0055, 0.0005, FunctionRow("exp", "exp_corrected"), 0.0005, 4),
        Check("largest error of SiLU, published", 0.064, 0.004, FunctionRow("silu", "silu_cipherdm"), 0.004, 3),
        Check("bytes an element, SiLU direct", 1832, 2, FunctionRow("silu", "direct", "bytes", each=True), 2, 0),
        Check(
            "bytes an element, SiLU direct, Pade", 3072, 3, FunctionRow("silu", "direct", "bytes", "pade", True), 3, 0
        ),
        Check(
            "bytes an element, SiLU published", 728, 1, FunctionRow("silu", "silu_cipherdm", "bytes", each=True), 1, 0
        ),
    ),
    figures.functions,
)

BREAKDOWN = Target(
    "breakdown",
    "A step by part of the U-Net and kind of layer",
    "noise prediction takes nearly all of the time, and in it softmax and activations are expensive",
    "paper",
    tuple(Piece(f"breakdown_{model}", ("bench", "breakdown", model), (), ("--repetitions", "1")) for model in MODELS),
    (
        *(
            Check(
                f"{model}, direct: {what}, share of {quantity}",
                expected,
                2,
                ShareOfStep(model, "direct", quantity, by, names),
                2,
                unit="%",
            )
            for model, what, quantity, by, names, expected in (
                (TINY, "softmax and activations", "bytes", "kind", ("softmax", "activation"), 90.1),
                (TINY, "convolutions", "bytes", "kind", ("convolution",), 1.3),
                (TINY, "normalisation", "rounds", "kind", ("normalisation",), 30.6),
                (TEN, "residual blocks", "bytes", "group", ("residual blocks",), 94.2),
            )
        ),
        Check(
            f"{TEN}, direct: the scheduler's update, share of seconds",
            1,
            0,
            ShareOfStep(TEN, "direct", "seconds", "group", ("scheduler update",)),
            0,
            2,
            "%",
            "most",
        ),
    ),
    figures.parts,
)

LINEAR = Target(
    "linear",
    "Matrix products: SPU's, and the parties' own on shares in two rings",
    "kernels on shares give the same results as SPU's products with the same bytes, over Z_2^32 with half, in less time",
    "ours",
    (Piece("linear", ("bench", "linear"), ("--repetitions", "5"), ("--shapes", "128x1152x196", "--repetitions", "1")),),
    (
        Check("largest error of a product", 0, 0, LargestProductError(), 0, 0),
        Check("bytes, SPU / kernel over Z_2^64", 1, 0.01, ProductGain("bytes", 64), 0.01, 2),
        Check("bytes, SPU / kernel over Z_2^32", 2, 0.01, ProductGain("bytes", 32), 0.01, 2),
        # Without the processor's instructions for products of bytes, kernels take longer than this.
        Check("time, SPU / kernel over Z_2^64", 2.0, 0.8, ProductGain("ms", 64)),
        Check("time, SPU / kernel over Z_2^32", 2.9, 1.2, ProductGain("ms", 32)),
    ),
)

RINGS = Target(
    "rings",
    "A step with products on shares, in one ring and in two",
    "products on shares take less time than SPU's; the small ring sends less where layers are chosen for it",
    "ours",
    (
        Piece(
            f"rings_{TEN}",
            ("bench", "step", TEN, "--batch", "16", "--protocols", "direct,fast,fast-shares,fast-mixed"),
            ("--repetitions", "3", "--at-once", "1"),
            ("--repetitions", "1", "--at-once", "1"),
        ),
        Piece(
            f"blocks_{TEN}",
            ("bench", "step", TEN, "--protocols", "fast,fast-shares", "--granularity", "block"),
            ("--batch", "1,4,16", "--repetitions", "5"),
            ("--batch", "1", "--repetitions", "1"),
        ),
    ),
    (
        Check("bytes, direct / fast-shares", 7.4, 0.2, Gain(TEN, "fast-shares", "bytes", "direct", "rings", 16), 0.2),
        Check("bytes, direct / fast-mixed", 7.5, 0.2, Gain(TEN, "fast-mixed", "bytes", "direct", "rings", 16), 0.2),
        Check("time, direct / fast-shares", 5.6, 2.2, Gain(TEN, "fast-shares", "time", "direct", "rings", 16)),
    ),
)

LADDER = Target(
    "ladder",
    "From direct to fast, one change after the other",
    "most of the gain is in activations, softmax and normalisation without comparisons and divisions",
    "ours",
    (
        Piece(
            f"ladder_{TINY}",
            ("bench", "ladder", TINY),
            (),
            ("--repetitions", "1", "--at-once", "1"),
        ),
    ),
    (
        Check(
            "bytes, direct / fast",
            12.6,
            0.2,
            Gain(TINY, "fast", "bytes", benchmark="ladder"),
            0.2,
        ),
        Check(
            "bytes, direct / polynomials",
            1.58,
            0.03,
            Gain(TINY, "+ polynomials", "bytes", benchmark="ladder"),
            0.03,
            2,
        ),
        Check(
            "bytes, direct / bounded softmax",
            2.78,
            0.03,
            Gain(TINY, "+ bounded softmax", "bytes", benchmark="ladder"),
            0.03,
            2,
        ),
    ),
    figures.ladder,
)

LATENCY = Target(
    "latency",
    "The latency model against runs over shaped links",
    "computing, rounds and bytes predict a step over a network within 15%",
    "ours",
    (
        Piece(
            "latency",
            ("bench", "latency"),
            (),
            ("--protocols", "fast", "--networks", "wan", "--repetitions", "1"),
        ),
    ),
    (Check("largest error", 15, 0, LargestError("latency"), 10, 0, "%", "most"),),
    figures.latency,
)

NETWORK = Target(
    "network",
    "How exactly links are shaped",
    "round trip and bandwidth are within 10% of what was asked for",
    "ours",
    (Piece("network", ("bench", "network"), (), ("--repetitions", "1")),),
    (
        # A busy machine cannot carry a LAN's bandwidth, and one measurement of a network may meet a busy moment.
        Check("largest error", 10, 0, LargestError("network"), None, 0, "%", "most"),
        Check("largest error of WAN and narrow", 10, 0, LargestError("network", ("WAN", "narrow")), 20, 0, "%", "most"),
    ),
)

OPERATIONS = Target(
    "operations",
    "Cost of elementary operations",
    "comparisons and divisions are what costs; additions are free",
    "ours",
    (Piece("operations", ("bench", "operations"), (), ("--elements", "1000", "--repetitions", "1")),),
    tuple(
        Check(f"bytes an element, {name}", expected, 1, OperationRow(name), 1, 0)
        for name, expected in {"addition": 0, "secret x secret": 52, "less-than": 108, "reciprocal": 1336}.items()
    ),
)

PIECEWISE = Target(
    "piecewise",
    "Cost of piecewise polynomials",
    "bytes and messages of a piecewise polynomial follow from counting its operations",
    "ours",
    (Piece("piecewise", ("bench", "piecewise")),),
    (Check("bytes an element, SiLU published, by counting", 728, 0, PiecewiseBytes(), 0, 0),),
)
