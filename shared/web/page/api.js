// The tier's own endpoints, and what their failures mean to a person.

const TO_DO = {
  401: "Type the key of this tier into its field above, and classify again.",
  413: "Take a shorter text.",
  422: "Change the text or the parameter that is named here.",
  429: "The tier has too much to do. Wait a few seconds, then classify again.",
  500: "The log of the tier has the cause, under the request id.",
  503: "The tier is shutting down or full. Wait until it is back, then classify again.",
  504: "Allow more time: raise the deadline or leave it empty.",
};
const UNREACHABLE = ["The tier cannot be reached", "No answer came from where this page was loaded.",
  "Look whether the tier still runs (`make serve` starts one), then try again."];
const BROKEN = ["The answer broke off", "The connection ended before the last event.",
  "The tier may have stopped. Classify again."];
const UNSENDABLE = ["The key cannot be sent", "It has characters other than letters, digits and signs of ASCII.",
  "Type the key of this tier as its operator gave it."];
const OTHER = "See the API's description, /docs.";

// Something went wrong: what, why, and what to do about it.
export class Trouble extends Error {
  constructor(what, why, toDo) {
    super(why);
    Object.assign(this, { what, toDo });
  }
}

let key = "";

export function useKey(value) {
  key = value;
}

export const get = (path) => request(path, {}).then(json);

export const put = (path, body) => request(path, { method: "PUT", body: JSON.stringify(body) }).then(json);

export const classify = (body, signal) => post(body, signal, "application/json").then(json);

// Events of one request: yields [kind, data], the last one `final`.
export async function* watch(body, signal) {
  const response = await post(body, signal, "text/event-stream");
  if (!response.headers.get("content-type").startsWith("text/event-stream")) {
    yield ["final", await json(response)];
    return;
  }
  for await (const [kind, data] of events(response.body)) {
    if (kind === "error") throw problem(data);
    yield [kind, data];
    if (kind === "final") return;
  }
  throw new Trouble(...BROKEN);
}

const post = (body, signal, accept) =>
  request("v1/classify", { method: "POST", body: JSON.stringify(body), signal, headers: { accept } });

async function request(path, options) {
  const headers = { ...options.headers, ...(options.body && { "content-type": "application/json" }) };
  if (/[^\x21-\x7e]/.test(key)) throw new Trouble(...UNSENDABLE);
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(...UNREACHABLE);
  }
  if (!response.ok) throw problem(await json(response), response.status);
  return response;
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The answer cannot be read", `Status ${response.status}, and no JSON.`, OTHER);
  }
}

function problem(document, status = document.status) {
  const id = document.request_id && status >= 500 ? ` (request ${document.request_id})` : "";
  return new Trouble(document.title ?? `Status ${status}`, `${document.detail}${id}`, TO_DO[status] ?? OTHER);
}

async function* events(stream) {
  for await (const block of blocks(stream)) {
    const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
    if (fields.event) yield [fields.event, JSON.parse(fields.data)];
  }
}

async function* blocks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(...BROKEN);
  } finally {
    reader.cancel().catch(() => {});
  }
}
