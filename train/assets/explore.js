"use strict";
// The page: the text, generation, and what the model computed for it. model.js has the model.

const config = JSON.parse(document.getElementById("config").textContent);
const model = new Transformer(
  config, decodeWeights(document.getElementById("weights").textContent, config.parameters, config.dtype),
);

(() => {
  const ROWS = 12;  // of the table of next characters, until all are shown
  const ANNOUNCED = 500;  // characters of generated text in the status, which screen readers read aloud
  const VISIBLE = { " ": "\u2423", "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5" };
  const NAMES = { " ": "space", "\n": "newline", "\r": "carriage return", "\t": "tab" };

  const element = (id) => document.getElementById(id);
  const visible = (text) => [...text].map((character) => VISIBLE[character] ?? character).join("");
  const percent = (part) => `${(100 * part).toFixed(1)} %`;
  const named = (character) => NAMES[character] ?? `\u201c${character}\u201d`;

  function create(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    Object.assign(made, properties);
    made.append(...children);
    return made;
  }

  // --- The state

  const cache = new KVCache(model);
  const unit = config.unit;  // "character", or "token" of byte-pair encoding
  let characters = [...config.prompt];  // the text; in byte-pair encoding generated parts may have any length
  let ids = [];  // the tokens of the text
  let prompt = config.prompt;  // what the user wrote last
  let query = 0, key = 0;  // selected positions in the cache
  let generating = false, stopping = false;
  let generator = null;  // of the characters after the prompt
  let utf8 = new TextDecoder();  // of generated tokens, which may end within a character

  const seenCharacter = (place) => model.vocabulary[cache.ids[place]];

  /** Encode the text and compute. Returns false, with a message on the page, if the text is not valid. */
  function readText() {
    const unknown = model.bpe ? [] : [...new Set(characters.filter((character) => !model.idOf.has(character)))];
    const known = model.bpe ? characters : characters.filter((character) => model.idOf.has(character));
    let problem = "";
    if (unknown.length && config.strict)
      problem = `the vocabulary lacks ${unknown.map(named).join(", ")}; the model was trained on a text without.`;
    else if (!known.length) problem = "the text is empty; type at least one character of the vocabulary.";
    element("message").textContent = problem && `${problem} Below is the last text without errors.`;
    element("text").setAttribute("aria-invalid", String(problem !== ""));
    for (const id of ["generate", "one"]) element(id).disabled = problem !== "";
    if (problem) return false;
    ids = model.bpe ? model.bpe.encode(known.join("")) : known.map((character) => model.idOf.get(character));
    model.nextLogits(ids, cache);
    selectLast();
    return true;
  }

  function selectLast() {
    query = key = cache.ids.length - 1;
  }

  function setText(text) {
    characters = [...text];
    utf8 = new TextDecoder();
    if (element("text").value !== text) element("text").value = text;  // which moves the caret
    generator = null;
    if (readText()) render();
  }

  // --- Generation

  /** The settings, or null if one is not valid: the browser then says which. */
  function settings() {
    if (!element("form").reportValidity()) return null;
    const [temperature, topK, seed, count] = ["temperature", "top-k", "seed", "characters"].map(
      (id) => Number(element(id).value),
    );
    return { temperature, topK, seed, count };
  }

  /** Append a token to the text. Throws an Error if the logits are not finite. */
  function appendCharacter({ temperature, topK, seed }) {
    const logits = model.logits(cache, cache.ids.length - 1);
    if (!logits.every(Number.isFinite)) throw new Error("the model's logits contain nan or infinity.");
    generator ??= new Generator(seed);
    const id = draw(samplingProbabilities(logits, temperature, topK), generator);
    ids.push(id);
    characters.push(model.bpe ? utf8.decode(model.bpe.bytesOf(id), { stream: true }) : model.vocabulary[id]);
    model.nextLogits(ids, cache);
    selectLast();
  }

  async function generate(count) {
    const chosen = settings();
    if (generating || !chosen) return;
    const n = count ?? chosen.count;
    generating = true;
    stopping = false;
    element("generate").textContent = "Stop";
    element("text").readOnly = true;
    let done = 0, milliseconds = 0;
    try {
      while (done < n && !stopping) {
        const start = performance.now();
        appendCharacter(chosen);
        milliseconds += performance.now() - start;
        done += 1;
        element("text").value = characters.join("");
        element("text").scrollTop = element("text").scrollHeight;
        render();
        await new Promise((resume) => setTimeout(resume));  // so that the page is drawn and reacts
      }
      const added = done === 1 ? [named(characters.at(-1))] : characters.slice(-Math.min(done, ANNOUNCED));
      element("status").textContent =
        `${done} ${unit}${done === 1 ? "" : "s"} in ${(milliseconds / done).toFixed(1)} ms each: ${added.join("")}`;
    } catch (error) {
      element("message").textContent = error.message;
    }
    generating = false;
    element("generate").textContent = "Generate";
    element("text").readOnly = false;
  }

  // --- The tables

  /** A row of a table: a name, numbers, and a bar with parts of its width, of which the second is a mark. */
  function tableRow(name, label, numbers, length, mark) {
    const bar = create("div", { className: "bar", ariaHidden: "true" }, create("i"));
    bar.firstChild.style.width = `${100 * length}%`;
    if (mark !== undefined) {
      bar.append(create("b"));
      bar.lastChild.style.width = `${100 * mark}%`;
    }
    const head = create("th", { scope: "row", textContent: name });
    if (label !== name) head.ariaLabel = label;
    return create("tr", {}, head, ...numbers.map((text) => create("td", { textContent: text })), create("td", {}, bar));
  }

  function renderNext() {
    const logits = model.logits(cache, query), actual = cache.ids[query + 1];
    const probabilities = softmax(logits);
    const temperature = Number(element("temperature").value), topK = Number(element("top-k").value);
    const sampled = element("form").checkValidity() ? samplingProbabilities(logits, temperature, topK) : probabilities;
    const ranked = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
    const all = element("all").ariaPressed === "true";
    const most = Math.max(largest(probabilities), largest(sampled));
    const body = element("next").tBodies[0];
    body.replaceChildren();
    for (const id of ranked.slice(0, all ? undefined : ROWS)) {
      const character = model.vocabulary[id];
      const row = tableRow(visible(character), named(character), [percent(probabilities[id]), percent(sampled[id])],
        sampled[id] / most, probabilities[id] / most);
      if (id === actual) row.firstChild.className = "actual";
      body.append(row);
    }
    element("after").textContent = `After ${position(query)}.` +
      (actual === undefined ? "" : ` In the text ${named(model.vocabulary[actual])} follows: ${percent(probabilities[actual])}.`);
    element("all").hidden = logits.length <= ROWS;
  }

  function renderNorms() {
    const C = model.hiddenSize;
    const norms = cache.residuals.map((rows) => Math.hypot(...rows.subarray(query * C, (query + 1) * C)));
    const most = largest(norms);
    element("norms").tBodies[0].replaceChildren(...norms.map((norm, i) => {
      const name = i ? `layer ${i}` : "embedding";
      return tableRow(name, name, [norm.toPrecision(3)], norm / most);
    }));
  }

  // --- The text, and the attention over it

  const position = (place) => `${named(seenCharacter(place))}, ${unit} ${place + 1} of ${cache.ids.length}`;
  const weightOf = (layer, head) => cache.layers[layer].weights[head][query * model.maxSeqLen + key];

  function renderStrip() {
    const [layer, head] = element("head").value.split(" ").map(Number);
    const weights = cache.layers[layer].weights[head].subarray(query * model.maxSeqLen);
    element("strip").replaceChildren(...cache.ids.map((id, i) => {
      const character = model.vocabulary[id];
      const span = create("span", { textContent: visible(character) + (character.includes("\n") ? "\n" : "") });
      span.classList.toggle("white", character in VISIBLE);
      span.classList.toggle("query", i === query);
      span.classList.toggle("key", i === key && i !== query);
      // Less than the maps, so that the text on it can be read.
      if (i <= query) span.style.background = `rgb(var(--ink), ${(0.6 * Math.sqrt(weights[i])).toFixed(3)})`;
      return span;
    }));
    const before = ids.length - cache.ids.length;
    element("window").textContent = before
      ? `The last ${cache.ids.length} ${unit}s; the ${before} before them are outside the model's context.`
      : `${cache.ids.length} of at most ${model.maxSeqLen} ${unit}s.`;
  }

  function renderSliders() {
    for (const [id, place] of [["query", query], ["key", key]]) {
      const slider = element(id);
      slider.max = id === "key" ? query + 1 : cache.ids.length;  // no character attends to a later one
      slider.value = place + 1;
      element(`${id}-name`).textContent = position(place);
    }
    const heads = maps.map(({ layer, head }) => `layer ${layer + 1}, head ${head + 1}: ${percent(weightOf(layer, head))}`);
    element("query").ariaValueText = position(query);
    element("key").ariaValueText = `${position(key)}; ${heads.join("; ")}`;
  }

  /** The mean weight of a character on itself, on the one before it and on the first, over all but the first. */
  function describeMap(weights) {
    const T = cache.ids.length, means = [0, 0, 0];
    if (T < 2) return `one ${unit}, which attends to itself`;
    for (let t = 1; t < T; t++)
      [t, t - 1, 0].forEach((s, i) => { means[i] += weights[t * model.maxSeqLen + s] / (T - 1); });
    const [itself, previous, first] = means.map((mean) => `${(100 * mean).toFixed(0)} %`);
    return `itself ${itself}, previous ${previous}, first ${first}`;
  }

  function createMaps() {
    const made = [];
    for (let layer = 0; layer < model.nLayers; layer++) {
      const heads = create("div", { className: "heads" });
      for (let head = 0; head < model.nHeads; head++) {
        const canvas = create("canvas", { role: "img" }), row = create("i"), cell = create("b");
        const picture = create("div", { className: "picture" }, canvas, row, cell);
        const caption = create("figcaption"), figure = create("figure", { className: "map" }, caption, picture);
        const map = { layer, head, canvas, row, cell, caption, figure };
        for (const kind of ["pointermove", "pointerdown"])
          picture.addEventListener(kind, (event) => pointAt(map, event));
        made.push(map);
        heads.append(figure);
        element("head").append(new Option(`layer ${layer + 1}, head ${head + 1}`, `${layer} ${head}`));
      }
      element("maps").append(create("h3", { textContent: `Layer ${layer + 1}` }), heads);
    }
    return made;
  }
  const maps = createMaps();

  function pointAt(map, event) {
    if (generating) return;
    const box = map.canvas.getBoundingClientRect(), T = cache.ids.length;
    const place = (at, from, length) => Math.min(T - 1, Math.max(0, Math.floor((T * (at - from)) / length)));
    query = place(event.clientY, box.top, box.height);
    key = Math.min(query, place(event.clientX, box.left, box.width));
    element("head").value = `${map.layer} ${map.head}`;
    renderSelection();
  }

  function paintMap({ layer, head, canvas }) {
    const T = cache.ids.length, weights = cache.layers[layer].weights[head];
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").split(",").map(Number);
    canvas.width = canvas.height = T;
    const context = canvas.getContext("2d"), picture = context.createImageData(T, T);
    for (let t = 0; t < T; t++)
      for (let s = 0; s <= t; s++)
        picture.data.set([...ink, 255 * Math.sqrt(weights[t * model.maxSeqLen + s])], 4 * (t * T + s));
    context.putImageData(picture, 0, 0);
    canvas.ariaLabel = `Layer ${layer + 1}, head ${head + 1}: ${describeMap(weights)}`;
  }

  function renderReadings() {
    const size = 100 / cache.ids.length;
    for (const { layer, head, row, cell, caption, figure } of maps) {
      Object.assign(row.style, { top: `${query * size}%`, height: `${size}%` });
      Object.assign(cell.style, { top: `${query * size}%`, left: `${key * size}%`, width: `${size}%`, height: `${size}%` });
      const arrow = `${visible(seenCharacter(query))} \u2192 ${visible(seenCharacter(key))}`;
      caption.replaceChildren(`Head ${head + 1}  `, create("span", { textContent: `${arrow}  ${percent(weightOf(layer, head))}` }));
      figure.classList.toggle("chosen", element("head").value === `${layer} ${head}`);
    }
  }

  // --- Rendering

  function renderSelection() {
    renderNext();
    renderNorms();
    renderStrip();
    renderSliders();
    renderReadings();
  }

  function render() {
    maps.forEach(paintMap);
    renderSelection();
  }

  // --- Events

  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (generating) stopping = true;
    else generate();
  });
  element("one").addEventListener("click", () => generate(1));
  element("reset").addEventListener("click", () => {
    if (generating) return;
    element("status").textContent = "";
    setText(prompt);
  });
  element("text").addEventListener("input", () => {
    prompt = element("text").value;
    setText(prompt);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopping = true;
  });
  for (const id of ["temperature", "top-k"]) element(id).addEventListener("input", renderNext);
  element("seed").addEventListener("input", () => { generator = null; });
  element("query").addEventListener("input", () => {
    query = Number(element("query").value) - 1;
    key = Math.min(key, query);
    renderSelection();
  });
  element("key").addEventListener("input", () => {
    key = Number(element("key").value) - 1;
    renderSelection();
  });
  element("head").addEventListener("change", renderSelection);
  element("strip").addEventListener("click", (event) => {
    const place = [...element("strip").children].indexOf(event.target);
    if (place < 0 || generating) return;
    query = place;
    key = Math.min(key, query);
    renderSelection();
  });
  element("all").addEventListener("click", () => {
    element("all").ariaPressed = element("all").ariaPressed === "true" ? "false" : "true";
    renderNext();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps.forEach(paintMap));

  setText(prompt);
})();
