// In JupyterLab: the explorer between its controls and the kernel.

export default {
  render({ model, el }) {
    const chosen = { ...model.get("_chosen") };
    const show = explore(el, model.get("_spec"), chosen, () => {
      model.set("_chosen", { ...chosen });
      model.save_changes();
    });
    // Arrows move controls here, and not JupyterLab's cells. It asks the element that has the focus first.
    for (const control of el.querySelectorAll("input, select, button")) control.dataset.lmSuppressShortcuts = "true";
    if (model.get("_spec").scene) return;
    const update = () => show(model.get("_shown"));
    model.on("change:_shown", update);
    update();
  },
};
