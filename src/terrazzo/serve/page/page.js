// The page of a terrazzo server. Whatever people or models wrote goes into the page as text, never as markup.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const KEY = "terrazzo-api-key";
const POLL_MS = 2000;
const KEPT_POLLS = 60;
const KEPT_SECONDS = 30;
const SHOWN_BARS = 8;

/** An element; attributes `class` and others by name, `on` its listeners; strings among the children become text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const lines = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
const plural = (count, word, words = `${word}s`) => `${count.toLocaleString("en")} ${count === 1 ? word : words}`;
const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 2 : 1)} %`;

/** Seconds as people read them: 12 ms, 1.4 s. */
function duration(seconds) {
  if (seconds < 1) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

// ---- Calls -------------------------------------------------------------------------------------------------------

/** What the server refused or could not do: `status` 0 where there was no answer at all. */
class Refusal extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const address = (path) => new URL(path, document.baseURI).href;
const savedKey = () => sessionStorage.getItem(KEY) ?? "";

function headers(body) {
  const given = body == null ? {} : { "Content-Type": "application/json" };
  return savedKey() ? { ...given, Authorization: `Bearer ${savedKey()}` } : given;
}

/** The answer to one request, as JSON or, with `plain`, as text. Throws a Refusal in the server's own words. */
async function ask(path, body = null, { signal, plain = false } = {}) {
  const method = body == null ? "GET" : "POST";
  let response;
  try {
    response = await fetch(address(path), { method, headers: headers(body), body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return plain ? response.text() : response.json();
}

async function refusal(response) {
  const text = await response.text();
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Refusal(errorText(text) || `The server answered ${response.status}.`, response.status, seconds || null);
}

function errorText(text) {
  try {
    const reply = JSON.parse(text);
    const said = reply.error?.message ?? reply.error ?? reply.detail;
    return typeof said === "string" ? said : JSON.stringify(said ?? reply);
  } catch {
    return text.slice(0, 500);
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command that makes the same request; a key is named, not shown. */
function curl(path, body) {
  const key = savedKey() ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  return `curl ${quoted(address(path))}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(body)}`;
}

// ---- Drawings ----------------------------------------------------------------------------------------------------

function headline(text, ...asides) {
  return element(
    "p",
    { class: "headline" },
    element("b", { dir: "auto" }, text),
    ...asides.map((aside) => element("span", {}, aside)),
  );
}

/** Rows {name, share in -1..1, number, chosen, place, moved} as bars; the later ones behind a button. */
function bars(rows, shown = SHOWN_BARS) {
  const list = element("ol", { class: "bars" }, ...rows.slice(0, shown).map(bar));
  if (rows.length <= shown) return list;
  const more = element("button", { type: "button", class: "quiet small more" }, `Show all ${rows.length}`);
  more.addEventListener("click", () => {
    list.append(...rows.slice(shown).map(bar));
    more.remove();
  });
  return element("div", {}, list, more);
}

function bar(row) {
  const filled = element("i");
  filled.style.setProperty("--share", `${100 * Math.min(1, Math.abs(row.share))}%`);
  const kind = [row.chosen && "chosen", row.share < 0 && "below"].filter(Boolean).join(" ");
  const place = row.place && element("span", { class: "place" }, `${row.place}.`);
  const name = element("span", { class: "name", dir: "auto" }, place ?? "", row.name, row.moved ?? "");
  return element(
    "li",
    { class: kind },
    name,
    element("span", { class: "number" }, row.number),
    element("span", { class: "track", "aria-hidden": "true" }, filled),
  );
}

/** `text` with `spans` {start, end, label, score} marked; offsets count code points, as the server does. */
function marked(text, spans, hueOf) {
  const points = Array.from(text);
  const cut = (start, end) => points.slice(start, end).join("");
  const drawn = element("p", { class: "marked", dir: "auto" });
  let done = 0;
  for (const span of spans.toSorted((a, b) => a.start - b.start || b.end - a.end)) {
    if (span.start < done) continue; // inside one that is drawn; the table below has it
    const label = span.label ? element("small", {}, span.label) : "";
    const mark = element(
      "mark",
      { class: `hue-${hueOf(span.label)}`, title: spanTitle(span) },
      cut(span.start, span.end),
      label,
    );
    drawn.append(cut(done, span.start), mark);
    done = span.end;
  }
  drawn.append(cut(done));
  return drawn;
}

const spanTitle = (span) => [span.label, span.score == null ? "" : percent(span.score)].filter(Boolean).join(" · ");

function spanTable(spans, hueOf) {
  const rows = spans.map((span) =>
    element(
      "tr",
      { class: `hue-${hueOf(span.label)}` },
      element("td", { class: "t", dir: "auto" }, span.text),
      element("td", {}, element("span", { class: "swatch" }), span.label),
      element("td", { class: "n" }, percent(span.score)),
      element("td", { class: "n" }, `${span.start}–${span.end}`),
    ),
  );
  const head = ["text", "label", "probability", "characters"].map((title, column) =>
    element("th", { scope: "col", class: column > 1 && "n" }, title),
  );
  return element(
    "div",
    { class: "scroll" },
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)),
  );
}

/** The same label has the same hue in every answer: by its place among the model's labels. */
function hues(labels) {
  const bare = [
    ...new Set(labels.map((label) => label.replace(/^[BIOESLU]-/, "")).filter((label) => label !== "O")),
  ].sort();
  return (label) => Math.max(0, bare.indexOf(label)) % 8;
}

function cosine(a, b) {
  const [dot, aa, bb] = a.reduce(
    ([d, x, y], value, i) => [d + value * b[i], x + value * value, y + b[i] * b[i]],
    [0, 0, 0],
  );
  return dot / Math.sqrt(aa * bb || 1);
}

// ---- Tasks -------------------------------------------------------------------------------------------------------
// Each: which models it suits, the request that a form makes, how the answer is drawn, and inputs to begin with.

const TASKS = {
  similarity: {
    title: "Similarity",
    suits: (model) => model.can.has("embed"),
    order: plainFirst,
    path: "v1/embeddings",
    request: (form) => ({ model: form.model, input: [form.text, ...lines(form.others)] }),
    draw: drawSimilarity,
    examples: {
      "Same meaning": {
        text: "How do I get my money back?",
        others:
          "I would like a refund.\nWhen will my parcel arrive?\nCan I return the shoes and be reimbursed?\nThe museum opens at nine on Sundays.",
      },
      "Other words": {
        text: "The doctor examined the child.",
        others:
          "A physician looked at the boy.\nThe lawyer questioned the witness.\nA kid was checked at the clinic.\nThe mechanic repaired the engine.",
      },
    },
  },
  classify: {
    title: "Classify",
    suits: (model) => model.can.has("classify"),
    path: "v1/classify",
    request: classifyRequest,
    draw: drawClasses,
    examples: {
      Question: {
        text: "Could you tell me how much money is left in my checking account?",
        second: "I would like to know the balance of my account.",
      },
      Review: {
        text: "A slow start, but the last half hour is among the best I have seen this year.",
        second: "The film gets better towards the end.",
      },
      Message: {
        text: "My flight was cancelled and nobody at the desk could say when the next one leaves 😠",
        second: "The flight left on time.",
      },
    },
  },
  value: {
    title: "Value",
    suits: (model) => model.can.has("regression"),
    path: "v1/classify",
    request: classifyRequest,
    draw: drawValue,
    examples: {
      Alike: { text: "A man is playing a guitar on the street.", second: "Someone plays music outdoors." },
      Unlike: { text: "A man is playing a guitar on the street.", second: "The committee approved the budget." },
    },
  },
  tag: {
    title: "Tag",
    suits: (model) => model.can.has("tag"),
    path: "v1/tag",
    request: (form) => ({ model: form.model, input: form.text }),
    draw: drawTags,
    examples: {
      News: {
        text: "In March, Angela Merkel met the board of Siemens in Munich before flying to New York, where the United Nations had invited her to speak.",
      },
      Emoji: { text: "🧭 Ada Lovelace left London 🇬🇧 for Paris 👩‍👩‍👧 and wrote to Charles Babbage." },
      Arabic: { text: "زارت أنغيلا ميركل مدينة القاهرة والتقت ممثلي الأمم المتحدة." },
    },
  },
  qa: {
    title: "Answer",
    suits: (model) => model.can.has("qa"),
    path: "v1/qa",
    request: (form) => ({ model: form.model, question: form.question, context: form.context }),
    draw: drawAnswer,
    examples: {
      Terrazzo: {
        question: "Who took the technique beyond Venice?",
        context:
          "Terrazzo is a floor of marble chips set in mortar, ground and polished once it has hardened. Masons in Venice made it from the waste of marble slabs in the fifteenth century. Craftsmen from Friuli took the technique beyond Venice, and by the 1920s it covered the floors of stations and schools in many countries.",
      },
      "Without an answer": {
        question: "How much does a square metre cost?",
        context:
          "Terrazzo is a floor of marble chips set in mortar, ground and polished once it has hardened. Masons in Venice made it from the waste of marble slabs in the fifteenth century.",
      },
    },
  },
  rerank: {
    title: "Rerank",
    suits: (model) => model.can.has("rerank"),
    order: plainFirst,
    path: "v1/rerank",
    request: (form) => ({ model: form.model, query: form.query, documents: lines(form.documents) }),
    draw: drawRanking,
    examples: {
      Cooking: {
        query: "How long do I boil an egg?",
        documents:
          "Eggs are laid by hens, and hens live in a coop.\nFor a firm yolk leave the egg in boiling water for ten minutes.\nBoil potatoes for twenty minutes.\nA soft-boiled egg takes about five minutes.\nThe recipe needs three eggs and a cup of sugar.",
      },
      Support: {
        query: "I cannot log in",
        documents:
          "Our offices are closed on public holidays.\nTo reset your password, choose 'Forgot password' on the sign-in page.\nInvoices are sent on the first day of the month.\nIf your account is locked after five attempts, wait fifteen minutes.",
      },
    },
  },
  fill: {
    title: "Fill a gap",
    suits: (model) => model.can.has("fill_mask"),
    path: "v1/fill_mask",
    request: (form) => ({ model: form.model, input: form.text, top_k: 8 }),
    draw: drawGaps,
    examples: {
      Capital: { text: "The capital of France is [MASK]." },
      "Two gaps": { text: "She opened the [MASK] and read the first [MASK]." },
    },
  },
};

/** Models that were not bent to a task give the better vectors. */
function plainFirst(a, b) {
  return Number(a.info.kind != null) - Number(b.info.kind != null);
}

function classifyRequest(form, model) {
  const input = model.pair ? [[form.text, form.second]] : form.text;
  return { model: form.model, input, ...(model.problems.length ? { problem: form.problem } : {}) };
}

function drawSimilarity(reply, request) {
  const [first, ...others] = reply.data.toSorted((a, b) => a.index - b.index).map((item) => item.embedding);
  if (!others.length) throw new Refusal("Write at least one text to compare with.", 422);
  const scored = others.map((vector, i) => ({ name: request.input[i + 1], share: cosine(first, vector) }));
  const best = Math.max(...scored.map((row) => row.share));
  const rows = scored.map((row) => ({ ...row, number: row.share.toFixed(3), chosen: row.share === best }));
  return [headline(best.toFixed(3), others.length > 1 ? "cosine of the nearest" : "cosine"), bars(rows, 50)];
}

/** The one result of an answer; a row that could not be used holds an error instead. */
function onlyResult(reply) {
  const [result] = reply.data;
  if (result.error) throw new Refusal(result.error.message, 422);
  return result;
}

function cutNote({ truncated }) {
  if (!truncated) return null;
  return element(
    "p",
    { class: "note" },
    `${plural(truncated, "token")} did not fit into the model and ${truncated === 1 ? "was" : "were"} not read.`,
  );
}

function drawClasses(reply) {
  const result = onlyResult(reply);
  const chosen = new Set(result.labels ?? [result.label]);
  const rows = result.scores.map(({ label, score }) => ({
    name: label,
    share: score,
    number: percent(score),
    chosen: chosen.has(label),
  }));
  const title = result.labels ? result.labels.join(", ") || "none of the classes" : result.label;
  return [headline(title, result.labels ? "" : percent(result.score)), bars(rows), cutNote(result)];
}

function drawValue(reply) {
  const result = onlyResult(reply);
  return [headline(result.score.toFixed(3), "on the scale of the rows that the model was trained on"), cutNote(result)];
}

function drawTags(reply, request, model) {
  const result = onlyResult(reply);
  const hueOf = hues(model.labels);
  const list = result.spans.length
    ? spanTable(result.spans, hueOf)
    : element("p", { class: "none" }, "Nothing is tagged.");
  return [marked(request.input, result.spans, hueOf), list, cutNote(result)];
}

function drawAnswer(reply, request) {
  const result = onlyResult(reply);
  if (result.answer == null) return [headline("No answer in this text", percent(result.score)), cutNote(result)];
  return [headline(result.answer, percent(result.score)), marked(request.context, [result], () => 1), cutNote(result)];
}

function drawRanking(reply, request) {
  const best = Math.max(...reply.results.map((result) => Math.abs(result.relevance_score)), 1e-9);
  const rows = reply.results.map((result, place) => ({
    name: request.documents[result.index],
    share: result.relevance_score / Math.max(1, best),
    number: result.relevance_score.toFixed(3),
    chosen: place === 0,
    place: place + 1,
    moved: moved(result.index - place),
  }));
  return [bars(rows, 50)];
}

function moved(places) {
  if (!places) return null;
  const [way, sign] = places > 0 ? ["up", "↑"] : ["down", "↓"];
  return element(
    "span",
    { class: `moved ${way}`, title: `${way} ${plural(Math.abs(places), "place")}` },
    `${sign}${Math.abs(places)}`,
  );
}

function drawGaps(reply, request, model) {
  const { masks } = onlyResult(reply);
  const best = masks.map((guesses, i) => ({ label: "", text: guesses[0].token.trim(), hue: i }));
  const drawn = element("p", { class: "marked", dir: "auto" });
  request.input.split(model.mask).forEach((part, i) => {
    const guess = i > 0 && best[i - 1];
    drawn.append(guess ? element("mark", { class: `hue-${guess.hue % 8}` }, guess.text) : i ? model.mask : "", part);
  });
  const lists = masks.flatMap((guesses, i) => [
    masks.length > 1 ? element("h3", {}, `Gap ${i + 1}`) : null,
    bars(
      guesses.map((guess, place) => ({
        name: guess.token.trim() || `“${guess.token}”`,
        share: guess.probability,
        number: percent(guess.probability),
        chosen: !place,
      })),
    ),
  ]);
  return [drawn, ...lists];
}

// ---- Panels ------------------------------------------------------------------------------------------------------

/** One tab's form and answer: runs what the form says, shows the wait, draws the answer or the server's refusal. */
class Panel {
  constructor(name, task, models) {
    this.task = task;
    this.models = models;
    this.root = byId(`panel-${name}`);
    this.form = this.root.querySelector("form");
    this.fields = this.form.elements;
    this.form.append(byId("actions").content.cloneNode(true));
    this.root.append(byId("output").content.cloneNode(true));
    this.find = (selector) => this.root.querySelector(selector);
    this.fields.model.replaceChildren(...models.map((model) => element("option", { value: model.name }, model.name)));
    this.fields.model.after(element("p", { class: "note facts" }));
    this.listen();
    this.takeModel();
    this.takeExample(Object.values(task.examples)[0]);
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
      if (event.key === "Escape") this.cancel();
    });
    this.fields.model.addEventListener("change", () => this.takeModel());
    this.find(".cancel").addEventListener("click", () => this.cancel());
    this.find(".copy").addEventListener("click", (event) => copy(this.find(".curl code"), event.currentTarget));
    const chips = Object.entries(this.task.examples).map(([name, values]) =>
      element("button", { type: "button", class: "quiet", on: { click: () => this.takeExample(values, true) } }, name),
    );
    this.find(".examples").append(...chips);
  }

  get model() {
    return this.models.find((model) => model.name === this.fields.model.value);
  }

  values() {
    return Object.fromEntries([...this.fields].filter((field) => field.name).map((field) => [field.name, field.value]));
  }

  takeModel() {
    const { model } = this;
    this.find(".facts").textContent = summary(model);
    for (const field of this.root.querySelectorAll("[data-when]")) {
      field.hidden = field.dataset.when === "pair" ? !model.pair : !model.problems.length;
    }
    const problems = model.problems.map((problem) => element("option", { value: problem }, problem));
    this.fields.problem?.replaceChildren(...problems);
  }

  takeExample(values, run = false) {
    for (const [name, value] of Object.entries(values))
      this.fields[name].value = value.replaceAll("[MASK]", this.model.mask);
    if (run) this.run();
  }

  cancel() {
    this.controller?.abort();
  }

  async run() {
    this.cancel();
    const controller = new AbortController();
    this.controller = controller;
    const { model } = this;
    const request = this.task.request(this.values(), model);
    const body = JSON.stringify(request);
    this.find(".curl code").textContent = curl(this.task.path, body);
    const done = this.wait();
    try {
      const reply = await ask(this.task.path, body, { signal: controller.signal });
      if (this.controller === controller) this.show(this.task.draw(reply, request, model));
    } catch (error) {
      if (this.controller === controller) this.refuse(error);
    } finally {
      if (this.controller === controller) done();
    }
  }

  /** Shows that the server is at work; what it returns ends that. */
  wait() {
    const [began, elapsed, result] = [performance.now(), this.find(".elapsed"), this.find(".result")];
    const seconds = () => (performance.now() - began) / 1000;
    this.stopWaiting?.();
    this.find(".output > .message").hidden = true;
    this.find(".cancel").hidden = false;
    this.root.setAttribute("aria-busy", "true");
    result.classList.add("stale");
    const late = setTimeout(() => (this.find(".busy").hidden = false), 250);
    const clock = setInterval(() => (elapsed.textContent = `${seconds().toFixed(1)} s`), 100);
    this.stopWaiting = () => {
      clearTimeout(late);
      clearInterval(clock);
      this.find(".busy").hidden = true;
      this.find(".cancel").hidden = true;
      this.root.removeAttribute("aria-busy");
      result.classList.remove("stale");
      elapsed.textContent = duration(seconds());
    };
    return this.stopWaiting;
  }

  show(drawn) {
    this.find(".result").replaceChildren(...drawn.filter((part) => part != null));
  }

  refuse(error) {
    const place = this.find(".output > .message");
    place.hidden = false;
    this.show([]); // an older answer is not this request's
    if (error.name === "AbortError") {
      place.replaceChildren(element("p", {}, "Cancelled."));
      return;
    }
    if (!(error instanceof Refusal)) throw error;
    place.replaceChildren(element("p", {}, error.message));
    if (error.status === 401) askForKey();
    if (error.status === 429 || error.status === 503) place.append(this.retryButton(error.retryAfter ?? 1));
  }

  /** A button that counts down to when the server takes requests again. */
  retryButton(seconds) {
    const button = element("button", { type: "button", on: { click: () => this.run() } });
    let left = Math.ceil(seconds);
    const count = () => {
      button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      button.disabled = left > 0;
    };
    const clock = setInterval(() => {
      left -= 1;
      count();
      if (left <= 0 || !button.isConnected) clearInterval(clock);
    }, 1000);
    count();
    return button;
  }
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // a page that is not on https may not write to the clipboard
    button.textContent = "Press Ctrl C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

const summary = (model) =>
  [model.size, model.runtime, `up to ${plural(model.maxLen, "token")}`].filter(Boolean).join(" · ");

/** Tabs as the ARIA practices have them: arrows move, Home and End jump; the chosen one is in the address. */
function drawTabs(names) {
  const tabs = names.map((name) =>
    element(
      "button",
      { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` },
      TASKS[name].title,
    ),
  );
  const select = (index, focus = false) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
      byId(`panel-${names[i]}`).hidden = i !== index;
    });
    if (focus) tabs[index].focus();
    history.replaceState(null, "", `#${names[index]}`);
  };
  const steps = {
    ArrowRight: (i) => (i + 1) % tabs.length,
    ArrowLeft: (i) => (i + tabs.length - 1) % tabs.length,
    Home: () => 0,
    End: () => tabs.length - 1,
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      if (!steps[event.key]) return;
      event.preventDefault();
      select(steps[event.key](index), true);
    });
  });
  byId("tabs").replaceChildren(...tabs);
  select(Math.max(0, names.indexOf(location.hash.slice(1))));
}

// ---- Live figures ------------------------------------------------------------------------------------------------

/** Prometheus' text as a list of {name, labels, value}. */
function readMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const parts = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts) continue;
    const labels = Object.fromEntries(
      [...(parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]),
    );
    samples.push({ name: parts[1], labels, value: Number(parts[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

/** Routes that do no model's work: this page, its polls and those who watch the server. */
const IDLE_ROUTE = /^(other$|\/($|page\/|metrics|info|health|openapi|v1\/models))/;

/** What one poll says: totals of counters, and the cumulative histogram of seconds a request. */
function totals(samples, at) {
  const atWork = samples.filter((sample) => !IDLE_ROUTE.test(sample.labels.route ?? ""));
  const sum = (name) => atWork.filter((sample) => sample.name === name).reduce((all, sample) => all + sample.value, 0);
  const buckets = new Map();
  for (const { name, labels, value } of atWork) {
    if (name !== "terrazzo_request_seconds_bucket") continue;
    const bound = Number(labels.le.replace("Inf", "Infinity"));
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return { at, sum, buckets };
}

/** The `share` quantile of what came between two polls, within a bucket by straight line; null where nothing came. */
function quantile(share, before, after) {
  const bounds = [...after.buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.buckets.get(bound) - (before.buckets.get(bound) ?? 0));
  const wanted = share * (counts.at(-1) ?? 0);
  const index = counts.findIndex((count) => count >= wanted);
  if (!wanted || index < 0) return null;
  const [low, below] = index ? [bounds[index - 1], counts[index - 1]] : [0, 0];
  if (bounds[index] === Infinity) return low;
  return low + ((bounds[index] - low) * (wanted - below)) / (counts[index] - below);
}

/** Polls the metrics while the page and this part of it can be seen; `budget`: tokens of a full batch. */
class Live {
  constructor(budget) {
    this.budget = budget;
    this.polls = [];
    this.rates = [];
    this.seen = false;
    new IntersectionObserver(([entry]) => this.look((this.seen = entry.isIntersecting))).observe(byId("live"));
    document.addEventListener("visibilitychange", () => this.look());
  }

  look() {
    const wanted = this.seen && document.visibilityState === "visible";
    if (wanted && this.timer == null) {
      this.timer = setInterval(() => this.poll(), POLL_MS);
      this.poll();
    } else if (!wanted) {
      clearInterval(this.timer);
      this.timer = null;
    }
  }

  async poll() {
    if (this.asking) return;
    this.asking = true;
    try {
      const text = await ask("metrics", null, { plain: true, signal: AbortSignal.timeout(5 * POLL_MS) });
      const now = totals(readMetrics(text), performance.now() / 1000);
      if (now.at - (this.polls.at(-1)?.at ?? 0) > KEPT_SECONDS) this.polls = []; // nobody watched for long
      this.polls.push(now);
      this.polls.splice(0, this.polls.length - 6);
      showState(true);
      if (this.polls.length > 1) this.draw();
    } catch (error) {
      byId("live-note").hidden = false;
      byId("live-note").textContent = error.message;
      if (error.status === 0) showState(false);
    } finally {
      this.asking = false;
    }
  }

  draw() {
    const [first, last] = [this.polls[0], this.polls.at(-1)];
    const before = this.polls.at(-2);
    const rate = (name) => (last.sum(name) - before.sum(name)) / Math.max(0.001, last.at - before.at);
    const gained = (name) => last.sum(name) - first.sum(name);
    const [fast, slow] = [quantile(0.5, first, last), quantile(0.95, first, last)];
    const [batches, tokens] = [gained("terrazzo_batch_documents_count"), gained("terrazzo_batch_tokens_sum")];
    const shown = {
      "live-requests": rate("terrazzo_requests_total").toFixed(1),
      "live-texts": rate("terrazzo_inputs_total").toFixed(1),
      "live-tokens": Math.round(rate("terrazzo_tokens_total")).toLocaleString("en"),
      "live-p50": fast == null ? "–" : duration(fast),
      "live-p95": slow == null ? "–" : duration(slow),
      "live-queue": last.sum("terrazzo_queue_documents").toLocaleString("en"),
      "live-batch": batches ? (gained("terrazzo_batch_documents_sum") / batches).toFixed(1) : "–",
      "live-fill": batches ? percent(tokens / batches / this.budget) : "–",
    };
    for (const [id, text] of Object.entries(shown)) byId(id).textContent = text;
    byId("figures").hidden = false;
    byId("live-note").hidden = true;
    this.drawCourse(rate("terrazzo_inputs_total"));
  }

  drawCourse(rate) {
    this.rates.push(rate);
    this.rates.splice(0, this.rates.length - KEPT_POLLS);
    byId("live-chart").hidden = this.rates.length < 2;
    const top = Math.max(1, ...this.rates);
    const points = this.rates.map(
      (value, i) => `${300 - (this.rates.length - 1 - i) * (300 / (KEPT_POLLS - 1))} ${58 - (54 * value) / top}`,
    );
    byId("live-line").setAttribute("d", `M${points.join("L")}`);
    byId("live-area").setAttribute("d", `M${points[0].split(" ")[0]} 60L${points.join("L")}L300 60Z`);
    byId("live-chart-text").textContent = `texts a second, now ${rate.toFixed(1)}, at most ${top.toFixed(1)}`;
    byId("live-span").textContent =
      `the last ${duration((this.rates.length * POLL_MS) / 1000)}, up to ${top.toFixed(1)}`;
  }
}

// ---- Start -------------------------------------------------------------------------------------------------------

/** The line beside the name; without `text`, what was said last of a server that answers. */
function showState(ready, text) {
  const place = byId("state");
  place.className = `state ${ready ? "ready" : "down"}`;
  if (ready && text != null) place.dataset.ready = text;
  const said = text ?? (ready ? place.dataset.ready : "no answer");
  if (place.textContent !== said) place.textContent = said;
}

/** What the page needs of a model in /info. */
function described(info) {
  const size =
    info.parameters >= 1e6
      ? `${(info.parameters / 1e6).toFixed(1)} M parameters`
      : `${Math.round(info.parameters / 1000)} k parameters`;
  return {
    name: info.name,
    can: new Set(info.abilities),
    pair: info.pair,
    labels: info.labels,
    problems: info.problems,
    mask: info.mask ?? "[MASK]",
    maxLen: info.max_len,
    size,
    runtime: `${info.runtime} ${info.precision}`,
    info,
  };
}

const WORDS = {
  embed: "similarity",
  classify: "classes",
  regression: "a value",
  tag: "tags",
  qa: "answers",
  rerank: "ranking",
  fill_mask: "gaps",
};

function modelCard(model, open) {
  const { info } = model;
  const classes =
    info.labels.length > 4
      ? `${info.labels.slice(0, 4).join(", ")} and ${info.labels.length - 4} more`
      : info.labels.join(", ");
  const facts = {
    classes,
    problems: info.problems.join(", "),
    size: `${model.size}, ${info.width} dimensions`,
    "runs on": model.runtime,
    reads: `up to ${plural(info.max_len, "token")} an input`,
    batches: `of up to ${plural(info.batch_tokens, "token")}`,
    waiting: `at most ${plural(info.queue_tokens, "token")}`,
    loaded: new Date(1000 * info.loaded).toLocaleString(),
    fingerprint: info.fingerprint.slice(0, 16),
  };
  const list = Object.entries(facts)
    .filter(([, value]) => value)
    .flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const gives = info.abilities.map((ability) => WORDS[ability] ?? ability).join(", ");
  return element(
    "details",
    { open },
    element("summary", {}, element("b", {}, model.name), " ", element("span", {}, gives)),
    element("dl", {}, ...list),
  );
}

function limits({ max_texts, max_body_bytes }) {
  return `One request may hold ${plural(max_texts, "text")} and ${(max_body_bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MiB.`;
}

function askForKey() {
  byId("access").open = true;
  byId("key").focus();
}

function tell(message) {
  byId("notice").hidden = message == null;
  byId("notice").textContent = message ?? "";
}

let started = false;

/** Asks what is served and draws it; after an API key was refused or the server was away it is asked again. */
async function start() {
  try {
    const info = await ask("info");
    byId("access").open = false;
    const models = info.models.map(described);
    showState(
      true,
      `${info.ready ? "ready" : "answers, but is not ready"} · ${plural(models.length, "model")} · version ${info.version}`,
    );
    byId("limits").textContent = limits(info.limits);
    tell(models.length ? null : "This server holds no model.");
    byId("models").replaceChildren(...models.map((model) => modelCard(model, models.length <= 6 && innerWidth > 600)));
    if (!started) drawTasks(models);
    started = true;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    showState(false, error.status === 401 ? "an API key is needed" : "no answer");
    tell(error.message);
    if (error.status === 401) askForKey();
    else setTimeout(start, 2 * POLL_MS);
  }
}

function drawTasks(models) {
  const suited = Object.entries(TASKS).map(([name, task]) => [
    name,
    models.filter(task.suits).sort(task.order ?? (() => 0)),
  ]);
  const names = suited.filter(([, able]) => able.length).map(([name]) => name);
  if (!names.length) return;
  for (const [name, able] of suited) if (able.length) new Panel(name, TASKS[name], able);
  drawTabs(names);
  byId("fill-insert").addEventListener("click", () => {
    const text = byId("fill-text");
    const model = models.find((one) => one.name === byId("fill-model").value);
    text.setRangeText(model.mask, text.selectionStart, text.selectionEnd, "end");
    text.focus();
  });
  new Live(Math.max(...models.map((model) => model.info.batch_tokens)));
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  start();
});
byId("key-forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  byId("key").value = "";
});
byId("key").value = savedKey();
start();
