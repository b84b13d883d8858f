// What both clients ask: the server that `make test-clients` started, its sample media, a tool.

import { readFileSync } from "node:fs";

export const { BASE_URL, API_KEY, MODEL } = process.env;

const demo = new URL("../../litevl/demo/", import.meta.url);
export const picture = readFileSync(new URL("sample.jpg", demo));
export const clip = readFileSync(new URL("sample.mp4", demo));
export const pictureUrl = `data:image/jpeg;base64,${picture.toString("base64")}`;
export const clipUrl = `data:video/mp4;base64,${clip.toString("base64")}`;

// Small and closed: the demo model would invent members for ever.
export const sceneSchema = {
  type: "object",
  properties: {
    thing: { type: "string", enum: ["sheep", "star"] },
    number: { type: "integer", enum: [1, 2, 3] },
  },
  required: ["thing", "number"],
  additionalProperties: false,
};

export function isScene(value) {
  return ["sheep", "star"].includes(value.thing) && [1, 2, 3].includes(value.number);
}
