// The tiers of the way as boxes: exits that light up, words with their part in the decision, and the link that led here.

import { bytes, el, hidden, ms, percent, title } from "./dom.js";

const FEW = 3; // words of most weight that are named beside the coloured text

// Draws a box for each tier and returns them by name. `asked` is the tier that serves this page.
export function drawWay(list, tiers, asked) {
  const reached = tiers.slice(tiers.findIndex((tier) => tier.name === asked));
  const boxes = reached.map((tier, at) => new Tier(tier, reached[at - 1]?.name));
  list.replaceChildren(...boxes.map((box) => box.node));
  return new Map(boxes.map((box) => [box.name, box]));
}

class Tier {
  constructor({ name, layers }, before) {
    Object.assign(this, { name, before });
    this.cells = Array.from({ length: layers }, (_, at) => el("li", {}, el("i")));
    this.cells.forEach((cell, at) => cell.style.setProperty("--at", at));
    this.state = el("p", { className: "state" });
    this.exits = el("ol", { className: "exits", ariaLabel: `Exits of ${name}` }, ...this.cells);
    this.rule = el("p", { className: "quiet rule" });
    this.report = el("div", { className: "report" });
    this.arrow = before ? el("div", { className: "arrow" }) : null;
    const head = el("h3", {}, name, el("span", { className: "quiet" }, ` ${layers} layers`));
    const box = el("article", { className: "tier", ariaLabel: name }, head, this.state, this.exits, this.rule, this.report);
    this.node = el("li", {}, this.arrow, box);
  }

  // Before a text: `offload` as the policy says; `from`, `link`: the link as /info of the tier that is asked says.
  reset(offload, from, link) {
    this.become("waiting", "waiting");
    this.cells.forEach((cell) => {
      this.paint(cell, "", null, "");
      delete cell.dataset.label;
    });
    this.mark(offload);
    this.report.replaceChildren();
    this.arrow?.classList.remove("used");
    this.arrow?.replaceChildren(...(link ? this.route(from, link) : [line()]));
  }

  become(state, words) {
    this.node.dataset.state = state;
    this.state.textContent = words;
  }

  // Nothing more comes: stopped, or failed.
  end() {
    if (["asked", "running"].includes(this.node.dataset.state)) this.become("idle", "stopped");
    if (this.node.dataset.state === "waiting") this.become("idle", "not asked");
  }

  mark(offload, exitRule) {
    const threshold = offload?.threshold;
    this.exits.classList.toggle("marked", threshold !== undefined);
    this.exits.style.setProperty("--threshold", threshold ?? 0);
    const where = threshold === undefined ? "as the policy decides" : `below ${threshold.toFixed(2)}`;
    const sends = offload === null ? "Sends nothing on" : `Sends on ${where}`;
    this.rule.textContent = `${sends}${exitRule === undefined ? "" : `; ${leaves(exitRule)}`}.`;
  }

  paint(cell, state, confidence, words) {
    cell.className = state;
    cell.style.setProperty("--confidence", confidence ?? 0);
    cell.title = words;
    cell.replaceChildren(el("i"), hidden(words));
  }

  exit({ exit, probabilities, confidence, scores }) {
    const label = labelOf({ probabilities, confidence });
    const cell = this.cells[exit - 1];
    const gates = Object.entries(scores ?? {}).map(([action, score]) => `, ${action} ${score.toFixed(2)}`);
    this.paint(cell, "lit", confidence, `exit ${exit}: ${label} ${percent(confidence)}${gates.join("")}`);
    cell.dataset.label = label;
    this.become("running", `layer ${exit} of ${this.cells.length}`);
  }

  hop(hop) {
    for (const exit of hop.exits ?? []) this.exit(exit);
    if (hop.explained) this.mark(hop.explained.offload_rule?.parameters ?? null, hop.explained.exit_rule);
    this.cells.forEach((cell, at) => this.settle(cell, at + 1, hop));
    const early = hop.exit_layer < hop.layers ? "left early, " : "";
    this.become("done", `${early}after layer ${hop.exit_layer} of ${hop.layers}`);
    this.report.replaceChildren(...report(hop));
    if (hop.link) this.crossed(hop.link);
  }

  settle(cell, exit, hop) {
    cell.classList.toggle("other", (cell.dataset.label ?? hop.label) !== hop.label);
    if (exit > hop.exit_layer) this.paint(cell, "skipped", null, `exit ${exit}: never computed`);
    else if (exit === hop.exit_layer)
      this.paint(cell, "lit left", hop.confidence, `exit ${exit}: ${hop.label} ${percent(hop.confidence)}, left here`);
  }

  crossed(link) {
    this.arrow.classList.add("used");
    this.arrow.replaceChildren(
      ...this.route(link.from, link),
      el("strong", {}, ms(link.ms)),
      el("span", {}, hidden("sent "), "↑ ", bytes(link.request_bytes)),
      el("span", {}, hidden("received "), "↓ ", bytes(link.response_bytes)),
    );
  }

  // A link that passes over the tier before is named.
  route(from, { profile, backend }) {
    const name = from === this.before ? hidden(`${from} to ${this.name}`) : el("span", {}, `${from} → ${this.name}`);
    return [line(), name, el("span", { className: "profile" }, profile), el("span", { className: "quiet" }, backend)];
  }
}

const line = () => el("span", { className: "line", ariaHidden: "true" });

function leaves(rule) {
  if (rule === null) return "no early exit";
  const set = Object.entries(rule.parameters).filter(([, value]) => value !== 0);
  const values = set.map(([name, value]) => `${title(name)} ${value}`);
  return `leaves early by ${rule.name}${values.length ? ` (${values.join(", ")})` : ""}`;
}

const labelOf = ({ probabilities, confidence }) =>
  Object.keys(probabilities).find((label) => probabilities[label] === confidence) ?? "";

function report(hop) {
  const says = el("p", { className: "says" }, el("strong", {}, hop.label), ` ${percent(hop.confidence)}`);
  return [says, el("p", { className: "quiet" }, decision(hop)), ...words(hop), el("p", { className: "quiet times" }, times(hop))];
}

function decision(hop) {
  if (hop.draw === null || hop.offload_probability === 0) return hop.offloaded_to ? `Sent on to ${hop.offloaded_to}.` : "Stayed here.";
  const chance = `chance to go on ${percent(hop.offload_probability)}, draw ${hop.draw.toFixed(2)}`;
  return hop.offloaded_to ? `Sent on to ${hop.offloaded_to}: ${chance}.` : `Stayed here: ${chance}.`;
}

function times({ timings_ms: spent }) {
  const stages = Object.entries(spent).filter(([stage, value]) => stage !== "total" && value >= 0.05);
  return stages.map(([stage, value]) => `${stage} ${ms(value)}`).join(" · ");
}

// The words, tinted by their share of the decision, and the strongest of them named.
function words(hop) {
  if (!hop.words) return [];
  const prunes = hop.offloaded_to !== null;
  const most = Math.max(1e-9, ...hop.words.map((word) => Math.abs(word.share ?? 0)));
  const text = el("p", { className: "words", tabIndex: 0, role: "region", ariaLabel: `Words as ${hop.tier} read them` });
  for (const word of hop.words) text.append(tinted(word, most, prunes && !word.kept), " ");
  const dropped = prunes ? hop.words.filter((word) => !word.kept).length : 0;
  const notes = [strongest(hop), dropped ? `${dropped} words stayed behind (struck out).` : ""];
  return [text, el("p", { className: "quiet" }, notes.filter(Boolean).join(" "))];
}

function tinted({ word, share, kept }, most, dropped) {
  const unread = share === null || share === undefined;
  const name = unread ? "not read" : signed(share);
  const node = el(dropped ? "del" : unread ? "span" : "mark", { title: `${word}: ${name}` }, word);
  if (unread) return node;
  const strength = Math.abs(share) / most;
  node.classList.add(share < 0 ? "against" : "for", ...(strength > 0.3 ? ["strong"] : []));
  node.style.setProperty("--strength", strength.toFixed(3));
  if (strength > 0.3) node.append(hidden(` (${name})`));
  return node;
}

function strongest(hop) {
  const read = hop.words.filter((word) => word.share);
  const named = (sign) => read.filter((word) => word.share * sign > 0).sort((a, b) => (b.share - a.share) * sign)
    .slice(0, FEW).map((word) => `${word.word} ${signed(word.share)}`).join(", ");
  const [pro, contra] = [named(1), named(-1)];
  return [pro && `For ${hop.label}: ${pro}.`, contra && `Against: ${contra}.`].filter(Boolean).join(" ");
}

const signed = (share) => `${share < 0 ? "−" : "+"}${Math.abs(share).toFixed(2)}`;
