"use strict";
// Reads values off the drawings, switches their scales, and shows and hides curves. The page is whole without it.
const SVG = "http://www.w3.org/2000/svg";

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en").replaceAll(",", "\u202f");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

// Where a value stands between the two ends of an axis; nothing for scales that are not known here.
function place(axis, value, low, high) {
  const turn = { linear: x => x, log: Math.log10 }[axis.scale];
  if (!turn || value === null || (axis.scale === "log" && value <= 0)) return null;
  return low + (high - low) * (turn(value) - turn(axis.from)) / (turn(axis.to) - turn(axis.from));
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
}

class Plot {
  constructor(box, reading, hidden) {
    [this.svg, this.reading, this.hidden] = [box.querySelector("svg"), reading, hidden];
    this.panels = JSON.parse(box.querySelector("script").textContent);
    [this.panel, this.at] = [0, null];
    this.marks = this.svg.appendChild(document.createElementNS(SVG, "g"));
    box.classList.add("live");
    box.addEventListener("pointermove", event => this.point(event));
    box.addEventListener("pointerdown", event => this.point(event));
    box.addEventListener("pointerleave", () => this.leave());
    box.addEventListener("blur", () => this.leave());
    box.addEventListener("keydown", event => this.key(event));
  }

  // Panels above each other that share their axis are read together.
  group() {
    const { x } = this.panels[this.panel];
    return this.panels.filter(panel => ["scale", "from", "to"].every(name => panel.x[name] === x[name]));
  }

  curves(panel) {
    return panel.curves.filter(curve => !this.hidden.has(curve.name));
  }

  positions() {
    const all = this.group().flatMap(panel => this.curves(panel).flatMap(curve => curve.x));
    return [...new Set(all)].filter(x => x !== null).sort((a, b) => a - b);
  }

  point(event) {
    const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    const inside = this.panels.findIndex(({ box }) => spot.y >= box[1] - 8 && spot.y <= box[3] + 8 &&
      spot.x >= box[0] - 8 && spot.x <= box[2] + 8);
    if (inside < 0) return;
    this.panel = inside;
    const { box, x } = this.panels[inside];
    const marks = this.positions();
    const across = marks.map(value => place(x, value, box[0], box[2]) ?? Infinity);
    this.show(marks[nearest(across, spot.x)]);
  }

  key(event) {
    const marks = this.positions();
    const now = this.at === null ? -1 : nearest(marks, this.at);
    const stride = event.shiftKey ? Math.max(1, Math.round(marks.length / 10)) : 1;
    const target = { ArrowRight: now + stride, ArrowLeft: now - stride, Home: 0, End: marks.length - 1 }[event.key];
    if (event.key === "Escape") return this.leave();
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.panels.length < 2) return;
      const step = event.key === "ArrowDown" ? 1 : this.panels.length - 1;
      this.panel = (this.panel + step) % this.panels.length;
      event.preventDefault();
      return this.show(this.at ?? this.positions()[0]);
    }
    if (target === undefined || !marks.length) return;
    event.preventDefault();
    this.show(marks[Math.min(Math.max(target, 0), marks.length - 1)]);
  }

  show(at) {
    if (at === undefined) return;
    this.at = at;
    this.marks.replaceChildren();
    const parts = [];
    for (const panel of this.group()) {
      const { box, x, y } = panel;
      const across = place(x, at, box[0], box[2]);
      if (across !== null) this.mark("line", { class: "cursor", x1: across, x2: across, y1: box[1], y2: box[3] });
      for (const curve of this.curves(panel)) {
        const index = curve.x.indexOf(at);
        if (index < 0) continue;
        parts.push([curve.name, curve.y[index]]);
        const up = place(y, curve.y[index], box[3], box[1]);
        if (across !== null && up !== null && up >= box[1] - 1 && up <= box[3] + 1) {
          this.mark("circle", { class: "spot", cx: across, cy: up, r: 2.6 });
        }
      }
    }
    const { x } = this.panels[this.panel];
    const line = [document.createTextNode(`${x.label || "x"} ${shown(at)}`)];
    for (const [name, value] of parts) {
      const bold = document.createElement("b");
      bold.textContent = shown(value);
      line.push(document.createTextNode(` · ${name} `), bold);
    }
    this.reading.replaceChildren(...line);
  }

  mark(kind, attributes) {
    const made = this.marks.appendChild(document.createElementNS(SVG, kind));
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  }

  leave() {
    this.at = null;
    this.marks.replaceChildren();
    this.reading.textContent = "";
  }
}

function button(tools, text, pressed, act) {
  const made = tools.appendChild(document.createElement("button"));
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => {
    const now = made.getAttribute("aria-pressed") !== "true";
    made.setAttribute("aria-pressed", String(now));
    act(now);
  });
  return made;
}

function tend(figure) {
  const boxes = [...figure.querySelectorAll(".plot")].filter(box => box.querySelector("script"));
  if (!boxes.length) return;
  const [tools, reading, hidden] = [document.createElement("div"), document.createElement("p"), new Set()];
  tools.className = "tools";
  [reading.className, reading.ariaLive] = ["reading", "polite"];
  boxes.at(-1).after(tools, reading);
  const plots = boxes.map(box => new Plot(box, reading, hidden));
  for (const box of boxes) {
    box.setAttribute("aria-label", `${box.getAttribute("aria-label")}; arrow keys read its values`);
  }
  if (plots.length > 1) {
    plots[1].panels.forEach((panel, index) => { panel.curves = plots[0].panels[index].curves; });
    const log = plots[0].panels.some((panel, index) => panel.y.scale !== "log" && plots[1].panels[index].y.scale === "log");
    button(tools, log ? "Log scale" : "Linear scale", false, now => {
      plots.forEach(plot => plot.leave());
      [boxes[0].hidden, boxes[1].hidden] = [now, !now];
    });
  }
  const crowded = plots[0].panels.filter(panel => panel.curves.length > 1);
  const names = [...new Set(crowded.flatMap(panel => panel.curves.map(curve => curve.name)))];
  for (const name of names) {
    button(tools, name, true, now => {
      if (now) hidden.delete(name); else hidden.add(name);
      plots.forEach(plot => plot.leave());
      for (const drawn of figure.querySelectorAll("[data-curve]")) {
        if (drawn.dataset.curve === name) drawn.style.display = now ? "" : "none";
      }
    }).className = "curve";
  }
}

// Where the browser can unpack, the download is plain CSV.
async function unpack(link, event) {
  event.preventDefault();
  const packed = Uint8Array.from(atob(link.href.split(",")[1]), mark => mark.charCodeAt(0));
  const plain = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  const made = document.createElement("a");
  [made.href, made.download] = [URL.createObjectURL(new Blob([plain], { type: "text/csv" })), "records.csv"];
  made.click();
  setTimeout(() => URL.revokeObjectURL(made.href), 1000);
}

document.querySelectorAll("figure").forEach(tend);
const csv = document.getElementById("csv");
if (csv && "DecompressionStream" in window) csv.addEventListener("click", event => unpack(csv, event));
