"""Figures and widgets that teach: functions from arrays and records to matplotlib figures.

Figures carry a description in words, which `show` gives to a notebook as their alt text. The names below are imported when
they are first used, because matplotlib takes a second.
"""

import lazy_loader

_NAMES = {
    "activations": "approximation_figure row_sums_figure segments_figure",
    "cut_figures": "cut_diagram message_histograms openings",
    "cuts": "Cut CutSeen additive_parts cut_costs knowledge run_cut signed told_apart",
    "fixed_point": "carry_tree failure_rates operation_rounds overflow staircase staircase_explorer truncations",
    "hosts": "event_table permissions timeline who_is_where",
    "kernels": "digit_table",
    "latency": "dominance_map latency_explorer load_costs",
    "live": "on_parties",
    "networks": "network_explorer network_times",
    "pareto": "pareto_explorer pareto_figure",
    "parties": "byte_histograms byte_uniformity certificate_table instructions operation_costs random_numbers squares",
    "pictures": "image_panels image_row sample_sheet",
    "piecewise": "Choice outcome",
    "piecewise_widget": "piecewise_fitter",
    "plans": "ditto_steps rings_of_layer rings_of_step",
    "private": "clipping_explorer clipping_figure epsilon_explorer epsilon_figure epsilon_study",
    "quantised": "fraction_explorer fraction_figure fraction_study",
    "roles": "brought party_pictures progress_line",
    "shares": "clock_explorer message_diagram product_grid sighting_explorer sightings",
    "style": "describe new_figure show",
    "unet_map": "unet_map",
    "widgets": "Control slider switch",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
