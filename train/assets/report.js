"use strict";
// Shows the values of all charts at the step under the pointer or the slider, and the attention weight under the pointer.
(() => {
  const data = JSON.parse(document.getElementById("readings").textContent);
  const charts = [...document.querySelectorAll(".chart")].map((figure) => ({
    svg: figure.querySelector("svg"),
    line: document.createElementNS("http://www.w3.org/2000/svg", "line"),
    reading: figure.querySelector(".reading"),
    ...data.charts[figure.dataset.key],
  }));

  function nearestIndex(values, target) {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] <= target) low = middle; else high = middle;
    }
    return target - values[low] <= values[high] - target ? low : high;
  }

  function valuesAt(chart, step) {
    return chart.series.filter((series) => series.x.length).map((series) => {
      const i = nearestIndex(series.x, step);
      return `${series.name} ${series.y[i]} (step ${series.x[i].toLocaleString("en")})`;
    }).join(", ");
  }

  const slider = document.createElement("input");
  const label = document.createElement("label");
  const output = document.createElement("output");
  Object.assign(slider, { type: "range", min: data.low, max: data.high, step: "any" });
  slider.value = data.high;
  slider.setAttribute("aria-valuetext", "no step selected");
  label.className = "slider";
  label.append("Values at step", slider, output);
  document.querySelector(".charts").before(label);

  function showStep(step) {
    slider.value = step;
    output.textContent = Math.round(step).toLocaleString("en");
    for (const chart of charts) {
      const at = (1000 * (step - data.low)) / (data.high - data.low);
      for (const [name, value] of Object.entries({ x1: at, x2: at, y1: 0, y2: 1000, class: "cursor" }))
        chart.line.setAttribute(name, value);
      chart.svg.append(chart.line);
      chart.reading.textContent = valuesAt(chart, step);
    }
    slider.setAttribute("aria-valuetext", `step ${output.textContent}: ${charts.map((c) => valuesAt(c, step)).join("; ")}`);
  }

  slider.addEventListener("input", () => showStep(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {  // move by a hundredth of the run
    const direction = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    const step = Number(slider.value) + direction * Math.max(1, (data.high - data.low) / 100);
    showStep(Math.min(data.high, Math.max(data.low, step)));
  });
  for (const { svg } of charts) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      showStep(data.low + part * (data.high - data.low));
    });
  }

  for (const figure of document.querySelectorAll(".map")) {
    const image = figure.querySelector("image");
    const letters = [...document.querySelectorAll("#letters text")].map((text) => text.textContent);
    const size = letters.length / 2;
    const caption = figure.querySelector("figcaption span");
    const summary = caption.textContent;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    let opacities = null;
    image.addEventListener("pointerenter", async () => {
      if (opacities) return;
      const picture = new Image();
      picture.src = image.getAttribute("href");
      await picture.decode();
      const context = canvas.getContext("2d");
      context.drawImage(picture, 0, 0);
      opacities = context.getImageData(0, 0, size, size).data;
    });
    image.addEventListener("pointermove", (event) => {
      if (!opacities) return;
      const box = image.getBoundingClientRect();
      const place = (at, from, length) => Math.min(size - 1, Math.max(0, Math.floor((size * (at - from)) / length)));
      const key = place(event.clientX, box.left, box.width), query = place(event.clientY, box.top, box.height);
      const weight = (opacities[4 * (query * size + key) + 3] / 255) ** 2;
      caption.textContent = `${letters[query]} (${query + 1}) attends ${(100 * weight).toFixed(1)} % to ${letters[key]} (${key + 1})`;
    });
    image.addEventListener("pointerleave", () => { caption.textContent = summary; });
  }
})();
