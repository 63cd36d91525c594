"use strict";
document.documentElement.classList.add("js");

// Before and after: a range input lies over both pictures, so that mouse, touch and keys work as everywhere.
for (const input of document.querySelectorAll(".stage input")) {
  const show = () => {
    input.parentElement.style.setProperty("--at", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + "% original");
  };
  input.hidden = false;
  input.addEventListener("input", show);
  show();
}

// The viewer: a tile at full size, with the command that makes it again.
const viewer = document.getElementById("viewer"), large = document.getElementById("large");
const again = document.getElementById("again"), command = document.getElementById("command");
const tiles = [...document.querySelectorAll(".tile")];
let at = 0;
function open(index) {
  at = (index + tiles.length) % tiles.length;
  const tile = tiles[at], picture = tile.querySelector("img");
  large.src = picture.src;
  large.alt = picture.alt;
  large.className = picture.className;
  const side = Math.max(picture.naturalWidth, picture.naturalHeight);
  large.width = picture.naturalWidth * Math.max(1, Math.floor(480 / side));
  document.getElementById("caption").textContent = tile.dataset.caption;
  command.textContent = tile.dataset.command || "";
  again.hidden = !tile.dataset.command;
  if (!viewer.open) viewer.showModal();
}
tiles.forEach((tile, index) => tile.addEventListener("click", () => open(index)));
document.getElementById("before").addEventListener("click", () => open(at - 1));
document.getElementById("next").addEventListener("click", () => open(at + 1));
document.getElementById("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") open(at - 1);
  if (event.key === "ArrowRight") open(at + 1);
});
viewer.addEventListener("close", () => tiles[at] && tiles[at].focus());
document.getElementById("copy").addEventListener("click", (event) => {
  const range = document.createRange(), chosen = getSelection();
  range.selectNodeContents(command);
  chosen.removeAllRanges();
  chosen.addRange(range);
  event.target.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
});

// Values under the pointer, from the table behind a plot.
for (const plot of document.querySelectorAll(".plot[data-frame]")) {
  const frame = JSON.parse(plot.dataset.frame), svg = plot.querySelector("svg"), readout = plot.querySelector(".readout");
  const names = [...plot.querySelectorAll("thead th")].map((cell) => cell.textContent), note = readout.textContent;
  const rows = [...plot.querySelectorAll("tbody tr")].map((row) => [...row.children].map((cell) => parseFloat(cell.textContent)));
  const scale = (value, log) => (log ? Math.log10(value) : value);
  const [low, high] = frame.x.map((end) => scale(end, frame.logX)), [bottom, top] = frame.y.map((end) => scale(end, frame.logY));
  const toX = (x) => frame.left + ((scale(x, frame.logX) - low) / (high - low)) * (frame.right - frame.left);
  const toY = (y) => frame.bottom - ((scale(y, frame.logY) - bottom) / (top - bottom)) * (frame.bottom - frame.top);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "cross");
  line.setAttribute("y1", frame.top);
  line.setAttribute("y2", frame.bottom);
  plot.querySelector(".drawing").addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.width) * width;
    let nearest = null;
    for (const row of rows) if (nearest === null || Math.abs(toX(row[0]) - x) < Math.abs(toX(nearest[0]) - x)) nearest = row;
    if (nearest === null) return;
    // Each line's value there, or at the nearest x that has one: lines need not share their steps.
    const found = names.slice(1).map((name, index) => {
      let best = null;
      for (const row of rows) {
        if (!Number.isNaN(row[index + 1]) && (best === null || Math.abs(toX(row[0]) - x) < Math.abs(toX(best[0]) - x))) best = row;
      }
      return best && { name, x: best[0], value: best[index + 1], far: Math.abs(toY(best[index + 1]) - y) };
    }).filter((each) => each && Math.abs(toX(each.x) - x) < 24).sort((a, b) => a.far - b.far);
    line.setAttribute("x1", toX(nearest[0]));
    line.setAttribute("x2", toX(nearest[0]));
    svg.append(line);
    readout.replaceChildren(`${names[0]} ${nearest[0]}`);
    for (const each of found.slice(0, 4)) {
      const value = document.createElement("b");
      value.textContent = each.value;
      readout.append(` · ${each.name} `, value);
    }
  });
  plot.querySelector(".drawing").addEventListener("pointerleave", () => { line.remove(); readout.textContent = note; });
}
