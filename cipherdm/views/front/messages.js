// Messages from top to bottom, as they are sent: a line for each person, a band for each round, an arrow for each message.
// values: count of messages so far, and person whose messages stand out, or "". data: people {name: colour},
// messages [{round, sender, receiver, text}], rounds {round: {before, after}}, texts of several lines left and right of a band.

scenes.messages = ({ people, messages, rounds }, { count, person }) => {
  const [left, line, top] = [115, 34, 30];
  const apart = Math.max(100, ...messages.map(({ text }) => 6.2 * text.length)); // so that words stand between two lines
  const names = Object.keys(people);
  const x = (name) => left + apart * names.indexOf(name);
  const [right, bottom] = [x(names[names.length - 1]), top + line * messages.length];
  const noted = Object.values(rounds).some(({ after }) => after);
  const width = right + (noted ? 195 : 40);
  const middle = (y, texts) => texts.split("\n").map((text, n, all) => [y + 4 + 14 * (n - (all.length - 1) / 2), text]);
  let svg = "";
  Object.entries(rounds).forEach(([round, { before, after }], index) => {
    const places = [...messages.keys()].filter((place) => messages[place].round === Number(round));
    const [y, height] = [top + line * places[0], line * places.length];
    const faint = { fill: places[0] < count ? "black" : "#666666", font_size: 11 };
    if (index % 2 === 0) svg += mark("rect", { x: 0, y, width, height, fill: "#f2f2f2" });
    for (const [at, text] of middle(y + height / 2, before)) svg += words(55, at, text, { ...faint, text_anchor: "middle" });
    if (places[places.length - 1] < count) for (const [at, text] of middle(y + height / 2, after)) svg += words(right + 25, at, text, faint);
  });
  for (const name of names) {
    svg += mark("path", { d: `M${x(name)} ${top}V${bottom}`, stroke: "#777777" });
    svg += words(x(name), top - 10, name, { text_anchor: "middle", font_weight: name === person ? "bold" : "normal" });
  }
  const told = [];
  messages.slice(0, count).forEach(({ round, sender, receiver, text }, place) => {
    const [from, to, y] = [x(sender), x(receiver), top + line * place + 24];
    const mine = !person || person === sender || person === receiver;
    const [way, fill] = [Math.sign(to - from), mine ? people[sender] : "#cccccc"];
    const last = { stroke_width: place === count - 1 && count < messages.length ? 3.5 : 2, stroke: fill };
    svg += mark("path", { d: `M${from} ${y}H${to - 9 * way}`, ...last });
    svg += mark("path", { d: `M${to} ${y}l${-11 * way}-5v10z`, fill });
    // Halfway between two neighbours, so that no line of a party runs through the words.
    if (mine) svg += words(from + (apart / 2) * way, y - 6, text, { text_anchor: "middle", font_size: 10.5 });
    if (mine) told[place] = `round ${round}, ${sender} to ${receiver}, ${text}`;
  });
  const [all, whose] = [count === messages.length, person && ` that ${person} sends or receives`];
  const shown = all ? Object.values(told).join("; ") : told[count - 1] || `none${whose}`;
  const head = all ? `All messages${whose}, in order` : `Message ${count} of ${messages.length}`;
  return { width, height: bottom + 4, svg, text: `${head}: ${shown}.` };
};
