"""What does a user type to see and to keep priors? `dcodec priors`, `dcodec priors add`, `dcodec priors pull`."""

from pathlib import Path
from typing import Any

import click


@click.group(invoke_without_command=True)
@click.pass_context
def priors(context: click.Context) -> None:
    """List the installed priors, or add one.

    Without a command: name, size, cost (GFLOP an evaluation, at 256x256 or the size that the model was made for), what it
    knows, hash and file of each prior that encode and decode find by name.

    \b
    dcodec priors
    dcodec priors add ./my-ddpm --name faces
    dcodec priors pull google/ddpm-celebahq-256
    """
    if context.invoked_subcommand is not None:
        return
    from dcodec import api

    for prior in api.priors():
        click.echo(
            f"{prior['name']:12}  {prior['bytes'] or 0:>11,} bytes  {prior['gflop']:6.2f} GFLOP  {prior['domain']}"
            f"  sha256 {str(prior['sha256'] or '-')[:16]}  {prior['path'] or 'built in'}"
        )


@priors.command()
@click.argument("source", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", metavar="N", help="What --prior will call it.  [default: the folder's name]")
def add(source: Path, name: str | None) -> None:
    """Keep a copy of the diffusers model in FOLDER, as `save_pretrained` wrote it.

    Streams made with it are then decoded without --prior. Copies lie in DCODEC_HOME/priors (default: ~/.local/share/dcodec);
    remove a folder there to forget one. Weights must be safetensors: pickles may run any code and are refused.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder")
    _keep(source, name or source.resolve().name)


@priors.command()
@click.argument("model", metavar="ID")
@click.option("--name", metavar="N", help="What --prior will call it.  [default: ID]")
def pull(model: str, name: str | None) -> None:
    """Fetch the diffusers model ID (owner/model) from the hub and keep a copy."""
    from dcodec.prior import folder

    _keep(folder.download(model), name or model)


def _keep(source: Path, name: str) -> None:
    from dcodec.prior import catalog, folder

    if any(entry.name == name for entry in catalog.shipped()):
        raise ValueError(f"the name {name} is that of a prior that comes with dcodec: choose another --name")
    target = folder.add(source, name, _record)
    click.echo(f"{name}: {target}", err=True)


def _record(copy: Path) -> dict[str, Any]:
    """What only loading tells of a model: that it can be used at all, its hash, its cost, what it is for."""
    from dcodec.prior.adapter import DiffusersPrior

    prior = DiffusersPrior.load(copy, copy.name, arithmetic="native")
    height, width = prior.size or (256, 256)
    kind = "latents" if prior.latent else "gray" if prior.channels == (1,) else "colour"
    return {"sha256": prior.digest.hex(), "domain": f"{kind}, {width}x{height}", "gflop": round(prior.gflop(), 3)}
