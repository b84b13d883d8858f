// The `openai` package: pictures, clips, tools, a schema, streams, errors.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI, { BadRequestError } from "openai";

import { API_KEY, BASE_URL, MODEL, clipUrl, isScene, pictureUrl, sceneSchema } from "./sample.js";

const client = new OpenAI({ apiKey: API_KEY, baseURL: BASE_URL, maxRetries: 0 });
const tools = [{ type: "function", function: { name: "count", parameters: sceneSchema } }];
const parts = {
  picture: { type: "image_url", image_url: { url: pictureUrl } },
  clip: { type: "video_url", video_url: { url: clipUrl } },
  "clip as a file": { type: "file", file: { filename: "a.mp4", file_data: clipUrl } },
};

function asks(part, fields) {
  const content = [part, { type: "text", text: "What is there?" }];
  return { model: MODEL, messages: [{ role: "user", content }], max_completion_tokens: 128, ...fields };
}

test("the model is listed", async () => {
  const models = await client.models.list();
  assert.equal(models.data[0].id, MODEL);
});

for (const [name, part] of Object.entries(parts)) {
  test(`a ${name} is described, streamed as whole`, async () => {
    const whole = await client.chat.completions.create(asks(part, { temperature: 0 }));
    const stream = await client.chat.completions.create(asks(part, { temperature: 0, stream: true }));
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0].delta.content;
    assert.ok(text);
    assert.equal(text, whole.choices[0].message.content);
  });
}

test("a schema is kept", async () => {
  const format = { type: "json_schema", json_schema: { name: "scene", strict: true, schema: sceneSchema } };
  const answer = await client.chat.completions.parse(asks(parts.picture, { response_format: format }));
  assert.ok(isScene(answer.choices[0].message.parsed));
});

test("a tool is called, whole and streamed, and its result is taken", async () => {
  const asked = asks(parts.picture, { tools, tool_choice: "required" });
  const { message } = (await client.chat.completions.create(asked)).choices[0];
  assert.ok(isScene(JSON.parse(message.tool_calls[0].function.arguments)));

  const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.ok(isScene(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments)));

  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "2" };
  const next = asks(parts.picture, { tools, tool_choice: "none" });
  next.messages.push(message, result);
  const answer = await client.chat.completions.create(next);
  assert.equal(typeof answer.choices[0].message.content, "string");
});

test("a refusal names the field", async () => {
  await assert.rejects(
    client.chat.completions.create(asks(parts.picture, { temperature: 3 })),
    (error) => error instanceof BadRequestError && error.param === "temperature",
  );
});
