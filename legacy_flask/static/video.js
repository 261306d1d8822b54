import {ago, api, badge, bar, button, bytes, can, complain, confirmDialog, el, formDialog, icon, live, load, onReady, seconds, show, toast} from "/static/app.js";
import {QUALITIES, statusOptions} from "/static/tiles.js";

const id = Number(document.body.dataset.id);
const here = `/api/videos/${id}`;
const target = `video:${id}`;
const part = (name) => document.getElementById(name);
let video = null;
let download = null; // the last document about it
let transcode = null;

// --- the player ------------------------------------------------------------------------------------------------

const PLAYABLE = /\.(mp4|m4v|webm)$/i; // browsers play these as they are, and seek in them

let drawn = ""; // what the player shows: a change of the title must not stop it

function drawPlayer() {
  const file = `${video.file_path} ${video.file_size}`;
  if (PLAYABLE.test(video.file_path ?? "") && drawn === file) return;
  drawn = file;
  const poster = video.has_thumbnail ? `${here}/thumbnail` : null;
  if (!video.file_path) show(part("player"), {content: screen(poster, el("p", {}, "There is no file yet."))});
  else if (PLAYABLE.test(video.file_path)) show(part("player"), {content: player(poster)});
  else drawUnplayable(poster);
}

function player(poster, autoplay = false) {
  const node = el("video", {class: "player", controls: true, preload: "metadata", playsinline: true, autoplay, poster, src: `${here}/stream`, "aria-label": video.title});
  node.addEventListener("error", () => show(part("player"), {
    content: screen(poster, el("p", {role: "alert"}, "The file cannot be played. It may be missing, or damaged."), button("Try again", () => show(part("player"), {content: player(poster)}), {picture: "refresh"})),
  }));
  return node;
}

function drawUnplayable(poster) {
  const kind = video.file_path.split(".").pop().toUpperCase();
  const running = transcode && ["queued", "running"].includes(transcode.status);
  show(part("player"), {content: screen(
    poster,
    el("p", {}, `Browsers cannot play ${kind} files. It can be converted while you watch, without seeking, or once for all.`),
    transcode?.status === "failed" ? el("p", {class: "form-error"}, transcode.message) : null,
    running
      ? el("div", {class: "stack full"}, bar(transcode.percent, "Conversion"), el("small", {}, `Converting: ${transcode.percent ?? 0} %`))
      : el("div", {class: "row center"},
          button("Play now", () => show(part("player"), {content: player(poster, true)}), {kind: "primary", picture: "play"}),
          can("user") ? button("Convert to MP4", startTranscode, {picture: "convert"}) : null),
  )});
}

function screen(poster, ...content) {
  return el("div", {class: "player screen"}, poster ? el("img", {src: poster, alt: ""}) : icon("video"), el("div", {class: "screen-text"}, content));
}

async function startTranscode() {
  const {message} = await api("POST", `${here}/transcode`);
  toast(message);
  transcode = {status: "queued", percent: 0};
  drawPlayer();
}

async function onTranscode(doc) {
  transcode = doc;
  if (doc.status === "completed") {
    toast("The video has been converted", "success");
    await refresh();
  } else {
    if (doc.status === "failed") toast(doc.message || "The conversion failed", "error");
    if (video && !part("player").querySelector("video")) drawPlayer();
  }
}

// --- the download ----------------------------------------------------------------------------------------------

const ACTIVE = ["pending", "queued", "downloading", "paused"];
const moving = {of: "", percent: el("span", {class: "number muted"}), bar: bar(0, "Download"), said: el("small", {class: "muted number"})};

function drawDownload() {
  const number = download && numberOf(download);
  const order = (verb, label, picture) => button(label, () => steer(number, verb), {kind: "small", picture});
  const buttons = {
    pending: [order("cancel", "Cancel", "close")],
    queued: [order("cancel", "Cancel", "close")],
    downloading: [order("pause", "Pause", "pause"), order("cancel", "Cancel", "close")],
    paused: [order("resume", "Resume", "play"), order("cancel", "Cancel", "close")],
    failed: [order("retry", "Try again", "refresh")],
  };
  if (download && (ACTIVE.includes(download.status) || download.status === "failed")) {
    const of = [download.id, download.status, download.status === "failed" && download.message].join(" ");
    const amount = download.bytes_total ? `${bytes(download.bytes_done)} of ${bytes(download.bytes_total)}` : "";
    const speed = download.speed ? `${bytes(download.speed)}/s` : "";
    const left = download.eta ? `${seconds(download.eta)} left` : "";
    moving.percent.textContent = `${Math.round(download.percent ?? 0)} %`;
    moving.bar.value = download.percent ?? 0;
    moving.said.textContent = [amount, speed, left].filter(Boolean).join(" · ");
    if (moving.of === of) return; // its buttons stay: somebody may be pressing one
    moving.of = of;
    show(part("download"), {content: [
      el("div", {class: "row between"}, badge(download.status), moving.percent),
      download.status === "failed" ? el("p", {class: "form-error"}, download.message || "The download failed") : moving.bar,
      moving.said,
      can("user") ? el("div", {class: "row"}, buttons[download.status] ?? []) : null,
    ]});
    return;
  }
  moving.of = "";
  const done = video.status === "DOWNLOADED"; // the server would refuse
  show(part("download"), {content: [
    el("p", {class: "muted"}, video.file_path ? "The file is in the library." : "Not downloaded yet.",
      done && can("user") && " To download it again, set the status to Wanted."),
    can("user") && !done ? button(video.file_path ? "Download again" : "Download", startDownload, {kind: video.file_path ? "" : "primary", picture: "download"}) : null,
  ]});
}

async function startDownload() {
  const {message, download_id: number} = await api("POST", `${here}/download`);
  toast(message, "success");
  if (!download || numberOf(download) < number) {
    download = {id: `download:${number}`, status: "pending", percent: 0, message: ""};
    drawDownload();
  }
}

const STEER = {
  pause: (number) => api("POST", `/api/downloads/${number}/pause`),
  resume: (number) => api("POST", `/api/downloads/${number}/resume`),
  cancel: (number) => api("POST", `/api/downloads/${number}/cancel`),
  retry: (number) => api("POST", `/api/downloads/${number}/retry`),
};

async function steer(number, verb) {
  toast((await STEER[verb](number)).message);
}

const numberOf = (doc) => Number(doc.id.split(":")[1]);

async function onDownload(doc) {
  if (download && numberOf(doc) < numberOf(download)) return; // one before it, which has just ended, is told in any order
  const ended = download && ACTIVE.includes(download.status) && doc.status === "completed";
  download = doc;
  if (ended) {
    toast("The download is complete", "success");
    await refresh();
  } else if (video) drawDownload();
}

function onProgress(doc) {
  if (doc.target !== target) return;
  if (doc.type === "download") onDownload(doc).catch(complain);
  else if (doc.type === "transcode") onTranscode(doc).catch(complain);
}

// --- the rest --------------------------------------------------------------------------------------------------

function about() {
  document.title = `${video.title} · Music videos`;
  const status = el("select", {class: "button small", "aria-label": "Status", disabled: !can("user")},
    statusOptions.map(([value, text]) => el("option", {value, selected: value === video.status}, text)));
  status.addEventListener("change", () => setStatus(status));
  const facts = [video.year, video.duration ? seconds(video.duration) : "", video.quality].filter(Boolean).join(" · ");
  return el("div", {class: "stack full"},
    el("h1", {}, video.title),
    el("p", {class: "row"}, el("a", {class: "strong", href: `/artist/${video.artist_id}`}, video.artist_name), el("span", {class: "muted number"}, facts)),
    el("div", {class: "row"}, status,
      can("user") ? [
        button("Edit", edit, {kind: "small", picture: "edit"}),
        button("Refresh metadata", refreshMetadata, {kind: "small", picture: "refresh"}),
      ] : null,
      can("manager") ? button("Delete", remove, {kind: "small danger", picture: "trash"}) : null),
    video.genres.length ? el("p", {class: "row tags"}, video.genres.map((genre) => el("a", {class: "badge", href: `/videos?${new URLSearchParams({genre})}`}, genre))) : null,
    video.description ? el("p", {class: "bio"}, video.description) : null);
}

function facts() {
  const outside = video.url ? el("a", {href: video.url, target: "_blank", rel: "noreferrer"}, new URL(video.url).host) : null;
  const rows = [
    ["Directed by", video.directors.join(", ")],
    ["File", video.file_path],
    ["Size", video.file_size ? bytes(video.file_size) : null],
    ["Source", outside],
    ["YouTube", video.youtube_id],
    ["IMVDb", video.imvdb_id],
    ["Added", ago(video.created_at)],
    ["Changed", ago(video.updated_at)],
  ];
  return el("dl", {class: "facts"}, rows.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

async function setStatus(menu) {
  try {
    ({video} = await api("PUT", `${here}/status`, {status: menu.value}));
    toast("Status updated", "success");
    drawDownload();
  } catch (error) {
    menu.value = video.status;
    complain(error);
  }
}

async function refreshMetadata() {
  const {updated = [], problems = []} = await api("POST", `${here}/refresh-metadata`);
  toast(updated.length ? `Updated: ${updated.join(", ").replaceAll("_", " ")}` : "Nothing new was found", updated.length ? "success" : "");
  for (const problem of problems) toast(problem, "error");
  await refresh();
}

function edit() {
  const list = (text) => text.split(",").map((item) => item.trim()).filter(Boolean);
  formDialog({
    title: "Edit video",
    fields: [
      {name: "title", label: "Title", value: video.title, required: true, maxlength: 500},
      {name: "year", label: "Year", type: "number", value: video.year, min: 0, max: 9999},
      {name: "directors", label: "Directors", value: video.directors.join(", "), hint: "Separated by commas."},
      {name: "genres", label: "Genres", value: video.genres.join(", "), hint: "Separated by commas."},
      {name: "quality", label: "Quality", type: "select", value: video.quality, options: qualities()},
      {name: "url", label: "Address", type: "url", value: video.url, maxlength: 1000},
      {name: "description", label: "Description", type: "textarea", value: video.description, maxlength: 10_000},
      ...(video.file_path ? [{name: "rename_file", label: "Rename the file after artist and title", type: "checkbox"}] : []),
    ],
    save: async (form) => {
      const changes = {...form, year: form.year || null, directors: list(form.directors), genres: list(form.genres)};
      const {file_moved: moved} = await api("PUT", here, changes);
      toast(moved ? "Video saved, file renamed" : "Video saved", "success");
      await refresh();
    },
  });
}

function qualities() {
  const known = video.quality && !QUALITIES.includes(video.quality) ? [video.quality, ...QUALITIES] : QUALITIES;
  return [["", "Unknown"], ...known.map((quality) => [quality, quality])];
}

async function remove() {
  const chosen = await confirmDialog({
    title: `Delete ${video.title}?`,
    text: video.file_path ? "The video leaves the library. Its file stays on the disk, unless you say otherwise." : "The video leaves the library.",
    confirm: "Delete",
    danger: true,
    options: video.file_path ? [{name: "file", label: "Delete the file, too", hint: "This cannot be undone."}] : [],
  });
  if (!chosen) return;
  await api("DELETE", `${here}${chosen.file ? "?delete_file=true" : ""}`);
  location.assign("/videos");
}

/** What happened before this page was opened and is worth a button: a failed download, a conversion. */
async function before() {
  if (!download && video.status === "FAILED") {
    const {downloads} = await api("GET", `/api/artists/${video.artist_id}/detailed`);
    const last = downloads.filter((row) => row.video_id === id).sort((a, b) => b.id - a.id)[0];
    if (last?.status === "failed") download = {id: `download:${last.id}`, status: last.status, percent: last.progress, message: last.error_message};
  }
  if (!transcode && video.file_path && !PLAYABLE.test(video.file_path)) {
    const {status, progress, error} = await api("GET", `${here}/transcode/status`);
    const words = {processing: "running", failed: "failed"};
    if (words[status]) transcode = {status: words[status], percent: progress, message: error};
  }
}

const refresh = () => load(part("about"), async () => {
  video = await api("GET", here);
  await before();
  drawPlayer();
  drawDownload();
  show(part("facts"), {content: facts()});
  for (const aside of document.querySelectorAll(".watch-side")) aside.hidden = false;
  return about();
});

onReady(async () => {
  await refresh();
  live("all", onProgress);
});
