// The same text with every policy that this tier can run. Policies that learn are left out: the question would teach them.

import { classify } from "./api.js";
import { bytesOf } from "./answer.js";
import { bytes, el, ms, percent } from "./dom.js";

// Asks one after the other, so that none slows another. Returns the milliseconds of each policy that answered.
export async function compare(offers, body, chosen, rows, signal) {
  const specs = [chosen, ...offers.filter(asked).map((offer) => offer.name).filter((name) => name !== chosen.name)];
  const spent = new Map();
  let said; // the chosen policy's label
  rows.replaceChildren();
  for (const policy of specs) {
    const options = { ...body.options, policy, explain: false };
    const row = el("tr", { className: policy === chosen ? "chosen" : "" }, el("th", { scope: "row" }, policy.name ?? policy));
    rows.append(row);
    try {
      const answer = await classify({ ...body, options }, signal);
      spent.set(policy.name ?? policy, answer.timings_ms.total);
      said ??= answer.results[0].label;
      row.append(...cells(answer, said));
    } catch (error) {
      row.append(el("td", { colSpan: 5 }, error.name === "AbortError" ? "stopped" : `${error.what ?? "Failed"}: ${error.message}`));
      if (error.name === "AbortError") break;
    }
  }
  return spent;
}

export function leftOut(offers, chosen) {
  const learning = offers.filter((offer) => !offer.refused && offer.learns && offer.name !== chosen.name).map((offer) => offer.name);
  const refused = offers.filter((offer) => offer.refused).map((offer) => offer.name);
  const notes = [];
  if (learning.length) notes.push(`Not asked, since the question would teach them: ${learning.join(", ")}.`);
  if (refused.length) notes.push(`Not for this bundle: ${refused.join(", ")}.`);
  return notes.join(" ");
}

const asked = (offer) => !offer.refused && !offer.learns;

function cells(answer, said) {
  const [result] = answer.results;
  const number = (text) => el("td", { className: "number" }, text);
  const way = result.hops.map((hop) => hop.tier).join(" → ") + (result.degraded ? " (degraded)" : "");
  const label = result.label === said ? el("td", {}, said) : el("td", { className: "differs" }, `${result.label} (differs)`);
  return [label, number(percent(result.confidence)), el("td", {}, way),
    number(ms(answer.timings_ms.total).replace(" ms", "")), number(bytes(bytesOf(result)).replace(" B", ""))];
}
