// In JupyterLab: the explorer between its controls and the kernel.

export default {
  render({ model, el }) {
    const chosen = { ...model.get("_chosen") };
    const show = explore(el, model.get("_spec"), chosen, () => {
      model.set("_chosen", { ...chosen });
      model.save_changes();
    });
    if (model.get("_spec").action) act(el.querySelector("form"), model);
    // Arrows move controls here, and not JupyterLab's cells. It asks the element that has the focus first.
    for (const control of el.querySelectorAll("input, select, button")) control.dataset.lmSuppressShortcuts = "true";
    if (model.get("_spec").scene) return;
    const update = () => show(model.get("_shown"));
    model.on("change:_shown", update);
    update();
  },
};

// A button below the controls, and what its run is at until it ends. The controls wait for that.
function act(form, model) {
  const row = document.createElement("div");
  row.innerHTML = `<button type="button">${escaped(model.get("_spec").action)}</button> <progress aria-label="progress"></progress> <span role="status"></span>`;
  form.after(row);
  const [button, bar, status] = row.children;
  const tell = () => {
    const { busy, text, done, total } = model.get("_status");
    form.inert = button.disabled = busy;
    bar.hidden = !busy;
    if (total) [bar.max, bar.value] = [total, done];
    else bar.removeAttribute("value");
    status.textContent = text;
  };
  button.onclick = () => model.send("run");
  model.on("change:_status", tell);
  tell();
}
