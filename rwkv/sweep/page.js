// The run under the pointer is lit everywhere on the page; a click keeps it. Columns are sorted, axes made logarithmic.
const tip = document.getElementById("tip"), all = [...document.querySelectorAll("[data-run]")];
let kept = null;

function light(run) {
  document.body.classList.toggle("lit", run !== null);
  for (const e of all) {
    const on = e.dataset.run === run;
    if (on && !e.classList.contains("on") && e.tagName !== "TR") e.parentNode.appendChild(e);
    e.classList.toggle("on", on);
  }
}

// distance of a point from the line between two others, and how far along that line it is
function away(p, a, b) {
  const dx = b.x - a.x, dy = b.y - a.y, length = dx * dx + dy * dy || 1;
  const t = Math.max(0, Math.min(1, ((p.x - a.x) * dx + (p.y - a.y) * dy) / length));
  return [Math.hypot(p.x - a.x - t * dx, p.y - a.y - t * dy), t < 0.5 ? a : b];
}

function nearest(svg, p) {
  let found = { distance: 14 };
  for (const e of svg.querySelectorAll("[data-run]")) {
    const q = e.points || [{ x: +e.getAttribute("cx"), y: +e.getAttribute("cy") }];
    for (let i = 0; i < q.length; i++) {
      const [distance, point] = away(p, q[i], q[Math.min(i + 1, q.length - 1)]);
      if (distance < found.distance) found = { distance, point, run: e.dataset.run };
    }
  }
  return found.run ? found : null;
}

function value(axis, pixel) {
  const [start, end, low, high, log] = axis.split(",").map(Number), t = (pixel - start) / (end - start);
  return log ? low * (high / low) ** t : low + t * (high - low);
}

const unit = x => x >= 1e9 ? (x / 1e9).toPrecision(3) + "G" : x >= 1e6 ? (x / 1e6).toPrecision(3) + "M" : x >= 1e3 ? (x / 1e3).toPrecision(3) + "k" : x.toPrecision(4);

for (const svg of document.querySelectorAll("svg.lines")) {
  svg.onmousemove = event => {
    const found = nearest(svg, new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()));
    light(found ? found.run : kept);
    tip.style.display = found ? "block" : "none";
    if (!found) return;
    const at = svg.dataset.x ? `${unit(value(svg.dataset.x, found.point.x))} tokens: ${unit(value(svg.dataset.y, found.point.y))}` : "";
    tip.textContent = document.querySelector(`.runs tr[data-run="${found.run}"]`).dataset.label + (at && "  " + at);
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 14 + "px";
  };
  svg.onmouseleave = () => { light(kept); tip.style.display = "none"; };
}
for (const row of document.querySelectorAll("tr[data-run]")) {
  row.onmouseenter = () => light(row.dataset.run);
  row.onmouseleave = () => light(kept);
  row.onclick = event => { if (event.target.tagName !== "A") light(kept = kept === row.dataset.run ? null : row.dataset.run); };
}
for (const head of document.querySelectorAll(".runs th")) head.onclick = () => {
  const down = head.classList.contains("up"), column = head.cellIndex, body = head.closest("table").tBodies[0];
  const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const order = (a, b) => (a === "") - (b === "") || (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (down ? -1 : 1);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  for (const h of head.parentNode.cells) h.classList.remove("up", "down");
  head.classList.add(down ? "down" : "up");
};
for (const box of document.querySelectorAll("[data-log]")) {
  const set = () => document.body.classList.toggle(box.dataset.log, box.checked);
  box.onchange = set;
  set();
}
