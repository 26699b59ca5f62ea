"""The guides to fine-tuning, inference, serving and scaling say what the code does."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from terrazzo import cli
from terrazzo.config import from_dict
from terrazzo.serve.app import OPERATIONS
from terrazzo.serve.metrics import Metrics
from terrazzo.serve.settings import Settings
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.rows import example_of
from terrazzo.tasks.suites import read_suite
from terrazzo.tasks.suites.manifest import suite_names

ROOT = Path(__file__).parents[1]
GUIDES = ("docs/inference.md", "docs/serving.md", "docs/scaling.md")
COMMANDS = get_command(cli.app).commands


def text_of(name):
    return (ROOT / name).read_text()


def options_of(command):
    return {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def manifests():
    return {part["kind"]: part for part in yaml.safe_load_all(text_of("deploy/kubernetes.yaml"))}


def container():
    (own,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return own


@pytest.mark.parametrize("page", [*GUIDES, "docs/finetuning.md", "README.md", "Dockerfile", "deploy/ray_serve.py"])
def test_commands_take_the_options_that_are_shown(page):
    lines = re.findall(r"terrazzo (?:terrazzo )?(\w+)((?: +\S+)*)", text_of(page))
    shown = [(command, re.findall(r"(?<=\s)--[a-z][\w-]*", rest.split("#")[0])) for command, rest in lines]
    used = [(command, option) for command, options in shown if command in COMMANDS for option in options]
    assert page.startswith("deploy") or used
    assert [pair for pair in used if pair[1] not in options_of(pair[0])] == []


def test_files_and_rows_of_the_fine_tuning_guide_are_read(tmp_path):
    page = text_of("docs/finetuning.md")
    settings, suite = re.findall(r"```toml\n(.*?)```", page, re.S)
    config = from_dict(FinetuneConfig, {"out": "reviews", **tomllib.loads(settings)}, "guide")
    assert config.lr == (5e-5, 1e-4) and config.loss.label_smoothing == 0.1
    (tmp_path / "mine.toml").write_text(suite)
    assert read_suite(tmp_path / "mine.toml").tasks[0].paper.epochs == 3
    shown = re.findall(r"^\| `(\w+)` \|", page.partition("| suite |")[2].partition("\n\n")[0], re.M)
    assert sorted(shown) == suite_names()
    rows = page.partition("One line of each, as JSON:")[2].strip().partition("\n\n")[0].splitlines()
    kinds = ("label", "pair", "regression", "tag", "tag", "span", "multi")
    found = [example_of(json.loads(row), kind) for row, kind in zip(rows, kinds, strict=True)]
    assert all(example.target for example in found)
    known = set(FinetuneConfig.__dataclass_fields__)
    assert [
        field for field in re.findall(r"--set (\w+)[.=]", page) if field not in known | {"checkpoint_every", "keep"}
    ] == []


@pytest.mark.parametrize("page", GUIDES)
def test_links_lead_somewhere_and_replies_are_json(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", text_of(page))
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []
    for block in re.findall(r"```json\n(.*?)```", text_of(page), re.S):
        json.loads(block)


def test_paths_codes_and_metrics_of_the_guide_are_those_of_the_server():
    page = text_of("docs/serving.md")
    known = {operation.path for operation in OPERATIONS} | {"/openapi.json", "/"}
    called = re.findall(r"localhost:8080(/[\w/]*)", page)
    assert len(called) >= 9 and set(called) <= known
    table = page.partition("| status | when | `code` |")[2].partition("\n\n")[0]
    codes = set(re.findall(r"`([a-z_]+)`", table))
    source = "".join(path.read_text() for path in (ROOT / "src/terrazzo/serve").glob("*.py"))
    assert len(codes) > 15 and [code for code in codes if f'"{code}"' not in source] == []
    metrics = re.findall(r"`(terrazzo_\w+)\{(\w+(?:,\w+)*)\}`", page)
    metrics += re.findall(r", `(terrazzo_\w+)\{(\w+)\}`", page)
    lines = Metrics()
    lines.request("/", 200, 0.1)
    rendered = lines.render().decode()
    names = set(re.findall(r"^# TYPE (\w+) ", rendered, re.M)) | {"terrazzo_queue_tokens", "terrazzo_queue_documents"}
    assert len(metrics) > 8 and {name for name, _ in metrics} <= names


def test_probes_ask_what_the_server_answers_without_a_key():
    open_paths = {operation.path for operation in OPERATIONS if operation.open}
    probes = {name: own["httpGet"]["path"] for name, own in container().items() if name.endswith("Probe")}
    assert probes == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert set(probes.values()) <= open_paths


def test_a_pod_has_time_to_drain_and_threads_for_its_cores():
    arguments = dict(argument.partition("=")[::2] for argument in container()["args"])
    assert container()["args"][0] == "serve"
    assert {name for name in arguments if name.startswith("--")} <= options_of("serve")
    wait = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = manifests()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > wait + float(arguments["--drain-seconds"])
    resources = container()["resources"]
    assert resources["requests"] == resources["limits"]
    assert arguments["--threads"] == resources["limits"]["cpu"]
    scaled = manifests()["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert scaled == "terrazzo_queue_tokens"


def test_ports_and_limits_agree():
    port = container()["ports"][0]["containerPort"]
    assert port == Settings().port
    dockerfile = text_of("Dockerfile")
    assert f"EXPOSE {port}" in dockerfile and f"127.0.0.1:{port}/health/ready" in dockerfile
    uid = manifests()["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {uid}\n" in dockerfile
    megabytes = Settings().max_body_bytes // 2**20
    assert f"client_max_body_size {megabytes}m;" in text_of("deploy/nginx.conf")


def test_the_image_is_built_from_what_the_context_lets_in():
    let_in = {line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")}
    copied = set(re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY (?!--)(.*) \S+$", text_of("Dockerfile"), re.M))))
    assert copied <= let_in
    for name in let_in - {"wheels"}:
        assert (ROOT / name).exists()
