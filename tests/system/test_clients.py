"""Clients that people have, unmodified, and those that others' generators make of the OpenAPI document: each asks a
live tier.

TEST_OPENAPI_CLIENT   the command `openapi-python-client`, where it is not on the path
TEST_CLIENTS=write    write what worked into the manual's table (then `make docs`); else it is compared
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not here: make setup")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

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
JAVASCRIPT = """
import { textClassification } from "@huggingface/inference";
const [url, text] = process.argv.slice(2);
console.log(JSON.stringify(await textClassification({ endpointUrl: url, inputs: text, parameters: { top_k: 1 } })));
"""
FIXED = "The policy fixed which tier answers."


ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/results/clients.json"
PINNED = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


class Clients:
    """The clients that worked: a test adds its own when it has passed."""

    def __init__(self):
        self.rows = {}

    def add(self, name, calls, notes, version=None):
        self.rows[name] = {"version": version or importlib.metadata.version(name), "calls": calls, "notes": notes}

    def compare(self):
        """With the committed table; versions of what the lock file pins."""
        kept = json.loads(TABLE.read_text())["clients"] if TABLE.exists() else {}
        if os.environ.get("TEST_CLIENTS") == "write":
            TABLE.write_text(json.dumps({"clients": kept | self.rows}, indent=2) + "\n")
            return
        for name, row in self.rows.items():
            compared = row.keys() if name in PINNED else row.keys() - {"version"}
            told = {key: kept.get(name, {}).get(key) for key in compared}
            assert told == {key: row[key] for key in compared}, f"{name}: set TEST_CLIENTS=write"


@pytest.fixture(scope="module")
def clients():
    tried = Clients()
    yield tried
    tried.compare()


def npm(folder, *packages):
    """Packages of npm in a folder; skips where they are not to be had."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("needs node and npm")
    try:
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm's packages are not to be had here: {error}")


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


def test_a_generated_python_client_classifies(three, tmp_path, clients):
    command = os.environ.get("TEST_OPENAPI_CLIENT") or shutil.which("openapi-python-client")
    if not command:
        pytest.skip("openapi-python-client is not here; it needs an older typer than ours, so install it with pipx")
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    options = ["--meta", "none", "--output-path", tmp_path / "made", "--config", tmp_path / "config.yml"]
    done([command, "generate", "--url", f"{three}/openapi.json", *options, "--fail-on-warning"], tmp_path)
    python = Path(command).resolve().with_name("python")  # the generator's own has what the client imports
    assert done([python, "-c", PYTHON, three], tmp_path, PYTHONPATH=str(tmp_path)).strip() == FIXED
    version = done([command, "--version"], tmp_path).split()[-1]
    clients.add("openapi-python-client", "`POST /v1/classify`", "a client made from `/openapi.json`", version)


def test_generated_typescript_compiles_and_classifies(three, tmp_path, clients):
    npm(tmp_path, "typescript@5", "openapi-typescript@7")
    (tmp_path / "openapi.json").write_text(httpx.get(f"{three}/openapi.json").text)
    (tmp_path / "main.ts").write_text(TYPESCRIPT)
    run = ["npx", "--no-install"]
    done([*run, "openapi-typescript", "openapi.json", "--default-non-nullable=false", "-o", "tierwise.d.ts"], tmp_path)
    done([*run, "tsc", "--strict", "--target", "es2022", "--module", "commonjs", "main.ts"], tmp_path)
    assert done(["node", "main.js", three], tmp_path).strip() == f"{FIXED} true"
    notes = "types made from `/openapi.json`, compiled with `tsc --strict`"
    clients.add("openapi-typescript", "`POST /v1/classify`", notes, npm_version(tmp_path, "openapi-typescript"))


def npm_version(folder, package):
    return json.loads((folder / "node_modules" / package / "package.json").read_text())["version"]


def test_hugging_face_s_javascript_client_classifies(sure, tmp_path, clients):
    npm(tmp_path, "@huggingface/inference@4")
    (tmp_path / "main.mjs").write_text(JAVASCRIPT)
    told = json.loads(done(["node", "main.mjs", sure, TEXT], tmp_path))
    (result,) = answers(sure, TEXT)
    assert told == [{"label": result["label"], "score": result["confidence"]}]
    notes = "JavaScript; `textClassification({endpointUrl, inputs})`"
    clients.add("@huggingface/inference", "`POST /`", notes, npm_version(tmp_path, "@huggingface/inference"))


def test_a_browser_without_internet_shows_the_form_at_docs(three, tmp_path, clients):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium")
    alone = ["--headless", "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    profile = [f"--user-data-dir={tmp_path}", "--disable-gpu", "--virtual-time-budget=20000"]
    shown = done([browser, *alone, *profile, "--dump-dom", f"{three}/docs"], tmp_path)
    for path in ("/v1/classify", "/predict", "/v2/models/{name}/infer"):
        assert f'data-path="{path}"' in shown
    version = done([browser, "--version"], tmp_path).split()[1]
    clients.add("Chromium", "`GET /docs`", "Swagger UI, without internet", version)


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


# -- clients of other services' APIs ----------------------------------------------------------------------------------

TEXT, OTHER = "a fine film", "the plot is thin"


@pytest.fixture(scope="module")
def bundle(three):
    return httpx.get(f"{three}/info").json()["bundle"]


def answers(url, inputs, **options):
    """What `/v1/classify` says, for comparison."""
    response = httpx.post(f"{url}/v1/classify", json={"inputs": inputs, "options": options})
    return response.raise_for_status().json()["results"]


@pytest.fixture(scope="module")
def sure(staying):
    """A tier whose answers do not depend on draws."""
    return staying(policy="end-only")[0]


def test_hugging_face_s_client_classifies(sure, clients):
    (result,) = answers(sure, TEXT)
    for client in (InferenceClient(model=sure), InferenceClient(base_url=sure)):
        ranked = client.text_classification(TEXT)
        assert {each.label: each.score for each in ranked} == result["probabilities"]
        assert ranked[0].label == result["label"]
        assert len(client.text_classification(TEXT, top_k=1)) == 1
    with pytest.raises(HfHubHTTPError, match="422"):
        client.text_classification(" ")
    notes = "Python; `InferenceClient(model=URL).text_classification`; its `token` is the key"
    clients.add("huggingface-hub", "`POST /`", notes)


def test_calls_of_text_embeddings_inference_are_answered(sure, clients):
    one, pair = answers(sure, [TEXT, {"text": TEXT, "text_pair": OTHER}])
    batch = httpx.post(f"{sure}/predict", json={"inputs": [[TEXT], [TEXT, OTHER]], "truncate": True}).json()
    told = [{each["label"]: each["score"] for each in ranked} for ranked in batch]
    assert told == [one["probabilities"], pair["probabilities"]]
    assert httpx.get(f"{sure}/health").status_code == 200
    clients.add("httpx", "`POST /predict`, `GET /health`", "as text-embeddings-inference documents its calls")


def test_hugging_face_s_client_shows_a_key_as_its_token(staying, tmp_path):
    (tmp_path / "key").write_text("sixteen-characters")
    url, *_ = staying(door_key_file=tmp_path / "key")
    assert InferenceClient(model=url, token="sixteen-characters").text_classification(TEXT)
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=url, token="another").text_classification(TEXT)


def tensor(name, *texts, shape=None):
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    made = tritonclient.InferInput(name, shape or [len(texts)], "BYTES")
    return made, values.reshape(shape or [len(texts)])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_triton_s_client_infers(sure, binary_in, binary_out):
    client = tritonclient.InferenceServerClient(sure.removeprefix("http://"))
    name = httpx.get(f"{sure}/info").json()["bundle"]
    rows = answers(sure, [{"text": TEXT, "text_pair": OTHER}, {"text": OTHER, "text_pair": TEXT}])
    inputs = []
    for made, values in (tensor("text", TEXT, OTHER, shape=[2, 1]), tensor("text_pair", OTHER, TEXT)):
        made.set_data_from_numpy(values, binary_data=binary_in)
        inputs.append(made)
    wanted = ("label", "confidence", "probabilities", "labels")
    outputs = [tritonclient.InferRequestedOutput(output, binary_data=binary_out) for output in wanted]
    result = client.infer(name, inputs, outputs=None if binary_out is None else outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    text = [value.decode() if isinstance(value, bytes) else value for value in result.as_numpy("label")]
    assert text == [row["label"] for row in rows]
    probabilities = result.as_numpy("probabilities")
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (2, 2))
    assert probabilities == pytest.approx(np.array([list(row["probabilities"].values()) for row in rows]))
    assert result.as_numpy("confidence") == pytest.approx(probabilities.max(axis=1))


def test_triton_s_client_finds_a_tier_and_its_model(three, bundle):
    client = tritonclient.InferenceServerClient(three.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(bundle)
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "tierwise"
    version = client.get_model_metadata(bundle)["versions"][0]
    assert client.is_model_ready(bundle, version)


def test_triton_s_client_hands_on_options_and_reads_errors(three, bundle, clients):
    client = tritonclient.InferenceServerClient(three.removeprefix("http://"))
    made, values = tensor("text", TEXT)
    made.set_data_from_numpy(values)
    options = {"policy": "edge-only", "seed": 3, "deadline_ms": 60_000, "max_tier": "edge"}
    result = client.infer(bundle, [made], parameters=options)
    assert result.as_numpy("tier")[0] == b"edge"
    with pytest.raises(InferenceServerException, match="none-such") as refused:
        client.infer(bundle, [made], parameters={"policy": "none-such"})
    assert refused.value.status() == "422"
    notes = "Python; `tritonclient.http`, tensors as bytes (its default) and as JSON"
    clients.add("tritonclient", "`/v2`, `/v2/models/NAME/infer`", notes)
