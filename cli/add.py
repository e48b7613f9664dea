"""`serverless-triton add`: puts one checkpoint into a model repository under one or more names."""

from __future__ import annotations

import json
from pathlib import Path

import click

from serverless_triton.backend.messages import MODES
from serverless_triton.backend.model_repository import ENGINES, EngineLimits, add_model, add_version


@click.command("add", short_help="Put a model into a Triton model repository.")
@click.argument("source")
@click.option("--name", "names", multiple=True, required=True, help="The model's name; repeat it for more of them.")
@click.option("--repository", type=click.Path(path_type=Path), default="model_repository", show_default=True)
@click.option("--version", type=click.IntRange(min=1), help="Add this version to a model that is there already.")
@click.option("--engine", type=click.Choice(ENGINES), default="torch", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="auto (the checkpoint's), float32, bfloat16, float16.")
@click.option("--max-sequence-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--max-streams", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True)
@click.option("--step-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of its engine.")
@click.option("--engine-options", default="", metavar="JSON", help="What only this engine knows, as a JSON object.")
@click.option("--replace", is_flag=True, help="Overwrite the configuration of a model that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a model.")
def command(
    source: str,
    names: tuple[str, ...],
    repository: Path,
    version: int | None,
    engine: str,
    dtype: str,
    max_sequence_tokens: int,
    max_streams: int,
    mode: str,
    step_tokens: int,
    threads: int,
    engine_options: str,
    replace: bool,
    as_json: bool,
) -> None:
    """Put SOURCE into a Triton model repository: a complete config.pbtxt for each name.

    SOURCE is a Hugging Face directory or the URL of one: hf://organisation/model, s3://bucket/prefix, https://host/path.
    The weights of a URL stay there until a node loads them; configuration and tokenizer come into the repository.
    Of several versions the latest is served, unless version_policy in config.pbtxt says otherwise.
    """
    limits = EngineLimits(
        engine=engine,
        dtype=dtype,
        max_sequence_tokens=max_sequence_tokens,
        max_streams=max_streams,
        mode=mode,
        step_tokens=step_tokens,
        threads=threads,
        engine_options=engine_options,
    )
    for name in names:
        if version is None:
            folder = add_model(repository, name, source, limits=limits, replace=replace)
        else:
            folder = add_version(repository, name, version, source, limits=limits)
        click.echo(json.dumps({"name": name, "path": str(folder.absolute())}) if as_json else f"added {name}: {folder}")
