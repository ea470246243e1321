// In JupyterLab: the explorer between its controls and the kernel.

export default {
  render({ model, el }) {
    el.dataset.lmSuppressShortcuts = "true"; // arrows move sliders here, and not JupyterLab's cells
    const chosen = { ...model.get("_chosen") };
    const show = explore(el, model.get("_spec"), chosen, () => {
      model.set("_chosen", { ...chosen });
      model.save_changes();
    });
    if (model.get("_spec").scene) return;
    const update = () => show(model.get("_shown"));
    model.on("change:_shown", update);
    update();
  },
};
