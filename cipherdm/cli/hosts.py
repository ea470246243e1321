"""The commands of three hosts: `cipherdm certificates | party | status | register | unregister | request`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CipherDMError
from ..progress import ProgressBar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..hosts.model import Model
    from ..hosts.remote import RemoteCluster
    from ..sampling.text_to_image import TextToImageResult

ConfigOption = Annotated[Path, typer.Option(help="The TOML file of this role.")]


def certificates(
    folder: Annotated[Path, typer.Argument(help="Where to put them; a new folder.")],
    hosts: Annotated[
        str, typer.Option(help="Addresses of the three parties, with commas; or one for all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of party 0; the others follow.")] = 9300,
    clients: Annotated[str, typer.Option(help="Names of clients, with commas.")] = "client",
    runs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 2,
    days: Annotated[int, typer.Option(help="How long the certificates are valid.", min=1)] = 7,
) -> None:
    """Make certificates and TOML files of all roles for a trial.

    Whoever runs this holds all private keys, and could act as every party at once. In earnest each organisation makes
    its own key (`openssl req -new -newkey ec ...`) and has it signed by an authority that all trust, under the common name and
    DNS name party0, party1, party2, or the name that [roles] gives it; and the parties' links get an authority of
    their own, which signs for nobody else. DEPLOYING.md has the steps.
    """
    from ..hosts.config import Limits
    from ..hosts.trial_files import make_trial

    files = make_trial(
        folder, hosts=_split(hosts), port=port, clients=_split(clients), limits=Limits(runs=runs), days=days
    )
    for role, path in files.items():
        typer.echo(f"{role}: {path}")
    typer.echo("For a trial only: these keys were made in one place. In earnest every organisation makes its own.")


def party(config: ConfigOption) -> None:
    """Run one of the three parties on this host, until SIGTERM or Ctrl-C.

    Logs one line of JSON for each event to standard error; never a share, a value or an input.
    """
    from ..hosts.config import load_host
    from ..hosts.process import command

    load_host(config)
    # gRPC's own messages would stand between the lines of JSON.
    os.execve(sys.executable, command(config), os.environ | {"GRPC_VERBOSITY": "NONE"})


def status(config: ConfigOption) -> None:
    """Show the three parties: versions, configuration, registered models, memory, and the last error.

    For operators, and for parties with their own file. The exit code is 0 if all three answer and agree, and 3 if not.
    """
    from ..hosts.remote import RemoteCluster
    from ..hosts.status import report

    with RemoteCluster(config) as cluster:
        text, well = report(cluster.states())
    typer.echo(text)
    raise typer.Exit(0 if well else 3)


def register(
    model: Annotated[str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")],
    config: ConfigOption,
    name: Annotated[str | None, typer.Option(help="What clients ask for; the folder's name by default.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures a run.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")] = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: Annotated[str, typer.Option(help="A named set of protocols.")] = "fast",
    granularity: Annotated[
        str | None, typer.Option(help="What one program computes: block (for prompts), step (for labels), or loop.")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="For a model that takes prompts.", min=1.0)] = 7.5,
) -> None:
    """As model owner: share a model's weights among the three parties, so that clients can ask for pictures.

    A model registered before under the same name is replaced.
    """
    from ..hosts.remote import RemoteCluster
    from ..models import find_model
    from ..protocols import named

    folder = find_model(model)
    settings = {"pictures": pictures, "steps": steps, "scheduler": scheduler, "eta": eta, "protocols": named(protocols)}
    made = _registered(folder, name or folder.name, granularity, guidance_scale, settings)
    with RemoteCluster(config) as cluster, ProgressBar("value") as bar:
        cluster.register(made, bar)
    typer.echo(f"Registered {made.name}: {len(made.values)} values, {len(made.plan.calls)} calls a run.")


def unregister(name: Annotated[str, typer.Argument(help="Of the model.")], config: ConfigOption) -> None:
    """As model owner: have the three parties delete a model."""
    from ..hosts.remote import RemoteCluster

    with RemoteCluster(config) as cluster:
        cluster.remove(name)
    typer.echo(f"Removed {name}.")


def request(
    name: Annotated[str, typer.Argument(help="Of a registered model.")],
    config: ConfigOption,
    labels: Annotated[str | None, typer.Option(help='One picture a label: "0-9", "3", "1,1,7".')] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures, for a model without classes.")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to draw; several times for several pictures.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    components: Annotated[
        Path | None, typer.Option(help="For prompts: a pipeline's folder, with tokenizer, text encoder and VAE.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; unpredictable by default.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write; a record goes beside it as .json.")] = Path(
        "request.png"
    ),
) -> None:
    """As client: have the three parties sample from a registered model. Only this command sees labels, prompts and pictures."""
    from ..files import replacing
    from ..hosts.remote import RemoteCluster
    from ..hosts.sampling import images_of
    from ..records import write_record
    from ..views.pictures import image_row
    from .options import parse_labels

    chosen = parse_labels(labels)
    if bool(prompts) != (components is not None):
        raise CipherDMError("a prompt needs --components, the folder with the client's tokenizer, and the reverse.")
    if prompts and (chosen or count is not None):
        raise CipherDMError("give prompts, or labels or a count, not both.")
    if negative_prompt is not None and not prompts:
        raise CipherDMError("a negative prompt goes with a prompt: give --prompt as well.")
    with RemoteCluster(config) as cluster, ProgressBar("call") as bar:
        about = json.loads(cluster.models()[name].about) if name in cluster.models() else {}
        if prompts:
            result, figure = _drawn(cluster, name, components, prompts, negative_prompt, seed=seed, progress=bar)
        else:
            result = images_of(cluster, name, labels=chosen, count=count, seed=seed, progress=bar)
            figure = image_row(result.images, [str(label) for label in chosen or range(len(result.images))])
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
    record = out.with_suffix(".json")
    public = {key: about[key] for key in ("scheduler", "steps", "eta", "guidance_scale", "protocols") if key in about}
    write_record(record, {"model": name, **public, "pictures": len(result.images), "cost": result.cost.to_dict()})
    cost = result.cost
    typer.echo(
        f"{len(result.images)} pictures in {cost.seconds:.1f} s; the parties sent {cost.bytes / 1e6:.1f} MB in "
        f"{cost.sends} messages.\nWrote {out} and {record}."
    )


def _registered(folder: Path, name: str, granularity: str | None, guidance_scale: float, settings: dict) -> "Model":
    """A folder's model, as one that takes prompts if it is a pipeline's."""
    from ..models.checkpoint import PIPELINE, load_unet

    if (folder / PIPELINE).is_file():
        from ..hosts.sampling import text_to_image_model
        from ..sampling.pipeline import load_pipeline

        chosen = {"guidance_scale": guidance_scale, "granularity": granularity or "block"}
        return text_to_image_model(name, load_pipeline(folder), **settings, **chosen)
    from ..hosts.sampling import sampling_model

    return sampling_model(name, load_unet(folder), **settings, granularity=granularity or "step")


def _drawn(
    cluster: "RemoteCluster", name: str, components: Path, prompts: list[str], negative_prompt: str | None, **settings
) -> tuple["TextToImageResult", "Figure"]:
    """The pictures of prompts, with one negative prompt for all, and a figure of them."""
    from ..hosts.sampling import text_to_image_of
    from ..sampling.pipeline import load_client_components
    from ..views.pictures import image_row, wrapped
    from .sample import PROMPT_LAYOUT

    negative = None if negative_prompt is None else [negative_prompt] * len(prompts)
    loaded = load_client_components(components)
    result = text_to_image_of(cluster, name, loaded, prompts, negative_prompts=negative, **settings)
    return result, image_row(result.images, [wrapped(prompt) for prompt in prompts], **PROMPT_LAYOUT)


def _split(names: str) -> tuple[str, ...]:
    parts = tuple(name.strip() for name in names.split(","))
    if not all(parts):
        raise CipherDMError(f"cannot read the names {names!r}: write them with commas between.")
    return parts
