// The example in JavaScript, as its reader runs it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";

test("examples/javascript.mjs streams an answer", async () => {
  const root = new URL("../..", import.meta.url);
  const { stdout } = await promisify(execFile)("node", ["examples/javascript.mjs"], { cwd: root });
  assert.match(stdout, /^\S.*\n$/s);
  assert.doesNotMatch(stdout, /undefined|null/);
});
