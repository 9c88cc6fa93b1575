// One client of OpenAI's Images API for Node: requests as JSON lines in, what it got as lines out.
//
//   node client.mjs KIND      run in the directory with node_modules

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const kind = process.argv[2];
const modules = join(process.cwd(), "node_modules");
const load = (name) =>
  import(pathToFileURL(createRequire(join(modules, "anything.js")).resolve(name)));
const versionOf = (name) =>
  JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8")).version;

const clients = {
  async openai(name) {
    const { default: OpenAI } = await load(name);
    return async (asked) => {
      const client = new OpenAI({
        apiKey: asked.apiKey,
        baseURL: asked.baseUrl,
        maxRetries: asked.retries,
        timeout: asked.timeoutS * 1000,
      });
      const { headers } = asked;
      return (await client.images.generate(asked.body, { headers })).data[0];
    };
  },

  async openai3(name) {
    const { Configuration, OpenAIApi } = await load(name);
    return async (asked) => {
      const configuration = { apiKey: asked.apiKey, basePath: asked.baseUrl };
      const client = new OpenAIApi(new Configuration(configuration));
      const { headers } = asked;
      const options = { headers, timeout: asked.timeoutS * 1000 };
      return (await client.createImage(asked.body, options)).data.data[0];
    };
  },

  async langchain(name) {
    const { DallEAPIWrapper } = await load(name);
    return async (asked) => {
      const { response_format: format, ...fields } = asked.body;
      const tool = new DallEAPIWrapper({
        apiKey: asked.apiKey,
        baseUrl: asked.baseUrl,
        dallEResponseFormat: format,
        ...fields,
      });
      // It has no options for these.
      Object.assign(tool.client, { maxRetries: asked.retries, timeout: asked.timeoutS * 1000 });
      if (asked.headers["Idempotency-Key"]) tool.client.idempotencyHeader = "Idempotency-Key";
      return { [format]: await tool.invoke(asked.body.prompt) };
    };
  },

  async "ai-sdk"(name) {
    const { generateImage } = await load("ai");
    const { createOpenAICompatible } = await load(name);
    return async (asked) => {
      const { prompt, size, model } = asked.body;
      const provider = createOpenAICompatible({
        name: "gemini-generate",
        apiKey: asked.apiKey,
        baseURL: asked.baseUrl,
      });
      const made = await generateImage({
        model: provider.imageModel(model),
        prompt,
        size,
        headers: asked.headers,
        maxRetries: asked.retries,
        abortSignal: AbortSignal.timeout(asked.timeoutS * 1000),
      });
      return { b64_json: made.image.base64 };
    };
  },
};

const packages = {
  openai3: ["openai3", "openai3"],
  openai4: ["openai", "openai4"],
  openai5: ["openai", "openai5"],
  openai6: ["openai", "openai6"],
  openai7: ["openai", "openai"],
  langchain: ["langchain", "@langchain/openai"],
  "ai-sdk": ["ai-sdk", "@ai-sdk/openai-compatible"],
};

function failure(error) {
  // The AI SDK wraps the last of several errors.
  const cause = error.lastError ?? error;
  return {
    error: cause.constructor?.name ?? cause.name,
    status: cause.status ?? cause.statusCode ?? cause.response?.status ?? null,
    code: cause.code ?? cause.data?.error?.code ?? null,
    message: String(cause.message),
  };
}

const [client, name] = packages[kind];
const generate = await clients[client](name);
console.log(JSON.stringify({ version: versionOf(name) }));
for await (const line of createInterface({ input: process.stdin })) {
  const answer = await generate(JSON.parse(line)).catch(failure);
  console.log(JSON.stringify(answer));
}
