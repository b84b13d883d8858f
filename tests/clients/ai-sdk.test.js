// The AI SDK through its provider for compatible servers: pictures, clips, tools, a schema, streams.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { API_KEY, BASE_URL, MODEL, clip, isScene, picture } from "./sample.js";

const provider = createOpenAICompatible({
  name: "litevl",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const scene = z.strictObject({
  thing: z.enum(["sheep", "star"]),
  number: z.union([z.literal(1), z.literal(2), z.literal(3)]),
});
const parts = {
  picture: { type: "file", data: picture, mediaType: "image/jpeg" },
  clip: { type: "file", data: clip, mediaType: "video/mp4" },
};

function asks(part, fields) {
  const content = [{ type: "text", text: "What is there?" }, part];
  const messages = [{ role: "user", content }];
  return { model: provider(MODEL), messages, maxOutputTokens: 128, maxRetries: 0, ...fields };
}

for (const [name, part] of Object.entries(parts)) {
  test(`a ${name} is described, streamed as whole`, async () => {
    const whole = await generateText(asks(part, { temperature: 0 }));
    const stream = streamText(asks(part, { temperature: 0 }));
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    assert.ok(text);
    assert.equal(text, whole.text);
    assert.ok((await stream.usage).inputTokens > 0);
  });
}

test("a schema is kept, whole and streamed", async () => {
  const output = Output.object({ schema: scene });
  assert.ok(isScene((await generateText(asks(parts.picture, { output }))).output));
  const stream = streamText(asks(parts.picture, { output }));
  await stream.consumeStream();
  assert.ok(isScene(await stream.output));
});

function counting(calls) {
  return tool({
    description: "Counts things.",
    inputSchema: scene,
    execute: async (input) => {
      calls.push(input);
      return { number: 2 };
    },
  });
}

test("a tool is called and its result taken, whole and streamed", async () => {
  for (const ask of [generateText, streamText]) {
    const calls = [];
    const answer = ask(
      asks(parts.picture, {
        tools: { count: counting(calls) },
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
        stopWhen: stepCountIs(2),
        // how many calls the demo would make, and whether they fit, is no claim of this test
        providerOptions: { litevl: { parallel_tool_calls: false } },
      }),
    );
    const steps = await (ask === streamText ? answer.steps : answer.then((result) => result.steps));
    assert.ok(calls.length > 0 && calls.every(isScene));
    assert.equal(steps.length, 2);
    assert.equal(steps[0].finishReason, "tool-calls");
  }
});

test("a refusal tells why", async () => {
  await assert.rejects(generateText(asks(parts.picture, { temperature: 3 })), /temperature/);
});
