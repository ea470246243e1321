// Error against cost of the functions of a kind, both logarithmic, and the frontier: those that nothing beats in both.
// data: points {kind: {cost: [{label, family, cost, error, relative, bound, best}]}}, axes {cost: title}, kinds {kind: name},
// families {family: [marker, colour]}, elements.

scenes.pareto = (data, { kind, cost }) => {
  const points = [...data.points[kind][cost]].sort((a, b) => a.cost - b.cost);
  const [width, left, right, top, bottom] = [580, 64, 560, 34, 350];
  const x = logarithmic(points.map((p) => p.cost), left, right);
  const y = logarithmic(points.map((p) => p.error), bottom, top);
  let svg = words((left + right) / 2, 18, `${data.kinds[kind]} on ${thousands(data.elements)} elements: error against cost`, { text_anchor: "middle", font_weight: "bold" });
  for (const value of x.ticks) {
    svg += mark("path", { d: `M${x(value)} ${top}V${bottom}`, stroke: "#e5e5e5" });
    svg += words(x(value), bottom + 16, short(value), { text_anchor: "middle", font_size: 10 });
  }
  for (const value of y.ticks) {
    svg += mark("path", { d: `M${left} ${y(value)}H${right}`, stroke: "#e5e5e5" });
    svg += words(left - 5, y(value) + 4, short(value), { text_anchor: "end", font_size: 10 });
  }
  svg += mark("path", { d: `M${left} ${top}V${bottom}H${right}`, stroke: "black", fill: "none" });
  svg += words((left + right) / 2, bottom + 34, data.axes[cost], { text_anchor: "middle" });
  svg += words(0, 0, "largest error", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, text_anchor: "middle" });
  const best = points.filter((p) => p.best);
  const steps = best.map((p, i) => (i ? `H${x(p.cost)}V${y(p.error)}` : `M${x(p.cost)} ${y(p.error)}`)).join("");
  svg += mark("path", { d: steps, stroke: "#777777", stroke_dasharray: "5 3", fill: "none" });
  const legs = (p, next) => (next ? [[x(p.cost), y(p.error) - 1, x(next.cost), y(p.error) + 1], [x(next.cost) - 1, y(p.error), x(next.cost) + 1, y(next.error)]] : []);
  for (const p of points) svg += symbol(...data.families[p.family], x(p.cost), y(p.error));
  svg += placedLabels(points.map((p) => ({ text: p.label, x: x(p.cost), y: y(p.error) })), best.flatMap((p, i) => legs(p, best[i + 1])), left, right, top, bottom);
  const families = Object.keys(data.families).filter((family) => points.some((p) => p.family === family));
  families.forEach((family, index) => {
    const bounds = [...new Set(points.filter((p) => p.family === family && p.bound).map((p) => p.bound))];
    const within = bounds.length === 1 ? `, right for |x| ≤ ${bounds[0]}` : "";
    const share = points.some((p) => p.family === family && p.relative) ? " (error as a share of the value)" : "";
    const height = bottom + 60 + 20 * index;
    svg += symbol(...data.families[family], left + 6, height - 4) + words(left + 18, height, family + within + share);
  });
  const told = points.map((p) => `${named(p)} (${thousands(Math.round(p.cost))}, ${Number(p.error.toPrecision(2))})`).join(", ");
  const text = `Scatter plot of ${data.kinds[kind]} functions, ${data.axes[cost]} against largest error, both logarithmic: ${told}. Nothing is better than ${best.map(named).join(", ")}.`;
  return { width, height: bottom + 66 + 20 * families.length, svg, text };
};

const named = (point) => point.label + (point.family === "ours, scales folded" ? " folded" : "");
const short = (value) => (value < 1 ? String(Number(value.toPrecision(1))) : thousands(value));

// A scale from values to places, with `ticks` at 1, 2 and 5 times powers of ten, or at these alone over a wide range.
function logarithmic(values, from, to) {
  const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
  const margin = 0.12 * Math.max(high - low, 0.3);
  const scale = (value) => Math.round(10 * (from + ((Math.log10(value) - low + margin) / (high - low + 2 * margin)) * (to - from))) / 10;
  const factors = high - low < 2.3 ? [1, 2, 5] : [1];
  const powers = Array.from({ length: 20 }, (_, n) => Math.floor(low - margin) + n);
  const ticks = powers.flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`)));
  return Object.assign(scale, { ticks: ticks.filter((t) => Math.log10(t) > low - margin && Math.log10(t) < high + margin) });
}

// Squares, circles, diamonds and triangles, so that the shape tells as much as the colour does.
function symbol(shape, fill, x, y) {
  const paths = { s: "M-4.5-4.5h9v9h-9z", D: "M0-6L6 0 0 6-6 0z", "^": "M0-6L6 5H-6z", v: "M0 6L6-5H-6z" };
  const transform = `translate(${x} ${y})`;
  return shape === "o" ? mark("circle", { transform, r: 5, fill }) : mark("path", { transform, d: paths[shape], fill });
}

// Each label where it covers least of points, lines and other labels, as near to its point as can be.
function placedLabels(points, lines, left, right, top, bottom) {
  const boxes = points.map((p) => [p.x - 6, p.y - 6, p.x + 6, p.y + 6]);
  const taken = [...boxes, ...boxes, ...lines]; // a point is worse to cover than a line
  return points.map(({ text, x, y }) => {
    const long = 5.6 * text.length; // pixels, at 10 in height
    const tried = [[9, 3], [-9 - long, 3], [-long / 2, -10], [-long / 2, 17], [7, -8], [7, 14], [-7 - long, -8], [-7 - long, 14], [9, -20], [9, 26], [-9 - long, -20], [-9 - long, 26], [-long / 2, -26], [-long / 2, 32]];
    const places = tried.map(([across, down]) => [x + across, y + down - 9, x + across + long, y + down + 2]);
    const cost = ([l, t, r, b]) =>
      taken.filter(([L, T, R, B]) => l < R && L < r && t < B && T < b).length + 6 * (l < left || r > right || t < top || b > bottom);
    const costs = places.map(cost);
    const box = places[costs.indexOf(Math.min(...costs))];
    taken.push(box, box);
    return words(box[0], box[3] - 2, text, { font_size: 10, stroke: "white", stroke_width: 3, paint_order: "stroke" });
  }).join("");
}
