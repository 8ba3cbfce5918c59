// Names for what ipywidgets leaves unnamed: a screen reader hears the value of its sliders, but not of what.

const HANDLES = ".noUi-handle, .ui-slider-handle"; // of ipywidgets 8, and of 7
const AGAIN = 100; // milliseconds until a panel that isn't in the page yet is looked for again

function nameSliders(panel) {
  for (const handle of panel.querySelectorAll(HANDLES)) {
    const row = handle.closest(".widget-inline-hbox");
    const text = (part) => row?.querySelector(part)?.textContent.trim() ?? "";
    handle.setAttribute("role", "slider");
    handle.setAttribute("aria-label", text(".widget-label"));
    handle.setAttribute("aria-valuetext", text(".widget-readout"));
  }
}

export default {
  render({ el }) {
    let waiting = 0;
    let observer = null;
    const begin = () => {
      const panel = el.closest(".vblora-panel");
      if (!panel) {
        waiting = setTimeout(begin, AGAIN);
        return;
      }
      // The panel's parts come one after the other, and values change.
      observer = new MutationObserver(() => nameSliders(panel));
      observer.observe(panel, { childList: true, characterData: true, subtree: true });
      nameSliders(panel);
    };
    begin();
    return () => {
      clearTimeout(waiting);
      observer?.disconnect();
    };
  },
};
