"use strict";

const GENERATE = "/api/v1/models/gemini/generate";
const GENERATIONS = "/api/v1/generations";
const CREDITS = "/api/v1/billing/credits";
const USAGE = "/api/v1/billing/usage";
const KEY_FORMAT = /^gg_[a-z0-9][a-z0-9_-]{0,62}_[0-9A-Za-z]{49}$/;
const SHOWN_AT_ONCE = 6;
const CLIENT_TIMEOUT_MS = 35_000;
const TRIES = 5;
const FIRST_PAUSE_MS = 1000;
// A request that died keeps its idempotency key busy for a minute.
const IN_FLIGHT_FOR_MS = 120_000;
const ACCEPTED_WITHIN_MS = 3000;
// An asynchronous generation ends within 45 minutes.
const FOLLOWED_FOR_MS = 50 * 60_000;
// An idempotency key is remembered for 24 hours: later, the same request is a new one.
const REPEATED_FOR_MS = 23 * 3_600_000;

const find = (id) => document.getElementById(id);
const form = find("form");
const keyField = find("key");
const promptField = find("prompt");
const go = find("go");
const canvas = find("canvas");
const status = find("status");

const element = (name, properties = {}, ...children) => {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children.filter((child) => child !== null));
  return created;
};
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const randomKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");

// Session storage is private to this tab and cleared when it closes. It may be disabled: then
// nothing survives a reload.
const remember = (name, value) => {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // As above.
  }
};
const recall = (name) => {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
};
const KEY = "api-key";
// The request that has not ended: its idempotency key, body, start and path. Not the API key.
const PENDING = "pending";

const call = (path, key, options = {}) =>
  fetch(path, {
    signal: AbortSignal.timeout(CLIENT_TIMEOUT_MS),
    ...options,
    headers: { Authorization: `Bearer ${key}`, ...options.headers },
  });
// The body of an error need not be JSON: a proxy may have sent it.
const bodyOf = (response) => response.json().catch(() => ({}));
const typedKey = () => keyField.value.trim();

// The stage: the image, or what happens to it.

const showStatus = (kind, ...content) => {
  status.className = `status ${kind}`;
  status.replaceChildren(...content);
};
const showBad = (sentence, cost, ...more) =>
  showStatus("bad", element("p", {}, sentence), element("p", { className: "cost" }, cost), ...more);
const showMessage = (sentence) => canvas.replaceChildren(element("p", {}, sentence));

const STEPS = ["Queued", "Drawing", "Done"];
let clock = null;

const stopClock = () => {
  clearInterval(clock);
  clock = null;
  canvas.classList.remove("busy");
};

const showStep = (step, startedAt) => {
  const seconds = () => `${((Date.now() - startedAt) / 1000).toFixed(1)} s`;
  if (clock === null) {
    const shown = element("p", { className: "clock" }, seconds());
    const steps = element("ol", { className: "steps" }, ...STEPS.map((name) => element("li", {}, name)));
    const hint = "You can reload this page meanwhile.";
    canvas.classList.add("busy");
    canvas.replaceChildren(element("div", {}, shown, steps, element("p", { className: "hint" }, hint)));
    clock = setInterval(() => {
      shown.textContent = seconds();
    }, 100);
  }
  for (const [number, item] of [...canvas.querySelectorAll(".steps li")].entries()) {
    if (number === step) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  }
};

const showImage = (url, prompt) => {
  const image = element("img", { src: url, alt: prompt });
  canvas.replaceChildren(element("a", { href: url, target: "_blank", rel: "noopener" }, image));
};

const UNKNOWN = "It is not known whether this request was charged.";
const SAFE_RETRY = "Trying again with the same Idempotency-Key is safe: it never pays twice.";
const HELD = "5 credits are held until it is known.";
const FREE = "This request costs nothing.";

const costOf = (response) => {
  const charged = response.headers.get("X-Credits-Charged");
  return charged === "0" ? FREE : UNKNOWN;
};

// What to do about an error is in the page's own table, for programs: this one has preferred
// respond-async already.
const adviceOn = (code) =>
  code === "model_timeout"
    ? "Gemini took too long. Try again."
    : (find(code)?.querySelector("[data-advice]")?.textContent ?? "");

const showFailure = (response, body) => {
  const code = response.headers.get("X-Error-Code");
  const detail = [body.error, body.message].filter(Boolean).join(": ");
  const lines = [`${detail} (${response.status}).`];
  if (body.creditsRequired !== undefined) {
    const owner = code === "key_budget_exhausted" ? "This key's budget of the month has" : "You have";
    lines.push(`${owner} ${body.creditsRemaining} of the ${body.creditsRequired} credits that an image costs.`);
  }
  lines.push(adviceOn(code));
  const retryAfter = response.headers.get("Retry-After");
  if (retryAfter) lines.push(`Wait ${retryAfter} s.`);
  const more = [element("a", { href: `#${code}` }, `About ${code}`)];
  if (response.status >= 500) {
    more.push(element("p", { className: "id" }, `X-Request-Id: ${response.headers.get("X-Request-Id")}`));
  }
  showBad(lines.filter(Boolean).join(" "), costOf(response), ...more);
  showMessage("No image was generated.");
};

// One generation, from the click to its end.

let running = null;
const isBusy = () => running !== null;

const end = () => {
  stopClock();
  running = null;
  remember(PENDING, null);
  go.removeAttribute("aria-disabled");
};

const succeed = async (run, generation) => {
  end();
  showImage(generation.imageUrl, run.prompt);
  const seconds = (generation.durationMs / 1000).toFixed(1);
  await loadAccount();
  // The field may hold another key by now.
  const left = shownKey === run.apiKey ? ` ${plural(balance, "credit")} left.` : "";
  if (isBusy()) return;
  showStatus(
    "good",
    element("p", {}, `Done in ${seconds} s. ${generation.creditsCharged} credits charged.${left}`),
    element("a", { href: generation.imageUrl, target: "_blank", rel: "noopener" }, "Open the PNG"),
  );
};

const refunded = (generation) => {
  end();
  showBad(
    `Failed to generate image: ${generation.message}.`,
    `${generation.creditsRefunded} credits refunded: this request costs nothing.`,
  );
  showMessage("No image was generated.");
  loadAccount();
};

// The outcome stays open: the request can be continued by a click or by a reload.
const pause = (sentence) => {
  const run = running;
  stopClock();
  running = null;
  go.removeAttribute("aria-disabled");
  const again = element("button", { type: "button", className: "quiet" }, "Try again");
  again.addEventListener("click", () => {
    go.focus();
    start(run);
  });
  showBad(sentence, `${UNKNOWN} ${SAFE_RETRY}`, again);
  showMessage("The outcome is not known.");
  loadAccount();
};

const pauseMs = (response, otherwiseMs) => {
  const seconds = Number(response?.headers.get("Retry-After"));
  return seconds > 0 ? Math.min(seconds, 60) * 1000 : otherwiseMs;
};

const pollEveryMs = (run) => {
  const elapsedMs = Date.now() - run.startedAt;
  return elapsedMs < 15_000 ? 1000 : elapsedMs < 60_000 ? 2000 : 5000;
};

// What survives a reload. The API key is kept apart.
const keep = ({ apiKey, ...kept }) => remember(PENDING, kept);

const showProgress = (run, step) => {
  if (run.isPending) {
    stopClock();
    showBad("The service could not finish this request.", `The outcome is pending: ${HELD}`);
    showMessage("Waiting for the outcome...");
    return;
  }
  showStep(step, run.startedAt);
  // A live region: it speaks when the step changes, not at every poll.
  const sentence = step === 0 ? "Queued." : "Drawing. 5 credits are held.";
  if (status.textContent !== sentence) showStatus("", element("p", {}, sentence));
};

const follow = async (run) => {
  do {
    const response = await call(run.location, run.apiKey).catch(() => null);
    if (response?.status === 401 || response?.status === 404) {
      end();
      showBad("The API key in the field cannot read this request.", UNKNOWN);
      showMessage("The history of the key that made the request has the outcome.");
      return;
    }
    const generation = response?.ok ? await bodyOf(response) : {};
    if (generation.status === "settled") return succeed(run, generation);
    if (generation.status === "refunded") return refunded(generation);
    if (generation.status === "reserved" && !run.isPending) showProgress(run, 1);
    await sleep(pauseMs(response, pollEveryMs(run)));
  } while (Date.now() - run.startedAt < FOLLOWED_FOR_MS);
  pause("The outcome is still pending.");
};

const post = (run) => {
  // A service without a queue ignores the preference: its response is the image.
  const drawing = setTimeout(() => showStep(1, run.startedAt), ACCEPTED_WITHIN_MS);
  return call(GENERATE, run.apiKey, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      "Idempotency-Key": run.key,
      Prefer: "respond-async",
    },
    body: JSON.stringify({ prompt: run.prompt, aspectRatio: run.aspectRatio }),
  })
    .catch(() => null)
    .finally(() => clearTimeout(drawing));
};

const located = (run, response) => {
  run.location = response.headers.get("Location");
  keep(run);
  loadAccount();
  return follow(run);
};

// Repeats what has no answer of the service: a broken connection, or API Gateway's own answers.
const submit = async (run) => {
  const beganAt = Date.now();
  let pauseForMs = FIRST_PAUSE_MS;
  // After a reload or a pause, nothing is known of the tries before.
  let isUnknown = run.isSent === true;
  run.isSent = true;
  keep(run);
  for (let tries = 1; ; tries += 1) {
    const response = await post(run);
    if (response?.status === 202) return located(run, response);
    const body = response === null ? {} : await bodyOf(response);
    if (response?.ok && body.imageUrl) return succeed(run, body);
    const code = response?.headers.get("X-Error-Code");
    const isInFlight = code === "generation_in_flight";
    if (code && !isInFlight) {
      if (code === "outcome_pending") {
        run.isPending = true;
        showProgress(run);
        return located(run, response);
      }
      // After a try without an answer, a refusal tells of itself alone: it may come before the service
      // looks for the Idempotency-Key. A failed generation tells of every try: it had the key.
      const isOfTheKey = response.status >= 500 && code !== "service_unavailable";
      if (isUnknown && !isOfTheKey) return pause(`${body.error} (${response.status}).`);
      end();
      showFailure(response, body);
      loadAccount();
      return;
    }
    const sentence = response === null ? "No response." : `${body.message ?? body.error ?? response.statusText} (${response.status}).`;
    // API Gateway throttles before the service sees the request.
    isUnknown ||= response?.status !== 429;
    if (isInFlight && Date.now() - beganAt < IN_FLIGHT_FOR_MS) {
      showProgress(run, 1);
      tries -= 1;
    } else if (tries < TRIES) {
      const again = `Trying again with the same Idempotency-Key (${tries} of ${TRIES - 1}).`;
      showBad(sentence, isUnknown ? UNKNOWN : FREE, element("p", {}, again));
    } else if (isUnknown) {
      return pause(sentence);
    } else {
      end();
      showBad(sentence, FREE);
      showMessage("No image was generated.");
      return;
    }
    await sleep(pauseMs(response, isInFlight ? FIRST_PAUSE_MS : pauseForMs));
    if (!isInFlight) pauseForMs *= 2;
  }
};

const start = (run) => {
  if (!run.location && Date.now() - run.startedAt > REPEATED_FOR_MS) {
    remember(PENDING, null);
    showBad("The request is too old to be repeated.", UNKNOWN);
    return;
  }
  run.apiKey = typedKey();
  running = run;
  go.setAttribute("aria-disabled", "true");
  keep(run);
  showProgress(run, run.location ? 1 : 0);
  return run.location ? follow(run) : submit(run);
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (isBusy()) return;
  if (typedKey() === "") {
    showBad("Paste an API key first.", "No request was sent.");
    keyField.focus();
    return;
  }
  if (promptField.value.trim() === "") {
    showBad("Write a prompt first.", "No request was sent.");
    promptField.focus();
    return;
  }
  rememberKey();
  const key = showCode();
  start({ key, ...asked(), startedAt: Date.now(), location: null });
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});

// The request of the form, in every language.

const asked = () => ({ prompt: promptField.value, aspectRatio: new FormData(form).get("ratio") });

const WRITTEN = {
  key: ({ key }) => key,
  shell: ({ prompt, aspectRatio }) => {
    const body = JSON.stringify({ prompt, aspectRatio });
    return `'${body.replaceAll("'", "'\\''")}'`;
  },
  prompt: ({ prompt }) => JSON.stringify(prompt),
  ratio: ({ aspectRatio }) => JSON.stringify(aspectRatio),
  size: ({ aspectRatio }) =>
    JSON.stringify(form.querySelector(`[name="ratio"][value="${aspectRatio}"]`).dataset.size),
};

// Writes the form's request into the examples, with a new idempotency key, which is returned.
const showCode = () => {
  const request = asked();
  if (request.prompt === "") request.prompt = promptField.placeholder;
  request.key = randomKey();
  for (const part of document.querySelectorAll("[data-part]")) {
    part.textContent = WRITTEN[part.dataset.part](request);
  }
  return request.key;
};
form.addEventListener("input", (event) => {
  if (event.target !== keyField) showCode();
});

// What belongs to the key in the field: balance, usage, images.

let account = 0;
let balance = null;
let shownKey = null;

const rememberKey = () => remember(KEY, typedKey() || null);

const clearAccount = () => {
  balance = null;
  shownKey = null;
  find("balance").replaceChildren();
  find("usage").hidden = true;
  find("history").hidden = true;
  find("strip").replaceChildren();
  keyField.removeAttribute("aria-invalid");
};

const loadAccount = async () => {
  const key = typedKey();
  account += 1;
  const mine = account;
  if (key !== shownKey) clearAccount();
  if (key === "") return;
  const response = await call(CREDITS, key).catch(() => null);
  const found = response?.ok ? await bodyOf(response) : null;
  if (mine !== account) return;
  if (found === null) {
    clearAccount();
    const isWrong = response?.status === 401;
    if (isWrong) keyField.setAttribute("aria-invalid", "true");
    find("balance").textContent = isWrong ? "This API key is not valid" : "The balance could not be read";
    return;
  }
  shownKey = key;
  balance = found.credits;
  const images = Math.floor(balance / found.creditsPerImage);
  find("balance").replaceChildren(element("strong", {}, plural(balance, "credit")), `, ${plural(images, "image")}`);
  showHistory(key, mine);
  showUsage(key, mine);
};

const showUsage = async (key, mine) => {
  const response = await call(USAGE, key).catch(() => null);
  const found = response?.ok ? await bodyOf(response) : null;
  if (mine !== account) return;
  const panel = find("usage");
  panel.hidden = !found?.month;
  if (panel.hidden) return;
  const month = new Date(`${found.month}-01T00:00:00Z`).toLocaleDateString("en", {
    month: "long",
    year: "numeric",
    timeZone: "UTC",
  });
  const cells = (name, ...texts) => element(name, {}, ...texts);
  const rows = found.keys.map((each) => {
    const name = element("th", { scope: "row" }, each.name ?? each.id);
    const spent = cells("td", String(each.credits));
    if (each.monthlyBudget !== null) {
      const label = `${each.credits} of ${each.monthlyBudget} credits`;
      const meter = element("meter", { max: each.monthlyBudget, value: each.credits });
      meter.setAttribute("aria-label", label);
      spent.replaceChildren(label, meter);
    }
    return element("tr", {}, name, cells("td", String(each.images)), spent);
  });
  const titles = ["Key", "Images", "Credits"].map((text) => element("th", { scope: "col" }, text));
  panel.replaceChildren(
    element("h3", {}, `Usage in ${month}: ${plural(found.images, "image")}, ${plural(found.credits, "credit")}`),
    element("table", {}, element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...rows)),
  );
};

let cursor = null;

const showHistory = async (key, mine, from = null) => {
  const query = new URLSearchParams({ limit: SHOWN_AT_ONCE, ...(from ? { cursor: from } : {}) });
  const response = await call(`${GENERATIONS}?${query}`, key).catch(() => null);
  const page = response?.ok ? await bodyOf(response) : null;
  if (mine !== account || !page?.generations) return;
  const items = page.generations.filter((each) => !each.deletedAt).map((each) => itemOf(each, key));
  const strip = find("strip");
  if (from) strip.append(...items);
  else strip.replaceChildren(...items);
  cursor = page.nextCursor;
  find("older").hidden = cursor === null;
  find("history").hidden = strip.children.length === 0 && cursor === null;
  if (from) items[0]?.querySelector("button")?.focus();
};
find("older").addEventListener("click", () => showHistory(shownKey, account, cursor));

const OUTCOME = {
  reserved: () => "In progress: 5 credits held",
  settled: (each) => plural(each.creditsCharged, "credit"),
  refunded: (each) => `${plural(each.creditsRefunded, "credit")} refunded`,
};

const WHEN = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false };

const button = (text, about, act) => {
  const created = element("button", { type: "button", className: "quiet" }, text);
  created.setAttribute("aria-label", `${text}: ${about}`);
  created.addEventListener("click", act);
  return created;
};

const thumbnail = (each) => {
  if (!each.imageUrl) {
    return element("p", { className: "thumb" }, each.status === "refunded" ? each.message : "In progress");
  }
  // The size keeps the page still, and lazy loading saves whole images.
  const image = element("img", { loading: "lazy", decoding: "async", width: 80, height: 80 });
  Object.assign(image, { src: each.imageUrl, alt: "" });
  const link = { className: "thumb", href: each.imageUrl, target: "_blank", rel: "noopener" };
  const opened = element("a", link, image);
  opened.setAttribute("aria-label", `Open the PNG: ${each.prompt}`);
  return opened;
};

const itemOf = (each, key) => {
  const when = new Date(each.createdAt).toLocaleString("en", WHEN);
  const item = element("li", { className: each.status, tabIndex: -1 });
  const again = button("Use this prompt again", each.prompt, () => {
    promptField.value = each.prompt;
    form.querySelector(`[name="ratio"][value="${each.aspectRatio}"]`).checked = true;
    showCode();
    promptField.focus();
  });
  const remove =
    each.status === "reserved"
      ? null
      : button("Delete", each.prompt, () => askToDelete(each, key, item));
  item.append(
    thumbnail(each),
    element(
      "div",
      {},
      element("p", { className: "said" }, each.prompt),
      element("p", { className: "meta" }, `${OUTCOME[each.status](each)} · ${each.aspectRatio} · ${when}`),
      element("p", { className: "acts" }, again, remove),
    ),
  );
  return item;
};

const dialog = find("confirm");
let chosen = null;

const askToDelete = (each, key, item) => {
  chosen = { each, key, item };
  find("confirm-prompt").textContent = each.prompt;
  dialog.showModal();
};
find("keep").addEventListener("click", () => dialog.close());
find("delete").addEventListener("click", async () => {
  const { each, key, item } = chosen;
  dialog.close();
  const response = await call(`${GENERATIONS}/${each.id}`, key, { method: "DELETE" }).catch(() => null);
  const isGone = response?.status === 204;
  const body = response === null || isGone ? {} : await bodyOf(response);
  const failure = response === null ? "no response" : (body.message ?? body.error ?? response.status);
  const sentence = isGone
    ? `Deleted. ${each.creditsCharged ? `The ${each.creditsCharged} credits stay charged.` : ""}`
    : `Not confirmed: ${failure}. Deleting again is safe.`;
  const note = element("p", { className: "note", tabIndex: -1 }, sentence);
  if (isGone) item.replaceChildren(note);
  else item.append(note);
  if (isGone && canvas.querySelector(`img[src="${CSS.escape(each.imageUrl)}"]`)) showMessage("This image was deleted.");
  note.focus();
});

let typing = null;
keyField.addEventListener("input", () => {
  account += 1;
  clearAccount();
  clearTimeout(typing);
  if (KEY_FORMAT.test(typedKey())) typing = setTimeout(loadAccount, 300);
});
keyField.addEventListener("change", () => {
  rememberKey();
  clearTimeout(typing);
  if (typedKey() !== shownKey) loadAccount();
});

// The reference.

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
  const panel = find(tab.getAttribute("aria-controls"));
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", tab.id);
  panel.querySelector("h3").hidden = true;
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = tabs[(number + step + tabs.length) % tabs.length];
    selectTab(next);
    next.focus();
  });
}
find("tabs").hidden = false;
selectTab(tabs[0]);

for (const head of document.querySelectorAll(".panel > .head")) {
  const copy = element("button", { type: "button", className: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    const shown = [...head.parentElement.querySelectorAll("pre")].find((each) => each.offsetParent);
    try {
      await navigator.clipboard.writeText(shown.textContent);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Select the text";
    }
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 2000);
  });
  head.append(copy);
}

// A phone starts with the headings. Whatever a link names is opened.
if (matchMedia("(max-width: 40rem)").matches) {
  for (const topic of document.querySelectorAll("details.topic")) topic.open = false;
}
const reveal = () => {
  const target = find(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();

find("play").hidden = false;
if (/Mac|iP(hone|ad)/.test(navigator.platform)) find("shortcut").querySelector("kbd").textContent = "Cmd";
keyField.value = recall(KEY) ?? "";
const interrupted = recall(PENDING);
if (interrupted && typedKey() !== "") {
  promptField.value = interrupted.prompt;
  form.querySelector(`[name="ratio"][value="${interrupted.aspectRatio}"]`).checked = true;
  start(interrupted);
}
showCode();
loadAccount();
