// What every page uses. Data of people reaches the page through `el` alone, which makes text of it, never markup.

// --- the API ---------------------------------------------------------------------------------------------------

export class ApiError extends Error {
  constructor(status, message, data = {}) {
    super(message);
    this.status = status;
    this.data = data;
  }
}

/** The parsed JSON of an answer; `body` is an object or a FormData. Raises ApiError with a sentence to show. */
export async function api(method, path, body) {
  const headers = {Accept: "application/json"};
  const token = cookie("csrf_token");
  if (token && method !== "GET") headers["X-CSRF-Token"] = token;
  const form = body instanceof FormData;
  if (body !== undefined && !form) headers["Content-Type"] = "application/json";
  let response, data;
  try {
    response = await fetch(path, {method, headers, body: body === undefined || form ? body : JSON.stringify(body)});
  } catch {
    throw new ApiError(0, "The server cannot be reached");
  }
  try {
    data = await response.json();
  } catch {
    data = {};
  }
  if (response.ok && data.success !== false) return data;
  if (response.status === 401 && data.code === "AUTH_REQUIRED") leaveToSignIn();
  throw new ApiError(response.status, data.error || data.message || `The server answered ${response.status}`, data);
}

function leaveToSignIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

function cookie(name) {
  const found = document.cookie.split("; ").find((pair) => pair.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : "";
}

/** "a=1&b=x" of what is neither empty nor absent. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return new URLSearchParams(given).toString();
}

const ROLES = ["readonly", "user", "manager", "admin"];

/** Whether the signed-in user has this role or a higher one. The server decides; this only hides what it would refuse. */
export function can(role) {
  return ROLES.indexOf(document.body.dataset.role) >= ROLES.indexOf(role);
}

// --- building the page -----------------------------------------------------------------------------------------

/** An element. Properties: `class`, `onclick` and the like as functions, `dataset`, attributes; false and null leave one out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value" && "value" in node) node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the pictures in icons.svg. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** A button; `work` may be async: meanwhile the button is off, and what it raises becomes a toast. */
export function button(label, work, {kind = "", picture = "", ...props} = {}) {
  const node = el("button", {type: "button", class: `button ${kind}`.trim(), ...props}, picture ? icon(picture) : null, label);
  node.addEventListener("click", () => busy(node, work));
  return node;
}

const nameOf = (control) => control.getAttribute("aria-label") ?? (control.name || control.textContent);

/**
 * Call this before a control may go away, and what it returns afterwards: when nothing has the focus by then, it is given
 * back to the control, to the one of its name that was drawn instead, or else to their part of the page.
 */
function keepFocus() {
  const held = document.activeElement;
  const part = held?.parentElement?.closest("[id]")?.id;
  return () => {
    if (!part || document.activeElement !== document.body) return;
    const place = document.getElementById(part);
    const same = held.isConnected ? held : [...(place?.querySelectorAll(held.localName) ?? [])].find((one) => nameOf(one) === nameOf(held));
    same?.focus({preventScroll: true});
    if (!place || document.activeElement !== document.body) return;
    place.tabIndex = -1;
    place.focus({preventScroll: true});
  };
}

/** Does `work` while the control is off, but not `disabled`, which would take the focus from it; an ApiError becomes a toast. */
export async function busy(control, work) {
  if (control.getAttribute("aria-busy") === "true") return;
  const giveBack = keepFocus();
  for (const name of ["aria-busy", "aria-disabled"]) control.setAttribute(name, "true");
  try {
    return await work();
  } catch (error) {
    complain(error);
  } finally {
    for (const name of ["aria-busy", "aria-disabled"]) control.removeAttribute(name);
    giveBack();
  }
}

/** Tell the user what went wrong; anything but an ApiError is a mistake of ours and is raised again. */
export function complain(error) {
  if (!(error instanceof ApiError)) {
    toast("Something went wrong on this page", "error");
    throw error;
  }
  toast(error.message, "error");
}

/**
 * One of the four states of a container:
 * {loading: rows} · {empty: text, action?: node} · {error: ApiError, retry?: function} · {content: node or list}.
 */
export function show(container, state) {
  const giveBack = keepFocus();
  container.setAttribute("aria-busy", "loading" in state ? "true" : "false");
  if ("loading" in state) {
    const rows = Array.from({length: state.loading === true ? 3 : state.loading}, () => el("div", {class: "skeleton"}));
    container.replaceChildren(...rows);
  } else if ("empty" in state) {
    container.replaceChildren(el("div", {class: "empty"}, icon(state.picture ?? "inbox"), el("p", {}, state.empty), state.action ?? null));
  } else if ("error" in state) {
    const {error, retry} = state;
    const again = retry ? button("Try again", retry, {picture: "refresh"}) : null;
    container.replaceChildren(el("div", {class: "error", role: "alert"}, icon("alert"), el("p", {}, error.message ?? String(error)), again));
    if (error instanceof Error && !(error instanceof ApiError)) throw error;
  } else {
    container.replaceChildren(...[state.content].flat(Infinity).filter(Boolean));
  }
  giveBack();
}

let pressed = null; // the button that a finger or the mouse is on
let released = null;
let letGo = () => {};

addEventListener("pointerdown", ({button: which, target}) => {
  letGo();
  pressed = which === 0 ? target.closest("button") : null;
  released = new Promise((resolve) => {
    letGo = () => resolve((pressed = null));
  });
}, true);
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => setTimeout(letGo), true); // the click comes first

const asked = new WeakMap(); // the last question about a container

/**
 * Call this before asking what a container is to show, and what it returns with the answer at hand: whether it may be
 * shown. It may not when somebody has asked again since, and not yet under a finger: a button drawn anew is not clicked.
 */
export function inTurn(container) {
  const question = {};
  asked.set(container, question);
  return async () => {
    while (container.contains(pressed)) await released;
    return asked.get(container) === question;
  };
}

/**
 * Show what `fetchContent` gives: skeletons where nothing is yet, then nodes, a state such as {empty: …}, or the error with
 * a retry. `fetchContent` is given what `inTurn` returns.
 */
export async function load(container, fetchContent, rows = 3) {
  const mayShow = inTurn(container);
  if (container.childElementCount) container.setAttribute("aria-busy", "true");
  else show(container, {loading: rows});
  try {
    const found = await fetchContent(mayShow);
    if (!(await mayShow())) return;
    show(container, found && Object.getPrototypeOf(found) === Object.prototype ? found : {content: found});
  } catch (error) {
    if (!(await mayShow())) return;
    const gone = error.status === 404; // and will be
    show(container, {error, retry: gone ? null : () => load(container, fetchContent, rows)});
  }
}

/** `kind`: "" | "success" | "error". */
export function toast(message, kind = "") {
  const close = el("button", {type: "button", class: "button icon-only quiet", "aria-label": "Dismiss"}, icon("close"));
  const node = el("div", {class: `toast ${kind}`.trim()}, el("p", {}, message), close);
  close.addEventListener("click", () => node.remove());
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), kind === "error" ? 10_000 : 5_000);
}

/** A badge of a status: "DOWNLOADED" or "failed". */
export function badge(status) {
  return el("span", {class: `badge ${status.toLowerCase()}`}, status.toLowerCase().replaceAll("_", " "));
}

/** A progress bar; null is one that only moves. */
export function bar(percent, label) {
  const node = el("progress", {class: "bar", max: 100, "aria-label": label});
  if (percent !== null && percent !== undefined) node.value = percent;
  return node;
}

/** Previous and next page; `go(page)`. Nothing when there is only one. */
export function pager(page, pages, go) {
  if (pages < 2) return null;
  return el(
    "nav",
    {class: "pager", "aria-label": "Pages"},
    button("Previous", () => go(page - 1), {picture: "left", disabled: page <= 1}),
    el("span", {class: "muted"}, `Page ${page} of ${pages}`),
    button("Next", () => go(page + 1), {picture: "right", disabled: page >= pages}),
  );
}

// --- words -----------------------------------------------------------------------------------------------------

const RELATIVE = new Intl.RelativeTimeFormat("en", {numeric: "auto"});
const UNITS = [["year", 31_536_000], ["month", 2_592_000], ["week", 604_800], ["day", 86_400], ["hour", 3600], ["minute", 60]];

/** A time of the API, which is UTC without saying so. */
export function time(text) {
  return new Date(/Z|[+-]\d\d:\d\d$|GMT$/.test(text) ? text : `${text}Z`);
}

/** "5 minutes ago" with the full time as its tooltip. */
export function ago(text) {
  if (!text) return "never";
  const then = time(text);
  const past = (then - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, size]) => Math.abs(past) >= size) ?? ["second", 1];
  const words = unit === "second" ? "just now" : RELATIVE.format(Math.round(past / length), unit);
  return el("time", {datetime: then.toISOString(), title: then.toLocaleString()}, words);
}

/** "9 h 53 min". */
export function hours(number) {
  const minutes = Math.round(number / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60).toLocaleString("en")} h ${minutes % 60} min`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let index = 0;
  while (number >= 1000 && index < units.length - 1) {
    number /= 1000;
    index += 1;
  }
  return `${index && number < 100 ? number.toFixed(1) : Math.round(number)} ${units[index]}`;
}

/** "3:05" or "1:02:03". */
export function seconds(number) {
  if (number === null || number === undefined) return "–";
  const whole = Math.round(number);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

// --- dialogs ---------------------------------------------------------------------------------------------------

/** Escape closes it, and then the focus is back where it came from. */
export function openDialog(title, ...content) {
  const dialog = el("dialog", {class: "dialog", "aria-label": title}, el("h2", {}, title), ...content);
  const giveBack = keepFocus();
  dialog.addEventListener("close", () => {
    dialog.remove();
    giveBack();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Ask before something is done. `options`: checkboxes {name, label, hint}.
 * Resolves to null when it was cancelled, else to the checked state by name, which is {} without options.
 */
export function confirmDialog({title, text = "", confirm = "OK", danger = false, options = []}) {
  return new Promise((resolve) => {
    const boxes = options.map((option) => field({type: "checkbox", ...option}));
    const cancel = el("button", {type: "button", class: "button"}, "Cancel");
    const form = el(
      "form",
      {method: "dialog"},
      text ? el("p", {}, text) : null,
      boxes,
      el("div", {class: "row end"}, cancel, el("button", {class: `button ${danger ? "danger" : "primary"}`}, confirm)),
    );
    let answer = null;
    form.addEventListener("submit", () => (answer = values(form)));
    const dialog = openDialog(title, form);
    dialog.addEventListener("close", () => resolve(answer));
    cancel.addEventListener("click", () => dialog.close());
    cancel.focus();
  });
}

/** A form in a dialog, which stays open with the message while `save(values)` raises an ApiError. */
export function formDialog({title, fields, submit = "Save", save}) {
  const message = el("p", {class: "form-error", role: "alert", hidden: true});
  const cancel = el("button", {type: "button", class: "button"}, "Cancel");
  const go = el("button", {class: "button primary"}, submit);
  const form = el("form", {}, fields.map(field), message, el("div", {class: "row end"}, cancel, go));
  const dialog = openDialog(title, form);
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(go, async () => {
      try {
        await save(values(form));
        dialog.close();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        message.textContent = error.message;
        message.hidden = false;
      }
    });
  });
  return dialog;
}

/** A labelled control: {name, label, type?, value?, hint?, options? [[value, text]], and attributes}. */
export function field({name, label, type = "text", value = "", hint = "", options = [], ...props}) {
  const id = `field-${name}-${(field.count = (field.count ?? 0) + 1)}`;
  const described = hint ? `${id}-hint` : null;
  const common = {id, name, "aria-describedby": described, ...props};
  const note = hint ? el("small", {class: "muted", id: described}, hint) : null;
  if (type === "checkbox") {
    const box = el("input", {type, ...common, checked: Boolean(value)});
    return el("div", {class: "field check"}, box, el("label", {for: id}, label), note);
  }
  let control;
  if (type === "textarea") control = el("textarea", {rows: 4, ...common, value: value ?? ""});
  else if (type === "select") control = el("select", common, options.map(([key, text]) => el("option", {value: key, selected: key === (value ?? "")}, text)));
  else control = el("input", {type, ...common, value: value ?? ""});
  return el("div", {class: "field"}, el("label", {for: id}, label), control, note);
}

/** What the named controls of a form hold: text, a boolean for a checkbox, a File for a file. */
export function values(form) {
  const controls = [...form.elements].filter((control) => control.name);
  const held = {checkbox: (control) => control.checked, file: (control) => control.files[0] ?? null};
  return Object.fromEntries(controls.map((control) => [control.name, (held[control.type] ?? ((one) => one.value))(control)]));
}

// --- what changes while one looks at it ------------------------------------------------------------------------

/** Call `work` now and `ms` after each time it has ended, not while the page is hidden; returns stop(). */
export function poll(work, ms) {
  let timer = 0;
  let stopped = false;
  const turn = async () => {
    if (!document.hidden) {
      try {
        await work();
      } catch (error) {
        if (!(error instanceof ApiError)) console.error(error);
      }
    }
    if (!stopped) timer = setTimeout(turn, ms);
  };
  turn();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

const POLL_MS = 2000;
const LONGEST_WAIT_MS = 30_000;

/**
 * Progress of downloads and jobs, `onDocument(doc)` for each change; `which`: "all" or ["download:7", "job:<id>"].
 * By WebSocket ("live"), and by "polling" while there is none, as `onWay` is told. Returns stop().
 */
export function live(which, onDocument, onWay = () => {}) {
  let socket = null;
  let stopped = false;
  let wait = 1000;
  let stopPolling = null;
  let timer = 0;

  const fallBack = () => {
    stopPolling ??= poll(pollProgress(which, onDocument), POLL_MS);
    onWay("polling");
  };
  const connect = () => {
    socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/jobs`);
    socket.onopen = () => {
      wait = 1000;
      stopPolling?.();
      stopPolling = null;
      onWay("live");
      socket.send(JSON.stringify({subscribe: which}));
    };
    socket.onmessage = ({data}) => {
      const said = JSON.parse(data);
      for (const doc of said.snapshot ?? (said.update ? [said.update] : [])) onDocument(doc);
    };
    socket.onclose = () => {
      if (stopped) return;
      fallBack();
      timer = setTimeout(connect, wait);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    };
  };
  connect();
  return () => {
    stopped = true;
    clearTimeout(timer);
    stopPolling?.();
    socket.close();
  };
}

/** One turn of polling: the documents that have changed since the turn before, also those that have just ended. */
function pollProgress(which, onDocument) {
  let before = new Map();
  const wanted = (doc) => which === "all" || which.includes(doc.id);
  return async () => {
    const [queue, jobs] = await Promise.all([api("GET", "/api/downloads/queue"), api("GET", "/api/jobs/")]);
    const docs = [...(queue.queue ?? []).map(downloadDocument), ...(jobs.jobs ?? []).map(jobDocument)].filter(wanted);
    const now = new Map(docs.map((doc) => [doc.id, JSON.stringify(doc)]));
    if ([...before.keys()].some((id) => id.startsWith("download:") && !now.has(id))) {
      const {downloads = []} = await api("GET", "/api/downloads/history");
      docs.push(...downloads.map(downloadDocument).filter((doc) => before.has(doc.id) && !now.has(doc.id)));
    }
    for (const doc of docs) if (before.get(doc.id) !== JSON.stringify(doc)) onDocument(doc);
    before = now;
  };
}

/** A row of the queue or the history, as the live connection tells it. */
export function downloadDocument(row) {
  const {id, status, progress, eta, speed, bytes_done, bytes_total, updated_at, video_id} = row;
  const message = row.error_message || row.video_title;
  return {id: `download:${id}`, type: "download", status, percent: progress, message, eta, speed, bytes_done, bytes_total, updated_at, target: `video:${video_id}`};
}

function jobDocument({id, type, status, progress, message, error, updated_at, target}) {
  return {id: `job:${id}`, type, status, percent: progress, message: error || message || "", updated_at, target};
}

/** Run `work` when the page is there; modules are late enough, but the error should be seen. */
export function onReady(work) {
  Promise.resolve().then(work).catch((error) => {
    toast("Something went wrong on this page", "error");
    throw error;
  });
}

// --- the frame of every page -----------------------------------------------------------------------------------

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = current === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // no storage: until the next page
  }
}

for (const control of document.querySelectorAll(".theme-button")) control.addEventListener("click", toggleTheme);

const menuButton = document.getElementById("menu-button");
const isMenuOpen = () => menuButton?.getAttribute("aria-expanded") === "true";

function openMenu(open) {
  menuButton.setAttribute("aria-expanded", String(open));
  document.getElementById("menu").classList.toggle("open", open);
}

menuButton?.addEventListener("click", () => openMenu(!isMenuOpen()));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !isMenuOpen()) return;
  openMenu(false);
  menuButton.focus();
});

const signOut = document.getElementById("sign-out");
signOut?.addEventListener("click", () =>
  busy(signOut, async () => {
    await api("POST", "/auth/logout");
    location.assign("/login");
  }),
);
