
"use strict";
const show = (value) => (value === undefined ? "" : String(Number(value.toPrecision(4))));

for (const chart of document.querySelectorAll(".chart")) {
  const { x, high, curves } = JSON.parse(chart.dataset.chart);
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor"), where = chart.querySelector(".where");
  const outputs = [...chart.querySelectorAll("output")], last = outputs.map((output) => output.textContent);
  const [LEFT, RIGHT, WIDTH] = [46, 390, 400];  // as in chart.py
  const nearest = (points, at) => points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (RIGHT - LEFT);
    const at = Math.min(1, Math.max(0, share)) * high;
    const shown = curves.filter((_, i) => !outputs[i].closest(".off"));
    if (!shown.length) return;
    const [step] = nearest(shown.map((points) => nearest(points, at)), at);
    curves.forEach((points, i) => {
      const inside = step >= points[0][0] && step <= points[points.length - 1][0];
      outputs[i].textContent = inside ? show(nearest(points, step)[1]) : "–";
    });
    where.textContent = `${x} ${show(step) === String(step) ? step : Math.round(step)}`;
    const place = LEFT + step / high * (RIGHT - LEFT);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.style.visibility = "visible";
  });
  svg.addEventListener("pointerleave", () => {
    outputs.forEach((output, i) => { output.textContent = last[i]; });
    where.textContent = "\u00a0";
    cursor.style.visibility = "hidden";
  });
}

for (const shots of document.querySelectorAll(".shots")) {
  const slider = shots.querySelector("input"), images = [...shots.querySelectorAll("img")];
  if (!slider) continue;
  const turn = () => {
    images.forEach((image, i) => { image.hidden = i !== Number(slider.value); });
    shots.querySelector("output").textContent = images[slider.value].alt;
  };
  slider.addEventListener("input", turn);
  turn();
}

for (const box of document.querySelectorAll(".switches input")) {
  const turn = () => {
    const section = box.closest("section");
    for (const part of section.querySelectorAll(`[data-group="${box.value}"]`)) part.classList.toggle("off", !box.checked);
  };
  box.addEventListener("change", turn);
  turn();
}
