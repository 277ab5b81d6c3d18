// One viewer per structure. The B-factor of an atom says its colour: pLDDT, a contribution from -50
// to 50, or -99 where the model did not read the residue. Nothing is fetched.
const plddt = (b) => (b > 90 ? "#0053d6" : b > 70 ? "#65cbf3" : b > 50 ? "#ffdb13" : "#ff7d45");
const ends = { none: [240, 232, 215], raises: [209, 114, 15], lowers: [34, 102, 184] };
const mixed = (b) => {
  const share = Math.min(1, Math.abs(b) / 50);
  const end = b > 0 ? ends.raises : ends.lowers;
  const part = ends.none.map((from, i) => Math.round(from + share * (end[i] - from)));
  return `rgb(${part.join(",")})`;
};
const chains = ["#2266b8", "#d1720f", "#23875b", "#a43aa0", "#b8860b", "#c0392b"];
for (const place of document.querySelectorAll(".view")) {
  const text = JSON.parse(place.nextElementSibling.textContent);
  const order = [];
  const ofChain = (chain) => {
    if (!order.includes(chain)) order.push(chain);
    return chains[order.indexOf(chain) % chains.length];
  };
  const colour = { plddt: (a) => plddt(a.b), attribution: (a) => mixed(a.b), chain: (a) => ofChain(a.chain) }[place.dataset.mode];
  try {
    const viewer = $3Dmol.createViewer(place, { backgroundAlpha: 0 });
    viewer.addModel(text, "pdb");
    // one style for all: two cartoons of one chain would each bridge the gaps of the other
    const shade = (a) => (a.b < -98 ? "#9aa3ad" : colour(a));
    viewer.setStyle({}, { cartoon: { arrows: true, colorfunc: shade } });
    viewer.zoomTo();
    viewer.render();
    // a canvas is blank on paper: print its picture instead
    window.addEventListener("beforeprint", () => {
      const picture = new Image();
      picture.src = viewer.pngURI();
      place.querySelector("img")?.remove();
      place.append(picture);
    });
  } catch (error) {
    place.textContent = "This browser shows no 3D view (WebGL is off).";
  }
}
