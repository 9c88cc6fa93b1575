"use strict";

const GENERATE = "/api/v1/models/gemini/generate";
const find = (id) => document.getElementById(id);
const form = find("form");
const keyField = find("key");
const promptField = find("prompt");
const go = find("go");
const canvas = find("canvas");
const status = find("status");

// The key lives as long as the tab: session storage is neither shared nor kept.
const remembered = "api-key";
try {
  keyField.value = sessionStorage.getItem(remembered) ?? "";
} catch {
  // Storage may be switched off; then the key is gone after a reload, and nothing else.
}

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const say = (kind, ...what) => {
  status.className = `status ${kind}`;
  status.replaceChildren(...what);
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

const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const showRequest = (body, key) => {
  find("curl").textContent = [
    `curl -sS ${location.origin}${GENERATE} \\`,
    '  -H "Authorization: Bearer $API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -H 'Idempotency-Key: ${key}' \\`,
    `  -d ${inShell(body)}`,
  ].join("\n");
  find("request").hidden = false;
};

const startClock = () => {
  const began = performance.now();
  const clock = element("p", { className: "clock" }, "0.0 s");
  canvas.classList.add("busy");
  canvas.replaceChildren(
    element("div", {}, clock, element("p", {}, "Gemini is drawing ...")),
  );
  const ticking = setInterval(() => {
    clock.textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  }, 100);
  return () => {
    clearInterval(ticking);
    canvas.classList.remove("busy");
  };
};

const showNothing = (sentence) => canvas.replaceChildren(element("p", {}, sentence));

const showImage = (url, prompt) => {
  const image = element("img", { src: url, alt: prompt });
  canvas.replaceChildren(
    element("a", { href: url, target: "_blank", rel: "noopener" }, image),
  );
};

const PLAINLY = {
  unauthorized: "This key doesn't open the door. Check that it is whole, and neither expired nor revoked.",
  insufficient_credits: "There are not enough credits left on this account.",
  content_rejected: "Gemini refused this prompt or the picture that came of it. Put it differently.",
  model_overloaded: "Gemini is overloaded. Wait a moment and try again.",
  model_timeout: "Gemini took too long.",
  rate_limited: "That was too many pictures in one minute. Wait a little.",
};

const showFailure = (answer, body) => {
  const code = answer.headers.get("X-Error-Code") ?? "";
  const detail = [body.error, body.message, body.hint].filter(Boolean).join(": ");
  const lines = [PLAINLY[code] ?? "", ` ${detail} (${answer.status})`];
  const wait = answer.headers.get("Retry-After");
  if (wait) lines.push(` Try again in ${wait} s.`);
  if (code === "insufficient_credits") {
    lines.push(` ${body.creditsRemaining} of the ${body.creditsRequired} that an image costs.`);
  }
  const refund =
    answer.status >= 500
      ? "The credits are back: this cost you nothing."
      : "Nothing was charged.";
  say("bad", lines.join("").trim(), element("span", { className: "refund" }, refund));
  showNothing("No picture this time.");
};

const balance = async () => {
  const answer = await call("/api/v1/billing/credits");
  return answer.ok ? (await answer.json()).credits : null;
};

const showHistory = async () => {
  const answer = await call("/api/v1/generations?limit=24");
  if (!answer.ok) return;
  const { generations } = await answer.json();
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

const generate = async () => {
  const prompt = promptField.value;
  const aspectRatio = new FormData(form).get("ratio");
  const body = JSON.stringify({ prompt, aspectRatio });
  const key = randomKey();
  showRequest(body, key);
  say("", "");
  const stopClock = startClock();
  go.disabled = true;
  try {
    const answer = await call(GENERATE, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      body,
    });
    const told = await answer.json();
    stopClock();
    if (!answer.ok) {
      showFailure(answer, told);
      return;
    }
    showImage(told.imageUrl, prompt);
    const left = await balance();
    const seconds = (told.durationMs / 1000).toFixed(1);
    const rest = left === null ? "" : ` ${left} credits left.`;
    say("good", `Done in ${seconds} s for ${told.creditsCharged} credits.${rest}`);
    await showHistory();
  } catch {
    stopClock();
    showNothing("No answer came.");
    say("bad", "The service can't be reached. If an image came of it, the curl line below fetches it for free: it has the same Idempotency-Key.");
  } finally {
    stopClock();
    go.disabled = false;
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (keyField.value.trim() === "") {
    say("bad", "Paste an API key first.");
    keyField.focus();
    return;
  }
  generate();
});

keyField.addEventListener("change", () => {
  try {
    sessionStorage.setItem(remembered, keyField.value.trim());
  } catch {
    // As above: then it is asked for again after a reload.
  }
  if (keyField.value.trim() !== "") showHistory().catch(() => {});
});
if (keyField.value !== "") showHistory().catch(() => {});

const tabs = [...document.querySelectorAll('[role="tab"]')];
const choose = (chosen) => {
  for (const tab of tabs) {
    const isChosen = tab === chosen;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    find(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
};
for (const [number, tab] of tabs.entries()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = tabs[(number + step + tabs.length) % tabs.length];
    choose(next);
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
      copy.textContent = "Select and copy by hand";
    }
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 2000);
  });
  example.append(copy);
}
