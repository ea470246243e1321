"""Commands of three hosts: `cipherdm certificates | party | status | register | unregister | request`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..errors import CipherDMError, refuse
from ..files import check_writable
from ..progress import ProgressBar
from .options import (
    ConditioningOption,
    GuidanceOption,
    ModelArgument,
    OutOption,
    ProtocolsOption,
    ReuseOption,
    SchedulerOption,
    StartOption,
    StepsOption,
    parse_labels,
)

ConfigOption = Annotated[Path, typer.Option(help="TOML file of this role.")]


def certificates(
    folder: Annotated[Path, typer.Argument(help="New folder for the files.")],
    hosts: Annotated[
        str, typer.Option(help="Addresses of the three parties, separated by commas, or one address for all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of party 0; the others use the ports after it.")] = 9300,
    clients: Annotated[str, typer.Option(help="Names of clients, separated by commas.")] = "client",
    runs: Annotated[int, typer.Option(help="Number of runs at a time.", min=1)] = 2,
    days: Annotated[int, typer.Option(help="Validity of the certificates in days.", min=1)] = 7,
) -> None:
    """Make certificates and TOML files of all roles for a trial.

    Whoever runs this holds all private keys, and could act as every party at once. In production each organisation makes
    its own key (`openssl req -new -newkey ec ...`) and has it signed by an authority that all trust. Common name and DNS name
    of a party are party0, party1 or party2; other roles have a common name from the section roles of the TOML files. The
    parties' links get an authority of their own, which signs for nobody else. DEPLOYING.md has the steps.
    """
    from ..hosts import Limits, make_trial

    check_writable(folder / "party0.toml")
    files = make_trial(
        folder, hosts=_split(hosts), port=port, clients=_split(clients), limits=Limits(runs=runs), days=days
    )
    for role, path in files.items():
        typer.echo(f"{role}: {path}")
    typer.echo("For a trial only: these keys were made in one place. In production every organisation makes its own.")


def party(config: ConfigOption) -> None:
    """Run one of the three parties on this host, until SIGTERM or Ctrl-C.

    Logs one line of JSON per event to standard error; never a share, a value or an input.
    """
    from ..hosts import command, load_host

    load_host(config)
    # Without this, gRPC would write messages of its own between the lines of JSON.
    os.execve(sys.executable, command(config), os.environ | {"GRPC_VERBOSITY": "NONE"})


def status(config: ConfigOption) -> None:
    """Show the three parties: versions, configuration, registered models, memory, and the last error.

    For operators, and for parties with their own file. The exit code is 0 if all three answer and agree, and 3 otherwise.
    """
    from ..hosts import RemoteCluster, report

    with RemoteCluster(config) as cluster:
        text, well = report(cluster.states())
    typer.echo(text)
    raise typer.Exit(0 if well else 3)


def register(
    model: ModelArgument,
    config: ConfigOption,
    name: Annotated[
        str | None, typer.Option(help="Name by which clients ask for the model; the folder's name by default.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Number of images, or texts, per run.", min=1)] = 1,
    steps: StepsOption = None,
    start: StartOption = 0,
    reuse: ReuseOption = 1,
    scheduler: SchedulerOption = None,
    eta: Annotated[float, typer.Option(help="Share of fresh noise of ddim and tcd, 0 to 1.")] = 0.0,
    protocols: ProtocolsOption = "fast",
    granularity: Annotated[
        str | None,
        typer.Option(help="Unit that becomes one program: block (default for prompts), step (for labels) or loop."),
    ] = None,
    guidance_scale: GuidanceOption = None,
    conditioning_scale: ConditioningOption = 1.0,
    tokens: Annotated[int | None, typer.Option(help="Tokens that each text is filled up to; 32 by default.")] = None,
    together: Annotated[
        int, typer.Option(help="Most requests for images, of any clients, that one run may compute.", min=1)
    ] = 1,
) -> None:
    """Share a model's weights among the three parties, as its owner, so that clients can ask for images, or classes of texts.

    A model registered before under this name is replaced.
    """
    from ..hosts import RemoteCluster
    from ..models import find_model
    from ..models.transformer import Transformer
    from ..protocols import named
    from ..sampling.pipeline import Pipeline, load_model
    from .owner import hosted

    folder = find_model(model)
    loaded = load_model(folder)
    texts = isinstance(loaded, Transformer)
    refuse({"requests for texts are computed each alone; leave --together out": together > 1 and texts})
    sampled: dict[str, Any] = {"steps": steps, "start": start, "reuse": reuse, "scheduler": scheduler, "eta": eta}
    sampled["together"] = together
    if isinstance(loaded, Pipeline):
        sampled |= {"guidance_scale": guidance_scale, "conditioning_scale": conditioning_scale}
    settings = {"batch": pictures, "protocols": named(protocols), "granularity": granularity}
    with ProgressBar("program") as bar:
        made = hosted(name or folder.name, loaded, steps=sampled, tokens=tokens, progress=bar, **settings)
    with RemoteCluster(config) as cluster, ProgressBar("value") as bar:
        cluster.register(made, bar)
    typer.echo(f"Registered {made.name}: {len(made.values)} values, {len(made.plan.calls)} calls per run.")


def unregister(name: Annotated[str, typer.Argument(help="Name of the model.")], config: ConfigOption) -> None:
    """Have the three parties delete a model, as its owner."""
    from ..hosts import RemoteCluster

    with RemoteCluster(config) as cluster:
        cluster.remove(name)
    typer.echo(f"Removed {name}.")


def request(
    name: Annotated[str, typer.Argument(help="Name of a registered model.")],
    config: ConfigOption,
    labels: Annotated[str | None, typer.Option(help='One image per label: "0-9", "3", "1,1,7".')] = None,
    count: Annotated[int | None, typer.Option(help="Number of images, for a model without classes.")] = None,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", help="Prompt. Repeat for several images.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Prompt to lead away from, for all images.")] = None,
    control_image: Annotated[
        list[Path] | None,
        typer.Option(help="Image file for a ControlNet, as large as the images that are drawn. One per prompt."),
    ] = None,
    components: Annotated[
        Path | None,
        typer.Option(help="Folder with tokenizer, text encoder and VAE, for prompts; with a tokenizer, for texts."),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="Text to be classified. Repeat for several.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise; unpredictable by default.")] = None,
    out: OutOption = Path("request.png"),
) -> None:
    """Have the three parties compute a registered model, as client. Only this command sees what is asked, and the results."""
    from ..hosts import RemoteCluster, classes_of, images_of
    from ..sampling.pipeline import load_client_components
    from ..views.pictures import image_row, wrapped
    from .sample import PROMPT_LAYOUT, counted, read_image, write_figure

    chosen = parse_labels(labels)
    if texts:
        if components is None or prompts or chosen:
            raise CipherDMError("a text needs --components, the folder with the client's tokenizer, and nothing else.")
        with RemoteCluster(config) as cluster, ProgressBar("call") as bar:
            found = classes_of(cluster, name, texts, components, progress=bar)
        for text, label in zip(texts, found.labels, strict=True):
            typer.echo(f"{label}: {text}")
        typer.echo(
            f"{found.cost.seconds:.1f} s; the parties sent {found.cost.bytes / 1e6:.2f} MB in {found.cost.sends} messages."
        )
        return
    if bool(prompts) != (components is not None):
        raise CipherDMError("a prompt needs --components, the folder with the client's tokenizer, and the reverse.")
    asked = {"labels": chosen, "count": count, "seed": seed}
    if prompts or negative_prompt is not None:
        asked |= {"prompts": prompts, "negative_prompts": negative_prompt}
        hints = [read_image(path) / 2 + 0.5 for path in control_image or ()]
        refuse({"control images differ in size": len({hint.shape for hint in hints}) > 1})
        asked["control"] = np.stack(hints) if hints else None
        asked["components"] = components and load_client_components(components)
    with RemoteCluster(config) as cluster, ProgressBar("call") as bar:
        registered = cluster.models().get(name)
        result = images_of(cluster, name, progress=bar, **asked)
    if prompts:
        figure = image_row(result.images, [wrapped(prompt) for prompt in prompts], **PROMPT_LAYOUT)
    else:
        figure = image_row(result.images, [str(label) for label in chosen or range(len(result.images))])
    about, cost = json.loads(registered.about), result.cost
    public = {
        key: about[key]
        for key in ("scheduler", "steps", "start", "reuse", "eta", "guidance_scale", "protocols")
        if key in about
    }
    record = {"model": name, **public, "pictures": len(result.images), "cost": cost.to_dict()}
    typer.echo(
        f"{counted(len(result.images), 'image')} in {cost.seconds:.1f} s; the parties sent {cost.bytes / 1e6:.1f} MB in "
        f"{cost.sends} messages.\n{write_figure(figure, out, record)}"
    )


def _split(names: str) -> tuple[str, ...]:
    parts = tuple(name.strip() for name in names.split(","))
    if not all(parts):
        raise CipherDMError(f"cannot read the names {names!r}: write them with commas between.")
    return parts
