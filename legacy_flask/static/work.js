// What the pages of downloads, discovery, playlists, settings and the system share.
import {ApiError, busy, can, complain, confirmDialog, el, field, icon, inTurn, poll, show, toast, values} from "/static/app.js";

/** What a failure says to a person. */
function sentence(error) {
  const {code, requirements, errors} = error.data ?? {};
  if (code === "FORBIDDEN") return "Your account may not do this.";
  return [error.message, ...(requirements ?? [])].join(": ") + (errors ? `: ${errors.join("; ")}` : "");
}

/** The same failure, said for a person. */
function plain(error) {
  return error instanceof ApiError ? new ApiError(error.status, sentence(error), error.data) : error;
}

/** A service that has no key says what to do about it; any other failure offers another try. */
export function failure(error, again) {
  const {help_url: help, action: advice, message} = error.data ?? {};
  const node = el("div");
  if (!help) {
    show(node, {error: plain(error), retry: again});
    return node;
  }
  node.append(el("div", {class: "error", role: "alert"}, icon("alert"),
    el("p", {}, el("strong", {}, error.message), el("br"), message),
    el("div", {class: "row"},
      can("admin") ? el("a", {class: "button primary", href: "/settings#services"}, advice) : el("p", {}, "An administrator can store one."),
      el("a", {class: "button", href: help, target: "_blank", rel: "noreferrer"}, "Where to get a key"))));
  return node;
}

/** Load what belongs into a container, with all states on the way. `draw` returns nodes, or null when nothing is there. */
export async function fill(container, load, draw, empty) {
  if (!container.hasChildNodes()) show(container, {loading: true});
  const mayShow = inTurn(container);
  container.setAttribute("aria-busy", "true");
  try {
    const answer = await load();
    if (!(await mayShow())) return;
    const content = draw(answer);
    show(container, content ? {content} : {empty});
  } catch (error) {
    if (!(error instanceof ApiError)) complain(error);
    if (!(await mayShow())) return;
    show(container, {content: failure(error, () => {
      container.replaceChildren();
      return fill(container, load, draw, empty);
    })});
  }
}

/** Do it while the control is off, and say how it went. */
export function attempt(control, work) {
  return busy(control, async () => {
    try {
      const answer = await work();
      if (answer?.message) toast(answer.message, "success");
      return answer;
    } catch (error) {
      throw plain(error);
    }
  });
}

/** A button that does something; with `ask`, a question, only after a yes (`confirm`). `about` tells screen readers of what. */
export function action(label, work, {kind = "", ask = "", confirm = label, about = "", picture = ""} = {}) {
  const node = el("button", {class: `button ${kind}`.trim(), type: "button", "aria-label": about ? `${label} ${about}` : null},
    picture && icon(picture), label);
  node.addEventListener("click", async () => {
    const asked = {title: ask, confirm, danger: true};
    if (!ask || await confirmDialog(asked)) await attempt(node, work);
  });
  return node;
}

/** A form on the page, from descriptions of `field` or nodes. `save(values, form)`; a failure is shown in it. */
export function form(fields, submit, save, props = {}) {
  const said = el("p", {class: "form-error", role: "alert", hidden: true});
  const go = el("button", {class: "button primary", type: "submit"}, submit);
  const parts = fields.map((one) => (one instanceof Node ? one : field(one)));
  const node = el("form", {class: "form", ...props}, ...parts, said, el("div", {class: "row"}, go));
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    said.hidden = true;
    return busy(go, async () => {
      try {
        const answer = await save(values(node), node);
        if (answer?.message) toast(answer.message, "success");
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        said.textContent = sentence(error);
        said.hidden = false;
      }
    });
  });
  return node;
}

/** A list to choose from that acts at once; when that fails it shows the old choice again. */
export function chooser(label, options, chosen, act) {
  const node = el("select", {"aria-label": label}, ...options.map(([value, text]) => el("option", {value}, text)));
  node.value = chosen;
  node.addEventListener("change", async () => {
    const value = node.value;
    node.value = (await attempt(node, async () => (await act(value)) ?? {})) ? value : chosen;
  });
  return node;
}

const LOOK_MS = 5000;

/**
 * Look at the rows now and then, as long as some of them may still change: what begins and ends between two looks of the
 * server is not told by it. `shown` holds {status} by id; `read` gives the rows; `again` draws them.
 */
export function lookAgain(shown, isOpen, read, again) {
  return poll(async () => {
    if (![...shown.values()].some(({status}) => isOpen(status))) return;
    const rows = await read();
    if (rows.length !== shown.size || rows.some(({id, status}) => shown.get(id)?.status !== status)) await again();
  }, LOOK_MS);
}

/** A card with a heading and what can be done beside it. */
export function card(title, tools, ...children) {
  return el("div", {class: "card"}, el("div", {class: "head"}, el("h2", {}, title), el("div", {class: "row"}, tools)), ...children);
}

/** A mark: `tone` is a status that has a colour. */
export const mark = (tone, label) => el("span", {class: `badge ${tone}`}, label);

/** A row of a list: what it is, and what can be done with it. */
export function item(about, tools, props = {}) {
  return el("li", {class: "row between item", ...props}, el("div", {class: "grow"}, about), tools?.some?.(Boolean) && el("div", {class: "row"}, tools));
}

/** Something that opens when it is asked for. */
export const more = (label, ...children) => el("details", {class: "more"}, el("summary", {}, label), ...children);

/** Names and values beside each other. */
export function facts(pairs) {
  return el("dl", {class: "tiles"}, pairs.map(([name, value]) => el("div", {}, el("dt", {class: "muted"}, name), el("dd", {}, value))));
}
