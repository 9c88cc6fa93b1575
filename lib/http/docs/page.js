"use strict";

const GENERATE = "/api/v1/models/gemini/generate";
const find = (id) => document.getElementById(id);
const form = find("form");
const keyField = find("key");
const promptField = find("prompt");
const go = find("go");
const canvas = find("canvas");
const status = find("status");

// Session storage is private to this tab and cleared when it closes.
const STORED_KEY = "api-key";
try {
  keyField.value = sessionStorage.getItem(STORED_KEY) ?? "";
} catch {
  // Storage may be disabled. Then the key does not survive a reload.
}

const element = (name, properties = {}, ...children) => {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
};

const showStatus = (kind, ...content) => {
  status.className = `status ${kind}`;
  status.replaceChildren(...content);
};

const call = (path, options = {}) =>
  fetch(path, {
    ...options,
    headers: { Authorization: `Bearer ${keyField.value.trim()}`, ...options.headers },
  });

const randomKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const showRequest = (body, key) => {
  find("curl").textContent = [
    `curl -sS ${location.origin}${GENERATE} \\`,
    '  -H "Authorization: Bearer $API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -H 'Idempotency-Key: ${key}' \\`,
    `  -d ${shellQuoted(body)}`,
  ].join("\n");
  find("request").hidden = false;
};

const startClock = () => {
  const startedAt = performance.now();
  const clock = element("p", { className: "clock" }, "0.0 s");
  canvas.classList.add("busy");
  canvas.replaceChildren(
    element("div", {}, clock, element("p", {}, "Generating...")),
  );
  const timer = setInterval(() => {
    clock.textContent = `${((performance.now() - startedAt) / 1000).toFixed(1)} s`;
  }, 100);
  return () => {
    clearInterval(timer);
    canvas.classList.remove("busy");
  };
};

const showMessage = (sentence) => canvas.replaceChildren(element("p", {}, sentence));

const showImage = (url, prompt) => {
  const image = element("img", { src: url, alt: prompt });
  canvas.replaceChildren(
    element("a", { href: url, target: "_blank", rel: "noopener" }, image),
  );
};

// Advice for a person, by X-Error-Code. Other errors show the text of the response alone.
const ADVICE = {
  unauthorized: "This API key is not valid. Check that it is complete and has not expired or been revoked.",
  insufficient_credits: "This account does not have enough credits.",
  content_rejected: "Gemini refused this prompt or its result. Try rephrasing the prompt.",
  model_overloaded: "Gemini is overloaded. Try again in a moment.",
  model_timeout: "Gemini took too long to respond.",
  rate_limited: "Too many images were requested within a minute.",
};

// A response of API Gateway's own has no such header, and a broken connection has no response.
const UNKNOWN_COST = "It is not known whether this request was charged. Check the history, or repeat it with the same Idempotency-Key, as the curl command below does.";

const costOf = (response) => {
  const charged = response.headers.get("X-Credits-Charged");
  if (charged === null) return UNKNOWN_COST;
  if (charged === "0") return "This request costs nothing.";
  return `The outcome is pending: ${charged} credits are held until it is known.`;
};

const showBad = (sentence, cost) =>
  showStatus("bad", sentence, element("span", { className: "refund" }, cost));

const showFailure = (response, body) => {
  const code = response.headers.get("X-Error-Code") ?? "";
  const detail = [body.error, body.message, body.hint].filter(Boolean).join(": ");
  const lines = [ADVICE[code] ?? "", ` ${detail} (${response.status}).`];
  const retryAfter = response.headers.get("Retry-After");
  if (retryAfter) lines.push(` Retry in ${retryAfter} s.`);
  if (code === "insufficient_credits") {
    lines.push(` You have ${body.creditsRemaining} of the ${body.creditsRequired} credits that an image costs.`);
  }
  showBad(lines.join("").trim(), costOf(response));
  showMessage("No image was generated.");
};

const fetchBalance = async () => {
  const response = await call("/api/v1/billing/credits");
  return response.ok ? (await response.json()).credits : null;
};

const showHistory = async () => {
  const response = await call("/api/v1/generations?limit=24");
  if (!response.ok) return;
  const { generations } = await response.json();
  const settled = generations.filter((each) => each.status === "settled").slice(0, 12);
  find("history").hidden = settled.length === 0;
  find("strip").replaceChildren(
    ...settled.map((each) => {
      const image = element("img", { src: each.imageUrl, alt: each.prompt, loading: "lazy" });
      const link = { href: each.imageUrl, target: "_blank", rel: "noopener", title: each.prompt };
      return element("li", {}, element("a", link, image));
    }),
  );
};

const showSuccess = async ({ imageUrl, durationMs, creditsCharged }, prompt) => {
  showImage(imageUrl, prompt);
  const credits = await fetchBalance().catch(() => null);
  const seconds = (durationMs / 1000).toFixed(1);
  const balance = credits === null ? "" : ` ${credits} credits left.`;
  showStatus("good", `Done in ${seconds} s for ${creditsCharged} credits.${balance}`);
  await showHistory().catch(() => {});
};

// A pending outcome is decided within 3 minutes if the service is healthy.
const POLL_EVERY_MS = 2000;
const MAX_POLLS = 300;
let requests = 0;

const pollUntilEnded = async (response, prompt, request) => {
  showBad("The service could not finish this request.", costOf(response));
  showMessage("Waiting for the outcome...");
  for (let polls = 0; polls < MAX_POLLS; polls += 1) {
    await new Promise((done) => setTimeout(done, POLL_EVERY_MS));
    // The stage belongs to a newer request.
    if (requests !== request) return;
    const generation = await call(response.headers.get("Location"))
      .then((response) => (response.ok ? response.json() : {}))
      .catch(() => ({}));
    if (requests !== request) return;
    if (generation.status === "settled") {
      await showSuccess(generation, prompt);
      return;
    }
    if (generation.status === "refunded") {
      showBad(`${generation.message}.`, "The credits are refunded: this request costs nothing.");
      showMessage("No image was generated.");
      return;
    }
  }
  showBad("The outcome is still pending.", UNKNOWN_COST);
};

const isPending = (response) =>
  !response.ok &&
  response.headers.has("Location") &&
  (response.headers.get("X-Credits-Charged") ?? "0") !== "0";

const generate = async () => {
  requests += 1;
  const request = requests;
  const prompt = promptField.value;
  const aspectRatio = new FormData(form).get("ratio");
  const body = JSON.stringify({ prompt, aspectRatio });
  const key = randomKey();
  showRequest(body, key);
  showStatus("", "");
  const stopClock = startClock();
  go.disabled = true;
  try {
    const response = await call(GENERATE, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      body,
    });
    // The body of an error need not be JSON: a proxy may have sent it.
    const result = response.ok ? await response.json() : await response.json().catch(() => ({}));
    stopClock();
    if (response.ok) {
      await showSuccess(result, prompt);
    } else if (isPending(response)) {
      pollUntilEnded(response, prompt, request);
    } else {
      showFailure(response, result);
    }
  } catch {
    stopClock();
    showBad("No response.", UNKNOWN_COST);
    showMessage("No response.");
  } finally {
    stopClock();
    go.disabled = false;
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (keyField.value.trim() === "") {
    showStatus("bad", "Paste an API key first.");
    keyField.focus();
    return;
  }
  generate();
});

keyField.addEventListener("change", () => {
  try {
    sessionStorage.setItem(STORED_KEY, keyField.value.trim());
  } catch {
    // As above: the key has to be entered again after a reload.
  }
  if (keyField.value.trim() !== "") showHistory().catch(() => {});
});
if (keyField.value !== "") showHistory().catch(() => {});

const tabs = [...document.querySelectorAll('[role="tab"]')];
const selectTab = (selected) => {
  for (const tab of tabs) {
    const isSelected = tab === selected;
    tab.setAttribute("aria-selected", String(isSelected));
    tab.tabIndex = isSelected ? 0 : -1;
    find(tab.getAttribute("aria-controls")).hidden = !isSelected;
  }
};
for (const [number, tab] of tabs.entries()) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = tabs[(number + step + tabs.length) % tabs.length];
    selectTab(next);
    next.focus();
  });
}

for (const example of document.querySelectorAll(".example")) {
  const copy = element("button", { type: "button", className: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(example.querySelector("code").textContent);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Copy failed: select the text";
    }
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 2000);
  });
  example.append(copy);
}
