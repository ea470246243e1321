// A row of pictures for each setting. data: across, the number of pictures side by side in a strip; strips {names of the
// values: its URL}, titles and, for each strip, notes below its pictures; told, a text for each strip.

scenes.pictures = ({ across, titles, strips }, values) => {
  const { strip, notes, text } = strips[Object.values(values).join()];
  const [size, gap] = [128, 8]; // as `strip` in style.py leaves it
  const width = across * (size + gap);
  let svg = mark("image", { href: strip, y: 20, width, height: size, preserveAspectRatio: "none", style: "image-rendering:pixelated" });
  for (let place = 0; place < across; place++) {
    const [x, middle] = [(place + 0.5) * (size + gap) - gap / 2, { text_anchor: "middle", font_size: 11 }];
    svg += words(x, 13, titles[place], middle) + words(x, size + 36, notes[place], middle);
  }
  return { width, height: size + 44, svg, text };
};
