"""The files in docker/: as far as they can be checked where no container engine runs."""

from pathlib import Path

import click
import pytest
import yaml

from serverless_triton.backend.model_config import parse_parameters
from serverless_triton.cli.main import cli
from serverless_triton.scheduler.config import load_config

ROOT = Path(__file__).parent.parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_service_runs_a_command_with_options_that_exist(service: str):
    name, *arguments = COMPOSE["services"][service]["command"]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_schedulers_servers_are_the_services_and_their_default_ports():
    config = load_config(ROOT / "docker" / "scheduler.yaml")
    node = cli.get_command(click.Context(cli), "node")
    assert node is not None
    ports = {parameter.name: parameter.default for parameter in node.params}
    assert {server.name for server in config.servers} == set(COMPOSE["services"]) - {"scheduler"}
    for server in config.servers:
        assert server.triton == f"{server.name}:{ports['grpc_port']}"
        assert server.agent == f"{server.name}:{ports['agent_port']}"


def test_the_example_models_checkpoint_is_where_the_servers_mount_them():
    parameters = parse_parameters((ROOT / "model_repository/smollm2-135m-instruct/config.pbtxt").read_text())
    assert parameters is not None
    mounts = {volume.rsplit(":", 2)[1] for volume in COMPOSE["services"]["server-0"]["volumes"]}
    assert str(Path(parameters["checkpoint"]).parent) in mounts


@pytest.mark.parametrize("part", ["server", "scheduler"])
def test_images_install_with_the_steps_that_the_host_checks(part: str):
    dockerfile = (ROOT / "docker" / f"Dockerfile.{part}").read_text()
    assert f"RUN /source/docker/install.sh /opt/serverless-triton {part}\n" in dockerfile
