// Filters that live in the address, and rows that are chosen for something to be done with all of them.
import {button, el} from "/static/app.js";

/** Fill the form from the address; `changed()` after each change, at the first page and typing left alone for a moment. */
export function filters(form, changed) {
  const given = new URLSearchParams(location.search);
  for (const control of form.elements) {
    if (!control.name || !given.has(control.name)) continue;
    if (control.type === "checkbox") control.checked = given.get(control.name) === "true";
    else control.value = given.get(control.name);
    if (control.selectedIndex === -1) control.selectedIndex = 0; // there is no such choice
  }
  let timer = 0;
  const later = (ms) => {
    clearTimeout(timer);
    timer = setTimeout(changed, ms);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    later(0);
  });
  form.addEventListener("input", (event) => later(event.target.type === "search" || event.target.type === "number" ? 250 : 0));
}

/** What the form asks for and the page, as the address shows them; nothing that is empty. */
export function remember(form, page) {
  const asked = new URLSearchParams();
  for (const control of form.elements) {
    const value = control.type === "checkbox" ? (control.checked ? "true" : "") : control.value;
    if (control.name && value) asked.set(control.name, value);
  }
  const shown = new URLSearchParams(asked);
  if (page > 1) shown.set("page", page);
  history.replaceState(null, "", shown.size ? `?${shown}` : location.pathname);
  return Object.fromEntries(asked);
}

export const firstPage = () => Number(new URLSearchParams(location.search).get("page")) || 1;

/** "-name" as what the API calls `sort` and `order`. */
export function sorting(value = "") {
  return {sort: value.replace("-", ""), order: value.startsWith("-") ? "desc" : "asc"};
}

/** The chosen ids and the bar that says what can be done with them; `actions(ids)` gives its buttons. */
export class Selection {
  constructor(bar, actions) {
    this.ids = new Set();
    this.bar = bar;
    this.actions = actions;
  }

  choose = (id, chosen) => {
    if (chosen) this.ids.add(id);
    else this.ids.delete(id);
    this.draw();
  };

  clear() {
    this.ids.clear();
    for (const box of document.querySelectorAll("input.choose")) box.checked = false;
    this.draw();
  }

  all() {
    for (const box of document.querySelectorAll("input.choose:not(:checked)")) box.click();
  }

  draw() {
    this.bar.hidden = !this.ids.size;
    if (!this.ids.size) return;
    const count = el("strong", {class: "number", role: "status"}, `${this.ids.size} selected`);
    const rest = [button("All", () => this.all(), {kind: "small quiet", "aria-label": "Select all on this page"}), button("None", () => this.clear(), {kind: "small quiet", "aria-label": "Select none"})];
    this.bar.replaceChildren(count, ...rest, el("span", {class: "grow"}), ...this.actions([...this.ids]).filter(Boolean));
  }
}
