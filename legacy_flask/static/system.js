// Health, jobs, the files of the library, disk and log.
import {ago, api, badge, bar, bytes, can, el, live, onReady, pager, query, seconds, show, time} from "/static/app.js";
import {action, card, chooser, facts, fill, item, lookAgain, mark, more} from "/static/work.js";

const section = (id) => document.getElementById(id);

onReady(async () => {
  loadHealth();
  loadWorkers();
  if (can("user")) drawLibrary();
  if (can("admin")) {
    loadDisk();
    loadLog();
  }
  await loadJobs();
  live("all", follow);
  lookAgain(shown, (state) => ACTIVE.includes(state), readJobs, loadJobs);
});

// --- health -----------------------------------------------------------------------------------------------------

const PARTS = {database: "Database", disk: "Disk", redis: "Redis", worker: "Workers", ffmpeg: "ffmpeg", yt_dlp: "yt-dlp"};
const TONES = {up: "up", installed: "up", down: "down"};

function loadHealth() {
  return fill(section("health"), async () => [await health(), can("admin") && await api("GET", "/admin/system/status/service")],
    ([{status, components}, service]) => card("Health", [badge(status), action("Look again", loadHealth, {picture: "refresh"})],
      facts(Object.entries(components).map(([name, state]) => [PARTS[name] ?? name, mark(TONES[state] ?? "", state)])),
      service && el("div", {class: "row between"},
        el("p", {class: "muted"}, `Process ${service.pid}, Python ${service.python}, up for ${seconds(service.uptime_seconds)}`,
          service.memory_bytes && `, ${bytes(service.memory_bytes)} of memory`),
        action("Restart", () => api("POST", "/admin/system/restart"),
          {kind: "danger", ask: "Restart the application? Whoever uses it waits for a moment."}))));
}

/** An unhealthy system says so with a status of 503: that is an answer, too. */
async function health() {
  try {
    return await api("GET", "/api/health/status");
  } catch (error) {
    if (error.data?.components) return error.data;
    throw error;
  }
}

// --- workers ----------------------------------------------------------------------------------------------------

/** Who works on what; without Redis, the rows alone say what waits. */
function loadWorkers() {
  const counts = (rows) => Object.keys(rows).length
    ? Object.entries(rows).map(([status, count]) => el("span", {class: "row tight"}, badge(status), String(count)))
    : el("span", {class: "muted"}, "none");
  return fill(section("workers"), () => api("GET", "/api/jobs/queues"), (seen) =>
    card("Workers", action("Look again", loadWorkers, {picture: "refresh"}),
      el("div", {class: "row"}, el("strong", {}, "Jobs"), counts(seen.jobs)),
      el("div", {class: "row"}, el("strong", {}, "Downloads"), counts(seen.downloads)),
      el("div", {class: "row"}, el("strong", {}, "Queues"),
        seen.queues.length ? seen.queues.map(({name, waiting}) => mark("", `${name}: ${waiting} waiting`)) : el("span", {class: "muted"}, `Redis is ${seen.redis}`)),
      seen.workers.length
        ? el("ul", {class: "list"}, seen.workers.map((worker) => el("li", {class: "row between"},
          el("span", {}, `${worker.host ?? ""} ${worker.name.slice(0, 8)}`, el("span", {class: "muted"}, ` ${worker.queues.join(", ")}`)),
          el("span", {class: "row"}, badge(worker.state), el("span", {class: "muted"}, `${worker.completed} done, ${worker.failed} failed`)))))
        : el("p", {class: "muted"}, "No worker has signed in. What Flask does, it does in threads of its own.")));
}

// --- jobs -------------------------------------------------------------------------------------------------------

const STARTED = {enrichment: "Look up all artists", playlists: "Sync all playlists", discovery: "Look for new videos", index: "Index the library"};
const ACTIVE = ["queued", "running"];
const FILTERS = {
  status: [["", "Any status"], ...["queued", "running", "completed", "failed", "cancelled"].map((name) => [name, name])],
  type: [["", "Any type"], ...[...Object.keys(STARTED), "transcode"].map((name) => [name, name])],
};
const wanted = {status: "", type: "", page: 1};
const shown = new Map(); // what the list shows, by id
const askJobs = () => api("GET", `/api/jobs/?${query({...wanted, per_page: 20})}`);
const readJobs = async () => (await askJobs()).jobs;

function loadJobs() {
  return fill(section("jobs"), askJobs, (answer) => {
    shown.clear();
    const go = (change) => loadJobs(Object.assign(wanted, {page: 1}, change));
    const filters = Object.entries(FILTERS).map(([name, options]) => chooser(`Jobs: ${name}`, options, wanted[name], (value) => go({[name]: value})));
    return card("Jobs", filters,
      can("manager") && el("div", {class: "row"}, Object.entries(STARTED).map(([type, label]) => action(label, () => start(type)))),
      answer.jobs.length
        ? el("ul", {class: "list"}, answer.jobs.map(jobRow))
        : el("p", {class: "muted"}, wanted.status || wanted.type ? "No job is like that." : "Nothing has been done in the background yet."),
      pager(answer.page, answer.pages, (page) => go({page})));
  });
}

async function start(type) {
  const answer = await api("POST", "/api/jobs/", {type});
  await loadJobs();
  return answer;
}

function jobRow(job) {
  const active = ACTIVE.includes(job.status);
  const entry = {status: job.status, bar: bar(job.progress, `Progress of ${job.type}`), said: el("div", {class: "muted"}, job.message)};
  shown.set(job.id, entry);
  const took = job.started_at && job.finished_at ? (time(job.finished_at) - time(job.started_at)) / 1000 : null;
  return item([
    el("strong", {}, job.type), job.target && el("span", {class: "muted"}, ` ${job.target}`), " ", badge(job.status),
    el("div", {class: "muted"}, ago(job.created_at), took !== null && ` · took ${seconds(took)}`),
    active && entry.bar, entry.said,
    job.error && el("p", {class: "form-error"}, job.error),
    job.result && more("Result", facts(Object.entries(job.result).map(([name, value]) =>
      [name, value !== null && typeof value === "object" ? JSON.stringify(value) : String(value)]))),
  ], [
    active && can("user") && action("Cancel", async () => {
      const answer = await api("POST", `/api/jobs/${job.id}/cancel`);
      await loadJobs();
      return answer;
    }, {kind: "danger", about: job.type, confirm: "Stop it", ask: "Cancel this job? What it has done so far stays."}),
    ["failed", "cancelled"].includes(job.status) && job.type in STARTED && can("manager")
      && action("Start again", () => start(job.type), {about: job.type, picture: "refresh"}),
  ], {"data-job": job.id});
}

let soon = null; // many jobs that change at once are read once

function follow(doc) {
  if (!doc.id.startsWith("job:")) return;
  const entry = shown.get(doc.id.slice("job:".length));
  if (entry?.status === doc.status) {
    entry.bar.value = doc.percent;
    entry.said.textContent = doc.message;
  } else if (entry || ACTIVE.includes(doc.status)) {
    soon ??= setTimeout(() => {
      soon = null;
      loadJobs();
    }, 300);
  }
}

// --- the library ------------------------------------------------------------------------------------------------

const found = el("div", {"aria-live": "polite"});

function drawLibrary() {
  show(section("library"), {content: card("Library files", [],
    el("p", {class: "muted"}, "Files that wait in the downloads folder move to Artist/Artist - Title. The index enters what is in the library already."),
    el("div", {class: "row"},
      action("Show waiting files", scan, {picture: "folder"}),
      can("manager") && action("Preview the index", previewIndex),
      can("manager") && action("Index now", async () => {
        const answer = await api("POST", "/api/library/index");
        await loadJobs();
        return answer;
      })),
    found)});
}

function scan() {
  return fill(found, () => api("GET", "/api/library/scan"), (answer) => answer.count > 0 && waiting(answer), "No file waits in the downloads folder.");
}

function previewIndex() {
  return fill(found, () => api("POST", "/api/library/index?preview=true"), ({files, message}) => files.length > 0
    && [el("p", {}, message), el("ul", {class: "list"}, files.map((file) => item(about(file), [])))], "Every file of the library has its row.");
}

const about = (file) => [
  el("div", {}, file.name),
  el("div", {class: "muted"}, [file.artist, file.title, file.year, bytes(file.size)].filter(Boolean).join(" · ")),
];

function waiting({files, count, total_bytes: total}) {
  const boxes = files.map((file) => el("input", {type: "checkbox", value: file.name, "aria-label": `Choose ${file.name}`}));
  const organise = async (body) => {
    const answer = await api("POST", "/api/library/organize", body);
    await scan();
    found.prepend(...answer.failed.map(({file, error}) => el("p", {class: "form-error"}, `${file}: ${error}`)));
    return answer;
  };
  return [
    el("div", {class: "row between"}, el("p", {}, `${count} waiting, ${bytes(total)}`), can("manager") && el("div", {class: "row"},
      action("Organise the chosen", () => {
        const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
        return chosen.length ? organise({files: chosen}) : {message: "Choose some files first"};
      }),
      action("Organise all", () => organise(), {kind: "primary"}))),
    el("ul", {class: "list"}, files.map((file, index) => waitingFile(file, boxes[index]))),
  ];
}

function waitingFile(file, box) {
  const target = el("div", {class: "muted"});
  return item(el("div", {class: "row"}, can("manager") && box, el("div", {class: "grow"}, about(file), target)), [
    action("Preview", async () => {
      const answer = await api("GET", `/api/library/preview/${file.name.split("/").map(encodeURIComponent).join("/")}`);
      target.textContent = `becomes ${answer.target}${answer.conflict ? ", as the plain name is taken" : ""}`;
    }, {about: file.name}),
  ]);
}

// --- disk and log -----------------------------------------------------------------------------------------------

function loadDisk() {
  return fill(section("disk"), () => api("GET", "/admin/system/disk"), ({roots}) => card("Disk", action("Look again", loadDisk, {picture: "refresh"}),
    el("div", {class: "grid wide"}, roots.map(root))));
}

function root({name, path, total, used, free, size, directories}) {
  return el("div", {class: "stack disk"},
    el("h3", {}, name), el("p", {class: "muted"}, path),
    bar(total ? (100 * used) / total : 0, `${name}: how full the disk is`),
    el("p", {}, `${bytes(free)} free of ${bytes(total)}`, size !== null && `; ${bytes(size)} in here`),
    directories.length > 0 && more("Largest folders", el("ul", {class: "list"}, directories.slice(0, 10).map((one) =>
      el("li", {class: "row between"}, el("span", {class: "grow"}, one.name), el("span", {class: "muted number"}, bytes(one.bytes)))))));
}

let lines = "100";

function loadLog() {
  return fill(section("logs"), () => api("GET", `/admin/system/logs/recent?${query({lines})}`), (answer) => {
    const count = chooser("Lines of the log", ["100", "300", "1000"].map((number) => [number, `${number} lines`]), lines, (value) => {
      lines = value;
      return loadLog();
    });
    const text = el("pre", {class: "log", tabindex: 0, "aria-label": "The end of the log"}, answer.lines.join("\n"));
    text.scrollTop = text.scrollHeight;
    return card("Log", [count, action("Look again", loadLog, {picture: "refresh"})], answer.count ? text : el("p", {class: "muted"}, "The log is empty."));
  });
}
