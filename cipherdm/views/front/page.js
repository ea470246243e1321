// On a page without a kernel: every static picture that knows its scene gets its controls.

for (const place of document.querySelectorAll("[data-cipherdm]")) {
  const { spec, chosen } = JSON.parse(place.dataset.cipherdm);
  place.replaceChildren();
  explore(place, spec, chosen);
}
