// Pictures and clips that a person has given: read, shown, and drawn over with what the model saw.
// Used by chat.js; knows nothing of requests but what a part of a message looks like.

import { $, el, iconButton, setIcon, word } from "./dom.js";
import { number, say, size } from "./words.js";

const CLIPS = /\.(mp4|m4v|mov|webm|mkv|avi)$/i;
const LIMITS = { image: 20 * 2 ** 20, video: 64 * 2 ** 20 }; // the server's own defaults
const MOST_STILLS = 48;

export class Attachment {
  constructor(file) {
    this.file = file;
    this.name = file.name || "picture";
    this.kind = file.type.startsWith("video/") || CLIPS.test(this.name) ? "video" : "image";
    this.isMedia = this.kind === "video" || file.type.startsWith("image/");
    this.preview = URL.createObjectURL(file);
    this.data = read(file);
  }

  /** What is wrong with it, as a key and values of words.js; null when nothing is. */
  get fault() {
    const told = { name: this.name, size: size(this.file.size) };
    if (!this.isMedia) return ["notMedia", told];
    if (this.file.size <= LIMITS[this.kind]) return null;
    return [this.kind === "image" ? "tooLargePicture" : "tooLargeClip", told];
  }

  async part() {
    const type = `${this.kind}_url`;
    return { type, [type]: { url: await this.data } };
  }

  forget() {
    URL.revokeObjectURL(this.preview);
  }

  /** As it waits to be sent, with a button that takes it away. */
  chip(onremove) {
    const button = iconButton("close", "remove", onremove);
    say(button, undefined, { name: this.name });
    const about = el("span.about", {}, el("b", {}, this.name), size(this.file.size));
    return el("li", {}, this.view(false), about, button);
  }

  view(controls) {
    const failed = () => view.replaceWith(word("span.still", controls ? "noPreview" : "", {}));
    const view =
      this.kind === "image"
        ? el("img", { src: this.preview, alt: this.name, onerror: failed })
        : el("video", { src: this.preview, controls, muted: true, playsinline: true, preload: "metadata", "aria-label": this.name, onerror: failed });
    return view;
  }

  /** As it stands in the conversation; `receive` fills in what the model saw of it. */
  figure() {
    this.grid = el("div.grid");
    this.caption = el("figcaption");
    const frame = el("div.frame", {}, this.view(true), this.kind === "image" ? this.grid : null);
    return (this.shown = el(`figure.seen.${this.kind}`, {}, frame, this.caption));
  }

  receive(receipt) {
    if (JSON.stringify(receipt) === JSON.stringify(this.receipt)) return;
    this.receipt = receipt;
    const { columns, rows } = cells(receipt);
    this.shown.style.setProperty("--columns", columns);
    this.shown.style.setProperty("--rows", rows);
    this.shown.classList.add("received");
    this.tell();
    if (this.kind === "video") this.shown.append(film(this, receipt));
  }

  tell() {
    const lines = told(this.receipt).map(([key, filled]) => word("span", key, filled));
    this.caption.replaceChildren(...lines, ...(this.kind === "image" ? [this.toggle()] : []));
  }

  /** The grid can be taken off the picture. */
  toggle() {
    const isOff = this.shown.classList.contains("plain");
    const button = iconButton("grid", isOff ? "showGrid" : "hideGrid", () => {
      const off = this.shown.classList.toggle("plain");
      button.dataset.label = off ? "showGrid" : "hideGrid";
      button.setAttribute("aria-pressed", String(!off));
      say(button);
    });
    button.setAttribute("aria-pressed", String(!isOff));
    return button;
  }
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A token is a square of patches: how many of them lie beside and below one another. */
function cells({ grid: [times, height, width], tokens }) {
  const merged = Math.round(Math.sqrt((times * height * width) / tokens)) || 1;
  return { columns: width / merged, rows: height / merged };
}

const by = ([width, height]) => `${number(width)} × ${number(height)}`;

function told(receipt) {
  const { columns, rows } = cells(receipt);
  const scale = number(receipt.scale[0], 2);
  const lines = [
    ["seen", { seen: by(receipt.seen_size), original: by(receipt.original_size) }],
    ["seenGrid", { columns, rows, tokens: number(receipt.tokens), scale }],
  ];
  if (receipt.kind === "image") return lines;
  const frames = receipt.frame_times?.length;
  const filled = { frames, rate: number(receipt.sampled_fps ?? 0, 1), seconds: number(receipt.duration ?? 0, 1) };
  return [...(frames ? [["seenFrames", filled]] : []), ...lines];
}

/** The frames that the model saw, as stills of the clip with their times. */
function film(attachment, receipt) {
  const times = receipt.frame_times ?? [];
  const every = Math.ceil(times.length / MOST_STILLS);
  const strip = el("ol.film", { tabindex: "0", "data-label": "frames" });
  say(strip);
  const stills = times
    .filter((_, index) => index % every === 0)
    .map((time) => {
      const canvas = el("canvas", { width: 128, height: Math.round((128 * receipt.seen_size[1]) / receipt.seen_size[0]) });
      strip.append(el("li", {}, el("div.frame", {}, canvas, el("div.grid")), `${number(time, 2)} s`));
      return { time, canvas };
    });
  draw(attachment.preview, stills);
  return strip;
}

/** A clip that the browser cannot read leaves grey stills with their times. */
async function draw(source, stills) {
  const video = el("video", { src: source, muted: true, preload: "auto" });
  const happened = (name) =>
    new Promise((resolve) => {
      video.addEventListener(name, () => resolve(true), { once: true });
      video.addEventListener("error", () => resolve(false), { once: true });
    });
  if (!(await happened("loadeddata"))) return;
  for (const { time, canvas } of stills) {
    const arrived = happened("seeked");
    video.currentTime = time + 0.001; // inside the frame, not on its edge
    if (!(await arrived)) return;
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.closest("li").classList.add("drawn");
  }
  video.removeAttribute("src");
}

/** Files of a drop, a paste or the picker. */
export function attachments(list) {
  return [...list].map((file) => new Attachment(file));
}

/** Pictures and clips that come by hand: dropped anywhere, pasted anywhere, picked. */
export function onFiles(take) {
  const drop = $("drop");
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) drop.hidden = !++depth;
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event)) drop.hidden = --depth <= 0;
  });
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = true;
    depth = 0;
    take(attachments(event.dataTransfer.files));
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length) event.preventDefault();
    if (files.length) take(attachments(files));
  });
  $("files").addEventListener("change", (event) => {
    take(attachments(event.target.files));
    event.target.value = "";
  });
}
