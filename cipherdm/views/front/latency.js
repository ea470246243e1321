// What sampling takes over a network, a bar for each protocol set, and the network's place on a map of what dominates.
// data: costs {model: [{variant, batch, seconds, rounds, path_bytes}]} of a step, all variants, networks, and the map's ends in
// ms and Mbit/s. The model of latency is that of
// cipherdm/costs/latency.py: seconds + rounds * round trip / 2 + bytes on the path * 8 / bandwidth.

scenes.latency = (data, values) => {
  const { model, batch, steps, round_trip, bandwidth } = values; // milliseconds and Mbit/s
  const asked = data.variants.filter((variant) => values[variant]);
  const costs = data.costs[model].filter((cost) => cost.batch === batch && asked.includes(cost.variant));
  const missing = asked.filter((variant) => !costs.some((cost) => cost.variant === variant));
  const names = ["computing", "messages on their way", "bytes on their way"];
  const rows = costs.map((cost) => {
    const parts = [cost.seconds, (cost.rounds * round_trip) / 2000, (8e-6 * cost.path_bytes) / bandwidth].map((s) => steps * s);
    const total = parts[0] + parts[1] + parts[2];
    const largest = parts.indexOf(Math.max(...parts));
    return { name: cost.variant, parts, total, told: `${duration(total)}, ${((100 * parts[largest]) / total).toFixed(0)}% ${names[largest].split(" ")[0]}` };
  });
  const slowest = Math.max(...rows.map((row) => row.total));
  const [width, left, top, line, longest] = [580, 165, 34, 26, 230];
  const below = top + line * Math.max(rows.length, 1);
  const pictures = `${batch} picture${batch > 1 ? "s" : ""} of ${model}, ${steps} step${steps > 1 ? "s" : ""}`;
  let svg = words(left, top - 14, pictures, { font_weight: "bold" });
  rows.forEach((row, index) => {
    const y = top + line * index;
    svg += words(left - 6, y + 12, row.name, { text_anchor: "end", font_size: 11 });
    let x = left;
    row.parts.forEach((seconds, part) => {
      const long = (longest * seconds) / slowest;
      svg += mark("rect", { x, y, width: long, height: 17, fill: palette[part] });
      x += long;
    });
    svg += words(x + 5, y + 12, row.told, { font_size: 11 });
  });
  names.forEach((name, part) => {
    const y = below + 80 + 24 * part;
    svg += mark("rect", { x: 290, y, width: 12, height: 12, fill: palette[part] }) + words(308, y + 11, name);
  });
  svg += mark("g", { transform: `translate(0 ${below})` }, latencyMap(data, costs[0], round_trip, bandwidth));
  const over = `over ${round_trip} ms round trip and ${thousands(bandwidth)} Mbit/s`;
  const told = rows.map((row) => `${row.name} ${row.told}`).join("; ") || "no protocols chosen";
  const unmeasured = missing.length ? ` Not measured for ${model} and this batch: ${missing.join(", ")}.` : "";
  return { width, height: below + 290, svg, text: `Sampling ${pictures}, ${over}: ${told}.${unmeasured}` };
};

// Three regions, by what takes longest of a set's time. On logarithmic axes their borders are straight.
function latencyMap(data, cost, round_trip, bandwidth) {
  const [left, right, top, bottom] = [50, 250, 40, 246];
  const along = ([low, high], [from, to], value) => from + (Math.log(value / low) / Math.log(high / low)) * (to - from);
  const x = (mbits) => along(data.bandwidths, [left, right], mbits);
  const y = (ms) => along(data.round_trips, [bottom, top], ms);
  const frame = { x: left, y: top, width: right - left, height: bottom - top };
  let svg = "";
  if (cost) {
    // Computing takes longest right of `band` and below `trip`; left of the first, where bytes take longer, and above the second,
    // where messages do, a line on which round trip times bandwidth is constant parts these two.
    const [trip, band] = [(2000 * cost.seconds) / cost.rounds, (8e-6 * cost.path_bytes) / cost.seconds];
    const area = (...corners) => corners.map(([mbits, ms]) => `${x(mbits).toFixed(1)},${y(ms).toFixed(1)}`).join(" ");
    const [slow, fast, short] = [data.bandwidths[0], data.bandwidths[1], data.round_trips[0]];
    const regions =
      mark("rect", { ...frame, fill: palette[1] }) +
      mark("polygon", { points: area([band, short], [band, trip], [band + fast, trip], [band + fast, short]), fill: palette[0] }) +
      mark("polygon", { points: area([slow, short], [slow, (trip * band) / slow], [band, trip], [band, short]), fill: palette[2] });
    svg += mark("svg", { ...frame, viewBox: `${left} ${top} ${right - left} ${bottom - top}`, fill_opacity: 0.85 }, regions);
    svg += words((left + right) / 2, top - 8, `what ${cost.variant} waits for`, { text_anchor: "middle" });
  }
  svg += mark("rect", { ...frame, fill: "none", stroke: "black" });
  for (const network of data.networks)
    svg += mark("circle", { cx: x(network.bandwidth), cy: y(network.round_trip), r: 3 }, mark("title", {}, escaped(network.name)));
  const [cx, cy] = [x(bandwidth), y(round_trip)];
  svg += mark("path", { d: `M${cx - 8} ${cy}h16M${cx} ${cy - 8}v16`, stroke: "white", stroke_width: 5 });
  svg += mark("path", { d: `M${cx - 8} ${cy}h16M${cx} ${cy - 8}v16`, stroke: "black", stroke_width: 2.5 });
  for (const mbits of [10, 100, 1000, 10000]) svg += words(x(mbits), bottom + 15, thousands(mbits), { text_anchor: "middle", font_size: 10 });
  for (const ms of [0.1, 1, 10, 100]) svg += words(left - 5, y(ms) + 4, ms, { text_anchor: "end", font_size: 10 });
  svg += words((left + right) / 2, bottom + 34, "bandwidth in Mbit/s", { text_anchor: "middle" });
  return svg + words(0, 0, "round trip in ms", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, text_anchor: "middle" });
}
