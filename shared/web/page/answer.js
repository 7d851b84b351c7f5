// The answer in words and bars: label, reason, ensemble, and what was missing.

import { el, ms, percent } from "./dom.js";

const DEGRADED = {
  upstream_timeout: "a further tier did not answer in time",
  upstream_unavailable: "a further tier could not be reached",
  upstream_refused: "a further tier refused the text",
  upstream_invalid: "a further tier gave no usable answer",
  breaker_open: "a further tier failed so often that it is not asked for a while",
  deadline: "the deadline passed",
};

export function drawAnswer(box, answer) {
  const [result] = answer.results;
  box.replaceChildren(
    el("p", { className: "label" }, result.label, el("span", { className: "quiet" }, ` ${percent(result.confidence)}`)),
    el("p", { className: "why" }, result.why),
    el("p", {}, facts(result, answer)),
    ...warnings(result),
    bars("Probabilities", result.probabilities),
    ...ensemble(result),
    el("p", { className: "quiet" }, `${answer.model} · ${answer.policy.name} · request ${answer.id}`),
  );
}

// One sentence for the status line.
export function inShort(answer) {
  const [{ label, confidence, tier, why, degraded }] = answer.results;
  return `${label}, ${percent(confidence)}, answered by ${tier}. ${why}${degraded ? " Degraded." : ""}`;
}

export function bytesOf(result) {
  return result.hops.reduce((sum, { link }) => sum + (link ? link.request_bytes + link.response_bytes : 0), 0);
}

function facts(result, answer) {
  const way = result.hops.map((hop) => `${hop.tier} ${hop.exit_layer}/${hop.layers}`).join(" → ");
  const sent = result.hops.some((hop) => hop.link) ? `${bytesOf(result).toLocaleString("en")} bytes on links, this explanation included` : "nothing left this tier";
  return `${way} · ${ms(answer.timings_ms.total)} · ${result.words_in} words · ${sent}`;
}

function warnings(result) {
  const found = [];
  if (result.degraded) found.push(`Degraded: ${DEGRADED[result.degraded] ?? result.degraded}. The answer comes from the tiers that ran.`);
  if (result.truncated) found.push("A tier read only the head and the tail of this text: it is too long for the model.");
  if (result.card_skew) found.push("The tiers use different model cards: deploy the same one to all.");
  return found.map((text) => el("p", { className: "warning" }, text));
}

function ensemble({ ensemble: { weights, overruled }, hops }) {
  if (hops.length < 2) return [];
  const last = hops.at(-1);
  const said = overruled ? `The ensemble overruled ${last.tier}, which said ${last.label}.` : `The ensemble agrees with ${last.tier}.`;
  return [bars("Weights of the tiers", weights), el("p", overruled ? { className: "warning" } : {}, said)];
}

function bars(caption, shares) {
  const rows = Object.entries(shares).map(([name, share]) => {
    const bar = el("span", { className: "bar", ariaHidden: "true" }, el("i"));
    bar.style.setProperty("--share", share);
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, bar), el("td", { className: "number" }, percent(share)));
  });
  return el("table", { className: "bars" }, el("caption", {}, caption), el("tbody", {}, ...rows));
}
