import {ApiError, ago, api, badge, bar, bytes, el, hours, icon, live, load, onReady, seconds, show} from "/static/app.js";
import {videoTile} from "/static/tiles.js";

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

const MOVING = ["downloading", "pending", "paused"];
const SHOWN = 5;
const active = new Map(); // documents by id
const titles = new Map(); // of the videos, by the same ids: what a document says may be an error

function drawActive() {
  const rank = (doc) => MOVING.indexOf(doc.status);
  const docs = [...active.values()].sort((a, b) => rank(a) - rank(b));
  if (!docs.length) return show(part("active"), {empty: "Nothing is being downloaded.", picture: "check"});
  const rows = docs.slice(0, SHOWN).map((doc) => {
    const title = titles.get(doc.id) || doc.message;
    const speed = doc.speed ? `${bytes(doc.speed)}/s` : "";
    const left = doc.eta ? `${seconds(doc.eta)} left` : "";
    const notes = [speed, left, doc.message === title ? "" : doc.message].filter(Boolean).join(" · ");
    return el("div", {class: "stack full"},
      el("div", {class: "row between"}, el("a", {class: "grow clip", href: `/video/${doc.target.split(":")[1]}`}, title || "Video"), badge(doc.status)),
      doc.status === "downloading" ? bar(doc.percent, "Progress") : null,
      notes ? el("small", {class: "muted number"}, notes) : null);
  });
  const more = docs.length - rows.length;
  show(part("active"), {content: [...rows, more > 0 ? el("p", {class: "muted"}, `and ${more} more`) : null]});
}

function onProgress(doc) {
  if (doc.type !== "download") return;
  if (MOVING.includes(doc.status)) active.set(doc.id, doc);
  else active.delete(doc.id);
  drawActive();
  if (active.has(doc.id) && !titles.has(doc.id)) learnTitles(doc.id);
}

async function learnTitles(id) {
  titles.set(id, ""); // asked for
  const {queue} = await api("GET", "/api/downloads/queue");
  for (const row of queue) titles.set(`download:${row.id}`, row.video_title);
  drawActive();
}

onReady(() => {
  load(part("counts"), counts, 4);
  load(part("newest"), newest, 4);
  load(part("health"), health, 3);
  drawActive();
  live("all", onProgress);
});
