"use strict";
// Steps through the operations of a graph and its backward pass. The data and the pictures are in the page.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const { nodes, steps, values, sources, boxes } = data;
  const details = element("details"), slider = element("step"), follow = element("follow");
  const views = new Map([...document.querySelectorAll(".view")].map((view) => [view.dataset.path, view]));
  const firstBackward = steps.findIndex((step) => "gradient" in step);
  let current = 0;
  let path = ""; // of the box that is shown

  // --- Small helpers

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const shapeText = (shape) => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;

  function numberText(x) {
    if (typeof x !== "number") return String(x);
    if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
    const [digits, exponent] = (Math.abs(x) < 1e-4 ? x.toExponential(4) : x.toPrecision(5)).split("e");
    const shortest = digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
    return exponent === undefined ? shortest : `${shortest}e${exponent}`;
  }

  // --- When each node is computed, and when its gradient arrives

  const computed = new Array(nodes.length).fill(0), arrived = new Array(nodes.length).fill(Infinity);
  const arrivals = new Map(); // the steps backward of each node
  for (let i = steps.length - 1; i >= 0; i--) {
    const { node } = steps[i];
    if ("gradient" in steps[i]) {
      arrived[node] = i;
      arrivals.set(node, i);
      continue;
    }
    computed[node] = i;
    for (const operand of nodes[node].operands)
      if (typeof operand === "number" && nodes[operand].kind !== "op") computed[operand] = i;
  }

  // --- The picture

  const elements = new Map(); // of each view: its nodes and closed boxes, found when it is first shown

  function elementsOf(view) {
    if (!elements.has(view)) {
      const found = [...view.querySelectorAll("[data-node]")].map((g) => [g, [Number(g.dataset.node)]]);
      for (const g of view.querySelectorAll(".closed")) {
        const inside = [];
        nodes.forEach((node, i) => {
          if (node.kind === "op" && `${node.scope}/`.startsWith(`${g.dataset.box}/`)) inside.push(i);
        });
        found.push([g, inside]);
      }
      elements.set(view, found);
    }
    return elements.get(view);
  }

  function show(newPath) {
    if (newPath !== path || !element("path").childElementCount) {
      views.get(path).hidden = true;
      path = newPath;
      views.get(path).hidden = false;
      showPath();
    }
    const view = views.get(path), node = steps.length ? steps[current].node : -1;
    let at = null;
    for (const [g, indices] of elementsOf(view)) {
      const isCurrent = indices.includes(node);
      g.classList.toggle("current", isCurrent);
      g.classList.toggle("todo", indices.every((i) => computed[i] > current));
      g.classList.toggle("gradient", indices.some((i) => arrived[i] <= current));
      if (isCurrent) at = g;
    }
    if (at) scrollTo(at);
  }

  function scrollTo(g) {
    const pane = element("views"), box = g.getBoundingClientRect(), frame = pane.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom)
      pane.scrollTop += box.top - frame.top - (frame.height - box.height) / 2;
    if (box.left < frame.left || box.right > frame.right)
      pane.scrollLeft += box.left - frame.left - (frame.width - box.width) / 2;
  }

  function showPath() {
    const scope = boxes.find((box) => box.path === path).scope;
    const parents = [["", "Graph"], ...scope.map((name, i) => [path.split("/").slice(0, i + 1).join("/"), name])];
    element("path").replaceChildren(...parents.flatMap(([of, name], i) => [
      ...(i ? [make("span", { "aria-hidden": "true" }, "/")] : []),
      openButton(of, name, i === parents.length - 1),
    ]));
    const inside = boxes.filter((box) => box.scope.length === scope.length + 1 && (!path || box.path.startsWith(`${path}/`)));
    element("inside").replaceChildren(...inside.map((box) => openButton(box.path, box.title, false)));
    element("inside").hidden = !inside.length;
  }

  function openButton(of, name, isCurrent) {
    const button = make("button", { type: "button", "data-open": of }, name);
    if (isCurrent) button.setAttribute("aria-current", "true");
    return button;
  }

  // --- Values

  const palette = {}; // of the color scheme in use

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["positive", "negative", "bad"]) palette[name] = style.getPropertyValue(`--${name}`);
  }

  /** The color of a number, by its share of the largest absolute value. */
  function tint(x, largest, strongest) {
    if (typeof x !== "number" || !largest) return "";
    return `rgba(${x < 0 ? palette.negative : palette.positive}, ${(strongest * Math.min(1, Math.abs(x) / largest)).toFixed(3)})`;
  }

  function largestOf(value) {
    return Math.max(...[value.low, value.high].map((x) => (typeof x === "number" ? Math.abs(x) : 0)));
  }

  function valueFigure(number, name) {
    if (number === null) return make("p", { class: "quiet" }, `${name}: the value is not known`);
    const value = values[number], { shape, dtype } = value;
    const size = shape.reduce((product, n) => product * n, 1);
    const caption = make("figcaption", {}, make("b", {}, name), ` ${shapeText(shape)} ${dtype}`);
    if (!value.numbers || size > 1) {
      const range = size ? `${numberText(value.low)} to ${numberText(value.high)}, mean ${numberText(value.mean)}` : "no elements";
      caption.append(make("br"), range);
    }
    if (value.notFinite) caption.append(make("br"), make("span", { class: "bad" }, `${value.notFinite} not finite`));
    const figure = make("figure", { class: "value" }, caption);
    if (size) figure.append(make("div", { class: "scroll" }, value.numbers ? numberTable(value) : heatMap(value, name)));
    return figure;
  }

  function numberTable(value) {
    const { numbers, shape } = value, largest = largestOf(value);
    const columns = shape.length ? shape[shape.length - 1] : 1;
    const table = make("table", { role: "presentation" });
    for (let i = 0; i < numbers.length; i += columns) {
      const row = table.insertRow();
      for (const x of numbers.slice(i, i + columns)) {
        const cell = row.insertCell();
        cell.textContent = numberText(x);
        cell.dataset.value = String(x);
        if (["nan", "inf", "-inf"].includes(x)) cell.className = "bad";
        else if (numbers.length > 1) cell.style.backgroundColor = tint(x, largest, 0.5); // the text stays readable
      }
    }
    return table;
  }

  function heatMap(value, name) {
    const { rows, columns, low, high } = value, cells = atob(value.grid), largest = largestOf(value);
    const label = `Heat map of ${name}: ${numberText(low)} to ${numberText(high)}, mean ${numberText(value.mean)}`;
    const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": label });
    const cell = Math.max(4, Math.min(12, Math.floor(300 / Math.max(rows, columns))));
    canvas.style.width = `${columns * cell}px`;
    canvas.style.height = `${rows * cell}px`;
    const context = canvas.getContext("2d");
    const colors = new Map();
    for (let i = 0; i < cells.length; i++) {
      const code = cells.charCodeAt(i);
      if (!colors.has(code))
        colors.set(code, code === 255 ? palette.bad : tint(low * (1 - code / 254) + high * (code / 254), largest, 0.75) || "transparent");
      context.fillStyle = colors.get(code);
      context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
    }
    return canvas;
  }

  // --- Sources

  /** The text of a function with its spans marked: [start line, start column, end line, end column] each. */
  function code(source, spans) {
    const { file, first, text } = sources[source];
    const table = make("table", { role: "presentation" });
    let lineOfFirst = null;
    text.split("\n").forEach((line, i) => {
      const marks = spans.filter(([from, , to]) => from <= i && i <= to)
        .map(([from, start, to, end]) => [from === i ? start : line.length - line.trimStart().length, to === i ? end : line.length])
        .sort((a, b) => a[0] - b[0]);
      const cell = make("td");
      let at = 0;
      for (const [start, end] of marks) {
        if (end <= at) continue;
        cell.append(line.slice(at, Math.max(at, start)), make("mark", {}, line.slice(Math.max(at, start), end)));
        at = end;
      }
      cell.append(line.slice(at));
      const row = make("tr", marks.length ? { class: "runs" } : {}, make("th", { scope: "row" }, String(first + i)), cell);
      if (marks.length && lineOfFirst === null) lineOfFirst = row;
      table.append(row);
    });
    const lines = [...new Set(spans.map(([from]) => first + from))].sort((a, b) => a - b);
    const name = `${file}, line${lines.length > 1 ? "s" : ""} ${lines.join(", ")}`;
    const pane = make("div", { class: "code", tabindex: "0", role: "region", "aria-label": name }, table);
    if (lineOfFirst) pane.dataset.scroll = "";
    return [make("p", { class: "quiet" }, name), pane];
  }

  function codeOf(spans) {
    const known = spans.filter((span) => span !== null);
    if (!known.length) return [make("p", { class: "quiet" }, "The source of the rule is not known.")];
    const bySource = new Map();
    for (const [source, ...span] of known) {
      if (!bySource.has(source)) bySource.set(source, new Map());
      bySource.get(source).set(span.join(), span);
    }
    return [...bySource].flatMap(([source, found]) => code(source, [...found.values()]));
  }

  // --- The details of a step

  function heading(node, kind) {
    const name = node.label && node.label !== node.title ? `${node.title}, ${node.label}` : node.title;
    const facts = [];
    if (node.scope) facts.push(boxes.find((box) => box.path === node.scope).scope.join(" / "));
    for (const [key, value] of Object.entries(node.parameters)) facts.push(`${key}=${value}`);
    const made = [make("h2", {}, make("span", { class: "kind" }, `${kind}: `), name)];
    if (facts.length) made.push(make("p", { class: "quiet" }, facts.join(" · ")));
    if (node.place) {
      const [file, line, text] = node.place;
      made.push(make("p", { class: "quiet" }, `${file}, line ${line}: `, make("code", {}, text)));
    }
    return made;
  }

  function operandFigure(operand) {
    if (typeof operand === "string") return make("figure", { class: "value" }, make("figcaption", {}, make("b", {}, operand)));
    return valueFigure(nodes[operand].value, nodes[operand].title);
  }

  function forwardDetails(step) {
    const node = nodes[step.node];
    const made = [...heading(node, "Forward")];
    if (node.forward || node.value !== null) made.push(...codeOf([node.forward]));
    made.push(make("h3", {}, node.operands.length ? "Operands" : "No operands"));
    made.push(make("div", { class: "values" }, ...node.operands.map(operandFigure)));
    made.push(make("h3", {}, "Output"), make("div", { class: "values" }, valueFigure(node.value, node.title)));
    if (node.saved.length) made.push(make("p", {}, `Kept for backward: ${node.saved.join(", ")}.`));
    return made;
  }

  function backwardDetails(step) {
    const node = nodes[step.node], made = [...heading(node, "Backward")];
    made.push(make("h3", {}, "The gradient that arrives"));
    made.push(make("div", { class: "values" }, valueFigure(step.gradient, `gradient of ${node.title}`)));
    if (step.fills) made.push(make("p", {}, "It is added to .grad of the tensor."));
    if (node.kind === "leaf") return made;
    if (step.contributions.length) {
      made.push(make("h3", {}, step.contributions.length > 1 ? "The pullbacks run" : "The pullback runs"));
      made.push(...codeOf(step.contributions.map((c) => c.span)));
    } else made.push(make("p", {}, "It sends no gradient to a recorded node."));
    for (const c of step.contributions) {
      const parts = [];
      if (c.before !== null) parts.push(valueFigure(c.before, "so far"), make("span", { class: "sign" }, "+"));
      parts.push(valueFigure(c.part, c.before === null ? "gradient" : "this one"));
      if (c.before !== null) parts.push(make("span", { class: "sign" }, "="), valueFigure(c.total, "sum"));
      const block = make("div", { class: "contribution" }, make("h3", {}, `To operand ${c.operand + 1}, ${c.title}`));
      const shape = values[c.part].shape;
      if (shapeText(c.shape) !== shapeText(shape))
        block.append(make("p", {}, `The pullback returns ${shapeText(c.shape)}; it is summed to ${shapeText(shape)}, because the operand was broadcast.`));
      if (c.before !== null) block.append(make("p", {}, "A gradient has arrived there before. The two are added."));
      block.append(make("div", { class: "values" }, ...parts));
      made.push(block);
    }
    const arrays = step.freed.length ? `, with the arrays that they held: ${step.freed.join(", ")}` : "";
    made.push(make("p", {}, step.frees ? `Freed: the pullbacks of ${node.name}${arrays}.` : "Nothing is freed: the graph is retained."));
    return made;
  }

  // --- Steps

  function say(step) {
    const node = nodes[step.node], isBackward = "gradient" in step;
    const detail = isBackward && step.contributions.length ? `, sends gradients to ${step.contributions.map((c) => c.title).join(" and ")}`
      : isBackward ? (node.kind === "leaf" ? ", a leaf" : ", sends no gradient to a recorded node") : `, ${shapeText(node.shape)} ${node.dtype}`;
    return `Step ${current + 1} of ${steps.length}, ${isBackward ? "backward" : "forward"}: ${node.title}${detail}`;
  }

  function go(to) {
    current = Math.max(0, Math.min(steps.length - 1, to));
    slider.value = String(current);
    // Not `disabled`, which would take the focus away.
    for (const id of ["first", "back"]) element(id).ariaDisabled = String(current === 0);
    for (const id of ["next", "last"]) element(id).ariaDisabled = String(current >= steps.length - 1);
    if (!steps.length) {
      element("said").textContent = "There are no steps.";
      show("");
      return;
    }
    const step = steps[current], isBackward = "gradient" in step;
    document.body.classList.toggle("backward", isBackward);
    const said = say(step);
    element("said").textContent = said;
    slider.setAttribute("aria-valuetext", said);
    details.replaceChildren(...(isBackward ? backwardDetails(step) : forwardDetails(step)));
    for (const pane of details.querySelectorAll("[data-scroll]")) {
      const row = pane.querySelector(".runs");
      pane.scrollTop = Math.max(0, row.offsetTop - 40);
      pane.scrollLeft = 0;
    }
    for (const pane of details.querySelectorAll(".scroll")) {
      if (pane.scrollWidth <= pane.clientWidth) continue; // a wide table scrolls from the keyboard
      pane.tabIndex = 0;
      pane.setAttribute("role", "region");
      pane.setAttribute("aria-label", `Numbers of ${pane.parentElement.querySelector("b").textContent}`);
    }
    show(follow.checked ? nodes[step.node].scope : path);
  }

  element("first").addEventListener("click", () => go(0));
  element("back").addEventListener("click", () => go(current - 1));
  element("next").addEventListener("click", () => go(current + 1));
  element("last").addEventListener("click", () => go(steps.length - 1));
  element("turn").addEventListener("click", () => go(firstBackward));
  element("turn").hidden = firstBackward < 0;
  slider.addEventListener("input", () => go(Number(slider.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readPalette();
    go(current);
  });

  document.addEventListener("keydown", (event) => {
    const pane = event.target.closest("[type=range], .code, .scroll, #views");
    if (pane || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // these scroll by the same keys
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });

  document.querySelector("main").addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    const box = event.target.closest(".closed"), node = event.target.closest("[data-node]");
    if (opener) {
      show(opener.dataset.open);
      element("path").lastElementChild.focus(); // the button that was pressed may be gone
    } else if (box) show(box.dataset.box);
    else if (node) {
      const index = Number(node.dataset.node), isBackward = firstBackward >= 0 && current >= firstBackward;
      go(isBackward && arrivals.has(index) ? arrivals.get(index) : computed[index]);
    }
  });

  readPalette();
  go(0);
})();
