// Elements without markup in strings: what a text or a bundle says stays text.

export const $ = (id) => document.getElementById(id);

// el("button", { type: "button", onclick: go }, "Go"): properties where the element has them, else attributes.
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const hidden = (text) => el("span", { className: "hidden" }, text);

// What is nearly certain is never shown as certain: "100 %" and "0 %" are exact.
export function percent(share) {
  if (share === 0 || share === 1) return `${share * 100} %`;
  if (share >= 0.9995) return "over 99.9 %";
  return share < 0.0005 ? "under 0.1 %" : `${(share * 100).toFixed(1)} %`;
}

export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} ms`;

export const bytes = (value) => `${value.toLocaleString("en")} B`;

export const title = (name) => name.replaceAll(/[_-]/g, " ");
