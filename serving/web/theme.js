// The colours, set before the first paint: those of the system, or the ones chosen last time.
(() => {
  const kept = (() => {
    try {
      return localStorage.getItem("trainbox-theme");
    } catch {
      return null; // a browser that keeps nothing follows the system
    }
  })();
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
