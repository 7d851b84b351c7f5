// What was asked on this page so far. It is forgotten when the page closes.

import { el, ms } from "./dom.js";

export class Tally {
  constructor(box, device, deepest) {
    Object.assign(this, { box, device, deepest, texts: 0, stayed: 0, degraded: 0, chosen: [], last: [] });
    this.draw();
  }

  add(result) {
    this.texts += 1;
    this.stayed += result.hops.every((hop) => hop.tier === this.device);
    this.degraded += result.degraded !== null;
    this.draw();
  }

  // Milliseconds of the chosen policy and of the last tier alone, for the same text.
  compared(chosen, last) {
    this.chosen.push(chosen);
    this.last.push(last);
    this.draw();
  }

  draw() {
    const share = this.texts ? `${Math.round((this.stayed / this.texts) * 100)} %` : "–";
    const mean = (values) => ms(values.reduce((sum, value) => sum + value, 0) / values.length);
    const times = this.last.length ? `${mean(this.chosen)} against ${mean(this.last)} (${this.last.length} compared)` : "compare first";
    const rows = [["Texts", `${this.texts}`], [`Answered by ${this.device} alone`, share], ["Degraded", `${this.degraded}`],
      [`Mean time against ${this.deepest} alone`, times]];
    this.box.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }
}
