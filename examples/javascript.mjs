// A stream in JavaScript, in Node or a browser, without packages.
// usage: API_KEY=... node examples/javascript.mjs [PICTURE] [QUESTION]
import { readFile } from "node:fs/promises";

const [picture = "litevl/demo/sample.jpg", question = "How many sheep are there in the picture?"] =
  process.argv.slice(2);
const { BASE_URL = "http://127.0.0.1:8000/v1", API_KEY = "" } = process.env;

const data = (await readFile(picture)).toString("base64");
const content = [
  { type: "image_url", image_url: { url: `data:image/any;base64,${data}` } },
  { type: "text", text: question },
];
const response = await fetch(`${BASE_URL}/chat/completions`, {
  method: "POST",
  headers: { "content-type": "application/json", authorization: `Bearer ${API_KEY}` },
  body: JSON.stringify({ stream: true, messages: [{ role: "user", content }] }),
});
if (!response.ok) throw new Error((await response.json()).error.message);

let rest = "";
for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
  const frames = (rest + text).split("\n\n");
  rest = frames.pop();
  for (const frame of frames) {
    const event = frame.replace(/^data: /, "");
    if (event === "[DONE]") continue;
    process.stdout.write(JSON.parse(event).choices[0].delta.content);
  }
}
console.log();
