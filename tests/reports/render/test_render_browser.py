"""The page as a browser shows it."""

from __future__ import annotations

import pytest
from browsing import installed, show

pytestmark = installed

LOWEST_CONTRAST = """
const channel = part => { part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4 };
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(channel);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour }
  throw new Error('no background') };
let lowest = [99, ''];
for (const element of document.body.querySelectorAll('*')) {
  const own = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.textContent.trim()).join('');
  if (!own || element.closest('details:not([open]) > :not(summary)')) continue;
  const style = getComputedStyle(element);
  const ink = luminance(element instanceof SVGElement ? style.fill : style.color);
  const paper = luminance(ground(element));
  const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  if (contrast < lowest[0]) lowest = [contrast, own] }
return lowest;
"""


@pytest.mark.parametrize("name", ["sick", "empty"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_loads_nothing_and_can_be_read(browser, pages, name, width, scheme):
    show(browser, pages[name], width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    contrast, text = browser.execute_script(LOWEST_CONTRAST)
    assert contrast >= 4.5, text


def test_labels_in_drawings_are_large_enough_on_a_phone(browser, pages):
    show(browser, pages["sick"], 390, "light")
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('.plot:not([hidden]) text')].map(text =>"
        " parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().d || 99).filter(size => size > 0))"
    )
    assert smallest >= 9.5


def test_dark_and_light_differ_and_drawings_follow(browser, pages):
    seen = []
    for scheme in ("light", "dark"):
        show(browser, pages["sick"], 1280, scheme)
        seen.append(
            browser.execute_script(
                "const style = getComputedStyle(document.body);"
                "return [style.color, style.backgroundColor,"
                " getComputedStyle(document.querySelector('.plot text')).fill,"
                " getComputedStyle(document.querySelector('.mesh')).filter]"
            )
        )
    assert all(light != dark for light, dark in zip(*seen, strict=True))


def test_paper_is_white_even_at_night(browser, pages):
    show(browser, pages["sick"], 1280, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert colour == "rgb(254, 254, 254)"
