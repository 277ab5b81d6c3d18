// One viewer per structure, in the colours of its chains; nothing is fetched.
for (const place of document.querySelectorAll(".view")) {
  const text = JSON.parse(place.nextElementSibling.textContent);
  try {
    const viewer = $3Dmol.createViewer(place, { backgroundAlpha: 0 });
    viewer.addModel(text, "pdb");
    viewer.setStyle({}, { cartoon: { colorscheme: "chain", arrows: true } });
    viewer.zoomTo();
    viewer.render();
  } catch (error) {
    place.textContent = "This browser shows no 3D view (WebGL is off).";
  }
}
