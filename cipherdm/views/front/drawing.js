// Pictures as text: functions that write SVG, and the table in which a scene enters itself.
// Scenes run in a browser and, for the static picture, without one; so they touch no document.

const scenes = {}; // name -> (data, values) => { width, height, svg, text }
const palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"];

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

// <tag attributes>content</tag>; numbers are cut to two places, since a pixel needs no more.
function mark(tag, attributes = {}, content = "") {
  const written = Object.entries(attributes).map(([name, value]) => {
    const short = typeof value === "number" ? Math.round(100 * value) / 100 : escaped(value);
    return ` ${name.replace("_", "-")}="${short}"`;
  });
  return `<${tag}${written.join("")}>${content}</${tag}>`;
}

const words = (x, y, text, attributes = {}) => mark("text", { x, y, ...attributes }, escaped(text));
const thousands = (number) => String(number).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

// 0.83 s, 12 s, 4 min 20 s, 2 h 5 min, 3 d 4 h: two digits or two units.
function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? Number(seconds.toPrecision(2)) : seconds.toFixed(0)} s`;
  const whole = Math.round(seconds);
  for (const [large, small, length, count] of [["d", "h", 3600, 24], ["h", "min", 60, 60]])
    if (whole >= length * count)
      return `${Math.floor(whole / (length * count))} ${large} ${Math.floor(whole / length) % count} ${small}`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// A scene's picture as a whole SVG file, and its description.
function drawn(name, data, values) {
  const { width, height, svg, text } = scenes[name](data, values);
  const head = { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, role: "img", aria_label: text };
  const style = { width, font_family: "DejaVu Sans, Verdana, sans-serif", font_size: 12, style: "max-width:100%;height:auto;background:white" };
  return { svg: mark("svg", { ...head, ...style }, svg), text };
}
