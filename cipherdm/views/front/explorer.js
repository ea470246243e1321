// Labelled controls above a picture. A scene draws it here; without one, Python does, and sends it.

const style = `
.cipherdm-controls { display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; margin: 0 0 0.6em; max-width: 60em }
.cipherdm-controls label { display: flex; flex-wrap: wrap; align-items: center; gap: 0 0.6em }
.cipherdm-controls label > span { min-width: 10.5em }
.cipherdm-controls .cipherdm-switch > span { min-width: 0 }
.cipherdm-controls input[type=range] { width: min(14em, 40vw); accent-color: #0072B2 }
.cipherdm-controls select, .cipherdm-controls input[list] { max-width: 90vw }
.cipherdm-controls input[list] { width: 30em }
.cipherdm-controls output { min-width: 4em }
.cipherdm-picture img, .cipherdm-picture svg { max-width: 100%; height: auto }`;

// Show controls and a picture in `root`. `spec` is what `Explorer` in widgets.py has written: {scene, data, controls}.
// `chosen` has the number of each control's option by its name, and changes in place. `changed` is told of each change.
// Returns a function that shows HTML in the picture's place.
function explore(root, spec, chosen, changed = () => {}) {
  const made = (tag, to, settings = {}) => to.appendChild(Object.assign(document.createElement(tag), settings));
  made("style", root, { textContent: style });
  const form = made("form", root, { className: "cipherdm-controls", onsubmit: () => false });
  const picture = made("div", root, { className: "cipherdm-picture" });
  const inputs = {};

  function say(name) {
    const { input, output, control } = inputs[name];
    input[control.kind === "switch" ? "checked" : "value"] = control.kind === "switch" ? chosen[name] > 0 : chosen[name];
    if (output) {
      output.textContent = control.words[chosen[name]];
      input.setAttribute("aria-valuetext", output.textContent);
    }
  }
  function choose(name, index) {
    chosen[name] = index;
    const { control } = inputs[name];
    Object.assign(chosen, control.sets?.[index]);
    // What was set by a named choice is this choice no longer once one of its sliders moves.
    for (const [other, { control: named }] of Object.entries(inputs))
      if (named.sets && other !== name && name in named.sets.at(-1)) chosen[other] = 0;
    Object.keys(inputs).forEach(say);
    redraw();
    changed();
  }
  function redraw() {
    if (!spec.scene) return;
    const values = Object.fromEntries(spec.controls.map((c) => [c.name, c.values[chosen[c.name]]]));
    const { svg, text } = drawn(spec.scene, spec.data, values);
    picture.innerHTML = `<figure style="margin:0">${svg}<figcaption>${escaped(text)}</figcaption></figure>`;
  }
  for (const control of spec.controls) {
    const label = made("label", form, { className: `cipherdm-${control.kind}` });
    const { name, kind } = control;
    if (kind !== "switch") made("span", label, { textContent: control.label });
    const input = made(kind === "choice" ? "select" : "input", label, { name, ariaLabel: control.label });
    if (kind === "choice") control.words.forEach((text, value) => made("option", input, { textContent: text, value }));
    else if (kind === "switch") input.type = "checkbox";
    else if (kind === "text") suggest(input, made("datalist", label), control.words);
    else Object.assign(input, { type: "range", min: 0, max: control.words.length - 1, step: 1 });
    if (kind === "switch") made("span", label, { textContent: control.label });
    inputs[name] = { input, control, output: kind === "slider" ? made("output", label, { role: "none" }) : null };
    const read = () => choose(name, kind === "text" ? input.value : Number(kind === "switch" ? input.checked : input.value));
    input.addEventListener(kind === "slider" ? "input" : "change", read);
    if (control.plays) play(made("button", label, { type: "button", textContent: "play" }), control, chosen, choose);
    say(name);
  }
  redraw();
  return (html) => (picture.innerHTML = html);
}

// Texts that a field for text offers; any other may be written.
function suggest(input, list, texts) {
  list.id = `cipherdm-${Math.random()}`;
  input.setAttribute("list", list.id);
  texts.forEach((value) => list.append(Object.assign(document.createElement("option"), { value })));
}

// A button that moves a slider on by itself, from its lowest value if it stands at its highest.
function play(button, control, chosen, choose) {
  let timer = null;
  const stop = () => ((timer = clearInterval(timer)), (button.textContent = "play"));
  button.onclick = () => {
    if (timer) return stop();
    button.textContent = "stop";
    const last = control.words.length - 1;
    if (chosen[control.name] === last) choose(control.name, 0);
    timer = setInterval(() => (chosen[control.name] < last && button.isConnected ? choose(control.name, chosen[control.name] + 1) : stop()), 400);
  };
}
