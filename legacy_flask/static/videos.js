import {api, button, can, confirmDialog, el, load, onReady, pager, query, show, toast} from "/static/app.js";
import {Selection, filters, firstPage, remember, sorting} from "/static/lists.js";
import {QUALITIES, statusOptions, videoTile} from "/static/tiles.js";

const PER_PAGE = 48;
const MORE = ["artist", "genre", "quality", "year_from", "year_to", "has_file"];
const part = (id) => document.getElementById(id);
const form = part("filters");
let page = firstPage();

const selection = new Selection(part("bulk"), (ids) => [
  statusMenu(ids),
  button("Download", () => download(ids), {kind: "small primary", picture: "download"}),
  can("manager") ? button("Delete", () => remove(ids), {kind: "small danger", picture: "trash"}) : null,
]);

function statusMenu(ids) {
  const options = [["", "Set status…"], ...statusOptions].map(([value, text]) => el("option", {value}, text));
  const menu = el("select", {class: "button small", "aria-label": "Set status"}, options);
  menu.addEventListener("change", () => done(() => api("PUT", "/api/videos/bulk/status", {video_ids: ids, status: menu.value})));
  return menu;
}

const download = (ids) => done(() => api("POST", "/api/videos/bulk/download", {video_ids: ids}));

async function remove(ids) {
  const sure = await confirmDialog({
    title: `Delete ${ids.length} ${ids.length === 1 ? "video" : "videos"}?`,
    text: "They leave the library. Files stay on the disk.",
    confirm: "Delete",
    danger: true,
  });
  if (sure) await done(() => api("POST", "/api/videos/bulk/delete", {video_ids: ids}));
}

/** Of an answer about many: what was done and what was not. */
async function done(work) {
  try {
    const {message, failed = [], not_found: missing = []} = await work();
    toast(message, failed.length + missing.length ? "" : "success");
  } catch (error) {
    toast(error.message, "error");
    return;
  }
  selection.clear();
  await refresh();
}

async function videos(mayShow) {
  const {sort, ...asked} = remember(form, page);
  const found = await api("GET", `/api/videos/search?${query({...asked, ...sorting(sort), limit: PER_PAGE, offset: (page - 1) * PER_PAGE})}`);
  if (!(await mayShow())) return null;
  const pages = Math.ceil(found.total / PER_PAGE);
  part("total").textContent = found.total.toLocaleString("en");
  if (pages && page > pages) return go(pages);
  show(part("pager"), {content: pager(page, pages, go)});
  const choose = can("user") ? selection.choose : null;
  if (found.videos.length) return found.videos.map((video) => videoTile(video, {choose, chosen: selection.ids.has(video.id)}));
  if (Object.keys(asked).length) return {empty: "No video matches.", picture: "search", action: el("a", {class: "button", href: "/videos"}, "Show all")};
  return {empty: "No videos yet.", picture: "video", action: el("a", {class: "button primary", href: "/discover"}, "Discover videos")};
}

const refresh = () => load(part("videos"), videos, 8);

function go(number) {
  page = number;
  scrollTo({top: 0});
  return refresh();
}

onReady(async () => {
  part("status").append(...statusOptions.map(([value, text]) => el("option", {value}, text)));
  part("quality").append(...QUALITIES.map((value) => el("option", {value}, value)));
  const asked = new URLSearchParams(location.search);
  part("more").open = MORE.some((name) => asked.has(name));
  if (asked.has("genre")) part("genre").append(el("option", {value: asked.get("genre")}, asked.get("genre")));
  filters(form, () => go(1));
  await refresh();
  const {genres} = await api("GET", "/api/genres");
  const known = new Set([...part("genre").options].map((option) => option.value));
  part("genre").append(...genres.filter(({name}) => !known.has(name)).map(({name}) => el("option", {value: name}, name)));
});
