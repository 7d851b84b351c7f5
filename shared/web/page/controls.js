// The policy and its parameters as form controls, with the bounds and values that the tier says.

import { el, title } from "./dom.js";
import { Trouble } from "./api.js";

const SLIDER_UP_TO = 10; // a wider range is typed

// Fills `box` with the parameters of an offer; returns a function that reads the spec of a request.
export function parameters(box, offer) {
  const fields = offer.parameters.map(field);
  box.replaceChildren(...fields.map((one) => one.node));
  if (!fields.length) box.append(el("p", { className: "quiet" }, "This policy has none."));
  return () => ({ name: offer.name, ...Object.fromEntries(fields.map((one) => [one.name, one.read()])) });
}

function field(parameter) {
  const values = parameter.value;
  if (!parameter.per_tier || typeof values !== "object" || values === null) {
    const { inputs, read } = control(parameter, values, title(parameter.name));
    return { name: parameter.name, read, node: labelled(parameter, inputs) };
  }
  const tiers = Object.keys(values).map((tier) => ({ tier, ...control(parameter, values[tier], `${title(parameter.name)}, ${tier}`) }));
  const rows = tiers.map(({ tier, inputs }) => el("div", { className: "tier-value" }, el("span", {}, tier), ...inputs));
  return {
    name: parameter.name,
    read: () => Object.fromEntries(tiers.map(({ tier, read }) => [tier, read()])),
    node: labelled(parameter, rows),
  };
}

function labelled(parameter, inputs) {
  return el("div", { className: "field", role: "group", ariaLabel: title(parameter.name) },
    el("span", { className: "name" }, title(parameter.name)), el("div", { className: "inputs" }, ...inputs),
    el("small", {}, parameter.description));
}

function control(parameter, value, name) {
  switch (parameter.kind) {
    case "boolean": {
      const box = el("input", { type: "checkbox", checked: value, ariaLabel: name });
      return { inputs: [box], read: () => box.checked };
    }
    case "choice": {
      const menu = el("select", { ariaLabel: name }, ...parameter.choices.map((choice) => el("option", { value: choice }, choice)));
      menu.value = value;
      return { inputs: [menu], read: () => menu.value };
    }
    case "number":
    case "integer":
      return number(parameter, value, name);
    default:
      return typed(parameter, value, name);
  }
}

function number(parameter, value, name) {
  const { minimum: min, maximum: max, nullable, kind } = parameter;
  const step = kind === "integer" ? 1 : "any";
  const box = el("input", { type: "number", min, max, step, value: value ?? "", ariaLabel: name, placeholder: nullable ? "none" : "" });
  const read = () => {
    if (box.value === "" && nullable) return null;
    if (!box.validity.valid || box.value === "") throw wrong(name, bounds(min, max, kind));
    return box.valueAsNumber;
  };
  if (nullable || min === null || max === null || max - min > SLIDER_UP_TO) return { inputs: [box], read };
  const slider = el("input", { type: "range", min, max, step: kind === "integer" ? 1 : (max - min) / 100, ariaLabel: `${name}, slider` });
  slider.value = value;
  slider.addEventListener("input", () => (box.value = slider.value));
  box.addEventListener("input", () => (slider.value = box.value));
  return { inputs: [slider, box], read };
}

function typed(parameter, value, name) {
  const json = parameter.kind === "json";
  const box = el("input", { ariaLabel: name, value: json ? JSON.stringify(value) : (value ?? ""), placeholder: "none" });
  const read = () => {
    if (!json) return box.value === "" && parameter.nullable ? null : box.value;
    try {
      return JSON.parse(box.value);
    } catch {
      throw wrong(name, "JSON, such as 3 or [10, 20]");
    }
  };
  return { inputs: [box], read };
}

function bounds(min, max, kind) {
  const whole = kind === "integer" ? "a whole number" : "a number";
  if (min === null || max === null) return whole;
  return `${whole} from ${min} to ${max}`;
}

function wrong(name, expected) {
  return new Trouble("A parameter cannot be used", `${name}: expected ${expected}.`, "Change it, and classify again.");
}
