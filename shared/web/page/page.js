// The page: it asks its tier for a text's answer and shows every event as it comes.

import { Trouble, get, useKey, watch } from "./api.js";
import { drawAnswer, inShort } from "./answer.js";
import { compare, leftOut } from "./compare.js";
import { parameters } from "./controls.js";
import { $, el } from "./dom.js";
import { examples } from "./examples.js";
import { drawLinks } from "./links.js";
import { Tally } from "./tally.js";
import { drawWay } from "./way.js";

let info, offers, boxes, tally, readPolicy; // set once the tier has told of itself
let running = null; // the AbortController of what runs
let asked = null; // the request and the answer that a comparison goes by

// -- what runs ---------------------------------------------------------------------------------------------------------

async function run(work) {
  if (running || !boxes) return;
  running = new AbortController();
  clearTrouble();
  buttons();
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped. The tier works on it no longer.");
    else fail(error);
  } finally {
    running = null;
    buttons();
    refresh().catch(() => {}); // the next question says what is wrong
  }
}

// A button that has the focus keeps it: what runs makes it only say that it does nothing.
function buttons() {
  for (const id of ["go", "compare"]) $(id).setAttribute("aria-disabled", running !== null || !boxes);
  $("compare").disabled = asked === null;
  if (!running && document.activeElement === $("stop")) $("go").focus();
  $("stop").disabled = running === null;
}

async function classify(signal) {
  const body = request(); // what the page refuses is refused before anything is wiped or sent
  wipe(body.options.policy, "On its way …");
  say("Asked …");
  boxes.get(info.tier).become("asked", "asked");
  let came = false;
  try {
    const started = performance.now();
    for await (const [kind, data] of watch(body, signal)) {
      came = true;
      if (data.ms) await until(started + data.ms * Number($("pace").value), signal);
      ({ exit: onExit, hop: onHop, final: onFinal })[kind]?.(data, body.options);
      if (kind === "final") asked = { body, answer: data };
    }
  } catch (error) {
    if (came || error.name === "AbortError") breakOff();
    else wipe(body.options.policy, "Nothing asked yet.");
    throw error;
  }
}

// Nothing stays of the text before: neither its way and answer, nor what other policies said of it.
function wipe(policy, words) {
  asked = null;
  for (const [name, box] of boxes) box.reset(offload(policy, name), info.tier, linkTo(name));
  $("answer").replaceChildren(el("p", { className: "quiet" }, words));
  $("others").replaceChildren();
  $("others-note").replaceChildren();
  $("others-region").hidden = true;
}

// What came so far stays, and nothing more comes.
function breakOff() {
  for (const box of boxes.values()) box.end();
  $("answer").replaceChildren(el("p", { className: "quiet" }, "No answer came."));
}

function onExit(event) {
  boxes.get(event.tier)?.exit(event);
}

function onHop({ hop }) {
  boxes.get(hop.tier)?.hop(hop);
  say(`${hop.tier} says ${hop.label}. ${hop.offloaded_to ? `Sent on to ${hop.offloaded_to} …` : ""}`);
  if (hop.offloaded_to) boxes.get(hop.offloaded_to)?.become("asked", "asked");
}

function onFinal(answer, { max_tier: deepest }) {
  const [result] = answer.results;
  for (const hop of result.hops) boxes.get(hop.tier)?.hop(hop);
  const ran = new Set(result.hops.map((hop) => hop.tier));
  const awaited = result.degraded ? mayHaveBeenAsked(result, answer.policy, deepest) : [];
  for (const [name, box] of boxes) if (!ran.has(name)) box.become("idle", absent(name, result, awaited));
  drawAnswer($("answer"), answer);
  tally.add(result);
  say(inShort(answer));
}

function absent(tier, { degraded }, awaited) {
  if (tier === info.tier) return "passed it on unread";
  if (!awaited.includes(tier)) return "not asked";
  if (awaited.length > 1) return "did not run";
  return degraded === "breaker_open" ? "not asked for a while" : "gave no answer";
}

// The tiers, one of which was the next for a text that then stayed where it was. If it was to go on unread, no hop says
// where to: the policy's name may, else it was any deeper tier; or none, where the deadline came before it was sent.
function mayHaveBeenAsked({ degraded, hops }, policy, deepest) {
  const last = hops.at(-1);
  if (last.offloaded_to) return [last.offloaded_to];
  const names = info.tiers.map((tier) => tier.name);
  const at = names.indexOf(last.tier);
  const further = names.slice(at + 1, deepest ? names.indexOf(deepest) + 1 : undefined);
  const only = names.findIndex((name) => policy.name === `${name}-only`);
  if (only !== -1) return further.slice(0, Math.max(0, only - at)).slice(-1);
  return degraded === "deadline" ? [last.tier, ...further] : further;
}

async function compareAll(signal) {
  const { body, answer } = asked;
  const seeded = { ...body, options: { ...body.options, seed: body.options.seed ?? answer.id } };
  $("others-region").hidden = false;
  $("others-note").textContent = leftOut(offers, body.options.policy);
  say("Asking the other policies …");
  const spent = await compare(offers, seeded, body.options.policy, $("others"), signal);
  const last = spent.get(`${info.tiers.at(-1).name}-only`);
  const chosen = spent.get(body.options.policy.name);
  if (last !== undefined && chosen !== undefined) tally.compared(chosen, last);
  say(signal.aborted ? "Stopped." : "The other policies have answered.");
}

// A request from what the form says.
function request() {
  const [text, pair] = [$("text").value, $("pair").value];
  if (!text.trim()) throw new Trouble("There is no text", "The box is empty.", "Type a text, or take an example.");
  const options = { policy: readPolicy(), explain: true };
  if ($("seed").value) options.seed = seed($("seed").value.trim());
  if ($("deadline").value) options.deadline_ms = $("deadline").valueAsNumber;
  if ($("deepest").value) options.max_tier = $("deepest").value;
  return { inputs: pair ? { text, text_pair: pair } : text, options };
}

const seed = (typed) => (/^-?\d{1,15}$/.test(typed) ? Number(typed) : typed);

// When a tier sends a text on, as far as the policy's parameters say; null: never.
function offload(policy, tier) {
  if (tier === info.tiers.at(-1).name) return null;
  const value = policy.offload_threshold;
  if (value === undefined) return {};
  const threshold = typeof value === "number" ? value : value[tier];
  return threshold === undefined ? null : { threshold };
}

const linkTo = (tier) => info.links.find((link) => link.to === tier);

// Events that came early wait, where the page shows them slower than they were.
function until(time, signal) {
  const rest = time - performance.now();
  if (rest <= 0 || $("pace").value === "1") return Promise.resolve();
  return new Promise((resolve, reject) => {
    const stopped = () => reject(new DOMException("stopped", "AbortError"));
    setTimeout(resolve, rest);
    signal.addEventListener("abort", stopped, { once: true });
  });
}

// -- words for the person ------------------------------------------------------------------------------------------------

function say(words) {
  $("status").textContent = words;
}

function fail(error) {
  say("");
  const { what, toDo } = error instanceof Trouble ? error : { what: "This page failed", toDo: "Reload it." };
  const why = /[.!?…]$/.test(error.message) ? error.message : `${error.message}.`;
  $("trouble").replaceChildren(el("p", { className: "trouble" }, el("strong", {}, `${what}. `), `${why} `, el("em", {}, toDo)));
  console.debug(error);
}

function clearTrouble() {
  $("trouble").replaceChildren();
}

// -- the tier ------------------------------------------------------------------------------------------------------------

async function refresh() {
  info = await get("info");
  drawLinks($("links"), info, () => refresh().then(clearTrouble, fail), fail);
}

async function start() {
  clearTrouble();
  try {
    [info, { policies: offers }] = await Promise.all([get("info"), get("v1/policies")]);
  } catch (error) {
    fail(error);
    $("trouble").append(el("button", { type: "button", onclick: start }, "Try again"));
    return;
  }
  $("about").textContent = `bundle ${info.bundle} · ${info.labels.join(", ")} · asked: ${info.tier} · ${info.engine} ${info.precision}`;
  $("key-field").hidden = !info.keys.door;
  boxes = drawWay($("way"), info.tiers, info.tier);
  tally = new Tally($("tally"), info.tier, info.tiers.at(-1).name);
  drawLinks($("links"), info, () => refresh().then(clearTrouble, fail), fail);
  fillForm();
  for (const [name, box] of boxes) box.reset(offload(info.policy, name), info.tier, linkTo(name));
  buttons();
}

function fillForm() {
  $("policy").replaceChildren(...offers.map((offer) =>
    el("option", { value: offer.name, disabled: offer.refused !== null }, offer.name + (offer.refused ? " (not for this bundle)" : ""))));
  $("policy").value = info.policy.name;
  $("deepest").replaceChildren(el("option", { value: "" }, "any"), ...[...boxes.keys()].map((name) => el("option", { value: name }, name)));
  $("examples").replaceChildren(...examples(info.labels).map(([name, text, pair]) =>
    el("button", { type: "button", className: "small", onclick: () => take(text, pair ?? "") }, name)));
  choosePolicy(info.policy);
}

// The policy of the menu; `spec` has its parameters in force, where they differ from those of the card.
function choosePolicy(spec = {}) {
  const offer = offers.find((one) => one.name === $("policy").value);
  const inForce = offer.parameters.map((one) => ({ ...one, value: one.name in spec ? spec[one.name] : one.value }));
  $("policy-about").textContent = offer.description.replaceAll("`", "");
  readPolicy = parameters($("parameters"), { ...offer, parameters: inForce });
}

function take(text, pair) {
  $("text").value = text;
  $("pair").value = pair;
  count();
}

function count() {
  const words = $("text").value.split(/\s+/).filter(Boolean).length;
  $("count").textContent = words === 1 ? "1 word" : `${words} words`;
}

// -- light and dark ------------------------------------------------------------------------------------------------------

const darkWanted = matchMedia("(prefers-color-scheme: dark)");

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
}

// -- what a person does --------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run(classify);
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(classify);
});
$("stop").addEventListener("click", () => running?.abort());
$("compare").addEventListener("click", () => run(compareAll));
$("text").addEventListener("input", count);
$("policy").addEventListener("change", () => choosePolicy());
$("key").addEventListener("input", () => useKey($("key").value.trim()));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
$("more-parameters").open = matchMedia("(min-width: 901px)").matches; // on a phone the way comes first
darkWanted.addEventListener("change", () => theme(darkWanted.matches));
theme(darkWanted.matches);
start();
