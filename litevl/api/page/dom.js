// Elements without markup strings: what comes from people, models and servers is only ever text.
// Used by every other module; knows nothing of what is shown.

import { say, t } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** An element: `name.class`, attributes (`onclick` and its like are listeners), children. */
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** An element whose text is one of words.js and follows the language. */
export function word(name, key, values, attributes) {
  return say(el(name, attributes), key, values);
}

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A button of an icon, named by words.js. */
export function iconButton(name, label, onclick) {
  const button = el("button.quiet.icon", { type: "button", onclick }, icon(name));
  button.dataset.label = label;
  return say(button);
}

export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** A button that copies what `textOf` gives, and says so; with a label it shows that too. */
export function copyButton(textOf, label = "copy", shown = false) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(await textOf());
    setIcon(button, done ? "done" : "close");
    announce(t(done ? "copied" : "notCopied"));
    setTimeout(() => setIcon(button, "copy"), 1600);
  });
  if (shown) button.append(word("span", label));
  if (shown) button.classList.remove("icon");
  return button;
}

/** The clipboard's API exists on https and localhost only; in a network the old way is left. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea.unseen", { "aria-hidden": "true" });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

/** Tell it to who listens instead of looking. */
export function announce(text) {
  $("announcer").textContent = text;
}
