import {ApiError, ago, api, badge, bar, bytes, downloadDocument, el, hours, icon, live, load, onReady, seconds, show} from "/static/app.js";
import {videoTile} from "/static/tiles.js";
import {lookAgain} from "/static/work.js";

const part = (id) => document.getElementById(id);

function tile(picture, label, number, note, href) {
  return el("a", {class: "card count", href},
    el("span", {class: "muted row"}, icon(picture), label),
    el("span", {class: "count-number number"}, number),
    el("small", {class: "muted"}, note));
}

async function counts() {
  const {artists, videos, storage, disk} = await api("GET", "/api/library/stats");
  const wanted = videos.by_status.WANTED;
  const failed = videos.by_status.FAILED;
  const used = disk.total ? `${bytes(disk.free)} free of ${bytes(disk.total)}` : "the disk cannot be read";
  return [
    tile("artist", "Artists", artists.total.toLocaleString("en"), `${artists.monitored} monitored`, "/artists"),
    tile("video", "Videos", videos.total.toLocaleString("en"), `${hours(videos.total_duration)} in all`, "/videos"),
    tile("download", "Wanted", wanted.toLocaleString("en"), failed ? `${failed} failed` : "none failed", "/videos?status=WANTED"),
    tile("disk", "Storage", bytes(storage.on_disk.bytes), used, "/system"),
  ];
}

async function newest() {
  const {videos} = await api("GET", "/api/videos/?limit=8");
  if (videos.length) return videos.map((video) => videoTile(video));
  return {empty: "No videos yet. Find an artist to begin with.", picture: "video", action: el("a", {class: "button primary", href: "/discover"}, "Discover")};
}

const NAMES = {database: "Database", disk: "Disk", redis: "Redis", worker: "Workers", ffmpeg: "ffmpeg", yt_dlp: "yt-dlp"};
const KINDS = {up: "up", installed: "up", down: "down", missing: "warning"};

async function health() {
  const {status, components, timestamp} = await state();
  const rows = Object.entries(components).map(([name, value]) => [
    el("dt", {}, NAMES[name] ?? name),
    el("dd", {}, el("span", {class: `badge ${KINDS[value] ?? ""}`}, value)),
  ]);
  return [el("p", {class: "row"}, badge(status), el("small", {class: "muted"}, "checked ", ago(timestamp))), el("dl", {class: "facts"}, rows)];
}

/** The body is the same when something is down; only the status of the answer is 503. */
async function state() {
  try {
    return await api("GET", "/api/health/status");
  } catch (error) {
    if (error instanceof ApiError && error.data.components) return error.data;
    throw error;
  }
}

const MOVING = ["downloading", "queued", "pending", "paused"];
const SHOWN = 5;
const active = new Map(); // documents by id
const titles = new Map(); // of the videos, by the same ids: what a document says may be an error

const rows = new Map(); // what moves in the rows that are shown, by the same ids
let drawn = ""; // which rows these are

/** What the queue holds, as documents. */
async function readQueue() {
  const {queue} = await api("GET", "/api/downloads/queue");
  for (const row of queue) titles.set(`download:${row.id}`, row.video_title);
  return queue.map(downloadDocument);
}

const readActive = () => load(part("active"), async (mayShow) => {
  drawn = ""; // also when it cannot be read
  const docs = await readQueue();
  if (!(await mayShow())) return null;
  active.clear();
  for (const doc of docs) active.set(doc.id, doc);
  drawn = "";
  return drawActive();
});

/** The state to show, or null when the rows that are there have only moved: somebody may be pressing one. */
function drawActive() {
  const rank = (doc) => MOVING.indexOf(doc.status);
  const docs = [...active.values()].sort((a, b) => rank(a) - rank(b));
  const shown = docs.slice(0, SHOWN);
  const now = JSON.stringify([docs.length, shown.map((doc) => [doc.id, doc.status, titles.get(doc.id)])]);
  const same = now === drawn;
  drawn = now;
  if (!docs.length) return same ? null : {empty: "Nothing is being downloaded.", picture: "check"};
  if (!same) rows.clear();
  const nodes = shown.map((doc) => {
    const row = rows.get(doc.id) ?? activeRow(doc);
    const speed = doc.speed ? `${bytes(doc.speed)}/s` : "";
    const left = doc.eta ? `${seconds(doc.eta)} left` : "";
    row.notes.textContent = [speed, left, [titles.get(doc.id), doc.status].includes(doc.message) ? "" : doc.message].filter(Boolean).join(" · ");
    row.bar.value = doc.percent ?? 0;
    return row.node;
  });
  const more = docs.length - shown.length;
  return same ? null : [...nodes, more > 0 && el("p", {class: "muted"}, `and ${more} more`)];
}

function activeRow(doc) {
  const row = {bar: bar(0, "Progress"), notes: el("small", {class: "muted number"})};
  row.node = el("div", {class: "stack full"},
    el("div", {class: "row between"}, el("a", {class: "grow clip", href: `/video/${doc.target.split(":")[1]}`}, titles.get(doc.id) || "Video"), badge(doc.status)),
    doc.status === "downloading" && row.bar,
    row.notes);
  rows.set(doc.id, row);
  return row;
}

function onProgress(doc) {
  if (doc.type !== "download") return;
  if (MOVING.includes(doc.status)) active.set(doc.id, doc);
  else active.delete(doc.id);
  const state = drawActive();
  if (Array.isArray(state)) show(part("active"), {content: state});
  else if (state) show(part("active"), state);
  if (active.has(doc.id) && !titles.has(doc.id)) {
    titles.set(doc.id, ""); // asked for
    readActive();
  }
}

onReady(async () => {
  load(part("counts"), counts, 4);
  load(part("newest"), newest, 4);
  load(part("health"), health, 3);
  await readActive();
  live("all", onProgress);
  lookAgain(active, () => true, readQueue, readActive);
});
