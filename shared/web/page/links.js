// The links of this tier, and where it lets the page change them: their profile, and a cut.

import { put } from "./api.js";
import { el } from "./dom.js";

// `changed` is called after a change, `failed` with what went wrong.
export function drawLinks(box, info, changed, failed) {
  if (!info.links.length) {
    box.replaceChildren(el("p", { className: "quiet" }, "This tier has none: it answers every text itself."));
    return;
  }
  const change = (to, body) => put(`v1/links/${encodeURIComponent(to)}`, body).then(changed, failed);
  const rows = info.links.map((link) => (info.link_control ? controlled(link, info, change) : told(link, info)));
  const note = info.link_control ? "A change holds for everybody who asks this tier." :
    "Fixed when the tier started. Links between further tiers are on those tiers' own pages.";
  const focused = document.activeElement.dataset.control;
  box.replaceChildren(el("ul", { className: "links" }, ...rows), el("p", { className: "quiet" }, note));
  if (focused) [...box.querySelectorAll("[data-control]")].find((one) => one.dataset.control === focused)?.focus();
}

const route = (link, info) => el("strong", {}, `${info.tier} → ${link.to}`);

const state = (link) => {
  const words = link.cut ? "cut" : link.breaker === "open" ? "breaker open: not asked for a while" : "works";
  return el("span", { className: words === "works" ? "quiet" : "warning" }, words);
};

function told(link, info) {
  return el("li", {}, route(link, info), el("span", {}, `${link.profile} (${link.backend})`), state(link));
}

function controlled(link, info, change) {
  const names = [...new Set([link.profile, ...info.link_profiles])];
  const menu = el("select", { ariaLabel: `Profile of the link to ${link.to}`, "data-control": `${link.to} profile` }, ...names.map((name) => el("option", { value: name }, name)));
  menu.value = link.profile;
  menu.addEventListener("change", () => change(link.to, { profile: menu.value }));
  const cut = el("input", { type: "checkbox", role: "switch", checked: link.cut === true, "data-control": `${link.to} cut` });
  cut.addEventListener("change", () => change(link.to, { cut: cut.checked }));
  const cutLabel = el("label", { className: "inline" }, cut, "cut ", el("span", { className: "hidden" }, `the link to ${link.to}`));
  return el("li", {}, route(link, info), menu, el("span", { className: "quiet" }, link.backend), cutLabel, state(link));
}
