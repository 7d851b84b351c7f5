"""Clients that others' generators make of the OpenAPI document: each asks a live tier.

TIERWISE_TEST_OPENAPI_CLIENT   the command `openapi-python-client`, where it is not on the path
"""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

PYTHON = """
import sys
from made import Client
from made.api.default import classify
from made.models import ClassifyRequest, ClassifyResponse, Options, Problem, TextPair

client = Client(base_url=sys.argv[1])
options = Options(policy="edge-only", seed=3, explain=True)
pair = TextPair(text="a fine film", text_pair="the plot is thin")
answer = classify.sync(client=client, body=ClassifyRequest(inputs=["a fine film", pair], options=options))
assert isinstance(answer, ClassifyResponse), answer
first, second = answer.results
assert (first.tier, first.hops[0].words[2].word, second.words_in) == ("edge", "film", 7)
print(first.why.value)
refused = classify.sync(client=client, body=ClassifyRequest(inputs=" "))
assert isinstance(refused, Problem) and refused.status == 422, refused
"""

TYPESCRIPT = """
import type { components, paths } from "./tierwise";
type Schemas = components["schemas"];
type Asked = paths["/v1/classify"]["post"]["requestBody"]["content"]["application/json"];
const asked: Asked = { inputs: ["a fine film", { text: "a film" }], options: { policy: "edge-only", explain: true } };
async function main(url: string): Promise<void> {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(url + "/v1/classify", { method: "POST", headers, body: JSON.stringify(asked) });
  const told: Schemas["ClassifyResponse"] = await answer.json();
  const exits: Schemas["Exit"][] = told.results[0].hops[0].exits ?? [];
  const why: Schemas["Why"] = told.results[0].why;
  const event: Partial<Schemas["ExitEvent"]> = { index: 0, ...exits[0] };
  console.log(why, event.confidence! > 0);
}
declare const process: { argv: string[] };
main(process.argv[2]);
"""
FIXED = "The policy fixed which tier answers."


def done(command, folder, seconds=300, **environment):
    said = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def test_a_generated_python_client_classifies(three, tmp_path):
    command = os.environ.get("TIERWISE_TEST_OPENAPI_CLIENT") or shutil.which("openapi-python-client")
    if not command:
        pytest.skip("openapi-python-client is not here; it needs an older typer than ours, so install it with pipx")
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    options = ["--meta", "none", "--output-path", tmp_path / "made", "--config", tmp_path / "config.yml"]
    done([command, "generate", "--url", f"{three}/openapi.json", *options, "--fail-on-warning"], tmp_path)
    python = Path(command).resolve().with_name("python")  # the generator's own has what the client imports
    assert done([python, "-c", PYTHON, three], tmp_path, PYTHONPATH=str(tmp_path)).strip() == FIXED


def test_generated_typescript_compiles_and_classifies(three, tmp_path):
    if not (shutil.which("npx") and shutil.which("node")):
        pytest.skip("needs node and npx")
    tools = ["npx", "--yes", "--package=typescript@5", "--package=openapi-typescript@7", "--"]
    try:
        subprocess.run([*tools, "tsc", "--version"], cwd=tmp_path, capture_output=True, check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm's packages are not to be had here: {error}")
    (tmp_path / "openapi.json").write_text(httpx.get(f"{three}/openapi.json").text)
    (tmp_path / "main.ts").write_text(TYPESCRIPT)
    done(
        [*tools, "openapi-typescript", "openapi.json", "--default-non-nullable=false", "-o", "tierwise.d.ts"],
        tmp_path,
    )
    done([*tools, "tsc", "--strict", "--target", "es2022", "--module", "commonjs", "main.ts"], tmp_path)
    assert done(["node", "main.js", three], tmp_path).strip() == f"{FIXED} true"


def test_every_field_has_a_description_and_an_example_unless_it_is_an_object(three):
    schemas = httpx.get(f"{three}/openapi.json").json()["components"]["schemas"]
    ours = {name: schema for name, schema in schemas.items() if "properties" in schema}
    assert {"ClassifyRequest", "ClassifyResponse", "Hop", "ExitEvent", "HopEvent", "Problem"} <= ours.keys()
    for name, schema in ours.items():
        for field, told in schema["properties"].items():
            assert told.get("description"), (name, field)
            assert "examples" in told or "$ref" in str(told), (name, field)


def test_schemas_refer_to_components_alone(three):
    document = httpx.get(f"{three}/openapi.json").text
    assert "$defs" not in document
    assert document.count('"$ref"') == document.count('"$ref":"#/components/schemas/')
