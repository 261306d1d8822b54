// The queue as it moves, what has ended, and the tools that do the work.
import {ago, api, badge, bar, bytes, can, el, live, onReady, pager, query, seconds} from "/static/app.js";
import {action, card, chooser, facts, fill, form, item, lookAgain} from "/static/work.js";

const section = (id) => document.getElementById(id);
const OPEN = ["pending", "queued", "downloading", "paused"];
const PRIORITIES = Array.from({length: 10}, (_, index) => [String(index + 1), `Priority ${index + 1}`]);
const CONNECTIONS = {
  live: ["live", "active", "Progress arrives as it is made"],
  polling: ["every 2 seconds", "paused", "There is no live connection: the server is asked every 2 seconds"],
};
const rows = new Map(); // what the queue shows, by id
const mode = el("span", {class: "badge", role: "status"}, "connecting");
let page = 1;
let status = "";

onReady(async () => {
  await Promise.all([reload(), loadTools()]);
  live("all", follow, tellConnection);
  lookAgain(rows, (state) => OPEN.includes(state), async () => (await api("GET", "/api/downloads/queue")).queue, reload);
});

function tellConnection(how) {
  const [label, tone, title] = CONNECTIONS[how];
  mode.textContent = label;
  mode.className = `badge ${tone}`;
  mode.title = title;
}

// --- the queue --------------------------------------------------------------------------------------------------

function loadQueue() {
  return fill(section("queue"), () => api("GET", "/api/downloads/queue"), ({queue}) => {
    rows.clear();
    return card("Queue", mode, queue.length
      ? el("ul", {class: "list"}, queue.map(waiting))
      : el("p", {class: "muted"}, "Nothing is being downloaded. ", el("a", {href: "/discover"}, "Discover videos"), " or pick some in the ",
          el("a", {href: "/videos"}, "library"), "."));
  });
}

function waiting(row) {
  const entry = {status: row.status, bar: bar(0, `Progress of ${row.video_title}`), said: el("div", {class: "muted number"})};
  rows.set(row.id, entry);
  move(entry, {...row, percent: row.progress});
  return item([title(row), entry.bar, entry.said], can("user") && controls(row), {"data-download": row.id});
}

function title(row) {
  return [el("a", {href: `/video/${row.video_id}`}, el("strong", {}, row.video_title)), " ",
    row.artist_name && el("span", {class: "muted"}, row.artist_name, " "), badge(row.status)];
}

/** What can be done with a download in this state. */
function controls(row) {
  const button = (label, work, more) => action(label, async () => {
    const answer = await work();
    await reload();
    return answer;
  }, {about: row.video_title, ...more});
  const cancel = button("Cancel", () => api("POST", `/api/downloads/${row.id}/cancel`),
    {kind: "danger", confirm: "Stop it", ask: `Cancel “${row.video_title}”? What has been loaded is thrown away.`});
  if (row.status === "downloading") return [button("Pause", () => api("POST", `/api/downloads/${row.id}/pause`), {picture: "pause"}), cancel];
  if (row.status === "paused") return [button("Resume", () => api("POST", `/api/downloads/${row.id}/resume`), {picture: "play"}), cancel];
  return [chooser(`Priority of ${row.video_title}`, PRIORITIES, String(row.priority), async (value) => {
    const answer = await api("PUT", `/api/downloads/${row.id}/priority`, {priority: Number(value)});
    await loadQueue();
    return answer;
  }), cancel];
}

/** The bar and the numbers of a row. While nobody knows the total, the bar only moves. */
function move(entry, {status: state, percent, bytes_done: done, bytes_total: total, speed, eta, retry_at: later}) {
  const moving = state === "downloading";
  if (moving && !percent && !total) entry.bar.removeAttribute("value");
  else entry.bar.value = percent ?? 0;
  entry.said.textContent = [
    moving || percent ? `${percent ?? 0} %` : null,
    total ? `${bytes(done)} of ${bytes(total)}` : done ? bytes(done) : null,
    moving && speed ? `${bytes(speed)}/s` : null,
    moving && eta != null ? `${seconds(eta)} left` : null,
    state === "pending" ? (later ? "is tried again later" : "waits for its turn") : null,
  ].filter(Boolean).join(" · ");
}

/** One after the other: what ends in between is in both for a moment, and never in neither. */
async function reload() {
  await loadQueue();
  await loadHistory();
}

let soon = null; // many rows that change at once are read once

function follow(doc) {
  if (!doc.id.startsWith("download:")) return;
  const entry = rows.get(Number(doc.id.slice("download:".length)));
  if (entry?.status === doc.status) move(entry, doc);
  else if (entry || OPEN.includes(doc.status)) {
    soon ??= setTimeout(() => {
      soon = null;
      reload();
    }, 200);
  }
}

// --- the history ------------------------------------------------------------------------------------------------

function loadHistory() {
  return fill(section("history"), () => api("GET", `/api/downloads/history?${query({status, page, per_page: 20})}`), (answer) => {
    const go = (number) => {
      page = number;
      return loadHistory();
    };
    const filter = chooser("History: status", [["", "All"], ["completed", "Completed"], ["failed", "Failed"], ["cancelled", "Cancelled"]], status,
      (value) => {
        status = value;
        return go(1);
      });
    return card("History", filter,
      answer.downloads.length
        ? el("ul", {class: "list"}, answer.downloads.map(ended))
        : el("p", {class: "muted"}, status ? `No download is ${status}.` : "Nothing has been downloaded yet."),
      pager(answer.page, answer.pages, go));
  });
}

function ended(row) {
  return item([
    title(row),
    el("div", {class: "muted"}, ago(row.finished_at ?? row.updated_at), row.bytes_total && ` · ${bytes(row.bytes_total)}`,
      row.quality && ` · ${row.quality}`, row.attempts > 1 && ` · ${row.attempts} attempts`),
    row.error_message && el("p", {class: "form-error"}, row.error_message,
      row.error_code === "sign_in" && can("manager") && [". ", el("a", {href: "#tools"}, "Upload cookies")]),
  ], row.status === "failed" && can("user") && [action("Retry", async () => {
    const answer = await api("POST", `/api/downloads/${row.id}/retry`);
    await reload();
    return answer;
  }, {about: row.video_title, picture: "refresh"})], {"data-download": row.id});
}

// --- the tools --------------------------------------------------------------------------------------------------

function loadTools() {
  return fill(section("tools"), tools, ({tools: {yt_dlp: ytdlp, ffmpeg}, error}) => [
    card("Tools", [], facts([["yt-dlp", ytdlp ?? "missing"], ["ffmpeg", ffmpeg ?? "missing"]]), error && el("p", {class: "form-error"}, error)),
    can("manager") && cookies(),
  ]);
}

/** A missing tool is told with a status of 503: that is an answer, too. */
async function tools() {
  try {
    return await api("GET", "/api/downloads/tool");
  } catch (error) {
    if (error.data?.tools) return error.data;
    throw error;
  }
}

function cookies() {
  return card("Cookies", [], el("p", {class: "muted"}, "Some sites want you to sign in. Export your cookies from a browser in the Netscape format; they are never shown again."),
    form([{name: "file", label: "cookies.txt", type: "file", required: true, accept: ".txt,text/plain"}], "Upload", async (_, node) => {
      const answer = await api("POST", "/api/downloads/cookies", new FormData(node));
      node.reset();
      return answer;
    }));
}
