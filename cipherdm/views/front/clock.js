// Three components of a secret as turns around a clock: all, and those that each party has.
// values: secret, and seed, the number of a draw. data: hours, and draws, two components of each.

scenes.clock = ({ hours, draws }, { secret, seed }) => {
  const [first, second] = draws[seed];
  const turns = [first, second, (secret - first - second + 2 * hours) % hours];
  const faces = [[0, 1, 2], [0, 1], [1, 2], [2, 0]]; // whose components: all, and those of each party
  const size = 190;
  const svg = faces.map((held, face) => {
    const title = face ? `party ${face - 1}: any of ${hours}` : `all three: the secret is ${secret}`;
    const at = `translate(${size * (0.5 + (face % 2))} ${0.56 * size + 1.12 * size * Math.floor(face / 2)})`;
    return mark("g", { transform: at, text_anchor: "middle" }, words(0, -84, title) + clockFace(hours, turns, held, face ? null : secret));
  });
  const text =
    `Four clocks of ${hours} hours. The first adds ${turns[0]}, ${turns[1]} and ${turns[2]} and ends at the secret ${secret}. ` +
    "The other three show the two of these numbers that a party has; the third could lead to any hour.";
  return { width: 2 * size, height: 2.24 * size, svg: svg.join(""), text };
};

function clockFace(hours, turns, held, secret) {
  const place = (hour, radius) => {
    const angle = (2 * Math.PI * hour) / hours; // from the top, as clocks go
    return [radius * Math.sin(angle), -radius * Math.cos(angle)];
  };
  const dot = ([cx, cy], r, fill) => mark("circle", { cx, cy, r, fill });
  let svg = "";
  for (let hour = 0; hour < hours; hour++) {
    svg += dot(place(hour, 60), 1.6, "#777777");
    const [x, y] = place(hour, 70);
    if (hour % (hours / 4) === 0) svg += words(x, y + 3, hour, { font_size: 9 });
  }
  let start = 0;
  held.forEach((index, ring) => {
    const radius = 52 - 8.5 * ring;
    const steps = Array.from({ length: 4 * turns[index] + 1 }, (_, n) => place(start + n / 4, radius));
    const points = steps.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    svg += mark("polyline", { points, fill: "none", stroke: palette[index], stroke_width: 2.2 });
    start += turns[index];
    svg += dot(place(start, radius), 3.2, palette[index]);
  });
  turns.forEach((turn, index) => {
    const known = held.includes(index);
    const line = `x${"\u2080\u2081\u2082"[index]} = ${known ? turn : "?"}`;
    svg += words(0, 15 * index - 11, line, { fill: known ? "black" : "#666666", font_size: 11 });
    if (known) svg += dot([-25.5, 15 * index - 15], 2.6, palette[index]); // colours are too light for words
  });
  return secret === null ? svg : svg + dot(place(secret, 60), 5, "black");
}
