"""Keys that a widget is given stay in it: JupyterLab would take the arrows from a slider."""

from __future__ import annotations

import pytest
from test_heatmap_in_page import selection_of

import vblora_lab as lab
from vblora_lab.widgets import BankHeatmap, LossChart

WIDGETS = {
    "BankHeatmap": lambda: BankHeatmap(selection_of()),
    "LossChart": lambda: LossChart(total_steps=9),
    "SubVector": lab.SubVector,
}


@pytest.mark.parametrize("name", WIDGETS)
def test_no_key_in_a_widget_is_heard_around_it(open_page, name):
    page = open_page(WIDGETS[name]()).page
    page.evaluate("""() => {
      window.heard = [];
      document.addEventListener("keydown", (event) => heard.push(event.target.outerHTML));
    }""")
    pressed = page.evaluate("""() => {
      const all = [...document.querySelectorAll("#widget :is(input, button, canvas, [tabindex])")];
      for (const element of all) {
        element.dispatchEvent(new KeyboardEvent("keydown", { key: "q", bubbles: true }));
      }
      return all.length;
    }""")
    assert pressed > 0 and page.evaluate("() => heard") == []
    page.keyboard.press("q")
    assert len(page.evaluate("() => heard")) == 1  # that of the page itself
